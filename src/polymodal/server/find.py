"""Find: an index behind a server, asked through the model that it was made by."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from polymodal.embedding.joint import Joint
from polymodal.embedding.space import Space
from polymodal.errors import BundleError, DataError, PolymodalError, SpecError
from polymodal.indexing.folder import index_version
from polymodal.indexing.index import Index
from polymodal.indexing.items import Hit
from polymodal.server.batching import Busy
from polymodal.server.cells import Asked
from polymodal.server.engine import Row
from polymodal.server.errors import Refused
from polymodal.server.requests import FIND_OPTIONS, Intake
from polymodal.server.served import Served
from polymodal.server.settings import Settings
from polymodal.spec import Spec

LOG = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds that a row which is asked now is taken to last, for whoever is told to come again."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is found for one row.

    Attributes:
        hits: nearest first.
        row: as it was decoded.
        absent: inputs that had nothing usable.
    """

    hits: list[Hit]
    row: Row
    absent: list[str]


class Finder:
    """An index and the served bundle that it was made by.

    The index is read again when its folder has changed. One that cannot be read, or that another model has made,
    changes nothing: the one before it goes on as long as its model is served.

    Args:
        settings: of the server, with an index.
        served: the bundles, by name.
        pool: threads that search, so that the event loop goes on meanwhile.
        tell: gets a line for a person when an index took another one's place, or could not.

    Attributes:
        name: of the model that the index was made by.
        waiting: rows that are asked now.

    Raises:
        BundleError: the folder is no index, is damaged, or was made by none of the bundles.
        SpecError: it must be searched approximately, and what that takes is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        served: Mapping[str, Served],
        pool: Executor,
        tell: Callable[[str], None] = LOG.warning,
    ) -> None:
        if settings.index is None:
            raise ValueError("settings must have an index, got none.")
        self.settings, self.tell, self.waiting, self._pool = settings, tell, 0, pool
        self._folder, self._lock = settings.index, threading.Lock()
        self._seen = index_version(self._folder)
        self._index = Index.load(self._folder)
        self.name, self._served = self._owner(served)
        self._refused: Served | None = None
        self._intakes: WeakKeyDictionary[Served, Intake] = WeakKeyDictionary()

    def spec(self, served: Served) -> Spec:
        """The spec of a bundle with nothing but the inputs that can be searched by."""
        inputs = {name: served.bundle.spec.inputs[name] for name in self._index.model.parts}
        return served.bundle.spec.model_copy(update={"inputs": inputs})

    def intake(self, served: Served) -> Intake:
        """What reads requests to the index."""
        found = self._intakes.get(served)
        if found is None:
            found = self._intakes[served] = Intake(self.spec(served), self.settings, FIND_OPTIONS)
        return found

    async def find(self, served: Served, rows: Sequence[Mapping[str, Any]], *, count: int, strict: bool) -> list[Found]:
        """Find items for rows, in a thread of the pool.

        Args:
            served: the current version of the model called `name`.
            rows: column -> cell; media as bytes.
            count: of items for each row, at most.
            strict: refuse a broken cell.

        Raises:
            DataError: a row has none of the inputs, or a cell is broken.
            Busy: too many rows are being asked.
            Refused: the index was made by another version of the model.
        """
        if self.waiting + len(rows) > self.settings.queue:
            raise Busy(PATIENCE)
        self.waiting += len(rows)
        try:
            job = asyncio.get_running_loop().run_in_executor(self._pool, self._find, served, rows, count, strict)
            found = await job
        finally:
            self.waiting -= len(rows)
        if served.metrics is not None:
            for one in found:
                for name in self._index.model.parts:
                    served.metrics.presence(self.name, name, name not in one.absent)
        return found

    def _find(self, served: Served, rows: Sequence[Mapping[str, Any]], count: int, strict: bool) -> list[Found]:
        index, decoded = self._current(served), served.read(rows, strict=strict)
        names = list(index.model.parts)
        for i, row in enumerate(decoded):
            if not set(names) & row.values.keys():
                raise DataError(f"inputs[{i}] must have one or more of {names}, got none that can be read.")
        space = index.model
        if not isinstance(space, Joint):
            raise TypeError(f"a served index must be of a bundle, got {type(space).__name__}.")
        with torch.inference_mode():
            _, outputs = served.engine.raw(decoded)
            vectors = space.match.embed(outputs[space.task].cpu(), width=index.note.width)
        found = index.search(vectors.numpy(), count)
        return [
            Found(hits, row, [name for name in names if name not in row.values])
            for hits, row in zip(found, decoded, strict=True)
        ]

    def _current(self, served: Served) -> Index:
        """The index as it lies in its folder now, or the last one that could be read, of this version of the model.

        Raises:
            Refused: it was made by another one.
        """
        with self._lock:
            seen = index_version(self._folder)
            if seen != self._seen or (served is not self._served and served is not self._refused):
                self._renew(served, seen)
            if served is not self._served:
                told = "The index was made by another version of the model. Make it again with the one that is served."
                raise Refused(503, told, retry_after="10")
            return self._index

    def _renew(self, served: Served, seen: Any) -> None:
        """Read the folder again, or see whether the model's new version is the index's too."""
        changed, self._seen = seen != self._seen, seen
        try:
            index = Index.load(self._folder) if changed else self._index
            index.use(_space(index, served))
        except PolymodalError as error:
            self._refused = None if served is self._served else served
            self.tell(f"index {self._folder}: stays as it was: {error}")
            return
        self._index, self._served, self._refused = index, served, None
        if changed:
            self.tell(f"index {self._folder}: {len(index)} items from now on")

    def _owner(self, served: Mapping[str, Served]) -> tuple[str, Served]:
        for name, one in served.items():
            try:
                self._index.use(_space(self._index, one))
            except (BundleError, SpecError):
                continue
            return name, one
        raise BundleError(
            f"{self._folder} must be an index that one of the models {list(served)} has made, got another one's. "
            "Make it with polymodal index and the bundle that is served."
        )


def _space(index: Index, served: Served) -> Space:
    return Joint.of(served.bundle, index.note.task)


def told_items(served: Served, request_id: str, asked: Asked, found: Sequence[Found]) -> dict[str, Any]:
    """What a client is told, row by row."""
    return {
        "model": served.name,
        "version": served.version,
        "request_id": request_id,
        "items": [[hit._asdict() for hit in one.hits] for one in found],
        "absent": [one.absent for one in found],
        "broken": [[*here, *one.row.broken] for here, one in zip(asked.broken, found, strict=True)],
        "repairs": [one.row.repairs for one in found],
    }
