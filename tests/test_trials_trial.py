"""A server of its own is started, asked, measured and stopped."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import polymodal as pm
import tiny
from polymodal.trials.trial import free_port, load_test, ready, started, usage

SERVER = """
import http.server, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
with open(sys.argv[1], "w") as note:
    print(subprocess.Popen([sys.executable, "-c", stubborn]).pid, file=note)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny.fitted("text", "image", "table").save(tmp_path_factory.mktemp("trial") / "bundle")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_program_is_waited_for_and_ended_with_its_children(tmp_path):
    note = tmp_path / "child"
    with started(tmp_path, program=[sys.executable, "-c", SERVER, str(note)]) as server:
        assert ready(server.url)
        assert server.seconds > 0
        child = int(note.read_text())
        assert alive(child)
        assert usage(server.pid)[1] > usage(child)[1] > 0
    assert not ready(server.url)
    assert not alive(server.pid)
    for _ in range(500):
        if not alive(child):
            break
        time.sleep(0.01)
    assert not alive(child)  # although it ignores SIGTERM


def test_a_program_that_ends_is_told_with_its_last_words(tmp_path):
    with (
        pytest.raises(pm.SpecError, match="no luck today"),
        started(tmp_path, program=[sys.executable, "-c", "print('no luck today'); raise SystemExit(3)"]),
    ):
        raise AssertionError("it never was ready")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_usage_counts_a_process_and_what_is_below_it():
    alone = usage(os.getpid())
    assert alone is not None
    child = subprocess.Popen([sys.executable, "-c", "x = bytearray(50_000_000); print(flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert child.stdout is not None
        child.stdout.readline()
        both = usage(os.getpid())
        assert both is not None
        assert both[1] > alone[1] + 40_000_000
        assert both[0] >= alone[0]
    finally:
        child.communicate(b"\n")
    assert usage(child.pid) is None


@pytest.mark.slow
def test_a_bundle_is_served_loaded_compared_and_then_loaded_by_its_url(bundle):
    table = tiny.columns(6, media=True)
    table["image"][2] = b"broken"
    report = load_test(bundle, clients=2, seconds=0.3, table=table, token="a secret token", runtime="torch")
    assert report.ok, report.lines()
    assert report.wrong == 0
    assert report.server is not None
    assert report.server.cpu_ms > 0
    assert any("1 broken cells of the table were left out" in line for line in report.lines())
    with started(bundle, ["--workers", "1"], token="a secret token") as server:
        made_up = load_test(server.url, clients=2, seconds=0.3, rate=40.0, token="a secret token")
        assert made_up.statuses.keys() == {200}, made_up.lines()
        assert (made_up.wrong, made_up.rate, made_up.server) == (None, 40.0, None)
        refused = "must be the URL of a Polymodal server, got HTTP Error 401"
        with pytest.raises(pm.SpecError, match=refused):
            load_test(server.url, seconds=0.1)


@pytest.mark.slow
def test_several_workers_answer_the_same(bundle):
    report = load_test(bundle, clients=4, seconds=0.3, workers=2)
    assert report.ok, report.lines()


def test_options_without_effect_on_a_url_are_refused():
    for option in ({"runtime": "torch"}, {"workers": 2}):
        with pytest.raises(pm.SpecError, match="no effect"):
            load_test("http://127.0.0.1:1", **option)


def test_a_url_where_no_server_is_is_told():
    with pytest.raises(pm.SpecError, match="must be the URL of a Polymodal server"):
        load_test(f"http://127.0.0.1:{free_port()}", seconds=0.1)
