"""The robust scale of a column of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

BINS = 16  # quantile bins of the piecewise-linear embedding


class Scale(BaseModel):
    """Robust scale of one column.

    Attributes:
        center: median of the training values.
        scale: their interquartile range; their standard deviation where that is 0; 1 for a constant column.
        edges: increasing edges of up to 16 quantile bins, in scaled units.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    center: float
    scale: float = Field(gt=0)
    edges: tuple[float, ...] = Field(min_length=2)

    @classmethod
    def of(cls, values: Sequence[float], clip: float) -> Self:
        """Measure finite values, at least one."""
        x = np.asarray(values, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            low, center, high = np.quantile(x, (0.25, 0.5, 0.75))
            scale = next((float(s) for s in (high - low, x.std()) if np.isfinite(s) and s > 0), 1.0)
            edges = np.unique(np.quantile(scaled(x, center, scale, clip), np.linspace(0, 1, BINS + 1)))
        if len(edges) < 2:
            edges = np.array([edges[0], edges[0] + 1])
        return cls(center=float(center), scale=scale, edges=tuple(edges.tolist()))


def scaled(x: np.ndarray, center: float, scale: float, clip: float) -> np.ndarray:
    """(x - center) / scale, limited to +-clip; NaN stays."""
    with np.errstate(over="ignore"):
        return np.clip((x - center) / scale, -clip, clip)
