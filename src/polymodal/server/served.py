"""Served: one version of one bundle behind a batcher."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from polymodal.bundle import Bundle
from polymodal.decoder.conversation import Conversation
from polymodal.errors import BundleError, DataError
from polymodal.runtimes import choose
from polymodal.server.batching import Batcher, Late
from polymodal.server.engine import Answer, Engine, Row
from polymodal.server.settings import Settings
from polymodal.server.speaker import Speaker
from polymodal.tasks.generate import Generate

SHORT = 2048
"""Characters up to which rows without media are decoded where they are: handing them to a thread would cost more. All
others wait meanwhile: a thousand characters take up to 2 ms."""

ROW = 256
"""What a row costs at least, in characters."""

DECODE = 4
"""Rows of one request that are decoded by one thread in turn."""

SHORTLY = 0.02
"""Seconds between two looks at who still listens."""

PATIENCE = (0.02, 0.1, 0.4, 0.0)
"""Seconds to wait after each attempt to read a folder that is being replaced."""


class Observer(Protocol):
    """Whoever counts what happens."""

    def batch(self, model: str, size: int, seconds: float) -> None:
        """Rows went through a model together."""

    def presence(self, model: str, name: str, present: bool) -> None:
        """An input was there in a row, or not."""

    def swap(self, model: str, version: str, ok: bool) -> None:
        """A version took a model's place, or could not."""


