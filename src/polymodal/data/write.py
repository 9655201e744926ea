"""Writing tables of results."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from polymodal.errors import DataError

CONLL = ".conll"

_APART = re.compile("-DOCSTART-")
_BREAK = re.compile(r"[\t\r\n]")


def write_table(columns: Mapping[str, Sequence[Any]], path: Path | str) -> int:
    """Write columns of equal length to a file: Parquet, CSV (lists as JSON), JSON lines or CoNLL, by its extension.

    CoNLL has a word in each line and a blank line behind each row. It takes the columns of lists of texts, ``words``
    first where there is such a column, and leaves out the others, and rows without words.

    The file is whole or not there.

    Returns:
        How many rows were left out.

    Raises:
        DataError: the extension is none of these, the columns do not fit it, or the file cannot be written.
    """
    path = check_ending(path, [CONLL])
    ending = path.suffix.lower()
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if ending == CONLL:
            blocks = _conll(columns, path)
            beside.write_text("\n".join(filter(None, blocks)), encoding="utf-8", newline="\n")
        else:
            plain = {name: [_plain(cell) for cell in column] for name, column in columns.items()}
            _WRITERS[ending](pa.table(dict(columns) if ending != ".csv" else plain), beside)
            blocks = list[str]()
        os.replace(beside, path)
        return blocks.count("")
    except OSError as error:
        beside.unlink(missing_ok=True)
        reason = os.strerror(error.errno) if error.errno else error
        raise DataError(f"{path} could not be written: {reason}. What was there is unchanged.") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: columns must have one type and one length: {error}") from error


def check_ending(path: Path | str, others: Sequence[str] = ()) -> Path:
    """The path of a table that `write_table` can write.

    Args:
        path: of the file.
        others: further endings: that the caller writes itself, or `CONLL` where there are words to write.

    Raises:
        DataError: its extension is unknown, or there is no such folder.
    """
    path = Path(path)
    known = sorted({*_WRITERS, *others})
    if path.suffix.lower() not in known:
        told = " It takes words and their tags only." if path.suffix.lower() == CONLL else ""
        raise DataError(f"{path} must end in one of {known}, got {path.suffix!r}.{told}")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path} must lie in a folder that exists, got {path.absolute().parent}. Make it first.")
    return path


def _plain(cell: Any) -> Any:
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else cell


def _conll(columns: Mapping[str, Sequence[Any]], path: Path) -> list[str]:
    """Each row word for word; "" where it has no word."""
    listed = [name for name, cells in columns.items() if _are_texts(cells)]
    listed.sort(key=lambda name: name.rpartition(".")[2] != "words")
    if len(tags := [name for name in listed if name.endswith(".tags")]) > 1:
        raise DataError(f"{path} must hold the tags of one task, got those of {tags}. Write .jsonl or .parquet.")
    if not listed and any(name.rpartition(".")[2] == "words" for name in columns):
        raise DataError(f"{path} must have a row with words, got none in {len(next(iter(columns.values())))} rows.")
    if not listed:
        raise DataError(f"{path}: columns must hold lists of words or tags, got {list(columns)}. Write another format.")
    if len({len(columns[name]) for name in listed}) > 1:
        raise DataError(f"{path}: columns must have one length, got {[len(columns[n]) for n in listed]}.")
    blocks = []
    for number, row in enumerate(zip(*(columns[name] for name in listed), strict=True)):
        if not row[0]:
            blocks.append("")
            continue
        sizes = {name: len(cell or ()) for name, cell in zip(listed, row, strict=True)}
        if len(set(sizes.values())) > 1:
            raise DataError(f"{path}: row {number} must have as many tags as words, got {sizes}. Mend the row.")
        if broken := [item for cell in row for item in cell if _BREAK.search(item) or not item.strip()]:
            raise DataError(
                f"{path}: row {number} must hold words without tabs and line breaks, got {broken[0]!r:.60}. "
                "Write another format."
            )
        lines = ["\t".join(line) + "\n" for line in zip(*row, strict=True)]
        if apart := [line for line in lines if _APART.match(line) or (len(listed) == 1 and line.startswith("#"))]:
            raise DataError(
                f"{path}: row {number} must hold no word that a reader takes for a comment, got {apart[0]!r:.60}. "
                "Write another format."
            )
        blocks.append("".join(lines))
    return blocks


def _are_texts(cells: Sequence[Any]) -> bool:
    """Whether present cells are lists of texts, not all of them empty."""
    lists = [cell for cell in cells if cell is not None]
    return any(lists) and all(isinstance(row, list | tuple) and all(isinstance(x, str) for x in row) for row in lists)


def _write_lines(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


_WRITERS = {".parquet": pq.write_table, ".csv": pacsv.write_csv, ".jsonl": _write_lines}
