"""The field's scores, as pure functions on numpy arrays.

A score that is not defined (AUROC with one class, R2 of a constant) is NaN; `defined` leaves such scores out of a
report, so that nothing is invented.

Shapes: N rows, K classes, labels or targets. Class labels are indices 0..K-1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


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


def one_hot(true: Array, k: int) -> Array:
    """Indices (N,) -> (N, k) bool."""
    return np.asarray(true)[:, None] == np.arange(k)


def confusion(true: Array, predicted: Array, k: int) -> Array:
    """Count the rows of each true class (first axis) by predicted class. (k, k) int."""
    return np.bincount(np.asarray(true, int) * k + np.asarray(predicted, int), minlength=k * k).reshape(k, k)


def accuracy(true: Array, predicted: Array) -> float:
    """Share of rows that are right."""
    return mean(np.asarray(true) == np.asarray(predicted))


def balanced_accuracy(true: Array, predicted: Array, k: int) -> float:
    """Mean recall over the classes that occur."""
    counts = confusion(true, predicted, k)
    support = counts.sum(1)
    return mean(divide(counts.diagonal(), support)[support > 0])


def counts_of(true: Array, predicted: Array) -> tuple[Array, Array, Array]:
    """True positives, false positives and false negatives per label of (N, K) bool arrays. (K,) each."""
    true, predicted = np.asarray(true, bool), np.asarray(predicted, bool)
    return (true & predicted).sum(0), (~true & predicted).sum(0), (true & ~predicted).sum(0)


def per_class(true: Array, predicted: Array) -> dict[str, Array]:
    """Precision, recall, F1 (0 where their denominator is) and support per label of (N, K) bool arrays."""
    hit, extra, missed = counts_of(true, predicted)
    return {
        "precision": divide(hit, hit + extra),
        "recall": divide(hit, hit + missed),
        "f1": divide(2 * hit, 2 * hit + extra + missed),
        "support": hit + missed,
    }


def macro_f1(true: Array, predicted: Array) -> float:
    """Mean F1 over the labels of (N, K) bool arrays that are true or predicted anywhere."""
    hit, extra, missed = counts_of(true, predicted)
    whole = 2 * hit + extra + missed
    return mean(divide(2 * hit, whole)[whole > 0])


def micro_f1(true: Array, predicted: Array) -> float:
    """F1 of all cells of (N, K) bool arrays together."""
    hit, extra, missed = (int(count.sum()) for count in counts_of(true, predicted))
    whole = 2 * hit + extra + missed
    return 2 * hit / whole if whole else math.nan


# Ranking -------------------------------------------------------------------------------------------------------------


def auroc(positive: Array, score: Array) -> float:
    """Chance that a positive row (N,) bool scores above a negative one; a tie counts half."""
    positive = np.asarray(positive, bool)
    n, p = len(positive), int(positive.sum())
    if p in (0, n):
        return math.nan
    _, level, size = np.unique(np.asarray(score), return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[level]
    return float((rank[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))


def average_precision(positive: Array, score: Array) -> float:
    """Precision at each distinct score, weighted by the recall it adds; NaN without a positive row."""
    positive = np.asarray(positive, bool)
    if not positive.any():
        return math.nan
    values, level = np.unique(-np.asarray(score, float), return_inverse=True)
    hits = np.bincount(level[positive], minlength=len(values))
    precision = np.cumsum(hits) / np.cumsum(np.bincount(level, minlength=len(values)))
    return float((precision * hits).sum() / hits.sum())


def macro(score: Callable[[Array, Array], float], positive: Array, scores: Array) -> float:
    """Mean of a ranking score over the columns of (N, K) arrays where it is defined.

    On one-hot classes that is one-versus-rest over the classes that occur.
    """
    return mean(np.array([score(positive[:, k], scores[:, k]) for k in range(positive.shape[1])]))


# Probabilities -------------------------------------------------------------------------------------------------------


def log_loss(true: Array, probabilities: Array) -> float:
    """Mean negative log probability of the true class (N,) in nats; probabilities (N, K) are clipped at 2e-16."""
    p = np.asarray(probabilities, float)[np.arange(len(true)), true]
    return mean(-np.log(np.clip(p, np.finfo(float).eps, 1.0)))


def brier(true: Array, probabilities: Array) -> float:
    """Half the mean squared distance of probabilities (N, K) from the truth (N, K) bool: 0 is best, 1 is worst.

    The half makes two classes agree with the usual binary score.

    Source: Brier 1950, equation 2, times one half.
    """
    return mean(((np.asarray(probabilities, float) - np.asarray(true, float)) ** 2).sum(1) / 2)


def reliability(right: Array, confidence: Array, bins: int = 15) -> list[dict[str, float]]:
    """Compare confidence with how often it was right, in bins of equal width.

    Args:
        right: (N,) bool.
        confidence: (N,) probability that the row is right.
        bins: number of bins over 0..1; bin i holds (i / bins, (i + 1) / bins], the first also 0.

    Returns:
        One mapping per bin that holds rows: low, high, count, confidence (mean) and accuracy.
    """
    right, confidence = np.asarray(right, float), np.asarray(confidence, float)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    held = np.stack([np.bincount(place, weights, minlength=bins) for weights in (confidence, right)])
    table = np.stack([edges[:-1], edges[1:], count, *divide(held, count)], 1)[count > 0]
    return [dict(zip(("low", "high", "count", "confidence", "accuracy"), row, strict=True)) for row in table.tolist()]


def ece(right: Array, confidence: Array, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over the bins of `reliability`.

    Source: Guo et al. 2017, equation 3.
    """
    if not len(right):
        return math.nan
    filled = reliability(right, confidence, bins)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in filled) / len(right)