class Served:
    """One version of one bundle, loaded and warm.

    Args:
        name: that clients call it by.
        folder: of the bundle.
        settings: of the server.
        decoders: threads that decode media, and that embed a second input where they are idle.
        metrics: told of batches and of presence.

    Attributes:
        name: that clients call it by.
        version: 12 hex digits that name the bundle's content: every answer is of this version.
        bundle: that is served.
        card: its model card, Markdown.
        choice: the runtimes that its backbones run in, and why.
        engine: that answers.
        batcher: that gathers rows for it.
        speakers: task -> who answers in words for it.

    Raises:
        BundleError: the folder is no bundle, is incomplete or damaged, or changed all the time while it was read.
        SpecError: the device or the runtime is not there.
    """

    def __init__(
        self, name: str, folder: Path, settings: Settings, decoders: Executor, metrics: Observer | None = None
    ) -> None:
        self.name, self.metrics, self._decoders = name, metrics, decoders
        self.version, self.bundle, self.card = _load(folder, settings.device)
        self.choice = choose(self.bundle, runtime=settings.runtime, threads=settings.call_threads)
        cpu = self.bundle.device.type == "cpu"
        self.engine = Engine(
            self.bundle,
            max_pixels=settings.max_pixels,
            max_seconds=settings.max_seconds,
            embedder=self.choice.embedder,
            beside=decoders if cpu else None,
            lanes=settings.lanes,
        )
        self.engine.warm()
        parts = self.bundle.spec.inputs.items()
        tasks = [name for name, task in self.bundle.spec.outputs.items() if isinstance(task, Generate)]
        self.speakers = {name: Speaker(self.bundle.model.decoders[name], settings.queue) for name in tasks}
        self._media = {column for n, part in parts if part.media for column in part.columns(n)}
        self.batcher: Batcher[Row, Answer] = Batcher(
            self.engine.answer,
            batch=settings.batch,
            wait_ms=settings.wait_ms,
            queue=settings.queue,
            lanes=settings.lanes if cpu else 1,
            on_batch=None if metrics is None else lambda size, seconds: metrics.batch(name, size, seconds),
        )

    @property
    def waiting(self) -> int:
        """Rows that wait for the model, and answers in words that are made."""
        return self.batcher.waiting + sum(speaker.waiting for speaker in self.speakers.values())

    async def predict(
        self, rows: Sequence[Mapping[str, Any]], *, strict: bool, explain: bool, deadline: float
    ) -> list[Answer]:
        """Answer rows.

        Cancelling it takes back what is not running yet.

        Args:
            rows: column -> cell; media as bytes.
            strict: refuse a broken cell.
            explain: also say what each input did to the answer.
            deadline: time of the event loop's clock after which nobody waits for the answer any more.

        Raises:
            DataError: a cell is broken; the message starts with the row and the column.
            Busy: too many rows are waiting.
            Late: the deadline has passed.
            Stopping: the server takes nothing in any more.
        """
        with self.batcher.coming(len(rows)):
            decoded = await self._decode(rows, strict, explain, deadline)
        answers = await self.batcher.submit(decoded, deadline, admitted=True)
        if self.metrics is not None:
            for answer in answers:
                for name in self.bundle.spec.inputs:
                    self.metrics.presence(self.name, name, name not in answer.absent)
        return answers

    def read(self, rows: Sequence[Mapping[str, Any]], *, strict: bool) -> list[Row]:
        """Decode rows in this thread.

        Raises:
            DataError: a cell is broken and ``strict``; the message starts with the row and the column.
        """
        return _raised(self._read(0, rows, strict, False))

    async def decode(self, rows: Sequence[Mapping[str, Any]], deadline: float) -> list[Row]:
        """Decode rows, whose cells must not be broken.

        Raises:
            DataError: a cell is broken; the message starts with the row and the column.
            Late: the deadline has passed.
        """
        return await self._decode(rows, True, False, deadline)

    async def prompt(self, task: str, rows: Sequence[Row], other: Conversation | None) -> Tensor:
        """What the language model of a task reads about decoded rows (see `Engine.prompt`), as embeddings (L, W).

        Raises:
            SpecError: the language model takes no such conversation.
        """
        asked = partial(self.engine.prompt, task, rows, other)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, asked)

    async def close(self, seconds: float) -> None:
        """Take nothing new in, answer what was taken in, and end the model's threads."""
        until = time.monotonic() + seconds
        while any(speaker.waiting for speaker in self.speakers.values()) and time.monotonic() < until:
            await asyncio.sleep(SHORTLY)
        for speaker in self.speakers.values():
            speaker.close()
        await self.batcher.close(max(0.0, until - time.monotonic()))

    async def _decode(
        self, rows: Sequence[Mapping[str, Any]], strict: bool, explain: bool, deadline: float
    ) -> list[Row]:
        """Decode rows: light ones here, others in the pool."""
        if self._light(rows):
            return _raised(self._read(0, rows, strict, explain))
        loop = asyncio.get_running_loop()
        starts = range(0, len(rows), DECODE)
        jobs = [
            loop.run_in_executor(self._decoders, self._read, start, rows[start : start + DECODE], strict, explain)
            for start in starts
        ]
        try:
            async with asyncio.timeout_at(deadline):
                found = await asyncio.gather(*jobs)
        except TimeoutError:
            raise Late("The deadline has passed before the rows were decoded.") from None
        return _raised([row for some in found for row in some])

    def _read(
        self, start: int, rows: Sequence[Mapping[str, Any]], strict: bool, explain: bool
    ) -> list[Row | DataError]:
        """Decode rows in turn; in place of a broken one, what is wrong with it."""
        found: list[Row | DataError] = []
        for number, cells in enumerate(rows, start):
            try:
                found.append(self.engine.read(cells, strict=strict, explain=explain))
            except DataError as error:
                found.append(DataError(f"inputs[{number}].{error}"))
        return found

    def _light(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether it takes less to decode rows than to hand them to a thread."""
        total = 0
        for row in rows:
            total += ROW + sum(map(_size, row.values()))
            if total > SHORT or any(row.get(column) is not None for column in self._media):
                return False
        return True


def _size(cell: Any) -> int:
    """Characters of a cell that is cheap to read; too many for one that may not be."""
    if isinstance(cell, str | bytes):
        return len(cell)
    return 0 if cell is None or isinstance(cell, int | float) else SHORT


def _raised(found: Sequence[Row | DataError]) -> list[Row]:
    """All rows, unless one is broken."""
    rows = []
    for row in found:
        if isinstance(row, DataError):
            raise row
        rows.append(row)
    return rows


def _load(folder: Path, device: str) -> tuple[str, Bundle, str]:
    """Version, bundle and card of a folder, all of the same content."""
    for wait in PATIENCE:
        version = version_of(folder)
        try:
            bundle, card = Bundle.load(folder, device=device), (folder / "README.md").read_text(encoding="utf-8")
        except (OSError, BundleError) as error:
            if version is not None and version_of(folder) == version:  # it is not being replaced: it is damaged
                raise BundleError(str(error)) from error
        else:
            if version is not None and version_of(folder) == version:
                return version, bundle, card
        time.sleep(wait)
    raise BundleError(f"{folder} must be a bundle's folder that nobody is changing, got none. Copy a bundle there.")


def version_of(folder: Path) -> str | None:
    """Name a bundle's content: its manifest holds the hash of its weights, the note on int8 those of its graphs.

    None while there is no bundle.
    """
    note = folder / "int8" / "int8.json"
    try:
        manifest = (folder / "spec.json").read_bytes()
        return hashlib.sha256(manifest + (note.read_bytes() if note.is_file() else b"")).hexdigest()[:12]
    except OSError:
        return None
