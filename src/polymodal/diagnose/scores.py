"""A metric on fixed rows and on the same rows drawn again, so that every difference comes with a paired interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polymodal.diagnose.weighing import rules
from polymodal.errors import SpecError, suggest
from polymodal.metrics import higher_is_better
from polymodal.task import Task
from polymodal.types import Masked

Array = NDArray[Any]

AIMLESS = frozenset({"coverage", "width", "set_size", "ece"})
"""Metrics off which no contribution can be read: better neither high nor low, or best for one answer to all rows."""

WORK = 10_000
"""Rows of resamples that `Task.metrics` is asked about per set of outputs, where a metric has no faster rule."""

FEWEST = 30
"""Resamples of such a metric, however many rows there are."""

BLOCK = 32
"""Resamples that are weighed together."""


def choose_metrics(seen: Mapping[str, Mapping[str, float]], wanted: str | None) -> dict[str, str]:
    """The metric by which each task is diagnosed: the wanted one where the task has it, else its headline.

    Args:
        seen: task -> its scores, the headline first.
        wanted: a metric's name, for every task that has it, or "task.metric" for one of them.

    Raises:
        SpecError: no task has the wanted metric, or it has no better side.
    """
    usable = {n: [m for m in scores if m.rsplit("/", 1)[-1] not in AIMLESS] for n, scores in seen.items()}
    chosen = {n: metrics[0] for n, metrics in usable.items() if metrics}
    if wanted is None:
        return chosen
    found = {n: m for n, metrics in usable.items() for m in metrics if wanted in (m, f"{n}.{m}")}
    if not found:
        known = sorted({m for metrics in usable.values() for m in metrics})
        raise SpecError(f"metric must be one of {known}, got {wanted!r}.{suggest(wanted, known)}")
    return chosen | found


class Scorer:
    """One metric of one task on its labelled rows.

    A *sample* is an array (1 + R,): the metric on the rows, then on R resamples of them. The resamples are the same for
    every set of outputs, so that differences of samples are paired.

    Source: Efron and Tibshirani 1993, chapters 13 (percentile interval) and 16.2 (the pairs are drawn together).

    Attributes:
        count: labelled rows.
        sign: 1 where more of the metric is better, else -1.
    """

    def __init__(self, task: Task, metric: str, target: Masked, repeats: int, seed: int) -> None:
        self.task, self.metric, self.repeats = task, metric, repeats
        self.rows = target.present.nonzero().flatten()
        self.target, self.count = target[self.rows], len(self.rows)
        self.sign = 1.0 if higher_is_better(metric) else -1.0
        rng = np.random.default_rng(seed)
        draws = [np.bincount(rng.integers(0, self.count, self.count), minlength=self.count) for _ in range(repeats)]
        self.counts = np.stack([np.ones(self.count, int), *draws]).astype(np.uint16)

    def __call__(self, output: Tensor) -> Array:
        """Score raw outputs (B, ...) of all rows. (1 + R,); NaN where the metric is not defined."""
        output = output[self.rows]
        score = self._score(output, self.target)
        rule = rules(self.task).get(self.metric)
        if rule is not None:
            weigh = rule(output, self.target)
            # A task that overrides `metrics` may mean something else by the name.
            if math.isclose(weigh(self.counts[:1].astype(float))[0], score, rel_tol=1e-6, abs_tol=1e-9):
                blocks = [weigh(self.counts[i : i + BLOCK].astype(float)) for i in range(1, 1 + self.repeats, BLOCK)]
                return np.concatenate([[score], *blocks])
        return np.concatenate([[score], self._resampled(output)])

    def _score(self, output: Tensor, target: Masked) -> float:
        return self.task.metrics(output, target).get(self.metric, math.nan)

    def _resampled(self, output: Tensor) -> Array:
        """The metric on resamples; where that is much work, only on the first of them, and NaN on the others."""
        repeats = min(self.repeats, max(FEWEST, WORK // self.count))
        draws = np.full(self.repeats, math.nan)
        for i in range(repeats):
            pick = torch.from_numpy(np.repeat(np.arange(self.count), self.counts[1 + i]))
            draws[i] = self._score(output[pick], self.target[pick])
        return draws


def number(value: float) -> float | None:
    """As JSON: None where it is not defined."""
    return float(value) if math.isfinite(value) else None


def interval(sample: Array) -> list[float] | None:
    """Percentile interval (95 %) of a sample; None where fewer than two resamples are defined."""
    draws = sample[1:][np.isfinite(sample[1:])]
    return np.quantile(draws, [0.025, 0.975]).tolist() if len(draws) > 1 else None


def scored(sample: Array) -> dict[str, Any]:
    """A score and its interval."""
    return {"score": number(sample[0]), "interval": interval(sample)}


def difference(sample: Array) -> dict[str, Any]:
    """A difference, its interval, and whether that holds 0 (or is not known): then it is noise."""
    ends = interval(sample)
    noise = ends is None or not math.isfinite(sample[0]) or ends[0] <= 0 <= ends[1]
    return {"value": number(sample[0]), "interval": ends, "noise": noise}