def fit_temperature(logits: Array, true: Array) -> float:
    """Temperature T that makes softmax(logits / T) most likely on held-out rows.

    One prior observation, log T ~ N(0, 1), keeps T finite where every row is right.

    Source: Guo et al. 2017, section 4.2; the prior is ours.

    Args:
        logits: (N, K).
        true: (N,) class indices.
    """
    logits = np.asarray(logits, float)
    hit = logits[np.arange(len(true)), true]

    def slope(log_t: float) -> float:
        z = logits * math.exp(-log_t)
        p = np.exp(z - z.max(1, keepdims=True))
        expected = (p * logits).sum(1) / p.sum(1)
        return float(np.mean(hit - expected)) * math.exp(-log_t) + log_t / len(true)

    low, high = math.log(0.05), math.log(20.0)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp((low + high) / 2)


# Numbers -------------------------------------------------------------------------------------------------------------


def r2(true: Array, predicted: Array) -> float:
    """Share of the variance of (N,) that is explained; NaN where there is no variance."""
    true = np.asarray(true, float)
    total = ((true - true.mean()) ** 2).sum() if len(true) else 0.0
    return float(1 - ((true - predicted) ** 2).sum() / total) if total > 0 else math.nan


def mae(true: Array, predicted: Array) -> float:
    """Mean absolute error, in the unit of the target."""
    return mean(np.abs(np.asarray(true, float) - predicted))


def rmse(true: Array, predicted: Array) -> float:
    """Root mean squared error, in the unit of the target."""
    return math.sqrt(mean((np.asarray(true, float) - predicted) ** 2))


def gaussian_nll(true: Array, center: Array, std: Array) -> float:
    """Mean negative log density of (N,) under N(center, std^2), in nats."""
    z = (np.asarray(true, float) - center) / std
    return mean(z**2 / 2 + np.log(std) + math.log(2 * math.pi) / 2)


def coverage(true: Array, low: Array, high: Array) -> float:
    """Share of values that lie in their interval, ends included."""
    true = np.asarray(true, float)
    return mean((true >= low) & (true <= high))


# Uncertainty ---------------------------------------------------------------------------------------------------------


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
