"""Scores of retrieval: at which rank a query finds what belongs to it in a gallery."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polymodal.metrics.base import Array, mean

GRID = 2.0**20
"""Similarities are compared in steps of 2^-20: what differs by rounding alone is a tie."""

CELLS = 2**23
"""Similarities held in memory at a time: 32 MiB."""

FEW = 16
"""Right items per query up to which counting is faster than sorting."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where each query finds its right items.

    Attributes:
        rank: (N,) of the first right item, from 1; NaN where the gallery has none.
        precision: (N,) average precision, likewise.
        gain: (N,) normalised discounted cumulative gain over the whole gallery, likewise.
    """

    rank: Array
    precision: Array
    gain: Array

    def recall(self, k: int) -> float:
        """Share of queries with a right item among the first ``k``; NaN where none has any in the gallery."""
        return mean(np.where(np.isnan(self.rank), np.nan, self.rank <= k))

    def scores(self) -> dict[str, float]:
        """Recall at 1, 5 and 10, median rank, mean average precision and NDCG, over the queries with a right item."""
        found = self.rank[~np.isnan(self.rank)]
        return {
            **{f"recall_at_{k}": self.recall(k) for k in (1, 5, 10)},
            "median_rank": float(np.median(found)) if len(found) else np.nan,
            "map": mean(self.precision),
            "ndcg": mean(self.gain),
        }

    def spread(self, rows: Array, n: int) -> Ranking:
        """The same queries as these rows of ``n``, the others being no queries."""
        whole = np.full((3, n), np.nan)
        whole[:, rows] = self.rank, self.precision, self.gain
        return Ranking(*whole)


def ranked(queries: Array, gallery: Array, wanted: Array, items: Array) -> Ranking:
    """Rank a gallery for each query by the scalar product, in pieces that fit in memory.

    Equal similarities: a right item stands behind the wrong ones for its rank, so that embeddings which are all the
    same find nothing; precision counts items of one similarity together, as scikit-learn does; the gain is the mean
    over their orders.

    Args:
        queries: (N, W) float.
        gallery: (M, W) float.
        wanted: (N,) int, what belongs to each query.
        items: (M,) int, what each item is; several may be the same.

    Source: McSherry and Najork 2008, "Computing Information Retrieval Performance Measures Efficiently in the Presence
    of Tied Scores", equations for average NDCG; Järvelin and Kekäläinen 2002 for NDCG, with gains of 0 and 1.
    """
    n, m = len(queries), len(gallery)
    rank, precision, gain = (np.full(n, np.nan) for _ in range(3))
    order = np.argsort(items, kind="stable")
    first, last = (np.searchsorted(items, wanted, side, sorter=order) for side in ("left", "right"))
    discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, m + 2)))])
    step = max(1, CELLS // max(1, m))
    for start in range(0, n, step):
        piece = slice(start, start + step)
        sizes = last[piece] - first[piece]
        if not sizes.any():
            continue
        scores = np.asarray(queries[piece], np.float32) @ np.asarray(gallery, np.float32).T
        np.rint(np.multiply(scores, GRID, out=scores), out=scores)
        row, nth = _pairs(sizes)
        right = scores[row, order[first[piece][row] + nth]]
        above, level = _counts(scores, right, row, nth)
        known = np.flatnonzero(sizes) + start
        rank[known], precision[known], gain[known] = _scores(row, above, level, discount)
    return Ranking(rank, precision, gain)


def _pairs(sizes: Array) -> tuple[Array, Array]:
    """For groups of some sizes: the group of each member, and its number in it."""
    row = np.repeat(np.arange(len(sizes)), sizes)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _counts(scores: Array, right: Array, row: Array, nth: Array) -> tuple[Array, Array]:
    """How many of a row's items score above each of its right ones, and how many the same. (P,) each."""
    above, level = np.empty(len(right), np.int64), np.empty(len(right), np.int64)
    if nth.max() < FEW:
        for k in range(nth.max() + 1):
            chosen = nth == k
            rows, value = row[chosen], right[chosen, None]
            some = scores if len(rows) == len(scores) else scores[rows]
            above[chosen], level[chosen] = (some > value).sum(1), (some == value).sum(1)
        return above, level
    for start, stop in zip(*_runs(row), strict=True):
        ranked, value = np.sort(scores[row[start]]), right[start:stop]
        low, high = (np.searchsorted(ranked, value, side) for side in ("left", "right"))
        above[start:stop], level[start:stop] = len(ranked) - high, high - low
    return above, level


def _runs(values: Array) -> tuple[Array, Array]:
    """Start and end of each run of equal values."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    return starts, np.append(starts[1:], len(values))


def _scores(row: Array, above: Array, level: Array, discount: Array) -> tuple[Array, Array, Array]:
    """Rank, average precision and NDCG of each query, from its right items' places. (Q,) each, in the rows' order."""
    order = np.lexsort((above, row))
    row, above, level = row[order], above[order], level[order]
    start, stop = _runs(row)
    size = stop - start
    tied_start, tied_stop = _runs(row * (len(discount) + 1) + above)
    ties = tied_stop - tied_start
    within = np.repeat(tied_stop, ties) - np.repeat(start, size)  # right items that score as much or more
    rank = above[start] + level[start] - np.repeat(ties, ties)[start] + 1
    precision = np.add.reduceat(within / (above + level), start) / size
    gained = (discount[above + level] - discount[above]) / level
    return rank, precision, np.add.reduceat(gained, start) / discount[size]
