"""The front of several workers: each request goes to the one with the fewest; for lost ones it answers itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDict
from prometheus_client import Counter, Gauge, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from yarl import URL

from polymodal.server import page
from polymodal.server.crew import Crew, Worker
from polymodal.server.errors import Refused, dumps
from polymodal.server.guard import HEADERS, Guard, open_paths
from polymodal.server.hosting import Tell
from polymodal.server.logs import Log, Note
from polymodal.server.metrics import MEDIA_TYPE, Metrics
from polymodal.server.settings import Settings

GRACE = 5.0
"""Seconds beyond the deadline after which a worker that has not answered is given up."""

ENDING = 5.0
"""Seconds that workers have to end once nothing is in flight any more, at least."""

_HOPS = frozenset(
    (b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"proxy-connection", b"expect")
)
"""Headers that concern one connection only, and are not passed on."""

_SET_HERE = frozenset((*(name for name, _ in HEADERS), b"x-request-id", b"date"))
"""Headers of an answer that this process sets itself."""

_NO_MORE = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Headers that aiohttp must not add."""


class Front:
    """Passes requests on to workers.

    Attributes:
        app: the ASGI application, behind the same guard as the workers' own.
        crew: the workers.
    """

    def __init__(self, settings: Settings, address: str, tell: Tell) -> None:
        log, free = _Log(), open_paths(page.routes() if settings.page else ())
        self._settings, self._metrics, self._stopping = settings, _Metrics(), False
        self.crew = Crew(settings, address, tell, log)
        self.app = Guard(self._answer, settings=settings, metrics=self._metrics, log=log, open_paths=free)

    async def open(self) -> None:
        """Start the workers; returns when the first one answers."""
        await self.crew.open()

    async def look(self) -> None:
        """Have every worker look for new versions."""
        self.crew.look()

    async def close(self, seconds: float) -> None:
        """Answer what is in flight, then end the workers."""
        loop = asyncio.get_running_loop()
        self._stopping, end = True, loop.time() + seconds
        while any(worker.busy for worker in self.crew.workers) and loop.time() < end:
            await asyncio.sleep(0.02)
        await self.crew.close(max(ENDING, end - loop.time()))

    def kill(self) -> None:
        """End every worker at once."""
        self.crew.kill()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = {"/healthz": self._health, "/readyz": self._readiness, "/metrics": self._counts}
        if scope["path"] in own and scope["method"] in ("GET", "HEAD"):
            status, headers, body = await own[scope["path"]]()
        else:
            reply = await self._pass_on(scope, receive, send)
            if reply is None:
                return
            status, headers, body = reply
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _health(self) -> Reply:
        return _reply(200, dumps({"status": "alive"}))

    async def _readiness(self) -> Reply:
        if self._stopping or not self.crew.ready:
            raise _unready(self._stopping)
        return _reply(200, dumps({"status": "ready"}))

    async def _counts(self) -> Reply:
        text = await asyncio.to_thread(self._metrics.together, self.crew)
        return _reply(200, text, MEDIA_TYPE)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> Reply | None:
        """Have a worker answer; another one where it cannot be reached, as it has then seen nothing of the request.

        None where the answer was a stream, which has been passed on.
        """
        message = await _receive(receive)
        for _ in self.crew.workers:
            worker = None if self._stopping else self.crew.pick()
            if worker is None:
                break
            worker.busy += 1
            try:
                return await self._ask(worker, scope, message, receive, send)
            except aiohttp.ClientConnectorError:
                worker.ready = False  # its end is noticed a little later
            except (aiohttp.ClientError, ConnectionError) as error:
                self._metrics.lost.inc()
                told = "The worker that had this request was lost before it answered. Send the request again."
                raise Refused(503, told, retry_after="1") from error
            finally:
                worker.busy -= 1
        raise _unready(self._stopping)

    async def _ask(
        self, worker: Worker, scope: Scope, first: Mapping[str, Any], receive: Receive, send: Send
    ) -> Reply | None:
        if not first.get("more_body"):
            async with asyncio.timeout(self._settings.deadline + GRACE):
                return await _call(worker, scope, first.get("body") or None, receive, send)
        pieces = asyncio.Queue[bytes | None]()  # within the limits that the guard keeps
        asking = asyncio.create_task(_call(worker, scope, _drain(pieces), receive, send))
        try:
            message = first
            while not asking.done():
                pieces.put_nowait(message.get("body", b""))
                if not message.get("more_body"):
                    break
                message = await _receive(receive)
            pieces.put_nowait(None)
            async with asyncio.timeout(self._settings.deadline + GRACE):
                return await asking
        finally:
            asking.cancel()
            await asyncio.wait({asking})


