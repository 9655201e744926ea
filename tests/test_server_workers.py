"""A server of several processes: the front, its workers, and what happens when one of them is lost."""

import asyncio
import base64
import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

import polymodal as pm
import tiny
from polymodal.server.crew import Crew, Worker
from polymodal.server.front import _add, _call
from polymodal.server.logs import Note
from polymodal.server.settings import Settings
from running import SECONDS, Running, ask, until

pytestmark = pytest.mark.slow
TOKEN = "a token for tests"
SECRET = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.fitted("text", "table", "image").save(tmp_path_factory.mktemp("bundles") / "fruit")


@pytest.fixture(scope="module")
def bundle(folder):
    return pm.Bundle.load(folder)


@pytest.fixture(scope="module")
def server(folder):
    with Running(folder, workers=2, token=TOKEN, max_body=1 << 20, watch=0) as server:
        assert server.base
        yield server


@pytest.fixture
def base(server):
    """The address, when both workers answer."""
    until(lambda: count(server.base, "polymodal_ready_workers") == 2, "two workers' readiness")
    return server.base


def count(base, name, **labels):
    """Sum of a metric's samples."""
    text = ask(f"{base}/metrics", **SECRET)[2].decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def children(process):
    """Processes that it has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
        if parent == process.pid:
            found.append(int(folder.name))
    return found


def alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rows(count):
    return [{"text": f"number {i}", "x": i / 8, "image": tiny.picture(i) if i % 3 else None} for i in range(count)]


def as_json(row):
    return {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in row.items() if v is not None}


def predict(base, row, **headers):
    return ask(f"{base}/v1/predict", {"inputs": as_json(row)}, **(SECRET | headers))


@contextmanager
def one_stopped(server, base):
    """A worker that has been frozen, and that the next request goes to."""
    pid = children(server.process)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def held_request(server, base):
    """A request that a frozen worker has, and that worker's process."""
    with one_stopped(server, base) as pid, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(predict, base, {"x": 1.0}) for _ in range(2)]  # one to each worker
        until(lambda: any(request.done() for request in asked), "the other worker's answer")
        until(lambda: count(base, "polymodal_requests_in_flight") == 1, "the request's way to the worker")
        answered, held = sorted(asked, key=lambda request: not request.done())
        assert answered.result()[0] == 200
        assert not held.done()
        yield pid, held


