"""diagnose: everything there is to say about the inputs of a model, from labelled rows."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polymodal.data.embedding import Embedder
from polymodal.data.gather import Progress, silent
from polymodal.data.loader import Prepared
from polymodal.data.table import Table
from polymodal.diagnose.ceilings import Ceiling, ceilings, constant
from polymodal.diagnose.curves import curves
from polymodal.diagnose.learning import learning
from polymodal.diagnose.losses import chances
from polymodal.diagnose.permute import PERMUTATIONS, permuted, presence
from polymodal.diagnose.problems import problems
from polymodal.diagnose.scores import Scorer, choose_metrics, difference, number, scored
from polymodal.diagnose.subsets import Game, Played, play
from polymodal.diagnose.verdict import verdict
from polymodal.diagnose.words import block
from polymodal.errors import DataError, SpecError
from polymodal.evaluate import answers
from polymodal.model import Model
from polymodal.task import VectorTask

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What each input carries, what the model makes of it, and where it breaks.

    Attributes:
        content: JSON-able: ``tasks`` (scores of all subsets, each input's numbers, pairs), ``learning``, ``problems``,
            ``verdict`` (one entry per task and input), ``weakest`` (an input's name or None) and ``summary``.
    """

    content: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able mappings; None stands for numbers that are not finite, which JSON does not have."""
        return json.loads(json.dumps(self.content), parse_constant=lambda _: None)

    def __str__(self) -> str:
        """Verdict first, then a table per task."""
        return block(self.content)


def diagnose(  # noqa: PLR0913  (each argument stands for itself)
    model: Model,
    prepared: Prepared,
    table: Table,
    embedder: Embedder,
    device: torch.device,
    *,
    fit_report: Mapping[str, Any],
    metric: str | None = None,
    curve_rows: int = 32,
    repeats: int = 300,
    train: Prepared | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose a model.

    Args:
        model: in evaluation mode, on ``device``.
        prepared: rows with features and targets.
        table: that they were prepared from.
        embedder: that they were prepared with.
        device: of the model.
        fit_report: ``fit`` of the model's report; how it learned is read from its ``history``.
        metric: by which to judge, for every task that has it, or "task.metric"; the headline score where not given.
        curve_rows: rows whose inputs are corrupted step by step; 0 draws no curves.
        repeats: resamples of the rows behind each interval, at least 2.
        train: rows that the model learned from, to look for the same content in.
        seed: of resamples and permutations.
        progress: told what is being done, how much of it is done and how much there is.

    Raises:
        DataError: no row is labelled, or no score is defined on them.
        SpecError: no task has the metric, or a number is too low.
    """
    started = time.process_time()
    for what, value, least in (("curve_rows", curve_rows, 0), ("repeats", repeats, 2), ("seed", seed, 0)):
        if value < least:
            raise SpecError(f"{what} must be {least} or more, got {value}.")
    rows = prepared.labelled()
    if not len(rows):
        raise DataError(f"{prepared.report.source} must have labelled rows to diagnose on, got none. Fill in targets.")
    study = _Study(model, rows, device, metric, repeats, seed, progress)
    tasks = study.tasks()
    metrics = {n: task["metric"] for n, task in tasks.items()}
    if curve_rows:
        drawn = curves(
            model, table, rows, embedder, device, rows=curve_rows, seed=seed, metric=metrics, progress=progress
        )
        for n, task in tasks.items():
            for name, found in drawn[n].items():
                task["inputs"][name]["curves"] = found
    potentials = {
        n: {name: x["potential"]["value"] or 0.0 for name, x in t["inputs"].items()} for n, t in tasks.items()
    }
    learned = learning(fit_report.get("history") or [], potentials)
    content = {
        "source": prepared.report.source,
        "rows": len(rows),
        "inputs": list(model.names),
        "kinds": {name: part.kind for name, part in model.spec.inputs.items()},
        "seed": seed,
        "settings": {"metric": metric, "permutations": PERMUTATIONS, "repeats": repeats, "curve_rows": curve_rows},
        "tasks": tasks,
        "learning": learned,
        "problems": problems(model, rows, table, device, train=train, seed=seed),
        **verdict(tasks, learned),
    }
    return Diagnosis(content | {"cpu_seconds": time.process_time() - started})


