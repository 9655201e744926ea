"""Files of rows -> Arrow columns, memory-mapped when large, so that media in a table never fill the memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from polymodal.data.cells import is_url, open_url
from polymodal.errors import DataError, suggest

Parsers = dict[str, Callable[[str], Any]]
Opener = Callable[[], AbstractContextManager[BinaryIO]]

SMALL = 8 << 20  # bytes up to which a table is simply held in memory
_BATCH = 8 << 20  # bytes of rows in flight while a large one is converted
# A column of CSV text becomes numbers only if no cell loses anything by it: 007, +49 or 20 digits stay text.
_PATTERNS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "bool": (r"^(true|false|True|False|TRUE|FALSE)$", lambda text: text[0] in "tT"),
    "int": (r"^(0|-?[1-9]\d{0,17})$", int),
    "float": (r"^-?((0|[1-9]\d{0,17})|(0|[1-9]\d*)\.\d*|\.\d+)([eE][+-]?\d+)?$", float),
}


def read_file(place: str | Path) -> tuple[pa.Table, Parsers]:
    """Read a table file.

    Args:
        place: local path or URL that ends in .csv, .tsv, .parquet, .jsonl or .ndjson; text may end in .gz too.

    Returns:
        The columns, and for columns kept as text the function that turns a cell into its value.

    Raises:
        DataError: the file is missing, unreadable, or of another kind.
    """
    suffixes = [s.lower() for s in Path(str(place)).suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    reader = _READERS.get(kind[0] if kind else "")
    if reader is None or (packed and kind == [".parquet"]):
        raise DataError(
            f"{place} must end in one of {sorted(_READERS)} (text also with .gz), or be a folder per class."
        )

    @contextmanager
    def opener() -> Iterator[BinaryIO]:
        with open_url(place) if isinstance(place, str) and is_url(place) else open(place, "rb") as raw:
            if not packed:
                yield raw
            else:
                with gzip.GzipFile(fileobj=raw) as file:
                    yield file  # pyright: ignore[reportReturnType]

    try:
        return reader(opener, place)
    except FileNotFoundError:
        near = suggest(Path(place).name, os.listdir(Path(place).parent)) if Path(place).parent.is_dir() else ""
        raise DataError(f"{place} must be a table file, but does not exist.{near}") from None
    except PermissionError as error:
        raise DataError(f"{place} must be readable: {error}.") from None
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{place} must be readable as {kind[0]}: {error}") from None


def _spool(schema: pa.Schema, batches: Iterable[pa.RecordBatch], small: bool) -> pa.Table:
    """Hold batches in memory if small, else in an unlinked temporary file that the operating system maps."""
    if small:
        return pa.Table.from_batches(list(batches), schema)
    with tempfile.NamedTemporaryFile(prefix="polymodal-", suffix=".arrow", delete=False) as file:
        try:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            table = pa.ipc.open_file(pa.memory_map(file.name)).read_all()
        except OSError as error:
            if error.errno is None:
                raise
            raise DataError(
                f"{file.name} must hold a copy of the table: {error}. Set TMPDIR to a folder with space."
            ) from None
        finally:
            with suppress(OSError):  # Windows keeps an open file
                os.unlink(file.name)
    return table


def _is_small(place: str | Path, limit: int = SMALL) -> bool:
    """Whether a local file has fewer bytes than ``limit``."""
    return not is_url(str(place)) and os.path.getsize(place) < limit


# Parquet


def plain(kind: pa.DataType) -> pa.DataType:
    """The nearest type whose values are plain Python objects."""
    if isinstance(kind, pa.DictionaryType):
        return kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind):
        return pa.duration("us")
    if pa.types.is_time64(kind):
        return pa.time64("us")
    return pa.float64() if pa.types.is_decimal(kind) else kind


def plain_table(table: pa.Table) -> pa.Table:
    """Cast the columns whose type is not plain."""
    for i, field in enumerate(table.schema):
        if plain(field.type) != field.type:
            table = table.set_column(i, field.name, table.column(i).cast(plain(field.type), safe=False))
    return table


def _read_parquet(opener: Opener, place: str | Path) -> tuple[pa.Table, Parsers]:
    """Convert row group by row group."""
    with opener() as raw, pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False) as file:
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        check_names(file.schema_arrow.names, str(place))
        rows = max(1, min(65536, _BATCH * meta.num_rows // max(size, 1)))
        schema = pa.schema([(f.name, plain(f.type)) for f in file.schema_arrow])
        whole = (plain_table(pa.Table.from_batches([b])) for b in file.iter_batches(rows, use_threads=False))
        batches = (batch for table in whole for batch in table.cast(schema).to_batches())
        return _spool(schema, batches, size < SMALL), {}


# CSV


def _read_csv(opener: Opener, place: str | Path) -> tuple[pa.Table, Parsers]:
    """Keep every cell as the text it is, and learn which columns are numbers or booleans throughout."""
    names, delimiter = _header(opener, place)
    text = pa.schema([(name, pa.large_string()) for name in names])
    wrong: list[pa_csv.InvalidRow] = []
    kinds = {name: set(_PATTERNS) for name in names}

    def batches(raw: BinaryIO) -> Iterator[pa.RecordBatch]:
        with pa_csv.open_csv(
            raw,
            pa_csv.ReadOptions(use_threads=False, column_names=names, skip_rows_after_names=1, block_size=_BATCH),
            pa_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda r: wrong.append(r) or "error"
            ),
            pa_csv.ConvertOptions(
                column_types={f.name: f.type for f in text}, null_values=[""], strings_can_be_null=True
            ),
        ) as reader:
            for batch in reader:
                for name in names:
                    kinds[name] -= {k for k in kinds[name] if not _all_match(batch.column(name), _PATTERNS[k][0])}
                yield batch

    try:
        with opener() as raw:
            table = _spool(text, batches(raw), _is_small(place, SMALL // 8 if str(place).endswith(".gz") else SMALL))
    except pa.ArrowInvalid as error:
        if wrong:
            row, cells = wrong[0], wrong[0].actual_columns
            raise DataError(
                f"{place}: row {row.number} (the header is row 1) must have {row.expected_columns} cells, got {cells}: "
                f"{row.text[:60]!r}. Quote cells that hold the delimiter {delimiter!r}."
            ) from None
        _check_encoding(opener, place)
        if "Empty CSV" in str(error):
            return text.empty_table(), {}
        raise
    first = {name: next((k for k in _PATTERNS if k in kinds[name]), None) for name in names}
    return table, {name: _PATTERNS[kind][1] for name, kind in first.items() if kind}


def _all_match(column: pa.Array, pattern: str) -> bool:
    """Whether every cell that is not empty matches."""
    options = pc.MatchSubstringOptions(pattern)
    return pc.call_function("all", [pc.call_function("match_substring_regex", [column], options)]).as_py() is not False


def _header(opener: Opener, place: str | Path) -> tuple[list[str], str]:
    """Names of the columns, and the delimiter."""
    with opener() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        try:
            line = file.readline()
            tab = ".tsv" in [s.lower() for s in Path(str(place)).suffixes]
            delimiter = "\t" if tab else next((d for d in ",;\t|" if d in line), ",")
            lines = iter([line, *islice(file, 100)])  # a quoted name may hold line breaks
            names = next(csv.reader(lines, delimiter=delimiter), [])
        except UnicodeDecodeError:
            _check_encoding(opener, place)
            raise
    names = [name.strip() or f"column_{i + 1}" for i, name in enumerate(names)]
    check_names(names, str(place))
    return names, delimiter


def _check_encoding(opener: Opener, place: str | Path) -> None:
    """Raise a DataError that tells the first line that is not UTF-8, if there is one."""
    with opener() as raw:
        for number, line in enumerate(raw, 1):
            _decode(line, number, place)


def _decode(line: bytes, number: int, place: str | Path) -> str:
    """Decode a line of UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        guess = "utf-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        raise DataError(
            f"{place}: line {number} must be UTF-8, got byte 0x{line[error.start]:02x} at position {error.start}. "
            f"It may be {guess}: convert it with iconv -f {guess} -t utf-8."
        ) from None


