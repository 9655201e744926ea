"""Replies of the OpenAI API: an answer as a whole, or as a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.types import Receive, Send

from polymodal.nn.language.talk import Piece
from polymodal.server.errors import GONE, describe, dumps
from polymodal.server.logs import Note

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Reply:
    """What a client is told, in the API's words.

    Args:
        name: of the answer.
        model: that answers.
        prompt: tokens of it.
        repairs: what was mended of what the client sent, turn by turn.
    """

    def __init__(self, name: str, model: str, prompt: int, repairs: Sequence[Mapping[str, Any]]) -> None:
        self.prompt = prompt
        self.head: dict[str, Any] = {"id": name, "created": int(time.time()), "model": model}
        if any(repairs):
            self.head["repairs"] = list(repairs)

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


async def stream(
    pieces: AsyncGenerator[Piece], reply: Reply, usage: bool, until: float, receive: Receive, send: Send, note: Note
) -> None:
    """Send pieces as they come, until the end or until the client hangs up.

    What goes wrong on the way is told by the last event.
    """
    async with asyncio.timeout_at(until):
        first = await anext(pieces)  # what is refused is refused before anything is sent
    gone = asyncio.ensure_future(receive())
    try:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await _event(send, reply.piece({"role": "assistant", "content": first.text}, None))
        last = first
        async with asyncio.timeout_at(until):
            while last.reason is None and not gone.done():
                last = await anext(pieces)
                if last.text:
                    await _event(send, reply.piece({"content": last.text}, None))
        if last.reason is None:
            note.status = GONE
            return
        await _event(send, reply.piece({}, last.reason))
        if usage:
            await _event(send, reply.usage(last))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    except Exception as error:
        body = b"data: " + describe(error).body(note.request_id) + b"\n\n"
        await send({"type": "http.response.body", "body": body})
        raise
    finally:
        gone.cancel()


async def whole(pieces: AsyncGenerator[Piece], reply: Reply) -> dict[str, Any]:
    """All of an answer."""
    text = ""
    async for piece in pieces:
        text += piece.text
        if piece.reason is not None:
            return reply.whole(text, piece)
    raise RuntimeError("The answer has no end.")


async def _event(send: Send, content: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": b"data: " + dumps(content) + b"\n\n", "more_body": True})
