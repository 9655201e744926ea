"""Predictions in the targets' own units, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from polymodal import metrics

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Central intervals whose coverage is shown."""


def half_width(level: float) -> float:
    """Half width of a normal variable's central interval, in standard deviations."""
    return NormalDist().inv_cdf((1 + level) / 2)


@dataclass(frozen=True, slots=True)
class Answer:
    """Predictions for B rows, (B, K) each, in the targets' own units. None is not known.

    Attributes:
        value: mean, or median.
        low: of the interval.
        high: of the interval.
        std: standard deviation.
        quantiles: (B, K, Q), rising.
        density: whether each row has a normal distribution of its own, and not one deviation for all.
    """

    value: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    std: np.ndarray | None = None
    quantiles: np.ndarray | None = None
    density: bool = False

    def coverage(self, true: np.ndarray) -> dict[str, float]:
        """Share of the known values (B, K) that lie in their interval, all targets together."""
        if self.low is None or self.high is None:
            return {}
        known = ~np.isnan(true)
        return {"coverage": metrics.coverage(true[known], self.low[known], self.high[known])}

    def single(self, k: int, true: np.ndarray, levels: Sequence[float]) -> dict[str, float]:
        """Scores of one target over its known values; ``levels`` are those of the quantiles."""
        known = ~np.isnan(true[:, k])
        y, value = true[known, k], self.value[known, k]
        scores = {"r2": metrics.r2(y, value), "mae": metrics.mae(y, value), "rmse": metrics.rmse(y, value)}
        if self.density and self.std is not None:
            scores["nll"] = metrics.gaussian_nll(y, value, self.std[known, k])
        if self.quantiles is not None:
            table = self.quantiles[known, k].T
            each = [metrics.pinball(y, q, level) for q, level in zip(table, levels, strict=True)]
            scores["pinball"] = metrics.mean(np.array(each))
        if self.low is not None and self.high is not None:
            low, high = self.low[known, k], self.high[known, k]
            scores |= {"coverage": metrics.coverage(y, low, high), "width": metrics.mean(high - low)}
        return scores

    def misses(self, true: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
        """How far known values lie from their prediction.

        Args:
            true: (B, K), NaN where unknown.
            scale: (K,) unit of each target, for what has no deviation.

        Returns:
            In deviations, all targets together, where there are any. Else for each target: beyond the interval (below
            0 inside it) where there are quantiles, or from the value.
        """
        error = np.abs(true - self.value)
        if self.std is not None:
            groups = [(error / self.std).ravel()]
        elif self.low is not None and self.high is not None:
            groups = list((np.maximum(self.low - true, true - self.high) / scale).T)
        else:
            groups = list((error / scale).T)
        return [group[~np.isnan(group)] for group in groups]

    def reliability(self, true: np.ndarray, levels: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
        """How often known values lie where they should: inside central intervals, or below each quantile."""
        known = ~np.isnan(true)
        if not known.any():
            return {}
        found: dict[str, list[dict[str, Any]]] = {}
        if self.std is not None:
            z = np.abs(true - self.value)[known] / self.std[known]
            found["levels"] = [{"level": p, "coverage": metrics.mean(z <= half_width(p))} for p in LEVELS]
        if self.quantiles is not None:
            below = true[known][:, None] <= self.quantiles[known]
            share = below.mean(0).tolist()
            found["quantiles"] = [{"level": p, "below": s} for p, s in zip(levels, share, strict=True)]
        return found
