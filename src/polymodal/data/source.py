"""Source: the cells of one input, fetched and decoded on demand, with what is broken kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.data.cells import Cell, content
from polymodal.data.clean import Quarantined
from polymodal.data.table import Table
from polymodal.errors import DataError
from polymodal.part import Modality, Reading


@dataclass(frozen=True, slots=True)
class Source:
    """One input's cells.

    Attributes:
        name: of the input.
        modality: that reads its cells.
        table: that holds them.
        allow_paths: whether a cell may name a file or a URL.
        first: number of the table's first row, in messages.
    """

    name: str
    modality: Modality
    table: Table
    allow_paths: bool = True
    first: int = 0

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.table)

    def __iter__(self) -> Iterator[Any | None]:
        """Decode every row in order; None where absent or broken."""
        for row, found in enumerate(self.cells(0, len(self))):
            read = self.read(row, found)
            yield read.value if isinstance(read, Reading) else None

    @property
    def missing_columns(self) -> list[str]:
        """Columns that the table lacks."""
        return [column for column in self.modality.columns(self.name) if column not in self.table.columns]

    def cells(self, start: int, stop: int) -> Iterator[Cell | Quarantined | None]:
        """Fetch the cells of some rows; None where absent, Quarantined where a path leads nowhere."""
        wanted = self.modality.columns(self.name)
        empty = [None] * (stop - start)
        lists = [self.table.column(c)[start:stop] if c in self.table.columns else empty for c in wanted]
        for row, values in enumerate(zip(*lists, strict=True), start):
            yield self._cell(row, dict(zip(wanted, values, strict=True)))

    def some(self, rows: np.ndarray) -> Iterator[Cell | Quarantined | None]:
        """Fetch the cells of rows in any order."""
        for row in rows.tolist():
            yield from self.cells(row, row + 1)

    def read(self, row: int, cell: Cell | Quarantined | None) -> Reading | Quarantined | None:
        """Decode a cell; None where nothing usable is in it."""
        return decode_cell(self.name, self.modality, cell, self.first + row)

    def broken(self, row: int, column: str, cell: Cell | Quarantined | None, reason: str) -> Quarantined:
        """One column's part of a cell that spans several."""
        value = cell.content.get(column) if isinstance(cell, Cell) else None
        return Quarantined(self.first + row, column, f"{value!r:.60}", reason)

    def _cell(self, row: int, values: dict[str, Any]) -> Cell | Quarantined | None:
        place = self.table.base, self.allow_paths
        return fetch_cell(self.name, self.modality, values, *place, row=self.first + row)


def fetch_cell(
    name: str,
    modality: Modality,
    values: Mapping[str, Any],
    base: Path | str | None = None,
    allow_paths: bool = True,
    row: int = 0,
) -> Cell | Quarantined | None:
    """Fetch what one row holds of an input; None where absent, Quarantined where nothing can be read there.

    Args:
        name: of the input.
        modality: of the input.
        values: column -> raw cell, for every column of the input; None where missing.
        base: folder or URL that relative paths start from.
        allow_paths: whether a cell may name a file or a URL.
        row: its number, in messages.
    """
    if all(value is None for value in values.values()):
        return None
    value = values if modality.spans else next(iter(values.values()))
    try:
        return content(value, modality.media, base, allow_paths)
    except DataError as error:
        origin = str(value)[:200] if isinstance(value, str) else type(value).__name__
        return _quarantined(name, modality, row, origin, error)


def decode_cell(
    name: str, modality: Modality, cell: Cell | Quarantined | None, row: int = 0
) -> Reading | Quarantined | None:
    """Decode what was fetched; None where nothing usable is in it, Quarantined where it is broken."""
    if not isinstance(cell, Cell):
        return cell
    try:
        return modality.read(cell.content)
    except DataError as error:
        return _quarantined(name, modality, row, cell.origin, error)


def read_cell(name: str, modality: Modality, row: Mapping[str, Any]) -> Reading | Quarantined | None:
    """Fetch and decode one input of a single row that a stranger sent: no path or URL in it is followed.

    Args:
        name: of the input.
        modality: of the input.
        row: column -> raw cell; other columns do not matter, missing ones are absent.
    """
    values = {column: row.get(column) for column in modality.columns(name)}
    return decode_cell(name, modality, fetch_cell(name, modality, values, allow_paths=False))


def _quarantined(name: str, modality: Modality, row: int, origin: str, error: DataError) -> Quarantined:
    return Quarantined(row, ", ".join(modality.columns(name)), origin, str(error))
