"""Items: what an index knows of what it holds, besides the vectors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple, Self

import numpy as np

from polymodal.data.table import Table
from polymodal.errors import BundleError, DataError, suggest

LISTED = 100_000
"""Ids among which a near one is looked for."""


class Hit(NamedTuple):
    """An item that was found.

    Attributes:
        id: of the item.
        score: cosine of the angle between it and the query.
        columns: what the index keeps of its row.
    """

    id: str
    score: float
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a table's rows.

    Attributes:
        rows: how many there were.
        refused: id -> why the row is no item.
        left_out: column -> cells of it that cannot be kept, as they hold no text, number, list or mapping.
        notes: what cleaning did, in words.
    """

    rows: int
    refused: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def count(self) -> int:
        """How many rows are items now."""
        return self.rows - len(self.refused)

    @property
    def warnings(self) -> list[str]:
        """One line for everything a user should look at."""
        lines = list(self.notes)
        if self.refused:
            first, reason = next(iter(self.refused.items()))
            lines.append(f"{len(self.refused)} of {self.rows} rows are no items, the first is {first!r}: {reason}")
        lines += [f"{name}: {n} cells are not kept, as they hold bytes or arrays" for name, n in self.left_out.items()]
        return lines


@dataclass(frozen=True, slots=True)
class Items:
    """Ids and kept columns, in the order of the vectors.

    Attributes:
        ids: each once.
        numbers: (n,) int64, rising; of an item as long as it is there, and of no other one afterwards.
        columns: of each item.
        next: the number of the next one.
    """

    ids: Sequence[str] = ()
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    columns: Sequence[dict[str, Any]] = ()
    next: int = 0
    _known: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Note where each id stands."""
        self._known.update((one, row) for row, one in enumerate(self.ids))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.ids)

    def __contains__(self, one: object) -> bool:
        """Whether there is an item of this id."""
        return one in self._known

    def check_new(self, ids: Sequence[str], source: str) -> None:
        """Refuse ids that are there already, or twice.

        Raises:
            DataError: one is.
        """
        seen = set[str]()
        for one in ids:
            if one in seen:
                raise DataError(f"{source}: ids must be there once, got {one!r} twice. Leave one of them out.")
            if one in self._known:
                raise DataError(f"{source}: ids must be new, got {one!r}, which is in the index. Remove it first.")
            seen.add(one)

    def joined(self, ids: Sequence[str], columns: Sequence[dict[str, Any]], here: Sequence[int]) -> Self:
        """Items with new ones behind them.

        Args:
            ids: of all rows of a table.
            columns: of all rows.
            here: the rows that are items. Each of the others uses a number up, so that no later row gets its id.
        """
        numbers = np.concatenate([self.numbers, self.next + np.asarray(here, np.int64)])
        names, kept = [*self.ids, *(ids[i] for i in here)], [*self.columns, *(columns[i] for i in here)]
        return type(self)(names, numbers, kept, self.next + len(ids))

    def find(self, ids: Iterable[str]) -> np.ndarray:
        """Rows of some ids. (n,) int64.

        Raises:
            DataError: one is of no item.
        """
        wanted = list(dict.fromkeys(ids))
        for one in wanted:
            if one not in self._known:
                near = suggest(one, self.ids) if len(self) <= LISTED else ""
                raise DataError(f"ids must be of items of the index, got {one!r}.{near} Nothing was removed.")
        return np.array([self._known[one] for one in wanted], np.int64)

    def at(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of the items of some numbers, of those that are there."""
        rows = np.searchsorted(self.numbers, numbers).clip(max=max(0, len(self) - 1))
        return rows[self.numbers[rows] == numbers]

    def without(self, rows: np.ndarray) -> Self:
        """Items without those of some rows."""
        gone = set(rows.tolist())
        kept = [i for i in range(len(self)) if i not in gone]
        return type(self)([self.ids[i] for i in kept], self.numbers[kept], [self.columns[i] for i in kept], self.next)

    def dump(self) -> bytes:
        """JSON lines, one per item."""
        rows = zip(self.ids, self.numbers.tolist(), self.columns, strict=True)
        lines = (json.dumps({"id": i, "number": n, "columns": c}, ensure_ascii=False) for i, n, c in rows)
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")

    @classmethod
    def load(cls, content: bytes, following: int) -> Self:
        """Read what `dump` gave.

        Raises:
            BundleError: it is something else.
        """
        try:
            rows = [json.loads(line) for line in content.decode("utf-8", "surrogatepass").split("\n")[:-1]]
            numbers = np.array([row["number"] for row in rows], np.int64)
            return cls([row["id"] for row in rows], numbers, [row["columns"] for row in rows], following)
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"items must be JSON lines with id, number and columns, got: {error!r}.") from None


def read_ids(table: Table, column: str | None, following: int) -> list[str]:
    """Ids of a table's rows; numbers from ``following`` on if no column holds them.

    Raises:
        DataError: there is no such column, or a cell of it is neither a text nor a whole number.
    """
    if column is None:
        return [str(i) for i in range(following, following + len(table))]
    ids = []
    for row, cell in enumerate(table.column(column)):
        if isinstance(cell, bool) or not isinstance(cell, str | int) or cell == "":
            raise DataError(
                f"{table.source}: row {row}, column {column!r}: an id must be a text or a whole number, got {cell!r}."
            )
        ids.append(str(cell))
    return ids


def read_columns(table: Table, names: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What JSON can say of some columns, row by row, and how many cells of each it cannot.

    Raises:
        DataError: there is no such column.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(len(table))]
    left_out = dict[str, int]()
    for name in names:
        cells = list(table.column(name))
        kept = [_plain(cell) for cell in cells]
        lost = sum(k is None and cell is not None for k, cell in zip(kept, cells, strict=True))
        left_out |= {name: lost} if lost else {}
        if not lost or any(k is not None for k in kept):
            for row, value in zip(rows, kept, strict=True):
                row[name] = value
    return rows, left_out


def _plain(cell: Any) -> Any:
    """A cell as JSON has it; None where it has none."""
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    if cell is None or isinstance(cell, str | int):
        return cell
    if isinstance(cell, date | datetime | time | Decimal):
        return str(cell)
    try:
        return json.loads(json.dumps(cell, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None
