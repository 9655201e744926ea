"""Writing tables of results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from polymodal.errors import DataError


def write_table(columns: Mapping[str, Sequence[Any]], path: Path | str) -> None:
    """Write columns of equal length to a file: Parquet, CSV (lists as JSON) or JSON lines, by its extension.

    The file is whole or not there.

    Raises:
        DataError: the extension is none of these, or the file cannot be written.
    """
    path = check_ending(path)
    ending = path.suffix.lower()
    plain = {name: [_plain(cell) for cell in column] for name, column in columns.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        table = pa.table(dict(columns) if ending != ".csv" else plain)
        _WRITERS[ending](table, beside)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        reason = os.strerror(error.errno) if error.errno else error
        raise DataError(f"{path} could not be written: {reason}. What was there is unchanged.") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: columns must have one type and one length: {error}") from error


def check_ending(path: Path | str) -> Path:
    """The path of a table that `write_table` can write.

    Raises:
        DataError: its extension is unknown, or there is no such folder.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise DataError(f"{path} must end in one of {sorted(_WRITERS)}, got {path.suffix!r}.")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path} must lie in a folder that exists, got {path.absolute().parent}. Make it first.")
    return path


def _plain(cell: Any) -> Any:
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else cell


def _write_lines(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


_WRITERS = {".parquet": pq.write_table, ".csv": pacsv.write_csv, ".jsonl": _write_lines}
