"""What a server counts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from polymodal.server import metrics
from polymodal.server.metrics import Metrics
from stage import Constant, Stage

ROW = {"inputs": {"words": "a"}}


def text(counts):
    return counts.text().decode()


def test_requests_are_counted_by_route_and_status():
    stage = Stage()
    stage.ask("POST", "/v1/predict", ROW)
    stage.ask("POST", "/v1/predict", b"{")
    stage.ask("GET", "/healthz")
    name = "polymodal_request_duration_seconds_count"
    assert stage.counted(name, route="/v1/predict", status="200") == 1
    assert stage.counted(name, route="/v1/predict", status="400") == 1
    assert stage.counted(name, route="/healthz", status="200") == 1
    assert stage.counted("polymodal_rejected_requests_total", reason="bad_request") == 1
    assert stage.counted("polymodal_rows_total", model="m") == 1
    assert stage.counted("polymodal_model_info", model="m", version="0" * 12) == 1


def test_a_refusal_before_routing_is_counted_under_its_route():
    stage = Stage(max_body=1024)
    stage.ask("POST", "/v1/predict", b"x" * 2000)
    name = "polymodal_request_duration_seconds_count"
    assert stage.counted(name, route="/v1/predict", status="413") == 1


def test_strangers_cannot_make_new_labels():
    stage = Stage()
    for i in range(50):
        stage.ask("GET", f"/nowhere/{i}")
        stage.ask("GET", f"/v2/models/{i}")
        stage.ask("BREW", f"/static/{i}")
    samples = text(stage.metrics).count("polymodal_request_duration_seconds_count")
    assert samples == 3
    name = "polymodal_request_duration_seconds_count"
    assert stage.counted(name, route="other", status="404") == 50
    assert stage.counted(name, route="/v2/models/{name}", status="404") == 50


def test_the_time_is_the_time_of_the_request(monkeypatch):
    ticks = iter((10.0, 10.25))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    stage = Stage()
    stage.ask("GET", "/v1/models")
    name = "polymodal_request_duration_seconds_sum"
    assert stage.counted(name, route="/v1/models", status="200") == 0.25
    assert stage.lines.all[0]["ms"] == 250


def test_what_models_tell_is_counted():
    counts = Metrics()
    counts.batch("m", 4, 0.02)
    counts.batch("m", 2, 0.01)
    counts.presence("m", "image", True)
    counts.presence("m", "image", False)
    counts.presence("m", "image", False)
    counts.swap("m", "b", True)
    counts.swap("m", "c", False)
    value = counts.registry.get_sample_value
    assert value("polymodal_batch_rows_sum", {"model": "m"}) == 6
    assert value("polymodal_batch_duration_seconds_sum", {"model": "m"}) == pytest.approx(0.03)
    assert value("polymodal_inputs_total", {"model": "m", "input": "image", "state": "present"}) == 1
    assert value("polymodal_inputs_total", {"model": "m", "input": "image", "state": "absent"}) == 2
    assert value("polymodal_swaps_total", {"model": "m", "result": "done"}) == 1
    assert value("polymodal_swaps_total", {"model": "m", "result": "failed"}) == 1


def test_the_version_that_answers_is_shown_alone():
    counts = Metrics()
    counts.version("m", "a")
    counts.version("m", "a")
    counts.swap("m", "b", True)
    counts.swap("m", "c", False)
    assert [line for line in text(counts).splitlines() if line.startswith("polymodal_model_info")] == [
        'polymodal_model_info{model="m",version="b"} 1.0'
    ]


def test_waiting_rows_are_looked_up_when_somebody_asks():
    stage = Stage()
    waiting = stage.shelf.waiting
    for rows in (3, 7):
        waiting["m"] = rows
        assert f'polymodal_waiting_rows{{model="m"}} {rows}.0' in stage.ask("GET", "/metrics").body.decode()


def test_the_text_is_what_prometheus_reads():
    stage = Stage(Constant("m", "abc"))
    stage.ask("POST", "/v1/predict", ROW)
    reply = stage.ask("GET", "/metrics")
    assert reply.headers["content-type"] == metrics.MEDIA_TYPE
    families = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
    own = {name for name in families if name.startswith("polymodal_")}
    assert {"polymodal_request_duration_seconds", "polymodal_rows", "polymodal_model_info"} <= own
    assert all(families[name].documentation.endswith(".") for name in own)
    assert "process_resident_memory_bytes" in families
    assert 'version="abc"' in reply.body.decode()


def test_two_servers_in_one_process_count_apart():
    one, other = Stage(), Stage()
    one.ask("GET", "/healthz")
    name = "polymodal_request_duration_seconds_count"
    assert other.counted(name, route="/healthz", status="200") is None


COUNT = """
import sys
from polymodal.server.metrics import Metrics
counts = Metrics()
counts.watch(lambda: {"m": 2})
counts.version("m", "a")
if sys.argv[1] == "swap":
    counts.version("m", "b")
counts.answered("m", 5)
counts.request("/v1/predict", 200, 0.01)
counts.batch("m", 4, 0.02)
print(counts.text().decode())
"""


def test_several_processes_count_together(tmp_path):
    told = ""
    for what in ("stay", "swap"):
        told = subprocess.run(
            [sys.executable, "-c", COUNT, what], env=os.environ | {metrics.FOLDER: str(tmp_path)}, check=True,
            capture_output=True, text=True, cwd=Path(__file__).parent,
        ).stdout  # fmt: skip
    assert 'polymodal_rows_total{model="m"} 10.0' in told
    assert 'polymodal_request_duration_seconds_count{route="/v1/predict",status="200"} 2.0' in told
    assert 'polymodal_batch_rows_sum{model="m"} 8.0' in told
    assert 'polymodal_waiting_rows{model="m"} 2.0' in told or 'polymodal_waiting_rows{model="m"} 4.0' in told
    assert 'polymodal_model_info{model="m",version="b"} 1.0' in told
