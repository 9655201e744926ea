"""Leakage: identical content on two sides of a split."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from polymodal.data.split import SIDES


@dataclass(frozen=True, slots=True)
class Leak:
    """Identical content on two sides of a split.

    Attributes:
        input: the input's name; None where whole rows are identical.
        sides: the earlier side (which trains or chooses) and the later one (which judges).
        rows: (n, 2) each row of the later side that is known, as [a row of the earlier side, the row itself].
    """

    input: str | None
    sides: tuple[str, str]
    rows: np.ndarray


def leakage(
    digests: Mapping[str, Sequence[bytes | None] | tuple[np.ndarray, np.ndarray]],
    sides: Mapping[str, np.ndarray],
    alone: Collection[str] | None = None,
) -> list[Leak]:
    """Find content that stands on two sides of a split.

    Args:
        digests: input name -> one digest of 16 bytes per table row, None where absent; or the same as arrays:
            (n, 16) uint8, and (n,) bool where absent.
        sides: "train", "valid", "test" -> row indices.
        alone: inputs whose content must not repeat even if the rest of the row differs (pictures, texts, but not a
            short list of categories); every input if None.

    Returns:
        One Leak per input and pair of sides that share something, whole rows last.
    """
    leaks: list[Leak] = []
    row, anything = np.zeros(1, np.int64), np.zeros(1, bool)
    for name, column in digests.items():
        keys, present = _keys(column)
        codes = np.where(present, np.unique(keys, return_inverse=True)[1] + 1, 0)
        row = np.unique(row * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1].astype(np.int64)
        anything = anything | present
        if alone is None or name in alone:
            leaks += _shared(name, codes, present, sides)
    if len(digests) > 1:
        leaks += _shared(None, row, anything, sides)
    return leaks


def _keys(column: Sequence[bytes | None] | tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Digests as (n,) byte strings, and (n,) bool which are real."""
    if isinstance(column, tuple) and len(column) == 2 and isinstance(column[0], np.ndarray):
        return np.ascontiguousarray(column[0]).view("S16").ravel(), ~np.asarray(column[1])
    present = np.array([digest is not None for digest in column], bool)
    return np.array([digest or b"" for digest in column], "S16"), present


def _shared(name: str | None, codes: np.ndarray, present: np.ndarray, sides: Mapping[str, np.ndarray]) -> list[Leak]:
    """Rows of a later side whose code an earlier side holds."""
    leaks = []
    real = {side: rows[present[rows]] for side in SIDES if len(rows := np.asarray(sides.get(side, ()), np.int64))}
    for before, after in combinations(real, 2):
        first = np.full(codes.max(initial=0) + 1, -1, np.int64)
        first[codes[real[before][::-1]]] = real[before][::-1]
        twin = first[codes[real[after]]]
        if (twin >= 0).any():
            pairs = np.stack([twin, real[after]], 1)[twin >= 0]
            leaks.append(Leak(name, (before, after), pairs))
    return leaks
