"""Completions: ``/v1/chat/completions`` of the OpenAI API, for bundles that answer in words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from torch import Tensor

from polymodal.errors import SpecError
from polymodal.nn.language.talk import Piece
from polymodal.server.batching import Late
from polymodal.server.chat import Chat, read_chat, speaks
from polymodal.server.ends import Endpoint, read_body, send_json
from polymodal.server.errors import Refused, dumps
from polymodal.server.logs import Note
from polymodal.server.metrics import Metrics
from polymodal.server.models import Models
from polymodal.server.requests import Intake, patience
from polymodal.server.served import Served
from polymodal.server.settings import Settings
from polymodal.server.strict import json_type, parse_json
from polymodal.tasks.generate import Generate

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Asked(NamedTuple):
    """A request that can be answered.

    Attributes:
        task: that answers.
        chat: the request.
        prompt: (L, W) embeddings that the language model reads.
    """

    task: str
    chat: Chat
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
            Late: the deadline has passed before the answer was there.
        """
        note: Note = scope["note"]
        until = note.arrived + patience(Headers(scope=scope).get("X-Deadline-Ms"), self.settings.deadline)
        document = parse_json(await read_body(receive))
        served = self._find(document)
        note.model, note.version, note.rows = served.name, served.version, 1
        async with asyncio.timeout_at(until):
            asked = await self._read(served, document, until)
        told = Told(f"chatcmpl-{note.request_id}", served.name, len(asked.prompt))
        pieces = served.speaker(asked.task).say(asked.prompt, asked.chat.how)
        try:
            if asked.chat.stream:
                async with asyncio.timeout_at(until):
                    await self._stream(pieces, asked.chat, told, receive, send)
            else:
                await send_json(send, await _whole(pieces, told, until))
        finally:
            await pieces.aclose()
        self.metrics.version(served.name, served.version)
        self.metrics.answered(served.name, 1)

    def _find(self, document: Any) -> Served:
        """The model that a request names; the first one where it names none."""
        name = document.get("model") if isinstance(document, dict) else None
        if name is not None and not isinstance(name, str):
            raise Refused(422, f"model must be a text, got {json_type(name)}.", "model")
        try:
            return self.models.find(name)
        except SpecError as error:
            raise Refused(404, str(error), "model") from None

    async def _read(self, served: Served, document: Any, deadline: float) -> Asked:
        """Read a request, decode its row, and lay the prompt around it."""
        spec = served.bundle.spec
        name = speaks(spec)
        task = spec.outputs.get(name or "")
        if name is None or not isinstance(task, Generate):
            raise Refused(404, f"The model {served.name!r} answers no chats. Ask POST /v1/predict.")
        chat = read_chat(document, spec, task)
        if served not in self._intakes:
            self._intakes[served] = Intake(spec, self.settings)
        read = await self._intakes[served].read(dumps({"inputs": chat.rows}), "application/json")
        try:
            return Asked(name, chat, await served.prompt(name, read.rows, chat.other, deadline))
        except SpecError as error:
            raise Refused(422, str(error), "messages") from None

    async def _stream(
        self, pieces: AsyncGenerator[Piece], chat: Chat, told: Told, receive: Receive, send: Send
    ) -> None:
        """Send pieces as they come, until the end or until the client hangs up."""
        first = await anext(pieces)  # what is refused is refused before anything is sent
        gone = asyncio.ensure_future(receive())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            await _event(send, told.piece({"role": "assistant", "content": first.text}, None))
            last = first
            while last.reason is None and not gone.done():
                last = await anext(pieces)
                if last.text:
                    await _event(send, told.piece({"content": last.text}, None))
            if gone.done():
                return
            await _event(send, told.piece({}, last.reason))
            if chat.usage:
                await _event(send, told.usage(last))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            gone.cancel()


class Told:
    """What a client is told, in the API's words."""

    def __init__(self, name: str, model: str, prompt: int) -> None:
        self.prompt = prompt
        self.head = {"id": name, "created": int(time.time()), "model": model}

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        """All of an answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.reason}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self._counts(last)}

    def piece(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        """A piece of one."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage(self, last: Piece) -> dict[str, Any]:
        """How many tokens there were."""
        return {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self._counts(last)}

    def _counts(self, last: Piece) -> dict[str, Any]:
        counts = {"prompt_tokens": self.prompt, "completion_tokens": last.tokens}
        known = {"prompt_tokens_details": {"cached_tokens": last.known}}
        return counts | {"total_tokens": sum(counts.values())} | known


async def _whole(pieces: AsyncGenerator[Piece], told: Told, until: float) -> dict[str, Any]:
    """All of an answer.

    Raises:
        Late: the deadline has passed before it was there.
    """
    text = ""
    try:
        async with asyncio.timeout_at(until):
            async for piece in pieces:
                text += piece.text
                if piece.reason is not None:
                    return told.whole(text, piece)
    except TimeoutError:
        raise Late("The deadline has passed before the answer was there.") from None
    raise RuntimeError("The answer has no end.")


async def _event(send: Send, content: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": b"data: " + dumps(content) + b"\n\n", "more_body": True})
