"""Speaker: one thread in which a language model answers all who ask, a token for each at a time."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from torch import Tensor

from polymodal.nn.language.decode import Decoding
from polymodal.nn.language.model import Language
from polymodal.nn.language.talk import Piece, Talk
from polymodal.server.batching import Busy, Stopping

TOGETHER = 8
"""Answers that are made together."""

PATIENCE = 1.0
"""Seconds after which whoever found no place may come again."""


@dataclass(slots=True)
class _Listener:
    """Who waits for an answer."""

    prompt: Tensor
    how: Decoding
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Piece | BaseException]
    ticket: int = 0
    gone: bool = False

    def tell(self, piece: Piece | BaseException) -> None:
        """Hand over what there is, unless the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Speaker:
    """Answers of one language model. Its thread runs while anybody listens.

    Args:
        language: that answers.
        most: who may listen at once; more are refused.
    """

    def __init__(self, language: Language, most: int) -> None:
        self.language, self.most = language, most
        self._inbox: queue.SimpleQueue[_Listener | None] = queue.SimpleQueue()
        self._listening, self._closed = 0, False
        self._thread = threading.Thread(target=self._run, name="polymodal-speak", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Who listens."""
        return self._listening

    async def say(self, prompt: Tensor, how: Decoding) -> AsyncGenerator[Piece]:
        """An answer, piece by piece; who stops listening ends it.

        Args:
            prompt: (L, W) embeddings.
            how: the answer is made.

        Raises:
            Busy: too many listen.
            Stopping: the model is being taken away.
            DataError: prompt and answer do not fit the model's context.
        """
        if self._closed:
            raise Stopping("The model is being taken away.")
        if self._listening >= self.most:
            raise Busy(PATIENCE)
        listener = _Listener(prompt, how, asyncio.get_running_loop(), asyncio.Queue())
        self._listening += 1
        try:
            self._inbox.put(listener)
            while True:
                piece = await listener.pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.reason is not None:
                    return
        finally:
            self._listening -= 1
            listener.gone = True

    def close(self) -> None:
        """Take nobody new in, and end the thread; who still listens is told so."""
        self._closed = True
        self._inbox.put(None)

    def _run(self) -> None:
        talk, listeners = Talk(self.language, TOGETHER), dict[int, _Listener]()
        while self._take_in(talk, listeners):
            for ticket in [ticket for ticket, listener in listeners.items() if listener.gone]:
                talk.drop(ticket)
                del listeners[ticket]
            try:
                pieces = talk.step()
            except Exception as error:  # noqa: BLE001  (each of them is told, and the thread goes on)
                for listener in listeners.values():
                    listener.tell(error)
                talk, listeners = Talk(self.language, TOGETHER), {}
                continue
            for piece in pieces:
                listeners[piece.ticket].tell(piece)
                if piece.reason is not None:
                    del listeners[piece.ticket]
        for listener in listeners.values():
            listener.tell(Stopping("The model is being taken away."))

    def _take_in(self, talk: Talk, listeners: dict[int, _Listener]) -> bool:
        """Let those who came start; wait for one where nobody listens. False when it is time to end."""
        while True:
            try:
                listener = self._inbox.get(block=not listeners)
            except queue.Empty:
                return True
            if listener is None:
                return False
            try:
                listener.ticket = talk.start(listener.prompt, listener.how)
            except ValueError as error:
                listener.tell(error)
            else:
                listeners[listener.ticket] = listener
