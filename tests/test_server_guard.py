"""What every request passes: limits, token, headers, errors, hang-ups, logs."""

import asyncio
import contextlib
import http.client
import json
import socket
import sys
import threading

import pytest

import polymodal as pm
from hosted import running
from polymodal.server import guard
from polymodal.server.batching import Busy, Late, Stopping
from polymodal.server.errors import KINDS, Refused, describe, dumps
from polymodal.server.guard import Guard
from polymodal.server.logs import Log, trace
from polymodal.server.metrics import Metrics
from stage import Client, Constant, Held, Lines, Stage, scope, settings

ROW = {"inputs": {"words": "a secret text"}}
TOKEN = "a-token-of-someone"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Nobody here sends the rest of a body."""
    monkeypatch.setattr(guard, "LINGER", 0.01)


def behind(app, pieces=(), headers=None, path="/v1/predict", **options):
    """What the guard makes of one request to an application of a test's own; the client and the log."""
    client, lines = Client(list(pieces)), Lines()
    log = Log(lines)  # pyright: ignore[reportArgumentType]

    async def run():
        stands = Guard(app, settings=settings(**options), metrics=Metrics(), log=log, paths=["/v1/predict"])
        await stands(scope("POST", path, headers or {"transfer-encoding": "chunked"}), client.receive, client.send)

    asyncio.run(run())
    return client, lines


def piece(size, more=True):
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


