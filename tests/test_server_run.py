"""A server in one process: its start, its signals, its end."""

import asyncio
import io
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvicorn

import polymodal as pm
import tiny
from polymodal.errors import SpecError
from polymodal.server import hosting, run
from polymodal.server.greeting import curl, example
from polymodal.server.settings import Settings
from running import SECONDS, Running, ask, until

ROW = {"text": "sweet fruit juice", "x": 1.5, "colour": "red"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.fitted("text", "table").save(tmp_path_factory.mktemp("bundles") / "fruit")


@pytest.fixture
def hold(tmp_path):
    return tmp_path / "hold"


@pytest.mark.slow
def test_it_tells_where_it_is_and_the_command_it_shows_works(folder):
    with Running(folder) as server:
        command = server.told("Try:").removeprefix("Try:").strip()
        assert server.lines[0] == "Runtimes of fruit:"
        assert server.told("Page:") == f"Page: {server.base}/"
        assert [ask(server.base + path)[0] for path in ("/", "/docs", "/readyz", "/healthz")] == [200] * 4
        answer = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=SECONDS, check=True)
        cells = example(pm.Bundle.load(folder).spec)
        predicted = pm.Bundle.load(folder).predict([cells])[0]["label"]["probability"]
        assert f'"probability":{predicted:.4f}'[:-1] in answer.stdout
        _, headers, _ = ask(f"{server.base}/healthz")
        assert "server" not in headers
        assert headers["date"]
        assert server.stop() == 0
    assert "Traceback" not in "".join(server.errors)


@pytest.mark.slow
def test_without_a_page_it_tells_of_none(folder):
    with Running(folder, page=False) as server:
        assert [ask(f"{server.base}{path}")[0] for path in ("/", "/docs", "/openapi.json")] == [404, 404, 200]
        assert not any(line.startswith(("Page:", "Docs:")) for line in server.lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_answer_what_it_took_in(folder, hold, number):
    with Running(folder, hold=hold) as server, ThreadPoolExecutor(1) as pool:
        base = server.base
        hold.touch()
        asked = pool.submit(ask, f"{base}/v1/predict", {"inputs": ROW})
        until(hold.with_suffix(".held").exists, "the request's way to the model")
        server.process.send_signal(number)
        until(lambda: ask(f"{base}/readyz")[0] == 503, "the end of readiness")
        status, headers, told = ask(f"{base}/v1/predict", {"inputs": ROW})
        assert (status, told["error"]["type"]) == (503, "unavailable")
        assert headers["Retry-After"]
        assert server.process.poll() is None
        hold.unlink()
        status, _, told = asked.result(SECONDS)
        assert status == 200
        predicted = pm.Bundle.load(folder).predict([ROW])[0]
        assert told["predictions"][0]["label"]["probability"] == pytest.approx(
            predicted["label"]["probability"], abs=1e-5
        )
        assert server.process.wait(SECONDS) == 0


@pytest.mark.slow
def test_it_waits_no_longer_than_it_may(folder, hold):
    with Running(folder, hold=hold, drain=0.2) as server, ThreadPoolExecutor(1) as pool:
        base = server.base
        hold.touch()
        asked = pool.submit(ask, f"{base}/v1/predict", {"inputs": ROW})
        until(hold.with_suffix(".held").exists, "the request's way to the model")
        server.process.send_signal(signal.SIGTERM)
        assert asked.result(SECONDS)[0] == 503
        hold.unlink()
        assert server.process.wait(SECONDS) == 0


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(folder, hold):
    with Running(folder, hold=hold) as server, ThreadPoolExecutor(1) as pool:
        base = server.base
        hold.touch()
        asked = pool.submit(ask, f"{base}/v1/predict", {"inputs": ROW})
        until(hold.with_suffix(".held").exists, "the request's way to the model")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: ask(f"{base}/readyz")[0] == 503, "the end of readiness")
        assert server.stop() == -signal.SIGTERM
        assert isinstance(asked.exception(SECONDS), OSError)


@pytest.mark.slow
def test_the_port_is_open_while_it_loads(folder, hold):
    hold.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Running(folder, hold=hold, port=port) as server:
        until(hold.with_suffix(".held").exists, "loading")
        assert ask(f"http://127.0.0.1:{port}/readyz")[0] == 503
        assert ask(f"http://127.0.0.1:{port}/healthz")[0] == 200
        assert ask(f"http://127.0.0.1:{port}/v1/predict", {"inputs": ROW})[0] == 503
        hold.unlink()
        assert ask(f"{server.base}/readyz")[0] == 200


