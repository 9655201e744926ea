"""Load: many clients that ask a server at once, and what they saw of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import numpy as np

from polymodal.errors import SpecError
from polymodal.trials.agreement import Difference, Reference, finite
from polymodal.trials.ask import Request

PATIENCE = 60.0
"""Seconds after which a request without an answer counts as lost."""
_PAUSE = 0.1
_NOTES = 5


@dataclass(frozen=True, slots=True)
class ServerCost:
    """What a load cost the server, all its processes together.

    Attributes:
        cpu_ms: CPU milliseconds a request.
        memory_before: resident bytes before the load.
        memory_after: resident bytes after it.
    """

    cpu_ms: float
    memory_before: int
    memory_after: int


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What the clients saw.

    Attributes:
        clients: that asked at once.
        rate: planned requests a second; None where each client asked again as soon as it had its answer.
        seconds: from the first request to the last answer.
        requests: sent.
        statuses: HTTP status -> how many answers had it.
        lost: requests without an answer.
        wrong: answers of status 200 that differ from the reference; None where there was none.
        ties: labels that differ only since the reference could not tell them apart within the tolerance.
        difference: the largest one of all answers to the reference, as in `Difference`.
        latency: p50, p90, p95, p99 and max in milliseconds of the answers of status 200, from when the request was
            sent or, with a rate, planned to be sent; empty where there are none.
        rows: answered with status 200.
        sent: bytes of bodies.
        received: bytes of bodies.
        client_ms: CPU milliseconds that a request cost the process of the clients.
        notes: the first failures, in words.
        server: its cost, where it could be read.
    """

    clients: int
    rate: float | None
    seconds: float
    requests: int
    statuses: dict[int, int]
    lost: int
    wrong: int | None
    ties: int
    difference: float
    latency: dict[str, float]
    rows: int
    sent: int
    received: int
    client_ms: float
    notes: list[str] = field(default_factory=list)
    server: ServerCost | None = None

    @property
    def throughput(self) -> float:
        """Answers of status 200 a second."""
        return self.statuses.get(200, 0) / max(self.seconds, 1e-9)

    @property
    def ok(self) -> bool:
        """Whether every request was answered with 200, and none wrongly."""
        return self.statuses.keys() <= {200} and not self.lost and not self.wrong

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able mappings; an infinite difference is None."""
        statuses = {str(status): count for status, count in self.statuses.items()}
        more = {"statuses": statuses, "difference": finite(self.difference), "throughput": self.throughput}
        return asdict(self) | more | {"ok": self.ok}

    def lines(self) -> list[str]:
        """For a person."""
        how = "each asks again when it has its answer" if self.rate is None else f"{self.rate:g} requests/s, Poisson"
        told = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items())) or "none"
        lines = [
            f"{self.clients} clients, {how}, {self.seconds:.1f} s",
            f"answers    {told}, {self.lost} lost, {self._compared()}",
            f"throughput {self.throughput:.1f} requests/s, {self.rows / max(self.seconds, 1e-9):.1f} rows/s, "
            f"{self.sent / 1e6:.1f} MB sent, {self.received / 1e6:.1f} MB received",
        ]
        if self.latency:
            lines.append("latency    " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.latency.items()))
        if self.server is not None:
            before, after = self.server.memory_before / 1e6, self.server.memory_after / 1e6
            memory = f"memory {before:.0f} MB -> {after:.0f} MB"
            lines.append(f"server     {self.server.cpu_ms:.2f} CPU-ms a request, {memory}")
        lines.append(f"clients    {self.client_ms:.2f} CPU-ms a request")
        return lines + [f"           {note}" for note in self.notes]

    def _compared(self) -> str:
        if self.wrong is None:
            return "not compared"
        ties = f", {self.ties} labels tied" if self.ties else ""
        return f"{self.wrong} wrong (largest difference {self.difference:.1e}{ties})"


async def run_load(  # noqa: PLR0913  (what a load is made of)
    url: str,
    requests: Sequence[Request],
    *,
    clients: int = 16,
    seconds: float | None = None,
    count: int | None = None,
    rate: float | None = None,
    expect: Reference | None = None,
    token: str | None = None,
    seed: int = 0,
) -> LoadReport:
    """Send requests, in turn, from several clients with a kept connection each.

    Args:
        url: that every request is posted to.
        requests: sent one after another, and again from the first.
        clients: connections at once.
        seconds: how long to send.
        count: how many to send; this or ``seconds``.
        rate: requests a second on average, at random moments (a Poisson process) that do not wait for answers. Where
            every client is busy, a request waits for one, and this wait is part of its latency. None: each client
            sends its next request when it has its answer.
        expect: what rows must be answered; the numbers of the requests' rows are its own.
        token: bearer token of every request.
        seed: of the random moments.

    Raises:
        SpecError: there is nothing to send, or an option is out of range.
    """
    _check(requests, clients, seconds, count, rate)
    run = _Run(url, expect, None if rate is None else _arrivals(rate, seconds, count, seed))
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=clients, keepalive_timeout=PATIENCE),
        timeout=aiohttp.ClientTimeout(total=PATIENCE),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    async with session:
        cpu, run.start = time.process_time(), time.perf_counter()
        turns = zip(run.moments(seconds, count), itertools.cycle(requests), strict=False)
        await asyncio.gather(*(run.client(session, turns) for _ in range(clients)))
        took, cpu = time.perf_counter() - run.start, time.process_time() - cpu
    return run.report(clients, rate, took, cpu)


def _check(
    requests: Sequence[Request], clients: int, seconds: float | None, count: int | None, rate: float | None
) -> None:
    if not requests:
        raise SpecError("requests must hold at least one, got none.")
    if (seconds is None) == (count is None):
        raise SpecError(f"one of seconds and count must be given, got {seconds} and {count}.")
    for name, value in (("clients", clients), ("seconds", seconds), ("count", count), ("rate", rate)):
        if value is not None and not 0 < value < float("inf"):
            raise SpecError(f"{name} must be more than 0, got {value}.")


def _arrivals(rate: float, seconds: float | None, count: int | None, seed: int) -> list[float]:
    """Seconds after the start at which requests are planned."""
    rng = np.random.default_rng(seed)
    if count is not None:
        return rng.exponential(1 / rate, count).cumsum().tolist()
    assert seconds is not None
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds))).tolist()


class _Run:
    """One load while it goes on: counts what happens."""

    def __init__(self, url: str, expect: Reference | None, arrivals: list[float] | None) -> None:
        self.url, self.expect, self.arrivals, self.start = url, expect, arrivals, 0.0
        self.latencies, self.statuses, self.notes = list[float](), Counter[int](), list[str]()
        self.requests = self.lost = self.wrong = self.rows = self.sent = self.received = 0
        self.difference = Difference()

    def moments(self, seconds: float | None, count: int | None) -> Iterator[float | None]:
        """When each request is planned, in seconds after the start; None: at once. Ends when no more is to be sent."""
        if self.arrivals is not None:
            yield from self.arrivals
        elif count is not None:
            yield from itertools.repeat(None, count)
        else:
            while time.perf_counter() - self.start < (seconds or 0):
                yield None

    async def client(self, session: aiohttp.ClientSession, turns: Iterator[tuple[float | None, Request]]) -> None:
        """Take turns from those that all clients share, until there are no more."""
        for moment, request in turns:
            planned = time.perf_counter() if moment is None else self.start + moment
            await asyncio.sleep(max(0.0, planned - time.perf_counter()))
            self.requests, self.sent = self.requests + 1, self.sent + len(request.body)
            try:
                async with session.post(
                    self.url, data=request.body, headers={"Content-Type": request.content_type}
                ) as response:
                    content = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.lost += 1
                self._note(f"lost: {type(error).__name__} {error}")
                await asyncio.sleep(_PAUSE)  # a server that is gone must not be asked in a tight loop
                continue
            self._take(request, response.status, content, time.perf_counter() - planned)

    def _take(self, request: Request, status: int, content: bytes, took: float) -> None:
        self.statuses[status] += 1
        self.received += len(content)
        if status != 200:
            self._note(f"{status}: {content[:200].decode('utf-8', 'replace')}")
            return
        self.latencies.append(took)
        self.rows += request.rows
        if self.expect is not None and not self._agrees(request, content, self.expect):
            self.wrong += 1

    def _agrees(self, request: Request, content: bytes, expect: Reference) -> bool:
        try:
            rows = json.loads(content)["predictions"]
        except (ValueError, KeyError, TypeError):
            rows = []
        if not isinstance(rows, list) or len(rows) != request.rows:
            self._note(f"wrong: must hold {request.rows} predictions, got {content[:200].decode('utf-8', 'replace')}")
            return False
        found = Difference()
        for i, row in enumerate(rows):
            found = found.join(expect.compare(request.first + i, row))
        self.difference = self.difference.join(found)
        if not expect.agrees(found):
            self._note(f"wrong: row {request.first} differs by {found.number:.2e} and in {found.labels} labels")
        return expect.agrees(found)

    def _note(self, text: str) -> None:
        if len(self.notes) < _NOTES:
            self.notes.append(text)

    def report(self, clients: int, rate: float | None, seconds: float, cpu: float) -> LoadReport:
        """Sum up."""
        latency: dict[str, float] = {}
        if self.latencies:
            ms = np.array(self.latencies) * 1e3
            latency = {f"p{q}": float(np.percentile(ms, q)) for q in (50, 90, 95, 99)} | {"max": float(ms.max())}
        wrong = None if self.expect is None else self.wrong
        return LoadReport(
            clients, rate, seconds, self.requests, dict(self.statuses), self.lost, wrong, self.difference.ties,
            self.difference.number, latency, self.rows, self.sent, self.received,
            cpu * 1e3 / max(self.requests, 1), self.notes,
        )  # fmt: skip
