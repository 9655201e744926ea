"""Cells: one value of a request to what its column takes, media to bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from polymodal.errors import DataError
from polymodal.server.errors import MediaTypeError, Refused
from polymodal.server.fetch import fetch
from polymodal.server.media import decode_text, is_url, media_type_fits
from polymodal.server.multipart import Part
from polymodal.server.settings import Settings
from polymodal.server.strict import json_type, parse_json, short

FETCHES = 8
"""URLs of one request that are fetched at the same time."""

SCALARS = frozenset(("text", "number", "category", "boolean", "date"))
"""Kinds of fields whose cells are no lists and no objects."""

PLAIN = SCALARS | {"words"}
"""Kinds of fields whose cells may be plain text; a text of any other kind is JSON."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A column that requests may fill: of which input, and of what kind its cells are."""

    input: str
    column: str
    kind: str
    media: bool


class Spot(NamedTuple):
    """A cell's place in a request: its row, its column, and the path that its sender knows it by."""

    row: int
    slot: Slot
    path: str


@dataclass(slots=True)
class Asked:
    """What a request asks.

    Attributes:
        count: of items that each row asks for, where it asks an index.
        explain: whether to say what each input did to the answer.
        strict: whether a broken cell refuses the request.
        rows: column -> cell; media as bytes. Columns may be left out and cells may be None.
        broken: of each row, the cells that hold nothing readable, where not ``strict``; they are absent from ``rows``.
        files: parts of a form, by name, that cells may point to.
        urls: media that are still to be fetched.
    """

    explain: bool = False
    strict: bool = True
    count: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    broken: list[list[dict[str, str]]] = field(default_factory=list)
    files: Mapping[str, Part] = field(default_factory=dict)
    urls: list[tuple[Spot, str]] = field(default_factory=list)

    def give_up(self, spot: Spot, error: DataError) -> None:
        """Take a cell as absent and say why.

        Raises:
            DataError: the request is strict.
        """
        if self.strict:
            raise error
        reason = str(error).removeprefix(f"{spot.path}: ")
        self.broken[spot.row].append({"input": spot.slot.input, "column": spot.slot.column, "reason": reason})


class Cells:
    """Reads cells.

    Attributes:
        settings: `allow_hosts` and the limits of what is fetched from them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def read(self, asked: Asked, spot: Spot, value: Any) -> Any:
        """A JSON value or a part of a form to a cell; None where it is absent or still to be fetched.

        Raises:
            Refused: the value is of a type that the column cannot take.
            DataError: it is of the right type, but does not hold what it should.
        """
        slot, path = spot.slot, spot.path
        if value is None:
            return None
        if isinstance(value, Part):
            return self._part(asked, spot, value)
        if not slot.media:
            if slot.kind in SCALARS and isinstance(value, dict | list):
                raise Refused(422, f"{path} must be a {slot.kind}, got {json_type(value)}.", path)
            if slot.kind == "words" and not isinstance(value, str | list):
                raise Refused(422, f"{path} must be a list of words or a text, got {json_type(value)}.", path)
            return value
        if isinstance(value, str):
            return self._media(asked, spot, value)
        if not isinstance(value, dict) or value.keys() != {"file"}:
            raise Refused(422, f"{path} must be {self._expected(slot)}, got {json_type(value)}.", path)
        part = asked.files.get(value["file"]) if isinstance(value["file"], str) else None
        if part is None:
            told = f"{path}.file must name a part of a multipart form, one of {sorted(asked.files)}"
            raise Refused(422, f"{told}, got {short(value['file'])}.", path)
        return self._part(asked, spot, part)

    def _part(self, asked: Asked, spot: Spot, part: Part) -> Any:
        """A part of a form to a cell; an empty one is absent, as browsers send what was left blank."""
        _check_type(spot, part.media_type)
        if not part.data or part.data.isspace():
            return None
        if spot.slot.media and part.is_file:
            return part.data
        try:
            text = part.data.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{spot.path}: the cell must be text in UTF-8, got other bytes.") from None
        if spot.slot.media:
            return self._media(asked, spot, text)
        return text if spot.slot.kind in PLAIN else parse_json(part.data)

    def _media(self, asked: Asked, spot: Spot, text: str) -> bytes | None:
        """Bytes that a text stands for; None where it is blank or still to be fetched."""
        if is_url(text):
            if not self.settings.allow_hosts:
                told = f"{spot.path} must be {self._expected(spot.slot)}, got a URL, and this server fetches none."
                raise Refused(422, f"{told} Send the content.", spot.path)
            asked.urls.append((spot, text))
            return None
        try:
            media_type, data = decode_text(text)
        except ValueError as error:
            told = f"{spot.path}: the cell must be {self._expected(spot.slot)}, got {short(text)}"
            raise DataError(f"{told} ({error}).") from None
        _check_type(spot, media_type)
        return data

    def _expected(self, slot: Slot) -> str:
        """What a media cell may be, in words."""
        return f"{slot.kind} as base64 or data URL" + (" or URL" if self.settings.allow_hosts else "")

    async def fetch(self, asked: Asked) -> None:
        """Put what the URLs name in the cells' places.

        Raises:
            DataError: one gives nothing, and the request is strict.
            Refused: together they give more than a body may hold.
        """
        free, left = asyncio.Semaphore(FETCHES), self.settings.max_body

        async def one(spot: Spot, url: str) -> None:
            nonlocal left
            try:
                async with free:
                    data = await fetch(url, self.settings)
            except DataError as error:
                return asked.give_up(spot, DataError(f"{spot.path}: {error}"))
            left -= len(data)
            if left < 0:
                raise Refused(413, f"URLs must give at most {self.settings.max_body} bytes together.", spot.path)
            asked.rows[spot.row][spot.slot.column] = data

        try:
            async with asyncio.TaskGroup() as group:
                for spot, url in asked.urls:
                    group.create_task(one(spot, url))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None


def _check_type(spot: Spot, media_type: str) -> None:
    if not media_type_fits(media_type, spot.slot.kind):
        told = f"{spot.path}: the cell must be {spot.slot.kind}, got something that says it is {short(media_type)}."
        raise MediaTypeError(told)
