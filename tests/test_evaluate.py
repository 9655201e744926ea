"""Evaluate: the report says what scoring by hand says."""

import json

import pytest
import torch

import toys
from polymodal import evaluate as module
from polymodal.evaluate import Report, answers, evaluate
from polymodal.model import ALL, Model
from polymodal.types import Masked

CPU = torch.device("cpu")


@pytest.fixture
def scene():
    """A stirred model of two tasks, one of them labelled in few rows, and a third without labels."""
    number = {"type": "regress", "mean": [0], "scale": [1]}
    torch.manual_seed(1)
    spec = toys.spec(outputs={"y": toys.BINARY, "z": number, "none": number})
    model = Model(spec).eval()
    for family in (family for _, family in model.linear.items()):
        for _, linear in family.items():
            linear.weight.normal_()
    model.share[0] = 0.4
    rows = toys.xor(70, absent=0.2)
    label, known = rows.targets["y"], torch.ones(70, 1, dtype=torch.bool)
    targets = {"y": label, "z": Masked(torch.randn(70, 1), (torch.arange(70) < 20)[:, None])}
    targets["none"] = Masked(torch.zeros(70, 1), ~known)
    return model, toys.prepared({n: r.whole for n, r in rows.inputs.items()}, targets)


def by_hand(model, rows, hidden=(), answer=None):
    batch = rows.batch(torch.arange(len(rows))).without(*hidden)
    with torch.no_grad():
        decoded = model.answer(batch.inputs).decoded if answer is None else answer(batch)
    return {n: task.metrics(decoded[n], batch.targets[n]) for n, task in model.spec.outputs.items()}


def test_scores_equal_masking_by_hand(scene, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 16)
    model, rows = scene
    tasks = evaluate(model, rows, CPU).content["tasks"]
    for n in ("y", "z"):
        assert tasks[n]["scores"] == pytest.approx(by_hand(model, rows)[n], rel=1e-4, abs=1e-5)
        for name, other in (("a", "b"), ("b", "a")):
            hidden = by_hand(model, rows, [name])[n]
            assert tasks[n]["without"][name] == pytest.approx(hidden, rel=1e-4, abs=1e-5)
            assert tasks[n]["alone"][other] == pytest.approx(hidden, rel=1e-4, abs=1e-5)
        fused = by_hand(model, rows, answer=lambda batch: model(batch.inputs).decoded)[n]
        assert tasks[n]["baselines"]["fusion model"] == pytest.approx(fused, rel=1e-4, abs=1e-5)
        for label, title in ((ALL, "linear, all inputs"), ("a", "linear, a only"), ("b", "linear, b only")):
            linear = by_hand(model, rows, answer=model.baselines()[label])[n]
            assert tasks[n]["baselines"][title] == pytest.approx(linear, rel=1e-4, abs=1e-5)
    assert tasks["y"]["share"] == pytest.approx(0.4)
    assert tasks["y"]["scores"] != tasks["y"]["baselines"]["fusion model"]


def test_the_interval_holds_the_score_and_follows_the_seed(scene):
    model, rows = scene
    task = evaluate(model, rows, CPU, seed=3).content["tasks"]["y"]
    low, high = task["interval"]["accuracy"]
    assert task["headline"] == "accuracy"
    assert low < task["scores"]["accuracy"] < high
    assert evaluate(model, rows, CPU, seed=3).content["tasks"]["y"]["interval"] == task["interval"]
    assert evaluate(model, rows, CPU, seed=4).content["tasks"]["y"]["interval"] != task["interval"]


def test_a_task_without_labels_has_no_scores_and_breaks_nothing(scene):
    model, rows = scene
    report = evaluate(model, rows, CPU)
    task = report.content["tasks"]["none"]
    assert task["scores"] == task["interval"] == {}
    assert task["headline"] is None
    assert "none (regress" in str(report)


def test_the_report_is_json_and_prints_a_line_per_variant(scene):
    model, rows = scene
    report = evaluate(model, rows, CPU)
    assert set(report.content) >= {"rows", "source", "inputs", "tasks", "data", "warnings"}
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert Report(report.to_dict()).to_dict() == report.to_dict()
    assert report["y"] == report.content["tasks"]["y"]["scores"]
    text = str(report)
    for line in ("y (classify, 70 rows)", "all inputs", "without a", "only b", "fusion model", "linear, all inputs"):
        assert line in text
    assert "95 % interval" in text
    assert f"{report['y']['accuracy']:.3f}" in text


def test_one_input_has_neither_without_nor_alone():
    model = Model(toys.spec(("a",))).eval()
    rows = toys.xor(30)
    rows = toys.prepared({"a": rows.inputs["a"].whole}, rows.targets)
    task = evaluate(model, rows, CPU).content["tasks"]["y"]
    assert task["without"] == task["alone"] == {}
    assert set(task["baselines"]) == {"fusion model", "linear, all inputs"}


def test_answers_come_in_the_order_of_the_rows(scene, monkeypatch):
    model, rows = scene
    whole = answers(model, rows, CPU)
    monkeypatch.setattr(module, "BATCH", 9)
    torch.testing.assert_close(answers(model, rows, CPU).outputs, whole.outputs, atol=1e-5, rtol=1e-5)
    some = answers(model, rows.select(torch.tensor([5, 3])), CPU)
    torch.testing.assert_close(some.outputs["y"], whole.outputs["y"][[5, 3]], atol=1e-5, rtol=1e-5)
    assert torch.equal(some.targets["y"].values, whole.targets["y"].values[[5, 3]])
