"""Scores of a model with all inputs, without each and with each alone, and baselines beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polymodal.data.loader import Prepared
from polymodal.metrics import bootstrap
from polymodal.model import ALL, Model
from polymodal.task import Task
from polymodal.types import Batch, Masked

BATCH = 256
REPEATS = 300

Decode = Callable[[Batch], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Answers:
    """Raw outputs and targets of a whole table: task name -> (B, ...)."""

    outputs: dict[str, Tensor]
    targets: dict[str, Masked]


@dataclass(frozen=True, slots=True)
class Report:
    """What a model is worth on a table. Prints as a table; `to_dict` holds all of it.

    Attributes:
        content: ``rows``, ``source``, ``inputs``, ``tasks`` (task name -> ``kind``, ``headline``, ``scores``,
            ``interval``, ``without``, ``alone`` and, where a language model answers, ``shuffled`` by input,
            ``baselines``, ``share`` of the linear model, ``details``), ``data`` (the data report) and ``warnings``.
    """

    content: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able mappings."""
        return json.loads(json.dumps(self.content))

    def __getitem__(self, task: str) -> dict[str, float]:
        """Scores of one task."""
        return self.content["tasks"][task]["scores"]

    def __str__(self) -> str:
        """One block per task: headline score of each variant, most complete first."""
        return "\n\n".join(_block(n, task, self.content["rows"]) for n, task in self.content["tasks"].items())


def answers(
    model: Model,
    prepared: Prepared,
    device: torch.device,
    hidden: Sequence[str] = (),
    decode: Decode | None = None,
    swapped: Mapping[str, Tensor] | None = None,
) -> Answers:
    """Answer every row.

    Args:
        model: in evaluation mode.
        prepared: rows with features.
        device: of the model.
        hidden: names of inputs to take away.
        decode: another way from a batch to raw outputs than the model's answer.
        swapped: input name -> (rows,) the row that each row gets this input from.
    """
    outputs: dict[str, list[Tensor]] = {n: [] for n in model.spec.outputs}
    targets: dict[str, list[Masked]] = {n: [] for n in model.spec.outputs}
    for rows in torch.arange(len(prepared)).split(BATCH):
        batch = prepared.batch(rows).without(*hidden)
        for name, source in (swapped or {}).items():
            batch.inputs[name] = prepared.batch(source[rows]).inputs[name]
        batch = batch.to(device)
        decoded = model.answer(batch.inputs).decoded if decode is None else decode(batch)
        for n, output in decoded.items():
            outputs[n].append(output.cpu())
            targets[n].append(batch.targets[n].to("cpu"))
    return Answers(
        {n: model.spec.outputs[n].join(parts) for n, parts in outputs.items() if parts},
        {n: Masked.join(parts) for n, parts in targets.items() if parts},
    )


@torch.no_grad()
def evaluate(model: Model, prepared: Prepared, device: torch.device, seed: int = 0) -> Report:
    """Everything there is to say about a model on labelled rows, from one pass over the features per variant."""
    spec, names = model.spec, list(model.spec.inputs)

    def scores(
        hidden: Sequence[str] = (), decode: Decode | None = None, swapped: Mapping[str, Tensor] | None = None
    ) -> dict[str, dict[str, float]]:
        seen = answers(model, prepared, device, hidden, decode, swapped)
        return {n: spec.outputs[n].metrics(output, seen.targets[n]) for n, output in seen.outputs.items()}

    full = answers(model, prepared, device)
    whole = {n: spec.outputs[n].metrics(output, full.targets[n]) for n, output in full.outputs.items()}
    several = len(names) > 1
    without = {name: scores([name]) for name in names} if several else {}
    alone = {name: scores([other for other in names if other != name]) for name in names} if several else {}
    shuffled = {name: scores(swapped={name: partners(prepared, name, seed)}) for name in names if model.decoders}
    blended = bool((model.share > 0).any())
    baselines = {"fusion model": scores(decode=lambda batch: model(batch.inputs).decoded) if blended else whole}
    for label, linear in model.baselines().items():
        baselines[f"linear, {label}" + ("" if label == ALL else " only")] = scores(decode=linear)
    tasks = {}
    for number, (n, task) in enumerate(spec.outputs.items()):
        output, target = full.outputs[n], full.targets[n]
        own = whole[n]
        tasks[n] = {
            "kind": task.kind,
            "headline": next(iter(own), None),
            "scores": own,
            "interval": intervals(task, output, target, seed),
            "without": {name: found[n] for name, found in without.items()},
            "alone": {name: found[n] for name, found in alone.items()},
            "shuffled": {name: found[n] for name, found in shuffled.items()},
            "baselines": {label: found[n] for label, found in baselines.items() if n in found},
            "share": float(model.share[number]),
            "details": task.details(output, target),
        }
    data = prepared.report
    content = {"rows": len(prepared), "source": data.source, "inputs": names, "tasks": tasks, "data": data.to_dict()}
    return Report(content | {"warnings": data.warnings()})


def partners(prepared: Prepared, name: str, seed: int) -> Tensor:
    """Another row for each row that has an input, to take it from: itself for all that lack it. (rows,)."""
    parts = torch.arange(len(prepared)).split(BATCH)
    present = torch.cat([prepared.batch(rows).inputs[name].present for rows in parts]).nonzero().flatten()
    order = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))]
    found = torch.arange(len(prepared))
    found[order] = order.roll(1)
    return found


def intervals(task: Task, output: Tensor, target: Masked, seed: int = 0) -> dict[str, list[float]]:
    """Bootstrap interval (95 %) of the headline score over labelled rows; empty where none can be given."""
    rows = target.present.nonzero().flatten().numpy()
    name, score = next(iter(task.metrics(output, target)), None), task.headline(output, target)
    if name is None or score is None or len(rows) < 2:
        return {}
    return {name: list(bootstrap(lambda pick: score(rows[pick]), len(rows), repeats=REPEATS, seed=seed))}


def _block(name: str, task: Mapping[str, Any], rows: int) -> str:
    shown = list(task["scores"])[:4]
    variants = {"all inputs": task["scores"]}
    variants |= {f"  without {i}": s for i, s in task["without"].items()}
    variants |= {f"  only {i}": s for i, s in task["alone"].items()}
    variants |= {f"  shuffled {i}": s for i, s in task.get("shuffled", {}).items()}
    variants |= {f"  {label}": s for label, s in task["baselines"].items()}
    variants = {label: scores for label, scores in variants.items() if scores or label == "all inputs"}
    width = max([len(name), *map(len, variants)]) + 2
    lines = [f"{name} ({task['kind']}, {rows} rows)".ljust(width) + "".join(metric.rjust(19) for metric in shown)]
    for label, scores in variants.items():
        cells = (f"{scores[metric]:.3f}" if metric in scores else "-" for metric in shown)
        lines.append(label.ljust(width) + "".join(cell.rjust(19) for cell in cells))
    if task["interval"]:
        metric, (low, high) = next(iter(task["interval"].items()))
        linear = any(label.startswith("linear") for label in task["baselines"])
        share = f"; linear model's share {task['share']:.2f}" if linear else ""
        lines.append(f"{metric}: 95 % interval {low:.3f} to {high:.3f}{share}")
    return "\n".join(lines)
