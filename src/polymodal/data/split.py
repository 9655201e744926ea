"""Split: which rows train, which choose, which judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from datetime import time as clock
from typing import Any

import numpy as np

from polymodal.data.table import Table
from polymodal.errors import DataError, SpecError
from polymodal.settings import Split

_GIVEN = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
}
_GIVEN["test"] = "test"
SIDES = ("train", "valid", "test")
Sides = dict[str, np.ndarray]


def split(table: Table, spec: Split, targets: Mapping[str, bool] | None = None) -> dict[str, np.ndarray]:
    """Divide a table.

    Args:
        table: n rows.
        spec: how.
        targets: target column -> whether it holds classes.

    Returns:
        Row indices of "train", "valid" and "test", each (n_side,) int64, ascending.

    Raises:
        DataError: too few rows or groups, or values that cannot be split by.
        SpecError: a column does not exist or a setting has no effect.
    """
    sides = _given(table, spec) if spec.given is not None else {"train": np.arange(len(table))}
    if "valid" not in sides:
        rows = sides["train"]
        parts = _divide(table.select(rows), spec, targets or {})
        if "test" in sides:
            parts.pop("test")
        sides = {**sides, **{side: rows[part] for side, part in parts.items()}}
    return {side: np.sort(sides.get(side, np.empty(0, np.int64))).astype(np.int64) for side in SIDES}


def _given(table: Table, spec: Split) -> Sides:
    """Respect a column of sides; without a validation side if it holds none."""
    assert spec.given is not None
    sides: dict[str, list[int]] = {}
    for i, value in enumerate(table.column(spec.given)):
        side = _GIVEN.get(str(value).strip().lower())
        if side is None:
            raise DataError(
                f"{table.source}: row {i}: {spec.given} must be train, valid or test, got {value!r}. "
                "Fill the column, or choose split.by instead of split.given."
            )
        sides.setdefault(side, []).append(i)
    if "train" not in sides:
        raise DataError(f"{table.source}: {spec.given} must mark at least one row as train, got {sorted(sides)}.")
    if "valid" in sides and (spec.by is not None or spec.valid != type(spec).model_fields["valid"].default):
        raise SpecError(
            f"split.by and split.valid have no effect: {spec.given!r} already marks validation rows. Remove them."
        )
    return {side: np.array(rows, np.int64) for side, rows in sides.items()}


def _divide(table: Table, spec: Split, targets: Mapping[str, bool]) -> Sides:
    """Divide all rows of a table as ``spec.by`` says."""
    n, need = len(table), 1 + (spec.valid > 0) + (spec.test > 0)
    if n < need:
        raise DataError(f"{table.source} must have at least {need} rows for the sides of its split, got {n}.")
    wants = _counts(n, spec)
    by = spec.by or ("stratified" if list(targets.values()) == [True] else "random")
    column = spec.column
    if by == "stratified" and column is None:
        if len(targets) != 1:
            raise SpecError(f"split.column must say by which of {sorted(targets)} to stratify, got None.")
        column = next(iter(targets))
    values = list(table.column(column)) if column is not None else []
    rng = np.random.default_rng(spec.seed or 0)
    if by == "group":
        return _grouped(values, wants, rng, table.source, str(column))
    if by == "time":
        return _timed(values, wants, table.source, str(column))
    codes = _codes(values) if by == "stratified" else np.zeros(n, np.int64)
    return _stratified(codes, spec, wants, rng)


def _counts(n: int, spec: Split) -> tuple[int, int]:
    """Rows to validate and to test: the shares rounded, at least one each, and one left to train."""
    test = min(max(1, round(n * spec.test)), n - 1 - (spec.valid > 0)) if spec.test else 0
    valid = min(max(1, round(n * spec.valid)), n - 1 - test) if spec.valid else 0
    return valid, test


def _codes(values: Sequence[Any]) -> np.ndarray:
    """Number each distinct value in order of appearance; unhashable ones by what they print."""
    known: dict[Any, int] = {}
    keys = (v if isinstance(v, (str, int, float, bool, type(None))) else repr(v) for v in values)
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)


def _stratified(codes: np.ndarray, spec: Split, wants: tuple[int, int], rng: np.random.Generator) -> Sides:
    """Take each side's share of every class, within one row; a class of one row trains.

    A class gives its share rounded down; the rows that the whole side still lacks come, one per class, from
    the classes that lost most by rounding.
    """
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    sizes = np.bincount(codes)
    spread = np.where(sizes > 1, sizes, 0)
    counts = {1: np.floor(spread * spec.valid + 1e-9), 2: np.floor(spread * spec.test + 1e-9)}
    for side, share, want in ((2, spec.test, wants[1]), (1, spec.valid, wants[0])):
        room = spread - counts[1] - counts[2] > 1
        lost = np.where(room, spread * share - counts[side], -1) + rng.random(len(sizes)) * 1e-9
        first = np.argsort(-lost, kind="stable")[: max(0, int(want - counts[side].sum()))]
        counts[side][first[room[first]]] += 1
    place = np.arange(len(codes)) - (np.cumsum(sizes) - sizes)[codes[order]]
    n_test, n_held = counts[2][codes[order]], (counts[1] + counts[2])[codes[order]]
    sides = np.empty(len(codes), np.int64)
    sides[order] = np.where(place < n_test, 2, np.where(place < n_held, 1, 0))
    for side, want in ((1, wants[0]), (2, wants[1])):
        if want and not (sides == side).any():  # nothing but classes of one row
            sides[order[np.flatnonzero(sides[order] == 0)[rng.integers((sides == 0).sum())]]] = side
    return {name: np.flatnonzero(sides == i) for i, name in enumerate(SIDES)}


def _grouped(
    values: Sequence[Any], wants: tuple[int, int], rng: np.random.Generator, source: str, column: str
) -> Sides:
    """Give whole groups to each side, as near to the wanted rows as sums of groups come."""
    codes = _codes([("row", i) if v is None else v for i, v in enumerate(values)])
    sizes = np.bincount(codes)
    need = 1 + (wants[0] > 0) + (wants[1] > 0)
    if len(sizes) < need:
        raise DataError(f"{source}: {column} must hold at least {need} groups, got {len(sizes)}. Choose another split.")
    side = np.zeros(len(sizes), np.int64)
    for i, want, later in ((2, wants[1], wants[0] > 0), (1, wants[0], False)):
        free = rng.permutation(np.flatnonzero(side == 0))
        if want:
            side[free[_closest(sizes[free], want, len(free) - 1 - later)]] = i
    return {name: np.flatnonzero(side[codes] == i) for i, name in enumerate(SIDES)}


def _closest(sizes: np.ndarray, want: int, most: int, exact: int = 512) -> list[int]:
    """Indices of 1 to ``most`` sizes whose sum is next to ``want``.

    All but the first ``exact`` are taken greedily; the rest exactly, by the sums that can be reached (bit s of
    ``reach[i]``: the first i sizes hold a subset of sum s).
    """
    chosen, rest = [], want
    for i in range(exact, len(sizes)):
        if sizes[i] <= rest and len(chosen) < most - 1:
            chosen.append(i)
            rest -= int(sizes[i])
    head = [int(s) for s in sizes[:exact]]
    width = (1 << (2 * rest + max(head) + 1)) - 1
    reach = [1]
    for s in head:
        reach.append((reach[-1] | reach[-1] << s) & width)
    bits = np.frombuffer(reach[-1].to_bytes(reach[-1].bit_length() // 8 + 1, "little"), np.uint8)
    sums = np.flatnonzero(np.unpackbits(bits, bitorder="little"))[0 if chosen else 1 :]
    for total in sums[np.argsort(np.abs(sums - rest), kind="stable")].tolist():
        picked, s = [], total
        for i in reversed(range(len(head))):
            if not reach[i] >> s & 1:
                picked.append(i)
                s -= head[i]
        if len(picked) + len(chosen) <= most:
            return chosen + picked
    return [int(np.argmin(sizes))]


def _timed(values: Sequence[Any], wants: tuple[int, int], source: str, column: str) -> Sides:
    """Cut the rows in order of time; rows of one time stay together."""
    times = np.array([_moment(v, f"{source}: row {i}: {column}") for i, v in enumerate(values)])
    order = np.argsort(times, kind="stable")
    borders = np.flatnonzero(np.diff(times[order])) + 1
    need = (wants[0] > 0) + (wants[1] > 0)
    if len(borders) < need:
        raise DataError(f"{source}: {column} must hold at least {need + 1} different times, got {len(borders) + 1}.")
    end, cuts = len(order), []
    for want, keep in ((wants[1], int(wants[0] > 0)), (wants[0], 0)):
        if want:
            usable = borders[keep:][borders[keep:] < end]
            end = int(usable[np.argmin(np.abs(usable - (end - want)))])
        cuts.append(end)
    return {"train": order[: cuts[1]], "valid": order[cuts[1] : cuts[0]], "test": order[cuts[0] :]}


def _moment(value: Any, place: str) -> float:
    """A number, date or ISO text as a number that grows with time (naive times as UTC)."""
    try:
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                value = datetime.fromisoformat(value.strip())
        if isinstance(value, date):
            value = value if isinstance(value, datetime) else datetime.combine(value, clock())
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return (aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise DataError(f"{place} must be a number, a date or an ISO 8601 text to split by time, got {value!r}.")
    return number
