"""Calls: the body of a request of the Open Inference Protocol to rows of cells, and predictions to an answer's body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from starlette.responses import Response

from polymodal.errors import DataError
from polymodal.server.cells import Asked, Cells, Slot, Spot
from polymodal.server.errors import Refused, dumps
from polymodal.server.requests import Intake
from polymodal.server.strict import json_type, near, parse_json, short
from polymodal.server.tensors import Output, Tensor, cell, elements, rows_of

HEADER = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON; tensors follow."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Wish(_Strict):
    """Parameters of a requested output: whether it comes as binary; None where the request's own parameter decides."""

    binary_data: bool | None = None


class Wanted(_Strict):
    """A requested output."""

    name: str
    parameters: Wish = Wish()


class Options(_Strict):
    """Parameters of a request.

    Attributes:
        strict: refuse a broken cell; else it counts as absent and is told in ``broken``.
        binary_data_output: whether outputs come as binary where they do not say otherwise themselves.
        timeout: microseconds after which nobody waits for the answer any more.
    """

    strict: bool = True
    binary_data_output: bool = False
    timeout: PositiveInt | None = None


class Call(_Strict):
    """The JSON of a request."""

    id: str | None = None
    inputs: list[Tensor] = Field(min_length=1)
    outputs: list[Wanted] | None = None
    parameters: Options = Options()


def read_call(
    body: bytes, head: str | None, intake: Intake, known: Mapping[str, Output], cells: Cells
) -> tuple[Asked, Call]:
    """A request's body to rows of cells.

    Raises:
        Refused: it is not built as it must be (400, 422), asks for what is not there (422) or holds too much (413).
        DataError: a tensor or a cell does not hold what its column takes.
    """
    size = len(body) if head is None else int(head) if head.isdecimal() and len(head) < 16 else -1
    if not 0 <= size <= len(body):
        raise Refused(400, f"The header {HEADER} must be the length of the body's JSON, got {short(head)}.")
    try:
        document = parse_json(body[:size])
        if not isinstance(document, dict):
            raise Refused(422, f"The body must be an object with 'inputs', got {json_type(document)}.")
        call = Call.model_validate(document)
    except ValidationError as error:
        raise Refused(422, _first(error)) from None
    for wanted in call.outputs or ():
        if wanted.name not in known:
            told = f"outputs must be of {list(known)}, got {short(wanted.name)}."
            raise Refused(422, told + near(wanted.name, known))
    rows = rows_of(call.inputs[0])
    if not rows or any(rows_of(tensor) != rows for tensor in call.inputs):
        found = sorted({rows_of(tensor) for tensor in call.inputs})
        raise Refused(422, f"inputs must all have the same number of rows, 1 or more, got {short(found)}.")
    if rows > cells.settings.max_rows:
        told = f"inputs must hold at most {cells.settings.max_rows} rows, got {short(rows)}. Send several requests."
        raise Refused(413, told)
    asked = Asked(strict=call.parameters.strict, rows=[{} for _ in range(rows)], broken=[[] for _ in range(rows)])
    for tensor, raw in _with_bytes(call.inputs, body[size:]):
        _fill(asked, tensor, raw, _slot(tensor.name, intake), cells)
    return asked, call


def _first(error: ValidationError) -> str:
    """The first fault, in words."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place[:100]}: {fault['msg']}, got {json_type(fault['input'])}."


def _with_bytes(tensors: Sequence[Tensor], rest: bytes) -> Iterator[tuple[Tensor, bytes | None]]:
    """Tensors with what follows the JSON of each."""
    sizes = [tensor.parameters.binary_data_size for tensor in tensors]
    due, at = sum(size or 0 for size in sizes), 0
    if due != len(rest):
        raise Refused(400, f"{due} bytes must follow the body's JSON, as binary_data_size says, got {len(rest)}.")
    for tensor, size in zip(tensors, sizes, strict=True):
        yield tensor, None if size is None else rest[at : at + size]
        at += size or 0


def _slot(name: str, intake: Intake) -> Slot:
    """The column of a tensor."""
    if name in intake.slots:
        return intake.slots[name]
    if name in intake.targets:
        raise Refused(422, f"inputs must not hold {short(name)}: it is what the model predicts. Leave it out.")
    known = sorted(intake.slots)
    raise Refused(422, f"inputs must be tensors of {known}, got {short(name)}.{near(name, known)}")


def _fill(asked: Asked, tensor: Tensor, raw: bytes | None, slot: Slot, cells: Cells) -> None:
    """Put a tensor's elements into their rows."""
    for i, value in enumerate(elements(tensor, raw, slot.kind, slot.media)):
        spot = Spot(i, slot, f"{tensor.name}[{i}]")
        if slot.column in asked.rows[i]:
            raise Refused(422, f"{spot.path} must be given once, got it under another name too.")
        asked.rows[i][slot.column] = None
        try:
            found = cell(value, slot.kind, slot.media)
            asked.rows[i][slot.column] = found if isinstance(found, bytes) else cells.read(asked, spot, found)
        except DataError as error:
            text = str(error)
            asked.give_up(spot, error if text.startswith(spot.path) else DataError(f"{spot.path}: {text}"))


def tell(
    model: str, version: str, call: Call, known: Mapping[str, Output], rows: Sequence[Mapping[str, Any]]
) -> Response:
    """The answer: JSON, and behind it what was wanted as binary."""
    usually = call.parameters.binary_data_output
    wanted = call.outputs or [Wanted(name=name) for name in known]
    tensors = []
    for want in wanted:
        binary = want.parameters.binary_data
        tensors.append(known[want.name].tensor(rows, usually if binary is None else binary))
    told = {"model_name": model, "model_version": version, "outputs": [head for head, _ in tensors]}
    text, raw = dumps(told if call.id is None else told | {"id": call.id}), b"".join(raw for _, raw in tensors)
    if not any("parameters" in head for head, _ in tensors):
        return Response(text, media_type="application/json")
    return Response(text + raw, media_type="application/octet-stream", headers={HEADER: str(len(text))})