def check_names(names: Iterable[str], source: str) -> None:
    """Reject repeated column names.

    Raises:
        DataError: a name repeats.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{source}: column names must differ, got {name!r} twice. Rename one of them.")
        seen.add(name)


# JSON lines


def _read_jsonl(opener: Opener, place: str | Path) -> tuple[pa.Table, Parsers]:
    """Keep every value as its own JSON text, so that any value comes back as it was."""
    names = list(dict.fromkeys(name for row in _objects(opener, place) for name in row))
    schema = pa.schema([(name, pa.large_string()) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        rows: list[list[str | None]] = []
        size = 0
        for row in _objects(opener, place):
            cells = [None if row.get(n) is None else json.dumps(row[n], ensure_ascii=False) for n in names]
            rows.append(cells)
            size += sum(len(c) for c in cells if c)
            if size > _BATCH or len(rows) == 65536:
                yield pa.RecordBatch.from_arrays(
                    [pa.array(c, pa.large_string()) for c in zip(*rows, strict=True)], schema=schema
                )
                rows, size = [], 0
        if rows and names:
            yield pa.RecordBatch.from_arrays(
                [pa.array(c, pa.large_string()) for c in zip(*rows, strict=True)], schema=schema
            )

    small = _is_small(place, SMALL // 8 if str(place).endswith(".gz") else SMALL)
    return _spool(schema, batches(), small), dict.fromkeys(names, json.loads)


def _objects(opener: Opener, place: str | Path) -> Iterator[dict[str, Any]]:
    """One object per line that is not blank."""
    with opener() as raw:
        for number, line in enumerate(raw, 1):
            text = _decode(line, number, place).strip()
            if not text:
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError(f"{place}: line {number} must be one JSON object: {error}.") from None
            if not isinstance(row, dict):
                raise DataError(f"{place}: line {number} must be one JSON object, got {text[:40]!r}.")
            yield row


_READERS: dict[str, Callable[[Opener, str | Path], tuple[pa.Table, Parsers]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}
