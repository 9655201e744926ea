"""Requests: the body of a prediction's request to rows of cells, with whatever is wrong named by its path."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

from polymodal.errors import DataError
from polymodal.server.cells import Asked, Cells, Slot, Spot
from polymodal.server.errors import Refused
from polymodal.server.multipart import Part, read_parts
from polymodal.server.settings import Settings
from polymodal.server.strict import json_type, near, parse_json, short
from polymodal.spec import Spec
from polymodal.values import parse_boolean

SMALL = 64 << 10
"""Bytes of a body above which it is read in a thread, so that the event loop goes on meanwhile."""

OPTIONS = {"explain": False, "strict": True}
"""What a prediction's request may ask for, and what holds where it does not."""

FIND_OPTIONS = {"count": 10, "strict": True}
"""What a request to an index may ask for, likewise."""

MOST = 1000
"""Items of an index that a row may ask for."""


_MILLISECONDS = re.compile(r"[0-9]{1,15}([.][0-9]{1,15})?")


def patience(wished: str | None, most: float) -> float:
    """How long a client waits for its answer.

    Args:
        wished: its header X-Deadline-Ms, if it sent one.
        most: seconds that the server gives a request.

    Returns:
        Seconds, above 0.

    Raises:
        Refused: the header is no number of milliseconds.
    """
    if wished is None:
        return most
    seconds = float(wished) / 1000 if _MILLISECONDS.fullmatch(wished) else 0.0
    if not seconds > 0:
        raise Refused(400, f"The header X-Deadline-Ms must be a number of milliseconds above 0, got {short(wished)}.")
    return min(seconds, most)


