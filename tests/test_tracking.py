"""Tracking: what TensorBoard, Weights & Biases and MLflow are told, and that none of them can stop a fit."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import polymodal as pm
from polymodal.objectives.monitor import Epoch
from polymodal.ranks import Ranks
from polymodal.tracking import MLflow, TensorBoard, Tracker, Tracking, WeightsAndBiases, final, scalars
from tiny import columns, spec

FAILED = "track: Memory failed, and the fit goes on without it: OSError: No space left on device"


class Memory(Tracker):
    """A tracker of one's own; raises in the calls that it is told to."""

    def __init__(self, *broken):
        self.broken, self.said = broken, []

    def _hear(self, what, *content):
        self.said.append((what, *content))
        if what in self.broken:
            raise OSError("No space left on device")

    def start(self, spec, facts):
        self._hear("start", spec, facts)

    def log(self, stage, epoch):
        self._hear("log", stage, epoch)

    def finish(self, report):
        self._hear("finish", report)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def fit(track, *inputs, **more):
    return pm.fit(spec(*inputs, split={"valid": 0.2, "test": 0.2}, **more), columns(30), cache=False, track=track)


def told(model):
    """Every number that a fit comes to: name -> epoch -> value, and the scores at the end."""
    history = [Epoch(**epoch) for epoch in model.report["fit"]["history"]]
    found = {}
    for epoch in history:
        for name, value in scalars("train", epoch).items():
            found.setdefault(name, {})[epoch.number] = value
    return found, final(model.report)


def test_a_tracker_of_ones_own_hears_everything_in_order():
    memory = Memory()
    model = fit(memory, training={"epochs": 2, "monitor": "accuracy"})
    (_, asked, facts), *epochs, (last, report) = memory.said
    assert asked.to_yaml() == model.report["spec"]
    assert facts == {"rows": model.report["fit"]["rows"], "device": str(model.device)}
    train = [epoch for _, stage, epoch in epochs if stage == "train"]
    refit = [epoch for _, stage, epoch in epochs if stage == "refit"]
    assert train == [Epoch(**epoch) for epoch in model.report["fit"]["history"]]
    assert refit
    assert all(epoch.valid_loss is None for epoch in refit)
    assert (last, report) == ("finish", model.report)
    numbers = scalars("train", train[0])
    assert {"train/loss", "valid/loss", "valid/score", "train terms/label", "valid terms/label from text"} < set(
        numbers
    )
    assert {"train gradients/text", "train gradients/table", "train terms/label from table"} < set(numbers)
    assert numbers["valid/score"] == train[0].score
    assert scalars("refit", refit[0]).keys() & {"refit/loss", "valid/loss"} == {"refit/loss"}


def test_final_scores_are_of_every_side_and_variant():
    report = fit(()).report
    found = final(report)
    task = report["test"]["tasks"]["label"]
    assert found["test scores/label accuracy"] == task["scores"]["accuracy"]
    assert found["test scores/label nll without text"] == task["without"]["text"]["nll"]
    assert found["valid scores/label nll only table"] == report["valid"]["tasks"]["label"]["alone"]["table"]["nll"]
    assert final({"fit": {}}) == {}


