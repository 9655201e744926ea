"""Speaker: one thread in which a language model answers all who ask, a token for each at a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from torch import Tensor

from polymodal.decoder.head import DecoderHead
from polymodal.nn.language.decode import Decoding
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
    gone: bool = False

    def tell(self, piece: Piece | BaseException) -> None:
        """Hand over what there is, unless the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Speaker:
    """Answers of one language model. Its thread runs while anybody listens, so that nothing holds an idle one.

    Args:
        head: whose language model answers.
        most: who may have a place at once; more are refused.
    """

    def __init__(self, head: DecoderHead, most: int) -> None:
        self.language, self.memory, self.most = head.answering, head.memory, most
        self._talk, self._listeners = self._new(), dict[int, _Listener]()
        self._lock, self._coming, self._running = threading.Lock(), list[_Listener](), False
        self._places, self._closed = 0, False

    @property
    def waiting(self) -> int:
        """Who has a place."""
        return self._places

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place, from before a request is read until it is answered.

        Raises:
            Busy: all are taken.
            Stopping: the model is being taken away.
        """
        if self._closed:
            raise _stopping()
        if self._places >= self.most:
            raise Busy(PATIENCE)
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    async def say(self, prompt: Tensor, how: Decoding) -> AsyncGenerator[Piece]:
        """An answer, piece by piece; who stops listening ends it.

        Args:
            prompt: (L, W) embeddings.
            how: the answer is made.

        Raises:
            Stopping: the model is being taken away.
            DataError: prompt and answer do not fit the model's context.
        """
        listener = _Listener(prompt, how, asyncio.get_running_loop(), asyncio.Queue())
        self._come(listener)
        try:
            while True:
                piece = await listener.pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.reason is not None:
                    return
        finally:
            listener.gone = True

    def close(self) -> None:
        """Take nobody new in, and end; who still listens is told so."""
        with self._lock:
            self._closed = True

    def _come(self, listener: _Listener) -> None:
        with self._lock:
            if self._closed:
                raise _stopping()
            self._coming.append(listener)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="polymodal-speak", daemon=True).start()

    def _run(self) -> None:
        while self._take_in():
            for ticket in [ticket for ticket, listener in self._listeners.items() if listener.gone]:
                self._talk.drop(ticket)
                del self._listeners[ticket]
            try:
                pieces = self._talk.step()
            except Exception as error:  # noqa: BLE001  (each of them is told, and the next ones are answered)
                self._end(error)
                continue
            for piece in pieces:
                self._listeners[piece.ticket].tell(piece)
                if piece.reason is not None:
                    del self._listeners[piece.ticket]

    def _take_in(self) -> bool:
        """Let those who came start. False when nobody listens, or when it is time to end."""
        with self._lock:
            coming, self._coming = self._coming, []
            goes = self._running = not self._closed and bool(coming or self._listeners)
        for listener in coming:
            try:
                self._listeners[self._talk.start(listener.prompt, listener.how)] = listener
            except ValueError as error:
                listener.tell(error)
        if not goes and self._listeners:  # it was closed, so that no other thread begins meanwhile
            self._end(_stopping())
        return goes

    def _end(self, reason: BaseException) -> None:
        """Tell whoever listens that there is no more, and why."""
        for listener in self._listeners.values():
            listener.tell(reason)
        self._talk, self._listeners = self._new(), {}

    def _new(self) -> Talk:
        return Talk(self.language, TOGETHER, self.memory)


def _stopping() -> Stopping:
    return Stopping("The model is being taken away.")
