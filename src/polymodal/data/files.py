"""Files of rows -> Arrow columns, memory-mapped when large, so that media in a table never fill the memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from polymodal.data import conll
from polymodal.data.cells import is_url, open_url
from polymodal.data.spool import (
    BATCH,
    SMALL,
    Opener,
    check_encoding,
    check_names,
    is_small,
    plain,
    plain_table,
    spool,
    text_lines,
)
from polymodal.errors import DataError, suggest

Parsers = dict[str, Callable[[str], Any]]

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_SOUNDS = {".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff"}
# A column of CSV text becomes numbers only if no cell loses anything by it: 007, +49 or 20 digits stay text.
_PATTERNS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "bool": (r"^(true|false|True|False|TRUE|FALSE)$", lambda text: text[0] in "tT"),
    "int": (r"^(0|-?[1-9]\d{0,17})$", int),
    "float": (r"^-?((0|[1-9]\d{0,17})|(0|[1-9]\d*)\.\d*|\.\d+)([eE][+-]?\d+)?$", float),
}


def read_file(place: str | Path) -> tuple[pa.Table, Parsers]:
    """Read a table file.

    Args:
        place: local path or URL that ends in .csv, .tsv, .parquet, .jsonl, .ndjson or like a CoNLL file; text may end
            in .gz too. A file of another name is read as CoNLL if it begins like one.

    Returns:
        The columns, and for columns kept as text the function that turns a cell into its value.

    Raises:
        DataError: the file is missing, unreadable, or of another kind.
    """
    suffixes = [s.lower() for s in Path(str(place)).suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = ((suffixes[:-1] if packed else suffixes)[-1:] or [""])[0]
    reader, opener = _READERS.get(kind), open_file(place)
    with readable(place, kind):
        if reader is None and conll.looks_like(opener, place):
            reader = _read_conll
        if reader is None or (packed and kind == ".parquet"):
            raise DataError(
                f"{place} must end in one of {sorted(_READERS)} (text also with .gz), or be a folder per class."
            )
        return reader(opener, place)


def open_file(place: str | Path) -> Opener:
    """What opens a local path or a URL for reading; unpacks what ends in .gz."""

    @contextmanager
    def opener() -> Iterator[BinaryIO]:
        with open_url(place) if isinstance(place, str) and is_url(place) else open(place, "rb") as raw:
            if not str(place).lower().endswith(".gz"):
                yield raw
            else:
                with gzip.GzipFile(fileobj=raw) as file:
                    yield file  # pyright: ignore[reportReturnType]

    return opener


@contextmanager
def readable(place: str | Path, kind: str = "text") -> Iterator[None]:
    """Raise a DataError that tells why a file cannot be read."""
    try:
        yield
    except FileNotFoundError:
        near = suggest(Path(place).name, os.listdir(Path(place).parent)) if Path(place).parent.is_dir() else ""
        raise DataError(f"{place} must be a table file, but does not exist.{near}") from None
    except PermissionError as error:
        raise DataError(f"{place} must be readable: {error}.") from None
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{place} must be readable as {kind}: {error}") from None


def list_folder(folder: Path) -> dict[str, list[str]]:
    """List ``folder/<class>/<file>``.

    Returns:
        {"image" or "audio": paths relative to the folder, "label": names of their folders}, sorted.

    Raises:
        DataError: there is no media file in a class folder, or pictures and sounds are mixed.
    """
    found: dict[str, list[str]] = {"image": [], "audio": []}
    other = []
    for path in sorted(folder.glob("*/*")):
        if path.name.startswith(".") or path.parent.name.startswith(".") or not path.is_file():
            continue
        ending = path.suffix.lower()
        kind = "image" if ending in _IMAGES else "audio" if ending in _SOUNDS else None
        (found[kind] if kind else other).append(path.relative_to(folder).as_posix())
    media = [kind for kind in found if found[kind]]
    if len(media) != 1:
        got = "both" if media else f"{len(other)} other files" if other else "none"
        raise DataError(
            f"{folder} must hold pictures or sounds as <class>/<file>, got {got}. Or give a table of paths."
        )
    if other:
        warnings.warn(f"{folder}: left out {len(other)} files that are no media, as {other[0]}.", stacklevel=4)
    paths = found[media[0]]
    return {media[0]: paths, "label": [path.split("/")[0] for path in paths]}


# Parquet


def _read_parquet(opener: Opener, place: str | Path) -> tuple[pa.Table, Parsers]:
    """Convert row group by row group."""
    with opener() as raw, pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False) as file:
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        check_names(file.schema_arrow.names, str(place))
        rows = max(1, min(65536, BATCH * meta.num_rows // max(size, 1)))
        schema = pa.schema([(f.name, plain(f.type)) for f in file.schema_arrow])
        whole = (plain_table(pa.Table.from_batches([b])) for b in file.iter_batches(rows, use_threads=False))
        batches = (batch for table in whole for batch in table.cast(schema).to_batches())
        return spool(schema, batches, size < SMALL), {}


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
            pa_csv.ReadOptions(use_threads=False, column_names=names, skip_rows_after_names=1, block_size=BATCH),
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
            table = spool(text, batches(raw), is_small(place))
    except pa.ArrowInvalid as error:
        if wrong:
            row, cells = wrong[0], wrong[0].actual_columns
            raise DataError(
                f"{place}: row {row.number} (the header is row 1) must have {row.expected_columns} cells, got {cells}: "
                f"{row.text[:60]!r}. Quote cells that hold the delimiter {delimiter!r}."
            ) from None
        check_encoding(opener, place)
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
            check_encoding(opener, place)
            raise
    names = [name.strip() or f"column_{i + 1}" for i, name in enumerate(names)]
    check_names(names, str(place))
    return names, delimiter


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
            if size > BATCH or len(rows) == 65536:
                yield pa.RecordBatch.from_arrays(
                    [pa.array(c, pa.large_string()) for c in zip(*rows, strict=True)], schema=schema
                )
                rows, size = [], 0
        if rows and names:
            yield pa.RecordBatch.from_arrays(
                [pa.array(c, pa.large_string()) for c in zip(*rows, strict=True)], schema=schema
            )

    small = is_small(place)
    return spool(schema, batches(), small), dict.fromkeys(names, json.loads)


def _objects(opener: Opener, place: str | Path) -> Iterator[dict[str, Any]]:
    """One object per line that is not blank."""
    for number, line in text_lines(opener, place):
        text = line.strip()
        if not text:
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise DataError(f"{place}: line {number} must be one JSON object: {error}.") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: line {number} must be one JSON object, got {text[:40]!r}.")
        yield row


# CoNLL


def _read_conll(opener: Opener, place: str | Path) -> tuple[pa.Table, Parsers]:
    """Keep every sentence as lists."""
    return conll.read(opener, place), {}


_READERS: dict[str, Callable[[Opener, str | Path], tuple[pa.Table, Parsers]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    **dict.fromkeys(conll.ENDINGS, _read_conll),
}
