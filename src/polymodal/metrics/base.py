"""What all scores share: which way is better, what is defined, safe division."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LOWER_IS_BETTER = frozenset(
    ("loss", "nll", "brier", "ece", "hamming_loss", "mae", "rmse", "width", "beta_nll", "pinball", "crps", "set_size",
     "median_rank")
)  # fmt: skip
"""Scores that fall as a model gets better. All others rise."""


def higher_is_better(name: str) -> bool:
    """Whether a larger value is better: ``macro_f1``, ``price/mae`` of one of several targets, a task's ``y.nll``."""
    return name.replace(".", "/").rsplit("/", 1)[-1] not in LOWER_IS_BETTER


def defined(scores: Mapping[str, float]) -> dict[str, float]:
    """Plain floats, in order, without the scores that are NaN or infinite."""
    return {name: float(score) for name, score in scores.items() if math.isfinite(score)}


def divide(part: Array, whole: Array) -> Array:
    """``part / whole``, 0 where ``whole`` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)


def mean(values: Array) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan


# Classes -------------------------------------------------------------------------------------------------------------
