"""Table: rows of raw cells, from a file, a folder or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa

from polymodal.data import conll
from polymodal.data.cells import is_url
from polymodal.data.files import list_folder, open_file, read_file, readable
from polymodal.data.spool import check_names, plain_table
from polymodal.errors import DataError, suggest

_BLOCK = 1024


class Column(Sequence[Any]):
    """A column's values, made one by one when asked for; None where missing.

    Args:
        source: the stored cells.
        rows: (n,) indices into them; all, in order, if None.
        parse: from a stored cell that is not missing to its value; the cell itself if None.
    """

    __slots__ = ("_chunks", "_ends", "_parse", "_rows", "_source")

    def __init__(
        self,
        source: pa.ChunkedArray | Sequence[Any],
        rows: np.ndarray | None = None,
        parse: Callable[[Any], Any] | None = None,
    ) -> None:
        self._source, self._rows, self._parse = source, rows, parse
        self._chunks: list[pa.Array] | None = source.chunks if isinstance(source, pa.ChunkedArray) else None  # pyright: ignore
        self._ends = np.cumsum([0, *map(len, self._chunks or [])])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._source if self._rows is None else self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """One value, or a list of them."""
        if isinstance(index, slice):
            return list(self._values(np.arange(len(self))[index]))
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"row must be within {n} rows, got {index}.")
        return next(self._values(np.array([index % n])))

    def __iter__(self) -> Iterator[Any]:
        """All values in order."""
        for start in range(0, len(self), _BLOCK):
            yield from self._values(np.arange(start, min(start + _BLOCK, len(self))))

    @property
    def rows(self) -> np.ndarray | None:
        """Which stored cells this column shows; None for all."""
        return self._rows

    def on(self, rows: np.ndarray) -> Column:
        """View stored cells by their own index."""
        return Column(self._source, rows, self._parse)

    def _values(self, index: np.ndarray) -> Iterator[Any]:
        """Values at positions within this column."""
        index = index if self._rows is None else self._rows[index]
        source, chunks, parse = self._source, self._chunks, self._parse
        if chunks is not None:
            which = np.searchsorted(self._ends, index, side="right") - 1
            local = index - self._ends[which]
            cells = (chunks[c][i].as_py() for c, i in zip(which.tolist(), local.tolist(), strict=True))
        else:
            cells = (source[i] for i in index.tolist())
            cells = (cell.item() if isinstance(cell, np.generic) else cell for cell in cells)
        return cells if parse is None else (None if cell is None else parse(cell) for cell in cells)


class Table:
    """Named columns of one length. Selecting rows copies no cells.

    Attributes:
        source: what to call the table in messages.
        base: folder or URL that relative media paths start from; None for the working directory.
    """

    def __init__(
        self, columns: Mapping[str, Column], source: str = "the table", base: Path | str | None = None
    ) -> None:
        """Check that there are columns, of one length, with rows.

        Raises:
            DataError: they are not.
        """
        self._columns, self.source, self.base = dict(columns), source, base
        sizes = {name: len(column) for name, column in self._columns.items()}
        if not sizes:
            raise DataError(f"{source} must have at least one column, got none.")
        if len(set(sizes.values())) > 1:
            raise DataError(f"{source}: columns must have one length, got {sizes}.")

    @classmethod
    def read(cls, source: Any) -> Table:
        """Read a table.

        Args:
            source: path or URL of a CSV, TSV, Parquet, JSON lines or CoNLL file, a folder per class, an Arrow, pandas
                or polars table, dict of columns, sequence of row dicts (a missing key is a missing cell), or a Table.

        Raises:
            DataError: it cannot be read, has no rows, repeats a column name or has columns of unequal length.
        """
        if isinstance(source, Table):
            return source
        table = _from_place(source) if isinstance(source, (str, Path)) else _from_memory(source)
        if not len(table):
            raise DataError(f"{table.source} must have at least one row, got none.")
        return table

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self._columns)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self._columns.values())))

    def __contains__(self, name: object) -> bool:
        """Whether there is such a column."""
        return name in self._columns

    def column(self, name: str) -> Column:
        """A column by name.

        Raises:
            DataError: there is none.
        """
        if name not in self._columns:
            raise DataError(
                f"{self.source} must have a column {name!r}, got {list(self.columns)}.{suggest(name, self.columns)}"
            )
        return self._columns[name]

    def rows(self, i: int) -> dict[str, Any]:
        """One row as {column: value}."""
        return {name: column[i] for name, column in self._columns.items()}

    def select(self, rows: Sequence[int] | np.ndarray) -> Self:
        """A view of some rows, in the given order. (n,) indices or a bool mask over all rows."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        if len(index) and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"rows must lie within 0 to {len(self) - 1}, got {index.min()} to {index.max()}.")
        shared: dict[int, np.ndarray] = {}
        columns = {}
        for name, column in self._columns.items():
            key = id(column.rows)
            if key not in shared:
                shared[key] = index if column.rows is None else column.rows[index]
            columns[name] = column.on(shared[key])
        return type(self)(columns, self.source, self.base)

    def head(self, n: int = 5) -> Self:
        """The first n rows."""
        return self.select(np.arange(min(n, len(self))))

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same under other names: of those in ``names`` -> what they are called."""
        return type(self)({names.get(n, n): column for n, column in self._columns.items()}, self.source, self.base)

    def with_column(self, name: str, values: Sequence[Any]) -> Self:
        """Add a column, or put it in the place of one of that name.

        Raises:
            DataError: ``values`` has another length than the table.
        """
        return type(self)({**self._columns, name: Column(list(values))}, self.source, self.base)


def read_conll(place: str | Path, words: int | None = None, tags: int | None = None) -> Table:
    """Read a CoNLL file of any layout: a row for each sentence, with lists ``words``, ``tags``, ``column_2`` ...

    Columns are parted by tabs or spaces and sentences by blank lines; comments and -DOCSTART- lines are left out.

    Args:
        place: path or URL; it may end in .gz.
        words: column of the words, from 0 or, below 0, from the last one's. If None the first, or the second where the
            first one numbers the words.
        tags: column of the tags, likewise. If None the last; in CoNLL-U that of the universal parts of speech.

    Raises:
        DataError: the file cannot be read, has no sentence or no such column, or its lines differ in columns.
    """
    with readable(place):
        table = _from_arrow(conll.read(open_file(place), place, words, tags), None, str(place))
    if not len(table):
        raise DataError(f"{place} must have at least one sentence, got none.")
    return table


def _from_place(source: str | Path) -> Table:
    """Read a path or URL."""
    if isinstance(source, str) and is_url(source) and not source.startswith("file://"):
        return _from_arrow(*read_file(source), source, source.rsplit("/", 1)[0])
    path = Path(str(source).removeprefix("file://")).expanduser()
    if path.is_dir():
        return Table({name: Column(cells) for name, cells in list_folder(path).items()}, str(path), path)
    return _from_arrow(*read_file(path), str(path), path.parent)


def _from_arrow(
    table: pa.Table,
    parsers: Mapping[str, Callable[[str], Any]] | None = None,
    source: str = "the table",
    base: Path | str | None = None,
) -> Table:
    """Wrap an Arrow table."""
    check_names(table.column_names, source)
    parse = parsers or {}
    columns = {name: Column(table.column(name), None, parse.get(name)) for name in table.column_names}
    return Table(columns, source, base)


def _from_memory(source: Any) -> Table:
    """Wrap an object in memory."""
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        return _from_arrow(plain_table(source))
    if isinstance(source, Mapping):
        return Table({str(name): Column(_cells(name, values)) for name, values in source.items()})
    if hasattr(source, "columns") and (hasattr(source, "__arrow_c_stream__") or hasattr(source, "to_arrow")):
        return _from_frame(source)
    if isinstance(source, Sequence) and not isinstance(source, (bytes, str)):
        for i, row in enumerate(source):
            if not isinstance(row, Mapping):
                raise DataError(f"row {i} must be a mapping from column to value, got {type(row).__name__}.")
        if not source:
            raise DataError("the table must have at least one row, got none.")
        names = dict.fromkeys(name for row in source for name in row)
        return Table({str(name): Column([row.get(name) for row in source]) for name in names})
    raise DataError(
        "a table must be a path, a URL, an Arrow, pandas or polars table, a dict of columns or a list of row dicts, "
        f"got {type(source).__name__}."
    )


def _cells(name: object, values: Any) -> Any:
    """Keep one column of a dict as Arrow cells or as a list."""
    if hasattr(values, "__arrow_c_stream__") or isinstance(values, (pa.Array, pa.ChunkedArray)):
        try:
            return plain_table(
                pa.table({"x": pa.chunked_array(values if hasattr(values, "__arrow_c_stream__") else [values])})
            ).column(0)
        except (pa.ArrowException, TypeError):  # a pandas column of mixed objects
            return [None if _is_missing(v) else v for v in values]
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise DataError(f"column {name!r} must be a sequence of cells, got {type(values).__name__}.")
    return values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)


def _from_frame(frame: Any) -> Table:
    """Wrap a pandas or polars frame; its index is not a column."""
    names = [str(name) for name in frame.columns]
    check_names(names, "the table")
    try:
        table = pa.table(frame) if hasattr(frame, "__arrow_c_stream__") else frame.to_arrow()
        return _from_arrow(plain_table(table.select(names)))
    except (pa.ArrowException, TypeError):  # objects that Arrow cannot hold, as pictures or mixed types
        cells = {str(name): list(frame[name]) for name in frame.columns}
        return Table({k: Column([None if _is_missing(v) else v for v in column]) for k, column in cells.items()})


def _is_missing(value: Any) -> bool:
    """Whether a pandas object cell stands for nothing."""
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and np.isnan(value))
