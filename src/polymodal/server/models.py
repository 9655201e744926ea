"""Models: the bundles of a server, by name; each can be replaced while requests run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from polymodal.bundle import Bundle
from polymodal.errors import SpecError, suggest
from polymodal.server.engine import Answer, Engine
from polymodal.server.settings import Settings


class Served:
    """One version of one bundle, ready to answer.

    Attributes:
        name: that clients call it by.
        version: 12 hex digits that name the bundle's content.
        bundle: that is served.
        card: its model card, Markdown.
    """

    def __init__(self, name: str, folder: Path, settings: Settings) -> None:
        self.name, self.version = name, version_of(folder)
        self.card = (folder / "README.md").read_text(encoding="utf-8")
        self.bundle = Bundle.load(folder, device=settings.device)
        self.engine = Engine(self.bundle, max_pixels=settings.max_pixels, max_seconds=settings.max_seconds)
        self.engine.warm()
        self._lane = ThreadPoolExecutor(1)

    async def predict(
        self, rows: Sequence[Mapping[str, Any]], *, strict: bool, explain: bool, deadline: float
    ) -> list[Answer]:
        """Answer rows.

        Args:
            rows: column -> cell; media as bytes.
            strict: refuse a broken cell.
            explain: also say what each input did to the answer.
            deadline: time of the event loop's clock after which nobody waits for the answer any more.

        Raises:
            DataError: a cell is broken; the message names the row and the column.
            Busy: too many rows are waiting.
            Late: the deadline has passed.
        """
        loop = asyncio.get_running_loop()
        read = [self.engine.read(row, strict=strict, explain=explain) for row in rows]
        return await loop.run_in_executor(self._lane, self.engine.answer, read)


class Models:
    """All bundles of a server.

    Attributes:
        settings: of the server.
        served: name -> its current version; empty until `start` is done.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.served = settings, dict[str, Served]()

    @property
    def ready(self) -> bool:
        """Whether every bundle is loaded and warm, and the server is not stopping."""
        return len(self.served) == len(self.settings.models)

    async def start(self) -> None:
        """Load and warm every bundle, then watch their folders."""
        for place in self.settings.models:
            self.served[place.name] = await asyncio.to_thread(Served, place.name, place.folder, self.settings)

    async def stop(self) -> None:
        """Take nothing new in, answer what was taken in, and end."""
        self.served.clear()

    def find(self, name: str | None = None) -> Served:
        """A bundle by name; the first one if None.

        Raises:
            SpecError: there is none of that name.
        """
        names = [place.name for place in self.settings.models]
        if name is not None and name not in names:
            raise SpecError(f"model must be one of {names}, got {name!r}.{suggest(name, names)}")
        return self.served[name or names[0]]


def version_of(folder: Path) -> str:
    """Name a bundle's content: its manifest holds the hash of its weights."""
    return hashlib.sha256((folder / "spec.json").read_bytes()).hexdigest()[:12]
