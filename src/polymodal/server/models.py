"""Models: the bundles of a server, by name; each can be replaced while requests run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakSet

from polymodal.errors import SpecError, suggest
from polymodal.server.batching import Stopping
from polymodal.server.find import Finder
from polymodal.server.served import Observer, Served, version_of
from polymodal.server.settings import Place, Settings

LOG = logging.getLogger(__name__)

Files = frozenset[tuple[str, int, int]]
"""Name, size and time of change of each file in a folder."""


class Models:
    """All bundles of a server. Everything but loading happens in one event loop.

    A bundle's folder is looked at from time to time. What has a new version is loaded and warmed beside the old
    one, and then takes its place at once: who has found the old one may still ask it, and it is freed when
    nobody holds it any more. A version that cannot be loaded changes nothing but the count of failed swaps.

    Args:
        settings: of the server.
        metrics: told of batches, presence of inputs and swaps.
        tell: gets a line for a person when a bundle was replaced, or could not be.

    Attributes:
        settings: of the server.
        served: name -> its current version; empty until `start` is done.
        finder: of the index; None without one, and until `start` is done.
        swaps: how many versions have taken another one's place.
        failed_swaps: how many could not.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Observer | None = None,
        tell: Callable[[str], None] = LOG.warning,
    ) -> None:
        self.settings, self.metrics, self.tell = settings, metrics, tell
        self.served, self.swaps, self.failed_swaps = dict[str, Served](), 0, 0
        self.finder: Finder | None = None
        self._started: WeakSet[Served] = WeakSet()
        self._failed: dict[str, tuple[str, Files]] = {}
        self._decoders = ThreadPoolExecutor(settings.cores, "polymodal-decode")
        self._loader = ThreadPoolExecutor(1, "polymodal-load")
        self._nudge = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def ready(self) -> bool:
        """Whether every bundle is loaded and warm, and the server is not stopping."""
        return not self._stopping and len(self.served) == len(self.settings.models)

    @property
    def waiting(self) -> dict[str, int]:
        """Rows that wait, by name of the model."""
        return {name: served.waiting for name, served in self.served.items()}

    async def start(self) -> None:
        """Load and warm every bundle and the index, then watch their folders.

        Raises:
            BundleError: one cannot be loaded, or the index was made by none of the bundles.
            SpecError: the device or the runtime is not there.
        """
        for place in self.settings.models:
            self.served[place.name] = await self._load(place)
        if self.settings.index is not None:
            loop = asyncio.get_running_loop()
            self.finder = await loop.run_in_executor(
                self._loader, Finder, self.settings, self.served, self._decoders, self.tell
            )
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Take nothing new in, answer what was taken in, and end every thread."""
        self._stopping = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.gather(*(served.close(self.settings.drain) for served in list(self._started)))
        self._decoders.shutdown(cancel_futures=True)
        self._loader.shutdown(cancel_futures=True)
        self.served.clear()

    def find(self, name: str | None = None) -> Served:
        """A bundle by name; the first one if None.

        Raises:
            SpecError: there is none of that name.
            Stopping: it is not loaded yet, or the server is stopping.
        """
        if self._stopping:
            raise Stopping("The server is stopping.")
        names = [place.name for place in self.settings.models]
        if name is not None and name not in names:
            raise SpecError(f"model must be one of {names}, got {name!r:.80}.{suggest(name, names)}")
        served = self.served.get(name or names[0])
        if served is None:
            raise Stopping(f"{name or names[0]} is not loaded.")
        return served

    def look_now(self) -> None:
        """Look at every folder at once, also at versions that have failed before. To be called in the event loop."""
        self._nudge.set()

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._nudge.wait(), self.settings.watch or None)
            except TimeoutError:
                pass
            else:
                self._nudge.clear()
                self._failed.clear()
            for place in self.settings.models:
                await self._renew(place)

    async def _renew(self, place: Place) -> None:
        """Load what lies in a folder now, if it is another version, and put it in the old one's place."""
        seen = await asyncio.get_running_loop().run_in_executor(self._loader, look, place.folder)
        before = self._failed.get(place.name)
        if seen is None or seen == before:
            return
        version, _ = seen
        if version == self.served[place.name].version:
            self._failed.pop(place.name, None)
            return
        try:
            served = await self._load(place)
        except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the old version goes on)
            self._failed[place.name] = seen
            if before is None or before[0] != version:  # the same one may fail again while it is being copied
                self._told(place.name, version, f"stays at {self.served[place.name].version}: {error}", ok=False)
            return
        self._failed.pop(place.name, None)
        self.served[place.name] = served
        self._told(place.name, served.version, "answers from now on", ok=True)

    def _told(self, name: str, version: str, news: str, *, ok: bool) -> None:
        if ok:
            self.swaps += 1
        else:
            self.failed_swaps += 1
        if self.metrics is not None:
            self.metrics.swap(name, version, ok)
        self.tell(f"model {name}, version {version}: {news}")

    async def _load(self, place: Place) -> Served:
        """Load and warm a bundle, beside everything else."""
        loop = asyncio.get_running_loop()
        served = await loop.run_in_executor(
            self._loader, Served, place.name, place.folder, self.settings, self._decoders, self.metrics
        )
        self._started.add(served)
        return served


def look(folder: Path) -> tuple[str, Files] | None:
    """Version and files of a bundle's folder; None while there is none, as when it is being replaced."""
    version = version_of(folder)
    try:
        files = [(entry.name, entry.stat()) for entry in folder.iterdir()]
    except OSError:
        return None
    if version is None:
        return None
    return version, frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)