Reply = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body of an answer."""


def _reply(status: int, body: bytes, media_type: str = "application/json") -> Reply:
    return (
        status,
        [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())],
        body,
    )


def _unready(stopping: bool) -> Refused:
    told = "The server is stopping." if stopping else "No worker is ready yet."
    return Refused(503, f"{told} Send the request again.", retry_after="1")


async def _receive(receive: Receive) -> Mapping[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


async def _drain(pieces: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (piece := await pieces.get()) is not None:
        if piece:
            yield piece


async def _call(worker: Worker, scope: Scope, body: Any, receive: Receive, send: Send) -> Reply | None:
    """Send a request to a worker, and read its whole answer, so that half of one is never passed on.

    Only a stream of events is passed on as it comes; None then.
    """
    path = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    headers = CIMultiDict((k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"] if k not in _HOPS)
    headers["X-Request-Id"] = scope["note"].request_id
    headers["X-Forwarded-For"] = scope["client"][0] if scope.get("client") else "unknown"
    if worker.session is None:
        raise aiohttp.ServerDisconnectedError
    async with worker.session.request(
        scope["method"], URL(f"http://worker{path.decode('latin-1')}", encoded=True), data=body, headers=headers,
        allow_redirects=False, skip_auto_headers=_NO_MORE, timeout=aiohttp.ClientTimeout(total=None),
    ) as response:  # fmt: skip
        kept = [(k.lower(), v) for k, v in response.raw_headers if k.lower() not in _HOPS | _SET_HERE]
        if response.content_type != "text/event-stream":
            return response.status, kept, await response.read()
        await send({"type": "http.response.start", "status": response.status, "headers": kept})
        await _relay(response.content, receive, send)
    return None


async def _relay(pieces: aiohttp.StreamReader, receive: Receive, send: Send) -> None:
    """Pass a stream on, until its end or until the client hangs up, which is then seen by the worker, too."""
    gone = asyncio.ensure_future(receive())
    try:
        async for piece in pieces.iter_any():
            if gone.done():
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()


class _Log(Log):
    """Lines of requests that no worker has answered; the others are in the workers' own."""

    def request(self, note: Note, scope: Any, seconds: float) -> None:
        """Write the line of a request that was refused here."""
        if note.error is not None:
            super().request(note, scope, seconds)


class _Metrics(Metrics):
    """Counts of what no worker counts."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = Counter("polymodal_lost_requests", "Requests whose worker ended before its answer.",
                            registry=self.registry)  # fmt: skip
        self.ready_workers = Gauge("polymodal_ready_workers", "Workers that take requests.", registry=self.registry)
        self.in_flight = Gauge("polymodal_requests_in_flight", "Requests that workers are answering.",
                               registry=self.registry)  # fmt: skip
        self.restarts = Gauge("polymodal_worker_restarts", "Workers that were started in place of others.",
                              registry=self.registry)  # fmt: skip

    def request(self, route: str, status: int, seconds: float, reason: str | None = None) -> None:
        """Count a request that was refused here."""
        if reason is not None:
            super().request(route, status, seconds, reason)

    def together(self, crew: Crew) -> bytes:
        """These counts and those of all workers, summed, in Prometheus' text format."""
        self.ready_workers.set(sum(worker.ready for worker in crew.workers))
        self.in_flight.set(sum(worker.busy for worker in crew.workers))
        self.restarts.set(crew.restarts)
        families = dict[str, Metric]()
        for family in [*MultiProcessCollector.merge(list(_begun(crew.metrics))), *self.registry.collect()]:
            _add(families.setdefault(family.name, Metric(family.name, family.documentation, family.type)), family)
        return generate_latest(_Families(list(families.values())))  # pyright: ignore[reportArgumentType]


def _begun(folder: Path) -> Iterator[str]:
    """Files of counts but those that a worker has just made, which prometheus_client cannot read."""
    for path in folder.glob("*.db"):
        with contextlib.suppress(FileNotFoundError):  # of a worker that has just ended
            if path.stat().st_size:
                yield str(path)


class _Families(list[Metric]):
    """Metrics as a registry gives them."""

    def collect(self) -> list[Metric]:
        """All of them."""
        return self


def _add(into: Metric, family: Metric) -> None:
    """Sum samples with the same labels; times of creation, which workers do not tell, are left out."""
    known = {(sample.name, *sorted(sample.labels.items())): i for i, sample in enumerate(into.samples)}
    for sample in family.samples:
        if sample.name.endswith("_created"):
            continue
        place = known.get((sample.name, *sorted(sample.labels.items())))
        if place is None:
            into.samples.append(sample)
        else:
            total = into.samples[place].value + sample.value
            into.samples[place] = Sample(sample.name, sample.labels, total)