class Intake:
    """Reads requests to one bundle.

    Attributes:
        options: what a request may ask for, and what holds where it does not.
        slots: name that a cell may be given under -> its column.
        groups: input of several columns -> the names of those, which may also be given within an object of its name.
        targets: what the model predicts, and no request may fill.
    """

    def __init__(self, spec: Spec, settings: Settings, options: Mapping[str, bool | int] = OPTIONS) -> None:
        self.settings, self.options, self._cells = settings, options, Cells(settings)
        self._keys = ("inputs", *options)
        self.slots, self.groups = dict[str, Slot](), dict[str, frozenset[str]]()
        for name, part in spec.inputs.items():
            fields = part.fields(name)
            self.slots |= {f.column: Slot(name, f.column, f.kind, part.media) for f in fields}
            if part.spans or len(fields) > 1:
                self.groups[name] = frozenset(f.column for f in fields)
        for name, part in spec.inputs.items():
            if len(columns := part.columns(name)) == 1:
                self.slots.setdefault(name, self.slots[columns[0]])
        self.targets = {name for task, part in spec.outputs.items() for name in (task, *part.columns(task))}

    async def read(self, body: bytes, content_type: str) -> Asked:
        """Read a request's body.

        Raises:
            Refused: it is no JSON and no form (400, 415), holds too much (413) or is not built as it must be (422).
            DataError: a cell does not hold what its column takes.
        """
        return await self._finished(partial(self.parse, body, content_type), len(body))

    async def read_rows(self, rows: list[dict[str, Any]], size: int) -> Asked:
        """Read rows of a body of some bytes that was parsed already. Raises what `read` does."""
        return await self._finished(partial(self._document, {"inputs": rows}), size)

    async def _finished(self, parse: Callable[[], Asked], size: int) -> Asked:
        asked = parse() if size <= SMALL else await asyncio.to_thread(parse)
        if asked.urls:
            await self._cells.fetch(asked)
        return asked

    def parse(self, body: bytes, content_type: str) -> Asked:
        """The same without fetching anything."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "application/json":
            return self._document(parse_json(body))
        if kind == "multipart/form-data":
            most = self.settings.max_rows * (len(self.slots) + 1) + len(self._keys)
            return self._form(read_parts(body, content_type, most))
        raise Refused(
            415,
            f"The header Content-Type must be application/json or multipart/form-data, got {short(kind)}. "
            "With curl, add -H 'Content-Type: application/json', or use -F.",
        )

    def _document(self, document: Any, files: Mapping[str, Part] | None = None) -> Asked:
        """Rows of a JSON body, whose media may lie in files beside it."""
        if not isinstance(document, dict):
            raise Refused(422, f"The body must be an object with 'inputs', got {json_type(document)}.")
        for name in document.keys() - set(self._keys):
            known = f"keys of {list(self._keys)}"
            raise Refused(422, f"The body must have {known}, got {short(name)}.{near(name, self._keys)}")
        wishes: dict[str, Any] = {n: _wish(document.get(n, usual), usual, n) for n, usual in self.options.items()}
        asked = Asked(files=files or {}, **wishes)
        rows = document.get("inputs")
        rows = [rows] if isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not rows:
            got = "an empty list" if rows == [] else json_type(rows)
            raise Refused(422, f"inputs must be a row (an object of columns) or a list of rows, got {got}.", "inputs")
        if len(rows) > self.settings.max_rows:
            told = f"inputs must hold at most {self.settings.max_rows} rows, got {len(rows)}. Send several requests."
            raise Refused(413, told, "inputs")
        asked.broken = [[] for _ in rows]
        for i, row in enumerate(rows):
            asked.rows.append(self._row(asked, i, row))
        return asked

    def _form(self, parts: list[Part]) -> Asked:
        """Rows of a form: a part for each cell, or a part of JSON with files beside it."""
        named = dict[str, list[Part]]()
        for part in parts:
            named.setdefault(part.name, []).append(part)
        special = {n: named.pop(n) for n in self._keys if n in named and n not in self.slots}
        for name, found in special.items():
            if len(found) > 1:
                raise Refused(422, f"{name} must be one part of the form, got {len(found)}.", name)
        document: dict[str, Any] = {
            n: _spoken(special[n][0], usual) for n, usual in self.options.items() if n in special
        }
        if "inputs" in special:
            document["inputs"] = parse_json(special["inputs"][0].data)
            return self._document(document, _files(document["inputs"], named))
        counts = {name: len(found) for name, found in named.items()}
        if len(set(counts.values())) > 1:
            told = (
                f"Every column must have a part for each row, got {short(counts)}. Send an empty part where a cell is"
            )
            raise Refused(422, f"{told} absent.", "inputs")
        document["inputs"] = [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
        return self._document(document)

    def _row(self, asked: Asked, i: int, row: Any) -> dict[str, Any]:
        where, cells = f"inputs[{i}]", dict[str, Any]()
        if not isinstance(row, dict):
            raise Refused(422, f"{where} must be a row (an object of columns), got {json_type(row)}.", where)
        for slot, value, path in self._given(row, where):
            if slot.column in cells:
                raise Refused(422, f"{path} must be given once, got it under another name too.", path)
            cells[slot.column] = None
            spot = Spot(i, slot, path)
            try:
                cells[slot.column] = self._cells.read(asked, spot, value)
            except DataError as error:
                asked.give_up(spot, error)
        return cells

    def _given(self, row: Mapping[str, Any], where: str) -> Iterator[tuple[Slot, Any, str]]:
        """Every cell of a row, with its path; inputs of several columns taken apart."""
        for name, value in row.items():
            path, group = f"{where}.{name}", self.groups.get(name)
            if group is not None and isinstance(value, dict):
                for column, cell in value.items():
                    if column not in group:
                        raise self._unknown(column, path, group)
                    yield self.slots[column], cell, f"{path}.{column}"
            elif name in self.slots:
                yield self.slots[name], value, path
            elif group is None:
                raise self._unknown(name, where, self.slots.keys() | self.groups.keys())
            elif value is not None:
                got = "a text" if isinstance(value, Part) else json_type(value)
                raise Refused(422, f"{path} must be an object of {sorted(group)}, got {got}.", path)

    def _unknown(self, name: str, where: str, known: Collection[str]) -> Refused:
        path = f"{where}.{name[:60]}"
        if name in self.targets:
            return Refused(422, f"{path} must be left out: it is what the model predicts.", path)
        return Refused(
            422, f"{where} must have columns of {sorted(known)}, got {short(name)}.{near(name, known)}", path
        )


def _files(rows: Any, named: Mapping[str, list[Part]]) -> dict[str, Part]:
    """Parts beside JSON, by name.

    Raises:
        Refused: two have one name, or one is not named by any cell.
    """
    cells = (
        cell for row in (rows if isinstance(rows, list) else [rows]) if isinstance(row, dict) for cell in _cells(row)
    )
    wanted = {str(cell["file"]) for cell in cells if cell.keys() == {"file"}}
    for name, found in named.items():
        if len(found) > 1:
            raise Refused(
                422, f"Files beside 'inputs' must have different names, got {short(name)} {len(found)} times."
            )
        if name not in wanted:
            told = "Parts beside 'inputs' must be named by a cell as {'file': NAME}, got"
            raise Refused(422, f"{told} {short(name)}, which none names.{near(name, wanted)}")
    return {name: found[0] for name, found in named.items()}


def _cells(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Objects of a row, within inputs of several columns too."""
    for cell in row.values():
        if isinstance(cell, dict):
            yield cell
            yield from (inner for inner in cell.values() if isinstance(inner, dict))


def _wish(value: Any, usual: bool | int, name: str) -> bool | int:
    """What a request says of an option, of the type of what usually holds.

    Raises:
        Refused: it is neither true nor false, or no whole number from 1 to `MOST`.
    """
    if isinstance(usual, bool):
        if not isinstance(value, bool):
            raise Refused(422, f"{name} must be true or false, got {json_type(value)}.", name)
    elif type(value) is not int or not 1 <= value <= MOST:
        raise Refused(422, f"{name} must be a whole number from 1 to {MOST}, got {json_type(value)}.", name)
    return value


def _spoken(part: Part, usual: bool | int) -> bool | int | str:
    """An option that a form gives as text.

    Raises:
        Refused: it is neither yes nor no, where it should be one of them.
    """
    if not isinstance(usual, bool):
        text = part.data.decode("utf-8", "replace").strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
    try:
        flag = parse_boolean(part.data.decode("utf-8", "replace"))
    except ValueError:
        flag = None
    if flag is None:
        raise Refused(422, f"{part.name} must be true or false, got {short(part.data)}.", part.name)
    return flag
