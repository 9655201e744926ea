"""Trial: a server in a process of its own, loaded with requests, each answer compared with `Bundle.predict`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polymodal.bundle import Bundle
from polymodal.errors import SpecError
from polymodal.runtimes import choose
from polymodal.server.settings import Settings
from polymodal.spec import Spec
from polymodal.trials.agreement import Reference, tolerance_of
from polymodal.trials.ask import Request, best_form, made_up, table_rows
from polymodal.trials.load import LoadReport, ServerCost, run_load

MOST = 256
"""Rows of a table that requests are made of."""
_START = 300.0
_STOP = 15.0


@dataclass(frozen=True, slots=True)
class Started:
    """A server that runs in a process of its own.

    Attributes:
        url: without a path.
        pid: of the process that was started; it may have others below it.
        seconds: from its start until it was ready.
    """

    url: str
    pid: int
    seconds: float


def load_test(
    target: str | Path,
    *,
    clients: int = 16,
    seconds: float = 30.0,
    rate: float | None = None,
    table: Any = None,
    runtime: str = "auto",
    workers: int = 1,
    token: str | None = None,
) -> LoadReport:
    """Load a server with requests of one row each, and tell latency percentiles, throughput, errors and cost.

    A bundle's folder is served meanwhile, by a process of its own on this machine, and every answer is compared with
    what `Bundle.predict` says of that row in the same runtimes: numbers within 1e-3 (.02 in half precision), labels
    equal save where two were within the tolerance. Answers of a server at a URL are not compared.

    Args:
        target: a bundle's folder, or the URL of a running server.
        clients: that ask at once.
        seconds: how long.
        rate: requests a second at random moments, whatever the answers do; None: each client asks again when it has
            its answer.
        table: rows to ask for, up to 256 of them; made-up ones when not given.
        runtime: of the server that is started.
        workers: processes of the server that is started.
        token: bearer token.

    Raises:
        SpecError: an option is out of range or has no effect, or the server does not start or answer.
        BundleError: the folder is no bundle.
        DataError: the table cannot be read.
    """
    if str(target).startswith(("http://", "https://")):
        if (runtime, workers) != ("auto", 1):
            raise SpecError("runtime and workers must not be given for a URL, where they have no effect.")
        return _load_url(str(target).rstrip("/"), clients, seconds, rate, table, token)
    bundle = Bundle.load(target)
    rows, notes = _rows(bundle.spec, table)
    requests = [best_form(row, i) for i, row in enumerate(rows)]
    options = ["--runtime", runtime, "--workers", str(workers)]
    with started(Path(target), options, token) as server:
        threads = Settings.make(target, workers=workers).call_threads
        choice = choose(bundle, runtime=runtime, threads=threads)  # as the server has just chosen and kept it
        expected = replace(bundle, embedder=choice.embedder).predict(rows)
        reference = Reference(expected, tolerance_of(choice.names.values(), same=True))
        report = measure(server, requests, clients=clients, seconds=seconds, rate=rate, expect=reference, token=token)
    return replace(report, notes=[*report.notes, *notes])


def measure(server: Started, requests: Sequence[Request], **options: Any) -> LoadReport:
    """Load a server that was started here and read what it cost; ``options`` as `run_load` takes them."""
    before = usage(server.pid)
    report = asyncio.run(run_load(f"{server.url}/v1/predict", requests, **options))
    after = usage(server.pid)
    if before is None or after is None:
        return report
    return replace(
        report, server=ServerCost((after[0] - before[0]) * 1e3 / max(report.requests, 1), before[1], after[1])
    )


def _load_url(url: str, clients: int, seconds: float, rate: float | None, table: Any, token: str | None) -> LoadReport:
    request = urllib.request.Request(f"{url}/v1/spec", headers=_bearer(token))
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            spec = Spec.model_validate(json.load(response)["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{url} must be the URL of a Polymodal server, got {error} from /v1/spec.") from None
    rows, notes = _rows(spec, table)
    requests = [best_form(row, i) for i, row in enumerate(rows)]
    load = run_load(f"{url}/v1/predict", requests, clients=clients, seconds=seconds, rate=rate, token=token)
    report = asyncio.run(load)
    return replace(report, notes=[*report.notes, *notes])


def _rows(spec: Spec, table: Any) -> tuple[Sequence[Any], list[str]]:
    """Rows to ask for, and what to tell of them."""
    if table is None:
        return made_up(spec), []
    rows, _, broken = table_rows(spec, table, MOST)
    return rows, [f"{broken} broken cells of the table were left out"] if broken else []


@contextmanager
def started(
    folder: Path, options: Sequence[str] = (), token: str | None = None, program: Sequence[str] | None = None
) -> Iterator[Started]:
    """Serve a bundle in a process of its own, on a free port of this machine only, and stop it at the end.

    Args:
        folder: of the bundle.
        options: of ``polymodal serve``.
        token: bearer token that the server asks for.
        program: another command, which takes ``--port``, than ``polymodal serve`` and its folder.

    Raises:
        SpecError: the process ends, or is not ready after five minutes; with the last that it said.
    """
    port = free_port()
    command = [*(program or (sys.executable, "-m", "polymodal.cli", "serve", str(folder))), "--port", str(port)]
    secret = {} if token is None else {"POLYMODAL_TOKEN": token}
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **secret}, start_new_session=True,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            while not ready(url):
                if process.poll() is not None or time.perf_counter() - start > _START:
                    log.seek(0)
                    said = log.read()[-2000:].decode("utf-8", "replace").strip()
                    raise SpecError(f"{' '.join(command)} must become ready, got:\n{said}")
                time.sleep(0.02)
            yield Started(url, process.pid, time.perf_counter() - start)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop; then end it, and what it left behind."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ready(url: str) -> bool:
    """Whether the server at a URL says that it is ready."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:
            return response.status == 200
    except OSError:  # also what urllib makes of 503
        return False


def usage(pid: int) -> tuple[float, int] | None:
    """CPU seconds and resident bytes of a process and all below it; None on systems that do not tell."""
    every: dict[int, list[str]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            every[int(place.name)] = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
    if pid not in every:
        return None
    family, tick, page = {pid}, os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    while more := {child for child, stat in every.items() if int(stat[1]) in family} - family:
        family |= more
    # stat after the name: 1 parent; 11-14 time in user mode, in the kernel, both of ended children; 21 resident pages
    cpu = sum(sum(map(int, every[one][11:15])) for one in family) / tick
    return cpu, sum(int(every[one][21]) for one in family) * page


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
