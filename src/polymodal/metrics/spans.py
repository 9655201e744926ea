"""Scores of spans of words, and of counts of hits by class.

Equal to seqeval in its mode "strict", where both sides are written in one scheme: a span is right if its type and both
of its ends are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polymodal.metrics.base import Array, divide


class Spans(NamedTuple):
    """S runs of words, in order of their rows and words, none overlapping another.

    Attributes:
        row: (S,) int.
        first: (S,) int, the number of each one's first word.
        stop: (S,) int, the number behind its last word.
        type: (S,) int.
    """

    row: Array
    first: Array
    stop: Array
    type: Array


class Counts(NamedTuple):
    """How many of each of K classes (K,) were found and right, were found, and were there to be found."""

    hit: Array
    found: Array
    there: Array


def spans_of(types: Array, begins: Array) -> Spans:
    """Spans of words that are marked one by one.

    Args:
        types: (N, T) int, type of the span that a word is in, -1 outside.
        begins: (N, T) bool, where a word does not belong to the same span as the one before it.
    """
    types = np.asarray(types)
    before = np.pad(types, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    opens = (types >= 0) & (np.asarray(begins, bool) | (types != before))
    behind = np.pad(opens | (types < 0), ((0, 0), (0, 1)), constant_values=True)[:, 1:]
    row, first = opens.nonzero()
    return Spans(row, first, ((types >= 0) & behind).nonzero()[1] + 1, types[row, first])


def right(true: Spans, found: Spans) -> Array:
    """Which of the found spans are true ones. (S,) bool, S as many as found."""
    width = 1 + max(int(x.first.max(initial=0)) for x in (true, found))
    _, i, j = np.intersect1d(true.row * width + true.first, found.row * width + found.first, return_indices=True)
    same = np.zeros(len(found.row), bool)
    same[j] = (true.stop[i] == found.stop[j]) & (true.type[i] == found.type[j])
    return same


def span_counts(true: Spans, found: Spans, k: int) -> Counts:
    """Counts by type, of k types."""
    hits = found.type[right(true, found)]
    return Counts(*(np.bincount(types, minlength=k) for types in (hits, found.type, true.type)))


def of_counts(counts: Counts) -> dict[str, Array]:
    """Precision, recall, F1 (0 where their denominator is) and support of each class. (K,) each."""
    hit, found, there = counts
    return {
        "precision": divide(hit, found),
        "recall": divide(hit, there),
        "f1": divide(2 * hit, found + there),
        "support": there,
    }


def averages(counts: Counts) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support as means over classes.

    Returns:
        ``micro``: of all classes taken as one; ``macro``: mean over the classes that are there or were found;
        ``weighted``: the same by support. 0 where there is none.
    """
    each, whole = of_counts(counts), of_counts(Counts(*(np.array([x.sum()]) for x in counts)))
    seen, support = counts.found + counts.there > 0, counts.there
    names, total = ("precision", "recall", "f1"), {"support": int(support.sum())}
    return {
        "micro": {name: float(whole[name][0]) for name in names} | total,
        "macro": {name: float(divide(each[name][seen].sum(), seen.sum())) for name in names} | total,
        "weighted": {name: float(divide((each[name] * support).sum(), support.sum())) for name in names} | total,
    }