async def reads(scope, receive, send):
    """Reads the whole body, then says how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def test_a_request_id_is_kept_if_it_is_harmless_and_made_up_if_not():
    stage = Stage()
    assert stage.ask("GET", "/healthz", X_Request_Id="job-7.a_B").headers["x-request-id"] == "job-7.a_B"
    made = set()
    for bad in ("", "a b", "x" * 65, "a\u00e9", "<script>", "a\n"):
        made.add(stage.ask("GET", "/healthz", X_Request_Id=bad).headers["x-request-id"])
    assert len(made) == 6
    assert all(len(name) == 24 and name.isalnum() for name in made)
    reply = stage.ask("POST", "/v1/predict", ROW, X_Request_Id="mine")
    assert reply.json["request_id"] == reply.headers["x-request-id"] == stage.lines.all[-1]["request_id"] == "mine"


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/nowhere", "/", "/openapi.json"])
def test_every_answer_has_the_headers_that_browsers_obey(path):
    headers = Stage().ask("GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=(self)" in headers["permissions-policy"]
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert not any(name.startswith("access-control") for name in headers)
    assert headers["cache-control"] in ("no-store", "no-cache")


def test_a_page_of_another_site_may_not_ask():
    reply = Stage().ask("OPTIONS", "/v1/predict", Origin="https://evil.example", Access_Control_Request_Method="POST")
    assert reply.status == 405
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_max_body_limits_what_a_head_announces_without_reading_it():
    client, _ = behind(reads, [piece(9, False)], {"content-length": "2000"}, max_body=1999)
    assert (client.reply.status, client.reply.json["error"]["type"]) == (413, "too_large")
    assert client.reply.headers["connection"] == "close"
    client, _ = behind(reads, [piece(1999, False)], {"content-length": "1999"}, max_body=1999)
    assert (client.reply.status, client.reply.body) == (200, b"1999")


def test_max_body_limits_what_arrives_piece_by_piece():
    client, lines = behind(reads, [piece(1000), piece(1000), piece(1000), piece(1000, False)], max_body=2500)
    assert client.reply.status == 413
    assert lines.all[0]["bytes"] == 3000
    assert client.read == 4, "the rest is read and dropped, so that the answer arrives"


def test_a_body_without_end_is_not_read_for_ever():
    client, _ = behind(reads, [piece(3000)], max_body=2000)
    assert client.reply.status == 413


def test_a_wrong_length_is_a_bad_request():
    client, _ = behind(reads, [], {"content-length": "-1"})
    assert client.reply.status == 400


def test_a_packed_body_is_refused():
    client, _ = behind(reads, [piece(9, False)], {"content-length": "9", "content-encoding": "gzip"})
    assert client.reply.status == 415


def test_deadline_limits_how_long_a_body_may_take():
    client, lines = behind(reads, [piece(10)], deadline=0.02)
    assert (client.reply.status, client.reply.json["error"]["type"]) == (408, "deadline")
    assert client.reply.headers["connection"] == "close"
    assert lines.all[0]["error"] == "deadline"


def test_bodies_in_memory_are_limited_together(monkeypatch):
    monkeypatch.setattr(guard, "BODIES", 2)

    async def run():
        stands = Guard(reads, settings=settings(max_body=1024), metrics=Metrics(), log=Log(Lines()))  # pyright: ignore
        clients = [Client([piece(1000)]) for _ in range(2)]
        tasks = [
            asyncio.create_task(stands(scope("POST", "/", {"transfer-encoding": "chunked"}), c.receive, c.send))
            for c in clients
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stands.held == 2000
        third = Client([piece(100, False)])
        await stands(scope("POST", "/", {"content-length": "100"}), third.receive, third.send)
        for client in clients:
            client.hung_up.set()
        await asyncio.gather(*tasks)
        fourth = Client([piece(100, False)])
        await stands(scope("POST", "/", {"content-length": "100"}), fourth.receive, fourth.send)
        return third.reply, fourth.reply, stands.held

    third, fourth, held = asyncio.run(run())
    assert (third.status, third.headers["retry-after"]) == (503, "1")
    assert (fourth.status, held) == (200, 0)


def test_token_is_asked_for_everywhere_but_at_health_and_page():
    stage = Stage(token=TOKEN)
    paths = ("/v1/models", "/v1/spec", "/v1/card", "/metrics", "/openapi.json", "/v2", "/nowhere", "/static", "/docs/x")
    for path in paths:
        for wrong in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Authorization": "Bearer"}):
            reply = stage.ask("GET", path, **wrong)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer"), path
    for header in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
        assert stage.ask("GET", "/v1/models", Authorization=header).status == 200
    for path in ("/healthz", "/readyz", "/", "/docs", "/static/page.css"):
        assert stage.ask("GET", path).status == 200, path
    assert stage.ask("POST", "/v1/predict", ROW).status == 401
    assert stage.ask("POST", "/v1/predict", ROW, Authorization=f"Bearer {TOKEN}").status == 200
    assert TOKEN not in stage.lines.text


def test_without_page_its_paths_are_not_there():
    assert Stage(page=False).ask("GET", "/").status == 404
    assert Stage(page=False, token=TOKEN).ask("GET", "/docs").status == 401


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry"),
    [
        (pm.DataError("inputs[2].image: the image is cut off."), 422, "unprocessable", None),
        (pm.SpecError("no"), 422, "unprocessable", None),
        (Busy(3.2), 429, "too_busy", "4"),
        (Busy(0.0), 429, "too_busy", "1"),
        (Late("late"), 504, "deadline", None),
        (Stopping("stops"), 503, "unavailable", "1"),
        (Refused(503, "A worker was lost.", retry_after="2"), 503, "unavailable", "2"),
        (RuntimeError("inside: /srv/key"), 500, "internal", None),
        (KeyError("a secret text"), 500, "internal", None),
        (MemoryError(), 500, "internal", None),
    ],
)
def test_every_error_has_a_status_and_a_type(error, status, kind, retry):
    model = Constant()
    model.error = error
    stage = Stage(model)
    reply = stage.ask("POST", "/v1/predict", ROW)
    assert (reply.status, reply.json["error"]["type"], reply.headers.get("retry-after")) == (status, kind, retry)
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["request_id"] == reply.headers["x-request-id"]
    assert "Traceback" not in reply.body.decode()
    assert "/srv" not in reply.body.decode()
    assert stage.lines.all[-1]["error"] == kind
    assert stage.counted("polymodal_rejected_requests_total", reason=kind) == 1


def test_where_is_the_path_that_a_message_starts_with():
    assert describe(pm.DataError("inputs[2].image: cut off: at 7")).where == "inputs[2].image"
    assert describe(pm.DataError("something: else")).where is None


def test_the_open_inference_protocol_gets_errors_as_it_has_them():
    reply = Stage().ask("GET", "/v2/models/other")
    assert reply.status == 404
    assert list(reply.json) == ["error"]
    assert isinstance(reply.json["error"], str)


def test_every_status_that_is_used_has_a_type():
    assert set(KINDS) >= {400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504}


def test_an_unexpected_error_is_logged_with_its_place_and_without_what_a_user_sent():
    model = Constant()
    model.error = ValueError("a secret text")
    stage = Stage(model)
    stage.ask("POST", "/v1/predict", ROW)
    (line,) = stage.lines.all
    assert (line["level"], line["status"]) == ("error", 500)
    assert "builtins.ValueError" in line["trace"]
    assert "stage.py" in line["trace"]
    assert "secret" not in stage.lines.text


def test_a_trace_tells_what_the_machine_says_and_every_cause():
    try:
        try:
            raise OSError("no space")
        except OSError as error:
            raise KeyError("a secret text") from error
    except KeyError as error:
        told = trace(error)
    assert "builtins.OSError: no space" in told
    assert "builtins.KeyError\n" in told
    assert "secret" not in told


def test_an_error_in_the_middle_of_an_answer_ends_it():
    async def breaks(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("gone")

    client, lines = behind(breaks, [], {})
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]
    assert client.sent[-1]["more_body"]
    assert lines.all[0]["status"] == 500


def test_a_client_that_hangs_up_ends_the_work_on_its_request():
    async def run():
        model = Held()
        stage = Stage(model)
        body = json.dumps(ROW).encode()
        head = {"content-type": "application/json", "content-length": str(len(body))}
        client = Client([{"type": "http.request", "body": body, "more_body": False}])
        task = asyncio.create_task(stage.app(scope("POST", "/v1/predict", head), client.receive, client.send))
        await model.entered.wait()
        client.hung_up.set()
        await task
        other = Client([{"type": "http.request", "body": body}])
        model.go.set()
        await stage.app(scope("POST", "/v1/predict", head), other.receive, other.send)
        return model, client, other, stage

    model, client, other, stage = asyncio.run(run())
    assert model.cancelled
    assert client.sent == []
    assert other.reply.status == 200
    assert [line["status"] for line in stage.lines.all] == [499, 200]


def test_a_client_that_hangs_up_within_its_body_gets_nothing():
    client = Client([piece(10), {"type": "http.disconnect"}])
    stage = Stage()
    asyncio.run(stage.app(scope("POST", "/v1/predict", {"content-length": "20"}), client.receive, client.send))
    assert client.sent == []
    assert stage.lines.all[0]["status"] == 499


def test_work_that_the_server_cancels_stays_cancelled():
    async def run():
        model = Held()
        stage = Stage(model)
        task = asyncio.create_task(stage.call("POST", "/v1/predict", ROW))
        await model.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_no_task_is_left_after_a_request():
    async def run():
        stage = Stage()
        await stage.call("POST", "/v1/predict", ROW)
        await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()


def test_an_application_may_wait_for_the_hang_up_itself():
    async def waits(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body"})

    async def run():
        stands = Guard(waits, settings=settings(), metrics=Metrics(), log=Log(Lines()))  # pyright: ignore
        client = Client([piece(3, False)])
        client.hung_up.set()
        await stands(scope("POST", "/", {"content-length": "3"}), client.receive, client.send)
        return client.reply

    assert asyncio.run(run()).body == b"a"


def test_anything_but_http_is_closed():
    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        stands = Guard(reads, settings=settings(), metrics=Metrics(), log=Log(Lines()))  # pyright: ignore
        await stands({"type": "websocket", "path": "/"}, send, send)

    asyncio.run(run())
    assert sent[0]["type"] == "websocket.close"


def test_a_log_line_says_what_happened_and_nothing_that_was_sent():
    stage = Stage()
    stage.ask("POST", "/v1/predict?model=m", ROW)
    (line,) = stage.lines.all
    assert line.pop("ms") >= 0
    assert line.pop("time").endswith("+00:00")
    assert len(line.pop("request_id")) == 24
    assert line == {
        "level": "info", "method": "POST", "path": "/v1/predict", "status": 200, "rows": 1, "model": "m",
        "version": "0" * 12, "bytes": len(json.dumps(ROW)), "client": "10.0.0.9",
    }  # fmt: skip
    stage.ask("POST", "/v1/predict", {"inputs": {"a secret text": 1}})
    assert stage.lines.all[-1]["level"] == "warning"
    assert "secret" not in stage.lines.text


def test_a_full_disk_drops_lines_and_no_request(capsys):
    stage = Stage()
    stage.lines.full = True
    for _ in range(3):
        assert stage.ask("POST", "/v1/predict", ROW).status == 200
    assert stage.counted("polymodal_dropped_log_lines_total") == 3
    assert capsys.readouterr().err.count("No space left") == 1
    stage.lines.full = False
    stage.ask("GET", "/v1/models")
    assert len(stage.lines.all) == 1


def test_a_log_goes_to_standard_error_unless_told_otherwise(capsys, monkeypatch):
    Log().write("info", event="start", nothing=None)
    assert json.loads(capsys.readouterr().err) | {"time": ""} == {"time": "", "level": "info", "event": "start"}
    closed, log = Lines(), Log()
    closed.full = True
    monkeypatch.setattr(sys, "stderr", closed)
    log.write("info")
    assert log.dropped == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_answer_never_holds_what_json_cannot_say(value):
    reply = Stage(Constant(prediction={"price": {"value": value, "all": [1.5, (value,)]}})).ask(
        "POST", "/v1/predict", ROW
    )
    assert reply.json["predictions"] == [{"price": {"value": None, "all": [1.5, [None]]}}]


def test_an_answer_is_utf_8_whatever_is_in_it():
    assert json.loads(dumps({"a": "ä\ud800"})) == {"a": "ä?"}


def test_over_a_real_connection_a_hang_up_ends_the_work():
    model = Held()
    stage = Stage(model)
    ended = threading.Event()

    async def predict(rows, **how):
        try:
            await Held.predict(model, rows, **how)
        finally:
            ended.set()

    model.predict = predict  # pyright: ignore[reportAttributeAccessIssue]
    entered = threading.Event()
    model.entered.set = entered.set  # pyright: ignore[reportAttributeAccessIssue]
    body = json.dumps(ROW).encode()
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with running(stage.app) as address:
        with socket.create_connection(address, 10) as line:
            line.sendall(head.encode() + body)
            assert entered.wait(10)
        assert ended.wait(10)
    assert model.cancelled
    assert [line["status"] for line in stage.lines.all] == [499]


def test_over_a_real_connection_a_body_that_is_too_long_is_answered(monkeypatch):
    monkeypatch.setattr(guard, "LINGER", 10.0)
    stage = Stage(max_body=1024)
    with running(stage.app) as (host, port):
        for headers in ({"Content-Length": str(1 << 22)}, {"Transfer-Encoding": "chunked"}):
            line = http.client.HTTPConnection(host, port, timeout=10)
            body = iter([b"x" * (1 << 16)] * 64)
            line.request("POST", "/v1/predict", body, headers, encode_chunked="Transfer-Encoding" in headers)
            answer = line.getresponse()
            assert (answer.status, answer.getheader("Connection")) == (413, "close")
            assert json.loads(answer.read())["error"]["type"] == "too_large"
            line.close()


def test_probes_leave_no_lines():
    stage = Stage()
    for path in ("/healthz", "/readyz", "/v2/health/live"):
        assert stage.ask("GET", path).status == 200
    assert stage.lines.all == []
    stage.ask("GET", "/v1/models")
    assert [line["path"] for line in stage.lines.all] == ["/v1/models"]


def test_over_a_real_connection_an_answer_that_needs_no_body_is_seen(monkeypatch):
    monkeypatch.setattr(guard, "LINGER", 10.0)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"none"})

    log = Log(Lines())  # pyright: ignore[reportArgumentType]
    guarded = Guard(app, settings=settings(), metrics=Metrics(), log=log)
    with running(guarded, lifespan="off") as (host, port):
        line = http.client.HTTPConnection(host, port, timeout=10)
        line.request("POST", "/nothing", iter([b"x" * (1 << 16)] * 64), {"Content-Length": str(1 << 22)})
        answer = line.getresponse()
        assert (answer.status, answer.getheader("Connection"), answer.read()) == (404, "close", b"none")
        line.close()


def test_another_protocol_is_not_spoken_and_nothing_after_it_is_taken_for_a_request():
    stage = Stage()
    head = "{} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    hidden = b"GET /v1/spec HTTP/1.1\r\nHost: a\r\n\r\n"
    with running(stage.app) as address:
        for first, status in (("GET /v1/models", b"200"), (f"POST /v1/predict|{len(hidden)}", b"400")):
            target, _, length = first.partition("|")
            more = f"Content-Length: {length}\r\n" if length else ""
            with socket.create_connection(address, 10) as line:
                line.sendall((head.format(target) + more + "\r\n").encode())
                answer = line.makefile("rb")
                assert answer.readline().split()[1] == status
                with contextlib.suppress(OSError):
                    line.sendall(hidden)
                    assert b"HTTP/1.1" not in answer.read()