@pytest.mark.slow
def test_sighup_looks_for_a_new_version_now(tmp_path):
    bundle = tiny.fitted("table")
    folder = bundle.save(tmp_path / "fruit")
    with Running(folder, watch=0) as server:
        version = lambda: ask(f"{server.base}/v1/models")[2]["models"][0]["version"]  # noqa: E731
        before = version()
        tiny.fitted("table", seed=5).save(folder)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: version() != before, "the new version")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bundle_that_cannot_be_loaded_ends_it(folder, tmp_path, workers):
    damaged = tmp_path / "fruit"
    pm.Bundle.load(folder).save(damaged)
    (damaged / "weights.safetensors").write_bytes(b"damaged")
    with Running(damaged, workers=workers) as server:
        assert server.process.wait(SECONDS) == 2
    assert "weights.safetensors" in "".join(server.errors)
    assert "Traceback" not in "".join(server.errors)


def test_a_port_that_is_taken_and_a_host_that_is_not_here(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings.make(folder, port=taken.getsockname()[1])
        with pytest.raises(SpecError, match="must be free to listen on"):
            run.run(settings)
    with pytest.raises(SpecError, match="host"):
        run.run(Settings.make(folder, port=0, host="192.0.2.1"))
    for name in ("[::1]", "a" * 99):
        with pytest.raises(SpecError, match="host must be an address or a name"):
            run.run(Settings.make(folder, port=0, host=name))


def test_without_the_extra_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "uvicorn" else True)
    with pytest.raises(SpecError, match=r"\['uvicorn'\].*pip install 'polymodal\[serve\]'"):
        run.run(Settings.make(folder))


def test_it_runs_in_the_main_thread_and_outside_of_loops(folder):
    with ThreadPoolExecutor(1) as pool, pytest.raises(SpecError, match="main thread"):
        pool.submit(run.run, Settings.make(folder, port=0)).result()

    async def inside():
        run.run(Settings.make(folder, port=0))

    with pytest.raises(SpecError, match="no event loop"):
        asyncio.run(inside())


def test_addresses():
    assert hosting.address("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert hosting.address("::", 80) == "http://[::1]:80"
    assert hosting.address("example.org", 80) == "http://example.org:80"


def test_the_command_never_shows_the_token(folder):
    spec = pm.Bundle.load(folder).spec
    shown = curl(Settings.make(folder, token="very secret"), "http://here", spec)
    assert "secret" not in shown
    assert '"Authorization: Bearer $POLYMODAL_TOKEN"' in shown


def test_where_there_is_only_media_the_command_sends_media():
    spec = tiny.fitted("image").spec
    (cell,) = example(spec).values()
    assert isinstance(cell, str)
    assert list(example(spec)) == ["image"]


@pytest.fixture
def listening(monkeypatch):
    """Address of a server that answers its requests' paths."""
    monkeypatch.setattr(hosting, "HEAD_SECONDS", 0.2)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    listener = hosting.listen("127.0.0.1", 0)
    address = listener.getsockname()
    config = uvicorn.Config(app, http=hosting.Connection, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield address
    server.should_exit = True
    thread.join()


def read_all(connection):
    found = io.BytesIO()
    while piece := connection.recv(65536):
        found.write(piece)
    return found.getvalue()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "])
def test_a_client_that_sends_no_whole_head_is_cut_off(listening, sent):
    with socket.create_connection(listening, timeout=SECONDS) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


def test_a_client_that_sends_an_endless_head_is_refused(listening):
    with socket.create_connection(listening, timeout=SECONDS) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * (hosting.HEAD_BYTES + 1))
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_later_requests_of_a_connection_have_the_same_time(listening):
    with socket.create_connection(listening, timeout=SECONDS) as connection:
        for _ in range(3):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            found = b""
            while not found.endswith(b"ok"):
                found += connection.recv(65536)
        connection.sendall(b"GET / HT")
        assert read_all(connection) == b""


def test_the_front_needs_no_torch():
    code = "import sys, polymodal.server.front; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=SECONDS).returncode == 0
