"""Two models on the same validation rows: whether the new one is better as a whole, beyond noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from polymodal.data.loader import Prepared
from polymodal.diagnose.losses import losses
from polymodal.evaluate import Answers, answers
from polymodal.metrics import bootstrap, higher_is_better
from polymodal.model import Model
from polymodal.task import Task, VectorTask
from polymodal.types import Masked

REPEATS = 2000
"""Resamples of the rows for the loss, by which it is decided."""

METRIC_REPEATS = 300
"""Resamples for a metric, as many as an evaluation takes."""

WHOLE = ("all inputs", "")


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model answers on validation rows that it has not learned from.

    Attributes:
        tasks: calibrated.
        variants: ("all inputs", ""), ("without", input) or ("alone", input) -> raw outputs and targets.
        losses: (n,) loss of each row with every input and, as much again, without one: see `of`.
        whole: (n,) loss of each row with every input.
        alone: input -> (n,) loss of each row with nothing but this input.
    """

    tasks: Mapping[str, Task]
    variants: Mapping[tuple[str, str], Answers]
    losses: np.ndarray
    whole: np.ndarray
    alone: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: Model, valid: Prepared, device: torch.device) -> Self:
        """Answer the rows with every input, without each and with each alone.

        A row's loss is the mean of its loss with every input and of its mean loss without one of them: `tune` chooses
        the blend by the same sum. A model that is to answer with inputs missing is no better if only the full rows
        gain, and one that holds up better without its strongest input is better, though the full rows cannot show it.
        """
        names = model.names
        hidden = {WHOLE: list[str]()}
        if len(names) > 1:
            hidden |= {("without", name): [name] for name in names}
            hidden |= {("alone", name): [other for other in names if other != name] for name in names}
        variants = {key: answers(model, valid, device, gone) for key, gone in hidden.items()}
        whole, without = _losses(model, variants[WHOLE]), [key for key in hidden if key[0] == "without"]
        removed = np.mean([_losses(model, variants[key]) for key in without], 0) if without else whole
        alone = {key[1]: _losses(model, variants[key]) for key in hidden if key[0] == "alone"}
        return cls(dict(model.spec.outputs), variants, (whole + removed) / 2, whole, alone)

    @classmethod
    def join(cls, parts: Sequence[Judged]) -> Judged:
        """The rows of several folds together, with the first one's calibration."""
        first = parts[0]
        variants = {key: _join([part.variants[key] for part in parts], first.tasks) for key in first.variants}
        losses, whole = (np.concatenate([getattr(part, name) for part in parts]) for name in ("losses", "whole"))
        alone = {name: np.concatenate([part.alone[name] for part in parts]) for name in first.alone}
        return cls(first.tasks, variants, losses, whole, alone)

    def metric(self, n: str) -> str | None:
        """A task's headline score, where it has one on these rows."""
        return next(iter(self._scores(WHOLE, n)), None)

    def side(self, n: str) -> dict[str, Any]:
        """A task's headline score as JSON: with every input, without each and with each alone."""
        metric = self.metric(n)
        found: dict[str, Any] = {"loss": float(self.losses.mean()), "loss_all_inputs": float(self.whole.mean())}
        if metric is None:
            return found
        found["score"] = self._scores(WHOLE, n)[metric]
        for kind in ("without", "alone"):
            values = {name: self._scores((k, name), n).get(metric) for k, name in self.variants if k == kind}
            found[kind] = {name: value for name, value in values.items() if value is not None}
        return found

    def headline(self, n: str) -> Callable[[np.ndarray], float]:
        """A task's headline score of any rows with every input; NaN where there is none."""
        seen = self.variants[WHOLE]
        return self.tasks[n].headline(seen.outputs[n], seen.targets[n]) or (lambda rows: math.nan)

    def _scores(self, key: tuple[str, str], n: str) -> dict[str, float]:
        seen = self.variants[key]
        return self.tasks[n].metrics(seen.outputs[n], seen.targets[n])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a change is kept.

    Attributes:
        accepted: it is.
        reason: in words, with the numbers.
        tasks: task name -> ``metric``, ``before``, ``after``, ``difference``, fit for JSON.
    """

    accepted: bool
    reason: str
    tasks: dict[str, dict[str, Any]]


def judge(before: Judged, after: Judged, control: Judged, name: str, seed: int) -> Verdict:
    """Compare models on the same rows, by a paired bootstrap over rows.

    The change is kept if the whole 95 % interval of the difference in loss lies below 0, and likewise that of the
    difference from the control, which was trained further without the change; if the loss with every input did not
    rise, nor that with nothing but the input ``name``, which was to get better; and if no task's headline score with
    every input fell. All sides had their epochs, blend and calibration chosen on these rows, and the new one had more
    to choose: hence a two-sided interval, whose end is further out than that of a one-sided one. That makes up for the
    choosing in part only: with few rows a narrow win may be luck. Take ``folds`` there.

    Source: Efron and Tibshirani 1993, chapters 13 and 16 (percentile interval of a paired difference).
    """
    loss = _fall(before, after, seed) | {"control": _fall(control, after, seed)}
    if name in before.alone:
        loss["alone"] = float((after.alone[name] - before.alone[name]).mean())
    tasks, fallen = {}, list[str]()
    for n in before.tasks:
        metric = before.metric(n)
        tasks[n] = {"metric": metric, "before": before.side(n), "after": after.side(n), "difference": {"loss": loss}}
        if metric is not None:
            value = tasks[n]["after"]["score"] - tasks[n]["before"]["score"]
            for key, interval in _intervals(before, after, n, seed).items():
                tasks[n][key]["interval"] = interval
            tasks[n]["difference"]["value"] = value
            if (value if higher_is_better(metric) else -value) < 0:
                fallen.append(f"{n}: {metric} {tasks[n]['before']['score']:.3f} -> {tasks[n]['after']['score']:.3f}")
    faults, rows = _faults(loss, fallen, name), len(before.losses)
    said = f"On {rows} validation rows the loss with every input and without each changed by {_said(loss)}"
    if faults:
        return Verdict(False, f"{said}: this {', and '.join(faults)}, so the old model is kept.", tasks)
    return Verdict(True, f"{said}, and no score with every input fell.", tasks)


def _faults(loss: Mapping[str, Any], fallen: Sequence[str], name: str) -> list[str]:
    """What speaks against a change."""
    low, high = loss["interval"]
    faults = []
    if high >= 0:
        faults.append("is within noise" if low <= 0 else "is for the worse")
    elif loss["control"]["interval"][1] >= 0:
        faults.append(f"is no more than training on without the change gives: {_said(loss['control'])} from there")
    if loss["all_inputs"] > 0:
        faults.append(f"comes with a higher loss with every input ({loss['all_inputs']:+.4f})")
    if loss.get("alone", 0.0) > 0:
        faults.append(f"comes with a higher loss with {name} alone ({loss['alone']:+.4f})")
    if fallen:
        faults.append(f"comes with a lower score ({'; '.join(fallen)})")
    return faults


def _fall(before: Judged, after: Judged, seed: int) -> dict[str, Any]:
    """After minus before of the rows' losses, with its interval, and of the losses with every input."""
    fall = after.losses - before.losses
    ends = bootstrap(lambda rows: float(fall[rows].mean()), len(fall), REPEATS, seed)
    whole = float((after.whole - before.whole).mean())
    return {"value": float(fall.mean()), "interval": list(ends), "all_inputs": whole}


