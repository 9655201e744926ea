"""Linear baselines on the inputs' summaries: all of them together, and each alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polymodal.data.gather import Progress, silent
from polymodal.data.loader import Prepared
from polymodal.model import ALL, Model
from polymodal.nn.linear import Linear
from polymodal.nn.optimise import minimise
from polymodal.task import VectorTask
from polymodal.types import Masked

STRENGTHS = (3e-3, 1e-3, 3e-4, 1e-4)
"""Penalties to choose from, strongest first: each fit starts where the one before ended."""

ROWS = 20_000
"""Most rows that a baseline learns from; more would cost time and memory, and hardly change it."""

SCALE_ROWS = 2_000
"""Most rows that the scale of a thawed backbone's summaries is taken from, each of which goes through it."""

STEPS = 30
BATCH = 1024


@dataclass(frozen=True, slots=True)
class Summaries:
    """Summaries (n, F) of many rows, presence (n, M) and targets by task."""

    features: Tensor
    present: Tensor
    targets: dict[str, Masked]

    def without(self, hidden: Sequence[int]) -> Summaries:
        """Take inputs away by their number."""
        present = self.present.clone()
        present[:, list(hidden)] = False
        return Summaries(self.features, present, self.targets)


def fit_baselines(
    model: Model,
    train: Prepared,
    valid: Prepared | None,
    device: torch.device,
    penalties: Mapping[tuple[str, str], float] | None = None,
    progress: Progress = silent,
) -> dict[tuple[str, str], float]:
    """Fit every task's linear models in place, each with the penalty that does best on the validation rows.

    Args:
        model: whose linear models are fitted.
        train: rows to learn from.
        valid: rows to choose on; without labelled ones a middle penalty is taken.
        device: of the model.
        penalties: (task, label) -> the penalty to take, where it was chosen before.
        progress: told how many are done.

    Returns:
        (task, label) -> the penalty taken.
    """
    taken: dict[tuple[str, str], float] = {}
    if not model.linear.names:
        return taken
    seen = summaries(model, _some(model, train, ROWS), device)
    held = None if valid is None else summaries(model, _some(model, valid, ROWS), device)
    total, done = sum(len(family.names) for _, family in model.linear.items()), 0
    for n, family in model.linear.items():
        for label, linear in family.items():
            hidden = [i for i, name in enumerate(model.names) if label not in (ALL, name)]
            known = (penalties or {}).get((n, label))
            strengths = STRENGTHS if known is None else (known,)
            parts = seen.without(hidden), held and held.without(hidden)
            taken[n, label] = _fit(model.vector_task(n), linear, n, *parts, strengths)
            done += 1
            progress("baselines", done, total)
    return taken


def adapt(model: Model, train: Prepared, device: torch.device) -> None:
    """Standardise the model's summaries like those of the training rows.

    Those of a thawed backbone are as it was pretrained: the scale is a fixed part of the model that is trained on it.
    """
    if model.to(device).summarised:
        some = _some(model, train, SCALE_ROWS if model.thawed.names else ROWS)
        seen = summaries(model, some, device, model.summarised)
        model.adapt(seen.features, seen.present)


def _some(model: Model, train: Prepared, count: int) -> Prepared:
    keep = np.random.default_rng(model.spec.seed).permutation(len(train))[:count]
    return train.select(np.sort(keep))


@torch.no_grad()
def summaries(
    model: Model, prepared: Prepared, device: torch.device, names: Collection[str] | None = None
) -> Summaries:
    """Summarise every row, in any order; 0 where an input is not among the ``names``, if there are any."""
    features, present, targets = [], [], {n: [] for n in model.spec.outputs}
    for rows in prepared.parts(BATCH):
        batch = prepared.batch(rows).to(device)
        some, here = model.summaries({name: x for name, x in batch.inputs.items() if names is None or name in names})
        features.append(some)
        present.append(here)
        for n, target in batch.targets.items():
            targets[n].append(target)
    joined = {n: Masked.join(parts) for n, parts in targets.items()}
    return Summaries(torch.cat(features), torch.cat(present), joined)


def _fit(
    task: VectorTask,
    linear: Linear,
    name: str,
    seen: Summaries,
    held: Summaries | None,
    strengths: Sequence[float],
) -> float:
    """Minimise the task's loss plus a ridge penalty; keep the strength with the lowest held-out loss."""
    linear.standardise(seen.features, seen.present)
    design, basis = _compact(linear.design(seen.features, seen.present))
    weight = torch.zeros(design.shape[1], linear.weight.shape[1], device=design.device)
    bias = torch.zeros_like(linear.bias)
    watched = held is not None and bool(held.targets[name].present.any())
    best, lowest, taken = (weight, bias), float("inf"), strengths[0]
    for strength in strengths:
        weight, bias = _minimise(task, design, seen.targets[name], strength, weight, bias)
        linear.weight.copy_(basis @ weight)
        linear.bias.copy_(bias)
        loss = float(strength != strengths[len(strengths) // 2])
        if held is not None and watched:
            loss = task.loss(linear(held.features, held.present), held.targets[name]).item()
        if loss < lowest:
            best, lowest, taken = (weight, bias), loss, strength
    linear.weight.copy_(basis @ best[0])
    linear.bias.copy_(best[1])
    return taken


def _compact(design: Tensor) -> tuple[Tensor, Tensor]:
    """Factor a design (n, F) into (n, r) times the transpose of an orthonormal basis (F, r), r <= min(n, F).

    A ridge solution lies in the span of the rows, so fewer rows than features make a smaller problem with the
    same answer.
    """
    rows, features = design.shape
    if rows >= features:
        return design, torch.eye(features, device=design.device)
    values, vectors = torch.linalg.eigh((design @ design.T).double())
    keep = values > values[-1].clamp(min=1e-12) * 1e-9
    root, vectors = values[keep].sqrt(), vectors[:, keep]
    return (vectors * root).to(design), design.T @ (vectors / root).to(design)


def _minimise(
    task: VectorTask, design: Tensor, target: Masked, strength: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and bias of least penalised loss, starting from given ones."""
    size = weight.numel()

    def loss(x: Tensor) -> Tensor:
        w, b = x[:size].view_as(weight), x[size:]
        return task.loss(design @ w + b, target) + strength * w.square().sum() / 2

    x = minimise(loss, torch.cat([weight.flatten(), bias]), STEPS)
    return x[:size].view_as(weight), x[size:]
