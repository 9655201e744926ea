"""Writing tables of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from polymodal.errors import DataError


def write_table(columns: Mapping[str, Sequence[Any]], path: Path | str) -> None:
    """Write columns of equal length to a file: Parquet, CSV or JSON lines, by its extension.

    Raises:
        DataError: the extension is none of these, or the file cannot be written.
    """
    path = Path(path)
    writers = {".parquet": pq.write_table, ".csv": pacsv.write_csv, ".jsonl": _write_lines}
    if path.suffix not in writers:
        raise DataError(f"{path} must end in one of {sorted(writers)}, got {path.suffix!r}.")
    plain = {name: [json.dumps(v) if isinstance(v, list) else v for v in column] for name, column in columns.items()}
    table = pa.table(dict(columns) if path.suffix != ".csv" else plain)
    try:
        writers[path.suffix](table, path)
    except OSError as error:
        raise DataError(f"{path} must be writable: {error.strerror or error}.") from error


def _write_lines(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