def test_tensorboard_reads_what_was_written():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = fit("tensorboard:deep/runs")
    fit(["tensorboard:deep/runs"], "table")
    assert sorted(os.listdir("deep/runs")) == ["1", "2"]
    seen = EventAccumulator("deep/runs/1", size_guidance={"scalars": 0, "tensors": 0}).Reload()
    numbers, scores = told(model)
    for name, steps in numbers.items():
        events = {event.step: event.value for event in seen.Scalars(name)}
        assert events == pytest.approx(steps, rel=1e-6)
    for name, value in scores.items():
        assert seen.Scalars(name)[0].value == pytest.approx(value, rel=1e-6)
    assert {"refit/loss", "refit terms/label"} <= set(seen.Tags()["scalars"])
    text = seen.Tensors("spec/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "\n".join(line[4:] for line in text.splitlines()) == model.report["spec"].rstrip("\n")
    assert seen.SummaryMetadata("spec/text_summary").plugin_data.plugin_name == "text"


def test_tensorboard_writes_to_runs_and_needs_no_torch_writer():
    code = "import sys, polymodal.tracking as t; t.TensorBoard(); print('torch.utils.tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    fit("tensorboard", "table")
    assert os.listdir("runs") == ["1"]


def leveldb(content, block=32768):
    """Records of a log in LevelDB's format, after the seven bytes that wandb puts first."""
    place, parts = 7, []
    while place + 7 <= len(content):
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if block - place % block < 7 or not kind:
            place += block - place % block  # the rest of a block is empty
            continue
        parts.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts.clear()


def test_wandb_offline_keeps_everything_in_a_folder():
    from wandb.proto import wandb_internal_pb2

    model = fit("wandb:stamps")
    (file,) = Path("wandb").glob("offline-run-*/*.wandb")
    records, until = [], time.monotonic() + 20
    while not any(record.HasField("exit") for record in records) and time.monotonic() < until:
        time.sleep(0.05)  # a process of its own writes the file
        records = [wandb_internal_pb2.Record.FromString(content) for content in leveldb(file.read_bytes())]
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert run.project == "stamps"
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["spec"] == model.report["spec"]
    history = [
        {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    numbers, scores = told(model)
    train = [row for row in history if "train/loss" in row]
    for name, steps in numbers.items():
        assert {row["epoch"]: row[name] for row in train} == steps
    assert any("refit/loss" in row for row in history)
    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
    assert {name: summary[name] for name in scores} == scores


@pytest.mark.slow
def test_mlflow_keeps_everything_in_one_file(monkeypatch):
    model = fit("mlflow:stamps")
    from mlflow import MlflowClient

    assert os.path.exists("mlflow.db")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mlflow\.")
        client = MlflowClient("sqlite:///mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("stamps").experiment_id])
        numbers, scores = told(model)
        for name, steps in numbers.items():
            assert {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)} == steps
        assert {name: run.data.metrics[name] for name in scores} == scores
        assert run.info.status == "FINISHED"
        assert run.data.params["device"] == str(model.device)
        assert Path(run.info.artifact_uri.removeprefix("file://"), "spec.yaml").read_text() == model.report["spec"]
        with pytest.raises(KeyError), Tracking("mlflow:stamps").run(pm.Spec.parse(spec()), {}):
            raise KeyError
        runs = client.search_runs([run.info.experiment_id])
        assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


@pytest.mark.parametrize("moment", ["log", "finish"])
def test_a_tracker_that_fails_is_left_out_and_the_fit_goes_on(moment):
    broken, whole = Memory(moment), Memory()
    with pytest.warns(UserWarning, match="track: ") as seen:
        model = fit([broken, whole], "table")
    assert [str(warning.message) for warning in seen] == [FAILED]
    assert [what for what, *_ in broken.said].count("log") == {"log": 1, "finish": len(whole.said) - 2}[moment]
    assert broken.said[-1] == ("finish", None), "it may close what it has open"
    assert whole.said[-1] == ("finish", model.report)
    assert len(model.predict(columns(3))) == 3


def test_a_full_disk_in_the_middle_does_not_stop_a_fit(monkeypatch):
    monkeypatch.setattr(TensorBoard, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.warns(UserWarning, match="track: TensorBoard failed, and the fit goes on without it: OSError"):
        fit("tensorboard", "table")


def test_a_tracker_that_cannot_begin_stops_the_fit_before_it_does_and_ends_the_others():
    begun, broken = Memory(), Memory("start")
    with pytest.raises(pm.SpecError, match="track: Memory must be able to begin a run, got: No space left"):
        fit([begun, broken], "table")
    assert [what for what, *_ in begun.said] == ["start", "finish"]
    assert begun.said[-1] == ("finish", None)
    with open("runs", "w") as file:
        file.write("no folder")
    with pytest.raises(pm.SpecError, match="track: TensorBoard must be able to begin a run"):
        fit("tensorboard", "table")


def test_a_fit_that_fails_ends_its_runs_as_failed():
    memory = Memory()
    with pytest.raises(pm.PolymodalError, match="loss must be finite"):
        fit(memory, "table", training={"epochs": 4, "learning_rate": 1e30, "clip": 0.0})
    assert memory.said[-1] == ("finish", None)


def test_only_the_first_rank_tells(monkeypatch):
    memory = Memory()
    monkeypatch.setattr(Ranks, "first", property(lambda self: False))
    monkeypatch.setattr(Ranks, "wait", lambda self: None)
    fit(memory, "table")
    assert memory.said == []


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("tensorbord", r"track must be one of \['tensorboard', 'wandb', 'mlflow'\], got 'tensorbord'. Did you mean"),
        (["mlflow", "wandb:"], "track must name a place after the colon, got 'wandb:'"),
        (["neptune:x"], "got 'neptune:x'"),
    ],
)
def test_a_name_that_makes_no_sense_is_refused(track, message):
    with pytest.raises(pm.SpecError, match=message):
        fit(track)


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboard.compat.proto"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_without_the_package_the_way_to_it_is_told(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(pm.SpecError, match=rf"track: {name} must be installed.* pip install 'polymodal\[{name}\]'"):
        fit(name)


def test_the_environment_says_where_else_runs_go(monkeypatch):
    assert (WeightsAndBiases().mode, MLflow().uri) == ("offline", "sqlite:///mlflow.db")
    assert (WeightsAndBiases().project, MLflow().experiment) == ("polymodal", "polymodal")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    assert (WeightsAndBiases().mode, MLflow().uri) == ("online", "http://localhost:1")
