"""Ask: rows of a table, or made-up ones, as bodies of requests, ready to be sent."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
from PIL import Image

from polymodal.data.cells import Cell
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.part import Reading
from polymodal.reading import Field
from polymodal.spec import Spec
from polymodal.values import is_missing

Row = Mapping[str, Any]
"""Column -> cell, None where absent; media as bytes. Every column of the inputs is in it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is ready to be sent.

    Attributes:
        body: bytes.
        content_type: of the body.
        first: number of its first row, among all that were made into requests.
        rows: how many it asks for.
    """

    body: bytes
    content_type: str
    first: int = 0
    rows: int = 1


def fields(spec: Spec) -> list[Field]:
    """The fields of all inputs; a column that several inputs take only once."""
    every = [field for name, part in spec.inputs.items() for field in part.fields(name)]
    return list({field.column: field for field in every}.values())


def made_up(spec: Spec) -> list[Row]:
    """Rows that need no data: the examples, varied; without each input; with each alone; with nothing."""
    known = fields(spec)
    blank: dict[str, Any] = dict.fromkeys((field.column for field in known), None)
    whole = {field.column: field.example for field in known}
    varied = [{field.column: _vary(field, seed) for field in known} for seed in range(4)]
    columns = [part.columns(name) for name, part in spec.inputs.items()]
    without = [whole | dict.fromkeys(own) for own in columns]
    alone = [blank | {column: whole[column] for column in own} for own in columns]
    return [whole, *varied, *without, *(alone if len(columns) > 2 else []), blank]


def table_rows(spec: Spec, table: Any, most: int) -> tuple[list[Row], np.ndarray, int]:
    """Rows of a table, evenly chosen, with what cannot be read left out, since a server refuses it.

    Args:
        spec: fitted.
        table: anything `Table.read` takes.
        most: rows that are taken at most.

    Returns:
        The rows; (n,) which of the table's they are; how many cells were left out.

    Raises:
        DataError: the table cannot be read.
    """
    whole = Table.read(table)
    index = np.unique(np.linspace(0, len(whole) - 1, min(most, len(whole))).round().astype(int))
    chosen, broken = whole.select(index), 0
    rows: list[dict[str, Any]] = [{field.column: None for field in fields(spec)} for _ in index]
    for name, part in spec.inputs.items():
        source = Source(name, part, chosen)
        for i, cell in enumerate(source.cells(0, len(chosen))):
            reading = source.read(i, cell)
            if isinstance(cell, Cell) and isinstance(reading, Reading):
                bad = reading.broken
                values = cell.content if part.spans else {part.columns(name)[0]: cell.content}
                rows[i] |= {column: None if column in bad else _plain(value) for column, value in values.items()}
                broken += len(bad)
            else:
                broken += reading is not None
    return list(rows), index, broken


def targets(spec: Spec, table: Table) -> dict[str, list[Any]]:
    """The targets' columns, where the table has all of them and any target in them; else none."""
    columns = [column for name, task in spec.outputs.items() for column in task.columns(name)]
    if not all(column in table for column in columns):
        return {}
    found = {column: list(table.column(column)) for column in columns}
    return found if any(not is_missing(cell) for cells in found.values() for cell in cells) else {}


def as_json(rows: Sequence[Row], first: int = 0) -> Request:
    """A JSON body of one row or several; media in base64, absent cells left out."""
    cells = [{column: _text(value) for column, value in row.items() if value is not None} for row in rows]
    return Request(_dumps({"inputs": cells}), "application/json", first, len(cells))


def as_form(row: Row, first: int = 0) -> Request:
    """A multipart body of one row: a file for each media cell, a text for any other; absent cells left out."""
    parts = []
    for column, value in row.items():
        name = column.replace("\\", "\\\\").replace('"', '\\"')
        if isinstance(value, bytes):
            head = f'name="{name}"; filename="{name}"\r\nContent-Type: application/octet-stream'
            parts.append((head.encode(), value))
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append((f'name="{name}"'.encode(), text.encode()))
    digest = hashlib.blake2b(digest_size=16)
    for _, value in parts:
        digest.update(value)
    boundary = digest.hexdigest().encode()
    body = b"".join(b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, *part) for part in parts)
    return Request(body + b"--%b--\r\n" % boundary, f"multipart/form-data; boundary={boundary.decode()}", first)