def _said(fall: Mapping[str, Any]) -> str:
    low, high = fall["interval"]
    return f"{fall['value']:+.4f} (95 % {low:+.4f} to {high:+.4f})"


def _intervals(before: Judged, after: Judged, n: str, seed: int) -> dict[str, list[float]]:
    """Intervals of a score before, after, and of the difference, over the same rows drawn again."""
    labelled = before.variants[WHOLE].targets[n].present.nonzero().flatten().numpy()
    drawn: list[tuple[float, float]] = []
    old, new = before.headline(n), after.headline(n)

    def difference(picks: np.ndarray) -> float:
        drawn.append((old(labelled[picks]), new(labelled[picks])))
        return drawn[-1][1] - drawn[-1][0]

    ends = bootstrap(difference, len(labelled), METRIC_REPEATS, seed)
    sides = np.nanquantile(drawn, (0.025, 0.975), axis=0).T.tolist()
    return {"before": sides[0], "after": sides[1], "difference": list(ends)}


def _losses(model: Model, seen: Answers) -> np.ndarray:
    """Each row's loss of its calibrated answer; their mean is the weighted sum of the tasks' losses. (n,).

    A match that cannot be looked for costs as much as one that is never found: 1.
    """
    rows = len(next(iter(seen.targets.values())))
    total = np.zeros(rows)
    for n, task in model.spec.outputs.items():
        output, target = seen.outputs[n], seen.targets[n]
        if isinstance(task, VectorTask):
            output = task.settle(output, torch.tensor(task.certainty))
        if "label_smoothing" in type(task).model_fields:  # of training: a sure and right answer is not to cost
            task = task.model_copy(update={"label_smoothing": 0.0})
        labelled = target.present
        each = np.nan_to_num(losses(task, output[labelled], target[labelled]), nan=1.0)
        total[labelled.numpy()] += task.weight * each * rows / max(1, len(each))
    return total


def _join(parts: Sequence[Answers], tasks: Mapping[str, Task]) -> Answers:
    def outputs(n: str) -> Tensor:
        return tasks[n].join([part.outputs[n] for part in parts])

    names = list(parts[0].outputs)
    return Answers({n: outputs(n) for n in names}, {n: Masked.join([p.targets[n] for p in parts]) for n in names})
