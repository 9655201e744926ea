"""Scores of predicted numbers, and bootstrap intervals of any score."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from polymodal.metrics.base import Array, mean


def r2(true: Array, predicted: Array) -> float:
    """Share of the variance of (N,) that is explained; NaN where there is no variance."""
    true = np.asarray(true, float)
    if not len(true) or true.min() == true.max():
        return math.nan
    return float(1 - ((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum())


def mae(true: Array, predicted: Array) -> float:
    """Mean absolute error, in the unit of the target."""
    return mean(np.abs(np.asarray(true, float) - predicted))


def rmse(true: Array, predicted: Array) -> float:
    """Root mean squared error, in the unit of the target."""
    return math.sqrt(mean((np.asarray(true, float) - predicted) ** 2))


def bootstrap(
    score: Callable[[Array], float], n: int, repeats: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a score over rows drawn again with replacement.

    Source: Efron 1979; percentile method, Efron and Tibshirani 1993, chapter 13.

    Args:
        score: from row indices (n,) to the score; a NaN draw is left out.
        n: number of rows.
        repeats: number of draws.
        seed: of the draws.
        level: share of draws inside the interval.

    Returns:
        Low and high end; NaN where no draw has a score.
    """
    if n < 1:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    draws = np.array([score(rng.integers(0, n, n)) for _ in range(repeats)], float)
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