def best_form(row: Row, first: int = 0) -> Request:
    """The body that a client would send: multipart where there are files, else JSON."""
    return as_form(row, first) if any(isinstance(value, bytes) for value in row.values()) else as_json([row], first)


def as_tensors(spec: Spec, rows: Sequence[Row], datatype: Callable[[str], str]) -> Request:
    """A JSON body of the Open Inference Protocol: a tensor (B,) for each column.

    Args:
        spec: fitted.
        rows: B rows.
        datatype: from a field's kind to the tensor's datatype, where no cell is a text.
    """
    tensors = []
    for field in fields(spec):
        cells, kind = [row[field.column] for row in rows], datatype(field.kind)
        kind = "BYTES" if any(isinstance(cell, str) for cell in cells) else kind  # a number, yes or no may be a text
        data = [_element(cell, kind) for cell in cells]
        tensors.append({"name": field.column, "shape": [len(rows)], "datatype": kind, "data": data})
    return Request(_dumps({"inputs": tensors}), "application/json", 0, len(rows))


def _element(value: Any, datatype: str) -> Any:
    """A cell as an element of a tensor: BYTES are texts, and JSON where the cell is none."""
    value = _text(value)
    if value is None or datatype != "BYTES" or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _text(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    """A table's cell as JSON can hold it, or bytes."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, list | tuple | np.ndarray):  # words
        return [_plain(cell) for cell in value]
    if isinstance(value, bytes):
        return value
    if is_missing(value, frozenset()) or (isinstance(value, float) and not np.isfinite(value)):
        return None
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


def _vary(field: Field, seed: int) -> Any:
    """Another cell that the field takes."""
    return _VARIED[field.kind](field, seed) if field.kind in _VARIED else field.example


def _words(field: Field, seed: int) -> str:
    """One word, a few, many: up to several windows of a backbone."""
    words = str(field.example).split() or ["word"]
    return " ".join(words[i % len(words)] for i in range((1, 9, 70, 300)[seed % 4]))


def _picture(seed: int) -> bytes:
    """A file of noise in colours: PNG or JPEG, of another size for each seed."""
    rng, sink = np.random.default_rng(seed), io.BytesIO()
    small = Image.fromarray(rng.integers(0, 255, (4, 5, 3)).astype(np.uint8))
    small.resize((90 + 70 * seed, 200 - 40 * seed)).save(sink, ("PNG", "JPEG")[seed % 2])
    return sink.getvalue()


def _sound(seed: int) -> bytes:
    """A WAV file of a noisy tone, of another length for each seed."""
    rng, sink, rate = np.random.default_rng(seed), io.BytesIO(), 16000
    seconds = np.arange(int(rate * 0.3 * (seed + 1))) / rate
    tone = 0.4 * np.sin(2 * np.pi * 220 * (seed + 1) * seconds) + 0.05 * rng.standard_normal(len(seconds))
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((32000 * tone.clip(-1, 1)).astype("<i2").tobytes())
    return sink.getvalue()


_VARIED: dict[str, Callable[[Field, int], Any]] = {
    "text": _words,
    "words": _words,
    "image": lambda field, seed: _picture(seed),
    "audio": lambda field, seed: _sound(seed),
    "number": lambda field, seed: (1.5 * (field.example or 0) + 1, 0, -2.25, 1e6)[seed % 4],
    "category": lambda field, seed: [*field.levels, "never seen"][seed % (len(field.levels) + 1)],
    "boolean": lambda field, seed: bool(seed % 2),
    "date": lambda field, seed: f"{1990 + 11 * seed}-0{1 + seed}-28",
}