def test_every_answer_is_that_of_predict(base, bundle):
    found = rows(24)
    before = count(base, "polymodal_rows_total")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: predict(base, row), found))
    for (status, headers, told), row in zip(answers, found, strict=True):
        assert (status, told["request_id"]) == (200, headers["X-Request-Id"])
        assert headers.get_all("X-Request-Id") == [headers["X-Request-Id"]]
        assert len(headers.get_all("date")) == 1
        wanted = bundle.predict([row])[0]["label"]
        assert told["predictions"][0]["label"]["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
    assert count(base, "polymodal_rows_total") == before + 24
    assert count(base, "polymodal_model_info") == 1


def test_a_request_keeps_its_id_query_and_errors(base):
    status, headers, told = predict(base, {"y": 1.0}, **{"X-Request-Id": "mine"})
    assert (status, told["request_id"], headers["X-Request-Id"]) == (422, "mine", "mine")
    assert ask(f"{base}/v1/predict?model=pear", {"inputs": {}}, **SECRET)[0] == 404
    assert ask(f"{base}/v1/spec?model=fruit", **SECRET)[2]["model"] == "fruit"
    assert ask(f"{base}/v2/models/fruit", **SECRET)[2]["platform"] == "polymodal"


def test_the_front_asks_for_the_token_as_the_workers_do(base):
    before = count(base, "polymodal_rejected_requests_total", reason="unauthorized")
    assert ask(f"{base}/v1/predict", {"inputs": {}})[2]["error"]["type"] == "unauthorized"
    assert isinstance(ask(f"{base}/v2/models/fruit")[2]["error"], str)
    assert ask(f"{base}/metrics")[0] == 401
    assert [ask(base + path)[0] for path in ("/healthz", "/readyz", "/", "/docs")] == [200] * 4
    assert count(base, "polymodal_rejected_requests_total", reason="unauthorized") == before + 3


def test_bodies_are_passed_on_in_pieces_and_limited(base, bundle):
    image = tiny.picture(1, kind="BMP") + bytes(300_000)
    status, _, told = predict(base, {"image": image})
    assert status == 200
    wanted = bundle.predict([{"image": image}])[0]["label"]["probabilities"]
    assert told["predictions"][0]["label"]["probabilities"] == pytest.approx(wanted, abs=1e-5)
    assert predict(base, {"text": "a" * (2 << 20)})[0] == 413
    body = json.dumps({"inputs": {"x": 1.0}}).encode()
    host, _, port = base.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:  # chunked, one byte at a time
        connection.sendall(
            f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for byte in body:
            connection.sendall(b"1\r\n%c\r\n" % byte)
        connection.sendall(b"0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    wanted = bundle.predict([{"x": 1.0}])[0]["label"]["probability"]
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["predictions"][0]["label"]["probability"] == pytest.approx(
        wanted, abs=1e-5
    )


def test_a_lost_worker_loses_its_request_alone_and_comes_back(server, base):
    lost, restarts = count(base, "polymodal_lost_requests_total"), count(base, "polymodal_worker_restarts")
    with held_request(server, base) as (pid, held), ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda row: predict(base, row)[0], rows(4)[:1]))
        os.kill(pid, signal.SIGKILL)
        status, headers, told = held.result(SECONDS)
        assert (status, told["error"]["type"]) == (503, "unavailable")
        assert headers["Retry-After"]
        assert told["request_id"] == headers["X-Request-Id"]
        beside += list(pool.map(lambda row: predict(base, row)[0], rows(20)))
        assert beside == [200] * 21
    until(lambda: count(base, "polymodal_ready_workers") == 2, "the worker's return")
    assert count(base, "polymodal_lost_requests_total") == lost + 1
    assert count(base, "polymodal_worker_restarts") == restarts + 1
    assert len(children(server.process)) == 2
    assert [predict(base, row)[0] for row in rows(4)] == [200] * 4


def test_a_client_that_hangs_up_ends_its_request(server, base):
    with one_stopped(server, base), ThreadPoolExecutor(1) as pool:
        host, _, port = base.removeprefix("http://").partition(":")
        body = json.dumps({"inputs": {"x": 1.0}})
        request = (
            f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        with socket.create_connection((host, int(port))) as first, socket.create_connection((host, int(port))) as other:
            first.sendall(request)
            other.sendall(request)
            until(lambda: count(base, "polymodal_requests_in_flight") == 1, "one answer and one request that waits")
        assert pool.submit(until, lambda: count(base, "polymodal_requests_in_flight") == 0, "the hang-up").result()
    assert [predict(base, row)[0] for row in rows(4)] == [200] * 4


def test_sigterm_answers_what_was_taken_in_and_leaves_no_process(folder):
    with Running(folder, workers=2) as server, ThreadPoolExecutor(1) as pool:
        base = server.base
        until(lambda: count(base, "polymodal_ready_workers") == 2, "two workers' readiness")
        pids = children(server.process)
        folders = sockets(pids)
        os.kill(pids[0], signal.SIGSTOP)
        os.kill(pids[1], signal.SIGSTOP)
        asked = pool.submit(predict, base, {"x": 1.0})
        until(lambda: count(base, "polymodal_requests_in_flight") == 1, "the request's way to a worker")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: ask(f"{base}/readyz")[0] == 503, "the end of readiness")
        assert predict(base, {"x": 1.0})[0] == 503
        assert ask(f"{base}/healthz")[0] == 200
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert asked.result(SECONDS)[0] == 200
        assert server.process.wait(SECONDS) == 0
        assert not any(map(alive, pids))
        assert not any(folder.exists() for folder in folders)
    assert "Traceback" not in "".join(server.errors)


def sockets(pids):
    """Folders in which processes listen."""
    found = set()
    inodes = {os.readlink(link)[8:-1] for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()
              and os.readlink(link).startswith("socket:[")}  # fmt: skip
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        cells = line.split()
        if len(cells) == 8 and cells[6] in inodes:
            found.add(Path(cells[7]).parent)
    assert found
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in found)
    return found


def test_no_worker_outlives_a_killed_front(folder):
    with Running(folder, workers=2) as server:
        base = server.base
        until(lambda: count(base, "polymodal_ready_workers") == 2, "two workers' readiness")
        pids = children(server.process)
        folders = sockets(pids)
        server.process.kill()
        until(lambda: not any(map(alive, pids)), "the workers' end")
        until(lambda: not any(folder.exists() for folder in folders), "the end of their folder")


