"""Exact search: the nearest of many vectors, and the same answer whatever is asked beside it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

BLOCK = 1 << 16
"""Vectors that are compared at a time."""

TOGETHER = 64
"""Queries that are compared at a time."""

SLACK = 1e-5
"""What a cosine in float32 may be off by, and more: within it, the sum in float64 decides."""


def nearest(queries: np.ndarray, vectors: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows that may be among the nearest, for `ranked` to choose from.

    Args:
        queries: (Q, W) float32 of length 1.
        vectors: (n, W) float32 of length 1.
        count: how many are wanted.

    Returns:
        For each query, rows of ``vectors``: at least the ``count`` nearest, or all there are.
    """
    found = []
    for start in range(0, len(queries), TOGETHER):
        found += _nearest(queries[start : start + TOGETHER], vectors, count)
    return found


def _nearest(queries: np.ndarray, vectors: np.ndarray, count: int) -> list[np.ndarray]:
    rows = [np.empty(0, np.int64) for _ in queries]
    scores = [np.empty(0, np.float32) for _ in queries]
    least = [-np.inf for _ in queries]
    for start in range(0, len(vectors), BLOCK):
        for i, line in enumerate(queries @ vectors[start : start + BLOCK].T):
            new = np.flatnonzero(line >= least[i])
            some, at = np.concatenate([scores[i], line[new]]), np.concatenate([rows[i], new + start])
            least[i] = _bound(some, count)
            kept = some >= least[i]
            rows[i], scores[i] = at[kept], some[kept]
    return rows


def _bound(scores: np.ndarray, count: int) -> float:
    """What a score must reach to be among the ``count`` highest, less what it may be off by."""
    if len(scores) <= count:
        return -np.inf
    return float(np.partition(scores, len(scores) - count)[-count]) - 2 * SLACK


def ranked(
    query: np.ndarray, vectors: np.ndarray, rows: np.ndarray, ids: Sequence[str], count: int
) -> list[tuple[int, float]]:
    """The nearest of some rows, nearest first, those of equal score by their ids.

    Scores are summed in float64, each for itself, so that neither the other rows nor the other queries change them.

    Args:
        query: (W,) float32.
        vectors: (n, W) float32.
        rows: of ``vectors``, to choose from.
        ids: of all vectors.
        count: how many are wanted at most.

    Returns:
        Row and cosine of each.
    """
    own = query.astype(np.float64)
    scores = np.concatenate(
        [(vectors[some].astype(np.float64) * own).sum(1) for some in np.array_split(rows, len(rows) // BLOCK + 1)]
    )
    pairs = zip((-scores).tolist(), rows.tolist(), strict=True)
    best = heapq.nsmallest(count, pairs, key=lambda pair: (pair[0], ids[pair[1]]))
    return [(row, min(-score, 1.0)) for score, row in best]
