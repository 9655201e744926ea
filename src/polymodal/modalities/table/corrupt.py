"""Noises natural to rows of a table, in ten severities each, for robustness curves. The severities are our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from polymodal.part import Corruption

Row = dict[str, Any]
Scales = Mapping[str, tuple[float, float]]
"""Median and scale of each column of numbers."""

FAR = 10.0  # scales of an outlier from the median


def corruptions(numbers: Scales) -> dict[str, Corruption]:
    """Noises of rows {column: value}, by name; two of them only where there are numbers with a scale."""
    tenths = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    found = {
        "missing": Corruption("share of cells", tenths, hide),
        "swapped": Corruption("share of cells", tenths, swap),
    }
    if numbers:
        scales = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
        shares = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
        found["noise"] = Corruption("scales", scales, partial(shake, numbers))
        found["outliers"] = Corruption("share of numbers", shares, partial(throw, numbers))
    return found


def hide(rows: Sequence[Row | None], share: float, rng: np.random.Generator) -> list[Row | None]:
    """Leave out a share of all cells; a row without any is absent."""
    changed, cells = _copied(rows), _cells(rows)
    for k in _some(len(cells), share, rng):
        i, name = cells[k]
        del changed[i][name]
    return [row or None for row in changed]


def swap(rows: Sequence[Row | None], share: float, rng: np.random.Generator) -> list[Row | None]:
    """Pass a share of each column's cells round among their rows: likely values in wrong places."""
    changed, cells = _copied(rows), _cells(rows)
    for column in sorted({name for _, name in cells}):
        places = [i for i, name in cells if name == column]
        order = [places[k] for k in _some(len(places), share, rng)]
        moved = [changed[i][column] for i in order]
        for i, value in zip(order, moved[1:] + moved[:1], strict=True):
            changed[i][column] = value
    return [row or None for row in changed]


def shake(numbers: Scales, rows: Sequence[Row | None], size: float, rng: np.random.Generator) -> list[Row | None]:
    """Add Gaussian noise to every number, with a standard deviation of ``size`` scales of its column."""
    changed, cells = _copied(rows), _cells(rows, numbers)
    for (i, name), z in zip(cells, rng.standard_normal(len(cells)).tolist(), strict=True):
        changed[i][name] += size * numbers[name][1] * z
    return [row or None for row in changed]


def throw(numbers: Scales, rows: Sequence[Row | None], share: float, rng: np.random.Generator) -> list[Row | None]:
    """Put a share of the numbers ten scales above or below their column's median."""
    changed, cells = _copied(rows), _cells(rows, numbers)
    signs = rng.choice([-FAR, FAR], len(cells))
    for k in _some(len(cells), share, rng):
        i, name = cells[k]
        center, scale = numbers[name]
        changed[i][name] = center + float(signs[k]) * scale
    return [row or None for row in changed]


def _copied(rows: Sequence[Row | None]) -> list[Row]:
    return [dict(row or {}) for row in rows]


def _cells(rows: Sequence[Row | None], among: Mapping[str, Any] | None = None) -> list[tuple[int, str]]:
    """Row and column of every present cell, of some columns if ``among`` names them."""
    return [(i, name) for i, row in enumerate(rows) for name in row or () if among is None or name in among]


def _some(count: int, share: float, rng: np.random.Generator) -> list[int]:
    """A share of so many positions at random. A larger share holds a smaller one's."""
    return rng.permutation(count)[: round(share * count)].tolist()