class _Study:
    """Everything about a model's inputs that is read off its answers to prepared rows."""

    def __init__(
        self,
        model: Model,
        rows: Prepared,
        device: torch.device,
        metric: str | None,
        repeats: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self.model, self.rows, self.device, self.seed, self.progress = model, rows, device, seed, progress
        self.targets = {n: target[rows.rows] for n, target in rows.targets.items()}
        seen = answers(model, rows, device).outputs
        outputs = model.spec.outputs
        self.scores = {n: task.metrics(seen[n], self.targets[n]) for n, task in outputs.items()}
        metrics = choose_metrics(self.scores, metric)
        if not metrics:
            raise DataError(
                f"{rows.report.source} must have rows on which a score is defined, got {len(rows)} labelled rows on "
                f"which none is. Add rows, of more than one class."
            )
        self.scorers = {n: Scorer(outputs[n], m, self.targets[n], repeats, seed) for n, m in metrics.items()}

    def tasks(self) -> dict[str, Any]:
        """Diagnose every task that has labels."""
        model, rows, device = self.model, self.rows, self.device
        game = Game.of(model.names, self.seed)
        played = play(model, rows, device, game, self.scorers, self.progress)
        played = {n: self._together(n, found) for n, found in played.items()}
        present = presence(rows)
        shuffled = permuted(model, rows, device, self.scorers, present, self.seed, self.progress)
        tops = ceilings(model, rows, device, self.scorers)
        found = {}
        for n, scorer in self.scorers.items():
            grounded, by = self._grounded(n, played[n])
            inputs = {}
            for i, name in enumerate(model.names):
                known = present[name][self.targets[n].present].float().mean().item()
                shares = {"present": known, "broken": self._broken(name)}
                inputs[name] = shares | _input(grounded, i, tops[n][name], shuffled[n][name])
            found[n] = {
                "kind": model.spec.outputs[n].kind,
                "metric": scorer.metric,
                "higher_is_better": scorer.sign > 0,
                "rows": scorer.count,
                "scores": self.scores[n],
                "hidden": number(played[n].empty[0]),
                "floor": {"score": number(grounded.empty[0]), "by": by},
                "lift": difference(scorer.sign * (grounded.full - grounded.empty)),
                **grounded.content(),
                "inputs": inputs,
            }
        return found

    def _grounded(self, n: str, played: Played) -> tuple[Played, str]:
        """Let the empty subset be worth what needs no input.

        That is the better of the model with every input hidden and the best constant answer: no model is trained on
        rows without any input, so what it says of them may be far worse than what it knows.

        Returns:
            The game, and which of the two it is: "hidden" or "constant"; "random" where it is chance, since no input
            answers by itself.
        """
        task = self.model.spec.outputs[n]
        if not isinstance(task, VectorTask):
            return played, "random" if chances(task, self.targets[n]) else "hidden"
        sample = self.scorers[n](constant(task, self.targets[n]))
        if not played.sign * (sample[0] - played.empty[0]) > 0:
            return played, "hidden"
        return replace(played, samples={**played.samples, frozenset(): sample}), "constant"

    def _together(self, n: str, played: Played) -> Played:
        """Let a subset on which the task is not defined, since it asks for several inputs, be worth what chance is."""
        drawn = chances(self.model.spec.outputs[n], self.targets[n])
        if not drawn:
            return played
        chance = np.mean([self.scorers[n](output) for output in drawn], 0)
        samples = {s: chance if np.isnan(found[0]) else found for s, found in played.samples.items()}
        return replace(played, samples=samples)

    def _broken(self, name: str) -> float:
        """Share of this input's cells that could not be read. A row that cannot be read at all lacks all of them."""
        columns, rows = set(self.model.spec.inputs[name].columns(name)), set(self.rows.rows.tolist())
        broken = {(cell.row, cell.column) for cell in self.rows.report.inputs[name].quarantined if cell.row in rows}
        cells = sum(1 if column in columns else len(columns) for _, column in broken)
        return cells / (len(rows) * len(columns))


def _input(played: Played, i: int, tops: Ceiling, shuffled: Array | None) -> dict[str, Any]:
    """The numbers of one input of one task, as `verdict` reads them."""
    sign, alone, full, contribution = played.sign, played.alone(i), played.full, played.contribution(i)
    models = {"alone": alone, "own_head": tops.own_head, "linear": tops.linear}
    known = {by: sample for by, sample in models.items() if sample is not None and np.isfinite(sample[0])}
    by = max(known, key=lambda by: sign * known[by][0]) if known else "alone"
    best = known.get(by, alone)
    gain = sign * (alone - played.empty)
    lost = None
    if shuffled is not None:
        lost = difference(sign * (full - shuffled))
        lost = {"score": number(shuffled[0]), "loss": lost.pop("value"), **lost}
    return {
        "alone": scored(alone),
        "without": number((full - sign * contribution)[0]),
        "own_head": None if tops.own_head is None else number(tops.own_head[0]),
        "linear": None if tops.linear is None else number(tops.linear[0]),
        "ceiling": {"score": number(best[0]), "by": by},
        "gain": difference(gain),
        "potential": difference(sign * (best - played.empty)),
        "headroom": difference(sign * (best - alone)),
        "contribution": difference(contribution),
        "shapley": difference(played.shapley(i)),
        "overlap": difference(gain - contribution),
        "others": difference(sign * (full - alone)),
        "permuted": lost,
    }
