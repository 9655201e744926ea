"""Crew: the worker processes of a server: started, watched, started again where they end, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.multiprocess import mark_process_dead

from polymodal.errors import BundleError, DataError, PolymodalError, SpecError
from polymodal.server.hosting import Tell
from polymodal.server.logs import Log
from polymodal.server.metrics import FOLDER
from polymodal.server.settings import Settings

PAUSE, MOST_PAUSE = 0.5, 30.0
"""Seconds before a worker that ended is started again; twice as many each time, until it has lasted."""

LASTED = 60.0
"""Seconds after which an end is no sign that the next one will end likewise."""

MEMORY = "/dev/shm"
"""Where counts are kept if it can be written: a worker whose counts lie on a disk that fills up is killed."""

LINE = 1 << 24
"""Bytes of what a worker says at once, at most."""

TRIES = 3
"""Starts of the first worker before the server gives up."""

_ERRORS: dict[str, type[PolymodalError]] = {kind.__name__: kind for kind in (BundleError, DataError, SpecError)}


class Worker:
    """A place in the crew, and the process that fills it.

    Attributes:
        number: of the place.
        ready: whether it takes requests.
        busy: requests that it is answering.
        turn: when it was last given one, to share evenly.
        process: None where there is none.
        session: connections to it.
    """

    def __init__(self, number: int) -> None:
        self.number, self.ready, self.busy, self.turn = number, False, 0, 0
        self.process: asyncio.subprocess.Process | None = None
        self.session: aiohttp.ClientSession | None = None

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Crew:
    """All workers of a server.

    Attributes:
        workers: one per place.
        folder: private to this user: the workers' sockets, and their metrics.
        restarts: how many processes were started in place of others.
    """

    def __init__(self, settings: Settings, address: str, tell: Tell, log: Log) -> None:
        self._settings, self._address, self._tell, self._log = settings, address, tell, log
        self.workers = [Worker(number) for number in range(settings.workers)]
        self.folder = Path(tempfile.mkdtemp(prefix="polymodal-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.metrics = self.folder / "metrics"
        self.metrics.mkdir()
        self.restarts, self._turns, self._stop = 0, 0, asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Start the first worker alone, so that what it measures is not disturbed, then the others.

        Raises:
            PolymodalError: it cannot load a bundle.
        """
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first, *others = self.workers
        self._keepers.append(asyncio.create_task(self._keep(first)))
        await asyncio.wait({self._opened, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
        await (self._opened if self._opened.done() else self._keepers[0])
        self._keepers += [asyncio.create_task(self._keep(worker)) for worker in others]

    @property
    def ready(self) -> bool:
        """Whether any worker takes requests."""
        return not self._stop.is_set() and any(worker.ready for worker in self.workers)

    def pick(self) -> Worker | None:
        """The ready worker with the fewest requests, in turn; None where none is ready."""
        ready = [worker for worker in self.workers if worker.ready]
        if not ready:
            return None
        found = min(ready, key=lambda worker: (worker.busy, worker.turn))
        self._turns += 1
        found.turn = self._turns
        return found

    def look(self) -> None:
        """Have every worker look for new versions."""
        for worker in self.workers:
            if worker.ready:
                worker.signal(signal.SIGHUP)

    async def close(self, seconds: float) -> None:
        """End every process, by force after some seconds."""
        self._stop.set()
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=seconds)
            for worker in self.workers:
                worker.signal(signal.SIGKILL)
            await asyncio.gather(*late)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End every process at once."""
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _keep(self, worker: Worker) -> None:
        """Keep a place filled until the server stops."""
        loop, pause, count = asyncio.get_running_loop(), PAUSE, 0
        while not self._stop.is_set():
            began = loop.time()
            failed = await self._run(worker, count)
            count += 1
            if self._stop.is_set() or self._give_up(failed, count):
                break
            self._log.write("error", event="worker_ended", worker=worker.number, error=failed and str(failed))
            pause = PAUSE if loop.time() - began > LASTED else pause
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            pause, self.restarts = min(2 * pause, MOST_PAUSE), self.restarts + 1

    def _give_up(self, failed: PolymodalError | None, count: int) -> bool:
        """Whether nothing ever answered, and nothing will."""
        if self._opened.done() or (failed is None and count < TRIES):
            return False
        lost = (
            f"a worker must load its bundles, but {TRIES} in a row ended. Give it more memory; its messages tell why."
        )
        self._opened.set_exception(failed or SpecError(lost))
        return True

    async def _run(self, worker: Worker, count: int) -> PolymodalError | None:
        """Run one process to its end, whatever keeps it from running."""
        try:
            return await self._fill(worker, count)
        except Exception as error:  # noqa: BLE001  (no files, no memory, no room on the disk: there may be some later)
            worker.signal(signal.SIGKILL)
            worker.ready, worker.process = False, None
            told = f"a worker must be started and spoken to, got {type(error).__name__}: {error}"
            return SpecError(f"{told}. Raise the limits of open files, processes and memory.")

    async def _fill(self, worker: Worker, count: int) -> PolymodalError | None:
        """Run one process to its end.

        Returns:
            What it said of why it could not start.
        """
        place = self.folder / f"{worker.number}-{count}.sock"
        order = {"settings": self._settings.model_dump(mode="json"), "place": str(place), "address": self._address}
        process, ours = await self._spawn()
        worker.process = process
        failed = None
        if self._stop.is_set():
            worker.signal(signal.SIGTERM)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE)
        connector = aiohttp.UnixConnector(str(place), limit=0, keepalive_timeout=30)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=jar) as worker.session:
            writer.write(json.dumps(order).encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # as when it ended before it had read its order
                async for line in reader:
                    failed = self._hear(worker, json.loads(line)) or failed
            worker.ready = False
            await process.wait()
            worker.process = None
        writer.close()
        mark_process_dead(process.pid, str(self.metrics))
        return failed

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, socket.socket]:
        """Start a process that hears and speaks through a socket, of which this is our end."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as ends:
            ends.enter_context(ours)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "polymodal.server.worker", stdin=theirs.fileno(), start_new_session=True,
                env=os.environ | {FOLDER: str(self.metrics)},
            )  # fmt: skip
            ends.pop_all()  # ours stays open
        return process, ours

    def _hear(self, worker: Worker, said: dict[str, Any]) -> PolymodalError | None:
        """Take what a worker says."""
        if "tell" in said and not self._opened.done():
            self._tell(said["tell"])
        if "ready" in said:
            worker.ready = said["ready"]
            if worker.ready and not self._opened.done():
                self._opened.set_result(None)
        return _ERRORS[said["kind"]](said["failed"]) if "failed" in said else None