def test_a_second_signal_ends_front_and_workers_at_once(folder):
    with Running(folder, workers=2) as server, ThreadPoolExecutor(1) as pool:
        base = server.base
        until(lambda: count(base, "polymodal_ready_workers") == 2, "two workers' readiness")
        pids = children(server.process)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        asked = pool.submit(predict, base, {"x": 1.0})
        until(lambda: count(base, "polymodal_requests_in_flight") == 1, "the request's way to a worker")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: ask(f"{base}/readyz")[0] == 503, "the end of readiness")
        assert server.stop() == -signal.SIGTERM
        until(lambda: not any(map(alive, pids)), "the workers' end")
        assert isinstance(asked.exception(SECONDS), OSError)


def test_sighup_makes_every_worker_look(tmp_path):
    folder = tiny.fitted("table").save(tmp_path / "fruit")
    with Running(folder, workers=2, watch=0) as server:
        until(lambda: count(server.base, "polymodal_ready_workers") == 2, "two workers' readiness")
        version = ask(f"{server.base}/v1/models")[2]["models"][0]["version"]
        tiny.fitted("table", seed=5).save(folder)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: count(server.base, "polymodal_swaps_total", result="done") == 2, "the new version in both")
        versions = {ask(f"{server.base}/v1/models")[2]["models"][0]["version"] for _ in range(4)}
        assert len(versions) == 1
        assert version not in versions


def test_workers_share_the_cores(folder, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    made = [Settings.make(folder, workers=workers) for workers in (1, 2, 3, 9)]
    assert [settings.cores for settings in made] == [8, 4, 2, 1]
    assert [(settings.call_threads, settings.lanes) for settings in made] == [(2, 4), (1, 4), (1, 2), (1, 1)]


def test_the_ready_worker_with_the_fewest_requests_is_next():
    crew = Crew.__new__(Crew)
    crew.workers, crew._turns = [Worker(number) for number in range(3)], 0
    assert crew.pick() is None
    first, second, third = crew.workers
    first.ready = second.ready = True
    assert [crew.pick().number for _ in range(4)] == [0, 1, 0, 1]
    first.busy = 2
    second.busy = 1
    assert [crew.pick().number for _ in range(2)] == [1, 1]
    third.ready = True
    assert crew.pick() is third


def test_counts_can_be_read_while_a_worker_begins_to_write(base, server):
    (folder,) = sockets(children(server.process))
    begun = folder / "metrics" / "counter_1.db"
    begun.touch()
    assert count(base, "polymodal_ready_workers") == 2
    begun.unlink()


def test_counts_of_several_processes_are_summed():
    registries = [CollectorRegistry() for _ in range(2)]
    for number, registry in enumerate(registries, 1):
        Counter("rows", "Rows.", ["model"], registry=registry).labels("a").inc(number)
        Histogram("time", "Time.", buckets=(1, 2), registry=registry).observe(number - 0.5)
    families = {}
    for registry in registries:
        for family in registry.collect():
            _add(families.setdefault(family.name, type(family)(family.name, family.documentation, family.type)), family)
    values = {(s.name, s.labels.get("le")): s.value for family in families.values() for s in family.samples}
    assert values[("rows_total", None)] == 3
    assert [values[("time_bucket", le)] for le in ("1.0", "2.0", "+Inf")] == [1, 2, 2]
    assert values[("time_sum", None)] == 2.0
    assert not any(name.endswith("_created") for name, _ in values)


class Events:
    """A worker's answer of two events, the second one when it is let go; and the session that it comes over."""

    content_type, status, raw_headers = "text/event-stream", 200, ((b"Content-Type", b"text/event-stream"),)

    def __init__(self):
        self.go, self.left = asyncio.Event(), False
        self.content = self

    def request(self, *_, **__):
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.left = True

    async def iter_any(self):
        yield b"data: 1\n\n"
        await self.go.wait()
        yield b"data: 2\n\n"


@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_stream_of_events_is_passed_on_as_it_comes(hangs_up):
    scope = {
        "method": "POST", "raw_path": b"/v1/chat/completions", "query_string": b"", "headers": [],
        "note": Note("r", 0.0),
    }  # fmt: skip
    events, sent = Events(), []
    worker = Worker(0)
    worker.session = events

    async def receive():
        if not hangs_up:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def run():
        call = asyncio.create_task(_call(worker, scope, b"", receive, send))
        while len(sent) < (1 if hangs_up else 2):
            await asyncio.sleep(0)
        before = list(sent)
        events.go.set()
        assert await call is None
        return before

    before = asyncio.run(run())
    assert before[0] == {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream")],
    }
    assert events.left
    if hangs_up:
        assert b"".join(message.get("body", b"") for message in sent) in (b"", b"data: 1\n\n")
    else:
        assert before[1:] == [{"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}]
        assert [message.get("body") for message in sent[2:]] == [b"data: 2\n\n", b""]
