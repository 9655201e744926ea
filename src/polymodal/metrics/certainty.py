"""Scores of probabilities, intervals and quantiles, and what calibrates them."""

from __future__ import annotations

import math

import numpy as np

from polymodal.metrics.base import Array, divide, mean


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


def gaussian_nll(true: Array, center: Array, std: Array) -> float:
    """Mean negative log density of (N,) under N(center, std^2), in nats."""
    z = (np.asarray(true, float) - center) / std
    return mean(z**2 / 2 + np.log(std) + math.log(2 * math.pi) / 2)


def coverage(true: Array, low: Array, high: Array) -> float:
    """Share of values that lie in their interval, ends included."""
    true = np.asarray(true, float)
    return mean((true >= low) & (true <= high))


def pinball(true: Array, predicted: Array, level: float) -> float:
    """Mean pinball loss of predictions of one quantile, (N,) each: least at the true quantile of that level.

    Source: Koenker and Bassett 1978, equation 3.1.
    """
    error = np.asarray(true, float) - predicted
    return mean(np.maximum(level * error, (level - 1) * error))


# Uncertainty ---------------------------------------------------------------------------------------------------------


def conformal_bound(scores: Array, level: float) -> float:
    """Bound that a further score stays within with probability ``level`` or more, if it is exchangeable with these.

    Source: Vovk et al. 2005; Lei et al. 2018, algorithm 2 (split conformal).

    Args:
        scores: (N,) how badly held-out rows fit.
        level: between 0 and 1.

    Returns:
        The ceil((N + 1) level)-th smallest score; infinity where N is too small for that.
    """
    rank = max(1, math.ceil((len(scores) + 1) * level - 1e-9))  # 100 * .07 is not to be 8
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf
