"""Linear baselines on the inputs' summaries: all of them together, and each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polymodal.data.gather import Progress, silent
from polymodal.data.loader import Prepared
from polymodal.model import ALL, Model
from polymodal.nn.linear import Linear
from polymodal.part import VectorTask
from polymodal.types import Masked

STRENGTHS = (1.0, 0.1, 0.01, 0.001)
"""Penalties to choose from, strongest first: each fit starts where the one before ended."""

ROWS = 20_000
"""Most rows that a baseline learns from; more would cost time and memory, and hardly change it."""

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
    model: Model, train: Prepared, valid: Prepared | None, device: torch.device, progress: Progress = silent
) -> None:
    """Fit every task's linear models in place, each with the penalty that does best on the validation rows.

    Without validation rows the middle penalty is taken.
    """
    keep = np.random.default_rng(model.spec.seed).permutation(len(train))[:ROWS]
    seen = summaries(model, train.select(np.sort(keep)), device)
    held = None if valid is None else summaries(model, valid, device)
    total, done = sum(len(family.names) for _, family in model.linear.items()), 0
    for n, family in model.linear.items():
        for label, linear in family.items():
            hidden = [i for i, name in enumerate(model.names) if label not in (ALL, name)]
            _fit(model.vector_task(n), linear, n, seen.without(hidden), held and held.without(hidden))
            done += 1
            progress("baselines", done, total)


@torch.no_grad()
def summaries(model: Model, prepared: Prepared, device: torch.device) -> Summaries:
    """Summarise every row."""
    features, present, targets = [], [], {n: [] for n in model.spec.outputs}
    for rows in torch.arange(len(prepared)).split(BATCH):
        batch = prepared.batch(rows).to(device)
        some, here = model.summaries(batch.inputs)
        features.append(some)
        present.append(here)
        for n, target in batch.targets.items():
            targets[n].append(target)
    joined = {n: Masked.join(parts) for n, parts in targets.items()}
    return Summaries(torch.cat(features), torch.cat(present), joined)


def _fit(task: VectorTask, linear: Linear, name: str, seen: Summaries, held: Summaries | None) -> None:
    """Minimise the task's loss plus a ridge penalty; keep the strength with the lowest held-out loss."""
    linear.standardise(seen.features, seen.present)
    design = linear.design(seen.features, seen.present)
    best, lowest = {}, float("inf")
    for strength in STRENGTHS:
        _minimise(task, linear, design, seen.targets[name], strength)
        if held is None:
            loss = 0.0 if strength == STRENGTHS[len(STRENGTHS) // 2] else 1.0
        else:
            loss = task.loss(linear(held.features, held.present), held.targets[name]).item()
        if loss < lowest or not best:
            best, lowest = {key: t.clone() for key, t in linear.state_dict().items()}, loss
    linear.load_state_dict(best)


def _minimise(task: VectorTask, linear: Linear, design: Tensor, target: Masked, strength: float) -> None:
    weight, bias = linear.weight.clone().requires_grad_(), linear.bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(design @ weight + bias, target) + strength * weight.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    linear.weight.copy_(weight.detach())
    linear.bias.copy_(bias.detach())
