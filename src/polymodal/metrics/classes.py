"""Scores of chosen classes, and of rankings by a score."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from polymodal.metrics.base import Array, divide, mean


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


def mcc(counts: Array) -> float:
    """Matthews correlation of a confusion matrix (K, K), rows true; 0 where one side is constant, NaN without rows.

    Source: Gorodkin 2004, the K-category correlation; for two classes Matthews 1975.
    """
    counts = np.asarray(counts, float)
    total, right = counts.sum(), np.trace(counts)
    true, guessed = counts.sum(1), counts.sum(0)
    if not total:
        return math.nan
    spread = (total**2 - (guessed**2).sum()) * (total**2 - (true**2).sum())
    return float((right * total - true @ guessed) / math.sqrt(spread)) if spread > 0 else 0.0


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
