"""Tensors of the Open Inference Protocol: from their bytes or JSON to cells, and from predictions to them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from polymodal.errors import DataError
from polymodal.server.cells import PLAIN
from polymodal.server.strict import parse_json, short
from polymodal.task import Task, VectorTask
from polymodal.tasks.classify import label_text

_WHOLE = {
    f"{sign}INT{bits}": f"<{letter}{bits // 8}" for sign, letter in (("", "i"), ("U", "u")) for bits in (8, 16, 32, 64)
}
_FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_DTYPES = {"BOOL": "<u1", **_WHOLE, **_FLOATS}
_USUAL = {"number": "FP64", "boolean": "BOOL"}
_TAKEN = {
    "number": {"BYTES", *_WHOLE, *_FLOATS},
    "boolean": {"BYTES", "BOOL", *_WHOLE},
    "category": {"BYTES", "BOOL", *_WHOLE, *_FLOATS},
}


class Sizes(BaseModel):
    """Parameters of an input tensor.

    Attributes:
        binary_data_size: bytes of it that follow the request's JSON; None where its elements are in ``data``.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    binary_data_size: NonNegativeInt | None = None


class Tensor(BaseModel):
    """An input tensor: one column's cells.

    Attributes:
        name: of the column.
        shape: (B,) or (B, 1).
        datatype: of its elements.
        data: its elements as JSON, flat or nested, null where absent.
        parameters: where its elements are.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    shape: list[NonNegativeInt]
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
        "BYTES",
    ]  # fmt: skip
    data: list[Any] | None = None
    parameters: Sizes = Sizes()


def usual(kind: str) -> str:
    """The datatype that the metadata names for a column of a kind."""
    return _USUAL.get(kind, "BYTES")


def elements(tensor: Tensor, raw: bytes | None, kind: str, media: bool) -> list[Any]:
    """Take a column's tensor apart.

    Args:
        tensor: as the request's JSON declares it.
        raw: its elements where they are binary: little-endian, BYTES each with its length (uint32) before it.
        kind: of the column.
        media: whether its cells are media.

    Returns:
        B elements; BYTES are bytes where they are binary, else texts.

    Raises:
        DataError: shape, datatype or elements are not what the column takes.
    """
    taken = {"BYTES"} if media or kind in ("text", "date", "words") else _TAKEN.get(kind, {"BYTES", *_DTYPES})
    if tensor.datatype not in taken:
        raise DataError(f"{tensor.name} must have datatype {' or '.join(sorted(taken))}, got {tensor.datatype}.")
    found = _from_json(tensor) if raw is None else _from_bytes(tensor, raw)
    if len(found) != rows_of(tensor):
        raise DataError(f"{tensor.name} must have {rows_of(tensor)} elements as its shape says, got {len(found)}.")
    return found


def cell(value: Any, kind: str, media: bool) -> Any:
    """An element to what v1 takes for a cell, or bytes of media; None where it is absent: NaN, null or no bytes.

    Raises:
        DataError: it is no text in UTF-8, or no JSON where the column's cells are lists or objects.
    """
    if value is None or value in (b"", "") or (isinstance(value, float) and math.isnan(value)):
        return None
    if media:
        return value
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise DataError("the cell must be text in UTF-8, got other bytes.") from None
    return parse_json(value.encode()) if isinstance(value, str) and kind not in PLAIN else value


def rows_of(tensor: Tensor) -> int:
    """B of a shape (B,) or (B, 1).

    Raises:
        DataError: the shape is another one.
    """
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]):
        raise DataError(f"{tensor.name} must have shape [B] or [B, 1], got {short(tensor.shape)}.")
    return tensor.shape[0]


def _from_json(tensor: Tensor) -> list[Any]:
    data = tensor.data or []
    if len(tensor.shape) == 2:
        data = [cell for row in data for cell in (row if isinstance(row, list) else [row])]
    kinds = {"BYTES": (str,), "BOOL": (bool,)}.get(
        tensor.datatype, (int, float) if tensor.datatype in _FLOATS else (int,)
    )
    for row, value in enumerate(data):
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise DataError(f"{tensor.name}[{row}] must be of datatype {tensor.datatype}, got {value!r:.60}.")
    return data


def _from_bytes(tensor: Tensor, raw: bytes) -> list[Any]:
    if tensor.data is not None:
        raise DataError(f"{tensor.name} must have data or binary_data_size, got both.")
    if tensor.datatype == "BYTES":
        return list(_split(tensor.name, raw))
    dtype = np.dtype(_DTYPES[tensor.datatype])
    if len(raw) % dtype.itemsize:
        raise DataError(f"{tensor.name} must have whole elements of {dtype.itemsize} bytes, got {len(raw)} bytes.")
    values = np.frombuffer(raw, dtype)
    return (values != 0 if tensor.datatype == "BOOL" else values).tolist()


def _split(name: str, raw: bytes) -> Iterator[bytes]:
    """Elements of a BYTES tensor."""
    at = 0
    while at < len(raw):
        start = at + 4
        size = int.from_bytes(raw[at:start], "little")
        at = start + size
        if at > len(raw):
            raise DataError(f"{name} must have a length of 4 bytes before each element, and whole elements.")
        yield raw[start:at]


@dataclass(frozen=True, slots=True)
class Output:
    """An output tensor: one column of what is told of each row.

    Attributes:
        name: task for its main value, ``task.key`` for the others.
        datatype: FP64 for numbers and tables of numbers, BYTES for texts and, as JSON, lists.
        names: what stands where along each dimension after the first.
        path: keys that lead to it.
    """

    name: str
    datatype: Literal["FP64", "BYTES"]
    names: tuple[tuple[str, ...], ...]
    path: tuple[str, ...]

    @property
    def metadata(self) -> dict[str, Any]:
        """As the protocol describes a tensor."""
        told = {"parameters": {"names": [list(names) for names in self.names]}} if self.names else {}
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *map(len, self.names)], **told}

    def tensor(self, rows: Sequence[Mapping[str, Any]], binary: bool) -> tuple[dict[str, Any], bytes]:
        """The tensor as JSON, and what of it follows as bytes."""
        found = [self._value(row) for row in rows]
        shape = [len(rows), *map(len, self.names)]
        head: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": shape}
        flat: list[Any] = list(_leaves(found)) if self.datatype == "FP64" else found
        if not binary:
            return head | {"data": flat}, b""
        raw = np.array(flat, "<f8").tobytes() if self.datatype == "FP64" else b"".join(map(_sized, flat))
        return head | {"parameters": {"binary_data_size": len(raw)}}, raw

    def _value(self, row: Any) -> Any:
        for key in self.path:
            row = row[key]
        return row if self.datatype == "FP64" else _text(row)


def outputs(tasks: Mapping[str, Task]) -> list[Output]:
    """Every output tensor of a fitted spec's tasks, and ``absent`` and ``broken``, as JSON, of each row.

    A task whose answer is no vector has one tensor, with its answer as JSON.
    """
    found: dict[str, Output] = {}
    for task, part in tasks.items():
        sample = part.predict(torch.zeros(1, part.size))[0] if isinstance(part, VectorTask) else {}
        for place, (key, value) in enumerate(sample.items()):
            name = task if place == 0 else _free(f"{task}.{key}", found.keys() | tasks.keys())
            number = isinstance(value, Mapping) or (isinstance(value, float) and key != "class")
            found[name] = Output(name, "FP64" if number else "BYTES", tuple(_axes(value)), ("prediction", task, key))
        if not sample:
            found[task] = Output(task, "BYTES", (), ("prediction", task))
    for key in ("absent", "broken"):
        name = _free(key, found)
        found[name] = Output(name, "BYTES", (), (key,))
    return list(found.values())


def _free(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _axes(value: Any) -> Iterator[tuple[str, ...]]:
    while isinstance(value, Mapping):
        yield tuple(value)
        value = next(iter(value.values()))


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(inner)
    else:
        yield value


def _text(value: Any) -> str:
    """A class by its text, as in the names of probabilities; anything else as JSON."""
    return label_text(value) if isinstance(value, str | bool | int | float) else json.dumps(value, ensure_ascii=False)


def _sized(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw
