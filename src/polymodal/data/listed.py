"""Columns whose cells are lists: words of a sentence, tags of them, stretches of a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polymodal.values import is_missing

MOST = 0.9
"""Share of the cells that must be of a kind for a column to be of it."""

TAG = re.compile(r"O|[BIESLU](-.+)?")
"""How a word's tag is written in every scheme."""


def as_list(cell: Any) -> list[Any] | None:
    """The items of a cell that is a list, a tuple, an array of one axis or a JSON list as text; None for any other."""
    if isinstance(cell, np.ndarray):
        return cell.tolist() if cell.ndim == 1 else None
    if isinstance(cell, list | tuple):
        return list(cell)
    if not isinstance(cell, str) or not cell.startswith("["):
        return None
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def as_texts(cell: Any) -> list[str] | None:
    """The items of a cell that is a list of texts, none of them blank; None for any other."""
    found = as_list(cell)
    return found if found is not None and all(isinstance(x, str) and x.strip() for x in found) else None


def are_words(cells: Sequence[Any]) -> bool:
    """Whether present cells are lists of texts, not all of them empty."""
    found = [as_texts(cell) for cell in cells]
    return any(found) and sum(row is not None for row in found) >= MOST * len(cells)


def are_tags(cells: Sequence[Any]) -> bool:
    """Whether every item of lists of texts is a tag: O, B-person, ..."""
    return all(TAG.fullmatch(item) for cell in cells for item in as_texts(cell) or ())


def vocabulary(cells: Sequence[Any]) -> int:
    """How many different texts lists hold."""
    return len({item for cell in cells for item in as_texts(cell) or ()})


def aligned(values: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether lists of two columns are as long as one another, row by row, and longer than one item somewhere."""
    pairs = [(a, b) for a, b in zip(map(as_list, values), map(as_list, others), strict=True) if a and b]
    same = sum(len(a) == len(b) for a, b in pairs)
    return same >= max(1, MOST * len(pairs)) and any(len(a) == len(b) > 1 for a, b in pairs)


def tagged(values: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The column of words that a column of lists tags: as long in each row, and of the largest vocabulary.

    Args:
        values: cells of the target.
        columns: the other columns, row by row.
    """
    if not are_words([cell for cell in values if not is_missing(cell)]):
        return None
    found = [
        name
        for name, cells in columns.items()
        if are_words([c for c in cells if not is_missing(c)]) and aligned(values, cells)
    ]
    return max(found, key=lambda name: vocabulary(columns[name]), default=None)


def numbered(values: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The column of words that has as many as lists of whole numbers; None where the values are no such lists."""
    lists = [found for cell in values if (found := as_list(cell))]
    if not lists or not all(type(item) is int for row in lists for item in row):
        return None
    worded = (name for name, cells in columns.items() if are_words([c for c in cells if not is_missing(c)]))
    return next((name for name in worded if aligned(values, columns[name])), None)


def spanned(values: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The column of texts that lists of ``{"start", "end", "type" or "label"}`` are stretches of.

    Args:
        values: cells of the target.
        columns: the other columns, row by row.
    """
    given = [(i, found) for i, cell in enumerate(values) if (found := as_list(cell))]
    rows = [(i, row) for i, row in given if all(map(_is_span, row))]
    if not rows or len(rows) < MOST * len(given):
        return None
    fits = [n for n, cells in columns.items() if sum(_within(row, cells[i]) for i, row in rows) >= MOST * len(rows)]
    return max(fits, key=lambda name: sum(map(len, _texts(columns[name]))), default=None)


def _is_span(item: Any) -> bool:
    if not isinstance(item, Mapping) or not isinstance(item.get("type", item.get("label")), str):
        return False
    return all(isinstance(item.get(key), int) and not isinstance(item[key], bool) for key in ("start", "end"))


def _within(row: Sequence[Mapping[str, Any]], text: Any) -> bool:
    """Whether stretches lie in a text; a row without any says nothing."""
    return is_missing(text) or (isinstance(text, str) and all(0 <= x["start"] < x["end"] <= len(text) for x in row))


def _texts(cells: Sequence[Any]) -> Iterator[str]:
    return (cell for cell in cells if isinstance(cell, str))
