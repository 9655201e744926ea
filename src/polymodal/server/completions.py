"""Completions: ``/v1/chat/completions`` of the OpenAI API, for bundles that answer in words."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from torch import Tensor

from polymodal.errors import DataError, SpecError
from polymodal.server.chat import Chat, read_chat, speaks
from polymodal.server.ends import Endpoint, read_body, send_json
from polymodal.server.engine import Row
from polymodal.server.errors import GONE, Refused, describe
from polymodal.server.logs import Note
from polymodal.server.metrics import Metrics
from polymodal.server.models import Models
from polymodal.server.replies import Reply, stream, whole
from polymodal.server.requests import SMALL, Intake, patience
from polymodal.server.served import Served
from polymodal.server.settings import Settings
from polymodal.server.strict import json_type, parse_json, short
from polymodal.spec import Spec
from polymodal.tasks.generate import Generate

_ROW = re.compile(r"inputs\[(\d+)\]")


class Asked(NamedTuple):
    """A request that can be answered.

    Attributes:
        rows: decoded, of what the user says.
        prompt: (L, W) embeddings that the language model reads.
    """

    rows: list[Row]
    prompt: Tensor


class Completions:
    """Answers chats.

    Attributes:
        settings: of the server.
        models: that answer.
        metrics: that rows are counted in.
    """

    def __init__(self, settings: Settings, models: Models, metrics: Metrics) -> None:
        self.settings, self.models, self.metrics = settings, models, metrics
        self._intakes: WeakKeyDictionary[Served, Intake] = WeakKeyDictionary()

    def routes(self) -> list[Route]:
        """The one that there is."""
        return [Route("/v1/chat/completions", Endpoint(self.answer), methods=["POST"])]

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in words, at once or piece by piece.

        Raises:
            Refused: the model answers no chats, or the request is not built as it must be.
            Busy: too many wait for answers.
            TimeoutError: the deadline has passed before the answer was there.
        """
        note: Note = scope["note"]
        until = note.arrived + patience(Headers(scope=scope).get("X-Deadline-Ms"), self.settings.deadline)
        body = await read_body(receive)
        document = await _document(scope, body)
        served = self._find(document.get("model"))
        note.model, note.version, note.rows = served.name, served.version, 1
        name, task = _task(served)
        speaker = served.speakers[name]
        chat = read_chat(document, served.bundle.spec, task, self.settings.max_rows)
        with speaker.place():
            async with asyncio.timeout_at(until):
                asked = await self._read(served, name, chat, len(body), until)
            repairs = [row.repairs for row in asked.rows]
            reply = Reply(f"chatcmpl-{note.request_id}", served.name, len(asked.prompt), repairs)
            async with contextlib.aclosing(speaker.say(asked.prompt, chat.how)) as pieces:
                if chat.stream:
                    await stream(pieces, reply, chat.usage, until, receive, send, note)
                else:
                    async with asyncio.timeout_at(until):
                        answer = await whole(pieces, reply)
                    await send_json(send, answer)
        self._count(served, asked, note)

    def _find(self, name: Any) -> Served:
        """The model that a request names; where it names none, the first one that answers chats."""
        if name is not None and not isinstance(name, str):
            raise Refused(422, f"model must be a text, got {json_type(name)}.", "model")
        if name is None:
            name = next((n for n, served in self.models.served.items() if speaks(served.bundle.spec)), None)
        try:
            return self.models.find(name)
        except SpecError as error:
            raise Refused(404, str(error), "model") from None

    async def _read(self, served: Served, name: str, chat: Chat, size: int, deadline: float) -> Asked:
        """Read a request, decode its rows, and lay the prompt around them."""
        if served not in self._intakes:
            self._intakes[served] = Intake(served.bundle.spec, self.settings)
        try:
            read = await self._intakes[served].read_rows(chat.told.rows, size)
            rows = await served.decode(read.rows, deadline)
        except (Refused, DataError) as error:
            if not _ROW.search(str(error)):
                raise
            raise _placed(error, chat.told.places) from None
        for given, place, row in zip(chat.told.rows, chat.told.places, rows, strict=True):
            _check(served.bundle.spec, given, row, f"messages[{place}].content")
        try:
            return Asked(rows, await served.prompt(name, rows, chat.told.other))
        except SpecError as error:
            raise Refused(422, str(error), "messages") from None

    def _count(self, served: Served, asked: Asked, note: Note) -> None:
        """Count what was answered; of a client that hung up, nothing was."""
        self.metrics.version(served.name, served.version)
        if note.status == GONE:
            return
        self.metrics.answered(served.name, 1)
        for name in served.bundle.spec.inputs:
            self.metrics.presence(served.name, name, any(name in row.values for row in asked.rows))


async def _document(scope: Scope, body: bytes) -> dict[str, Any]:
    """A request's body.

    Raises:
        Refused: it is none of JSON, or no object, or there is a query.
    """
    if scope["query_string"]:
        told = f"The query must be empty, got {short(scope['query_string'].decode('latin-1'))}."
        raise Refused(422, f"{told} Name the model in the body.")
    document = parse_json(body) if len(body) <= SMALL else await asyncio.to_thread(parse_json, body)
    if not isinstance(document, dict):
        raise Refused(422, f"The body must be an object with 'messages', got {json_type(document)}.")
    return document


def _task(served: Served) -> tuple[str, Generate]:
    """What answers in words.

    Raises:
        Refused: nothing does.
    """
    name = speaks(served.bundle.spec)
    task = served.bundle.spec.outputs.get(name or "")
    if name is None or not isinstance(task, Generate):
        raise Refused(404, f"The model {served.name!r} answers no chats. Ask POST /v1/predict.")
    return name, task


def _placed(error: Refused | DataError, places: Sequence[int]) -> Refused:
    """The same about the messages that the rows were made from."""
    fault = describe(error)

    def put(text: str) -> str:
        return _ROW.sub(lambda found: f"messages[{places[int(found[1])]}].content", text)

    return Refused(fault.status, put(fault.message), fault.where and put(fault.where))


def _check(spec: Spec, given: Mapping[str, Any], row: Row, where: str) -> None:
    """Refuse a row of which something that a user sent is not read.

    Raises:
        Refused: a picture or a sound is empty, or words were cut.
    """
    for name, part in spec.inputs.items():
        if part.media and given.get(name) is not None and name not in row.values:
            raise Refused(422, f"{where} must hold something for {name!r}, got an empty {part.kind}.", where)
        if part.verbatim and name in row.repairs:
            raise Refused(422, f"{where} must be shorter: {name!r} was {', '.join(row.repairs[name])}.", where)
