"""Sets and intervals hold the truth as often as was asked, whatever the model."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import polymodal as pm
from polymodal.report.page import page
from polymodal.report.scores import task_section
from polymodal.report.words import promises
from polymodal.task import Task
from polymodal.tasks import Classify, Multilabel, Regress
from polymodal.types import Masked

DRAWS = 100


def known(values) -> Masked:
    values = torch.as_tensor(values)
    return Masked(values, torch.ones_like(values, dtype=torch.bool))


def classes(n, rng, k=6):
    """A model that is too sure of itself, and the truth: logits (n, k) and indices (n, 1)."""
    logits = rng.normal(0, 1.5, (n, k))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = (rng.random((n, 1)) > p.cumsum(1)).sum(1).clip(max=k - 1)
    return torch.tensor(3 * logits + [2.0, *[0.0] * (k - 1)]), known(true[:, None])


def labels(n, rng, k=4):
    """Logits (n, k) that are wrong by a shift per label, and which labels hold."""
    logits = rng.normal(-0.5, 2, (n, k))
    truth = rng.random((n, k)) < 1 / (1 + np.exp(-logits))
    return torch.tensor(2 * logits + np.arange(k)), known(truth.astype(np.float32))


def averages(task, draw, n, asked):
    """Coverage on fresh rows, mean over draws of the rows that calibrate, and how far chance moves that mean."""
    found = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        ready = task.calibrate(*draw(n, rng))
        found.append(ready.metrics(*draw(400, rng))["coverage"])
    error = math.sqrt(asked * (1 - asked) * (1 / (n + 2) + 1 / 400) / DRAWS)  # Beta-binomial, over the draws
    return np.mean(found), error


# classify ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "asked"), [(49, 0.9), (50, 0.8), (199, 0.95)])
def test_sets_hold_the_class_as_often_as_asked(n, asked):
    task = Classify(classes=tuple(range(6)), coverage=asked)
    mean, error = averages(task, classes, n, asked)
    exact = math.ceil((n + 1) * asked) / (n + 1)
    assert exact - 3 * error < mean < exact + 3 * error + 0.01  # the most probable class is never left out


def test_the_threshold_is_the_published_rank():
    output, target = classes(99, np.random.default_rng(0))
    task = Classify(classes=tuple(range(6)), coverage=0.9).calibrate(output, target)
    p = (output / task.temperature).softmax(1).gather(1, target.values).flatten()
    assert task.set_threshold == p.sort().values[9]  # the 90th from the top of 99
    assert task.metrics(output, target)["coverage"] >= 90 / 99
    assert task.temperature == Classify(classes=tuple(range(6))).calibrate(output, target).temperature


def test_too_few_rows_for_the_asked_coverage_give_every_class():
    task = Classify(classes=tuple(range(6)), coverage=0.9)
    output, target = classes(9, np.random.default_rng(0))
    assert task.calibrate(output[:8], target[:8]).set_threshold == 0
    assert task.calibrate(output, target).set_threshold > 0
    assert task.calibrate(output, target.without(torch.ones(9, dtype=torch.bool))) == task
    row = task.calibrate(output[:8], target[:8]).predict(output)[0]
    assert sorted(row["set"]) == list(range(6))


def test_a_set_lists_classes_from_the_most_probable_and_is_never_empty():
    task = Classify(classes=("a", "b", "c"), coverage=0.5, set_threshold=0.3)
    p = torch.tensor([[0.35, 0.6, 0.05], [0.25, 0.25, 0.5], [0.9, 0.05, 0.05]])
    assert [row["set"] for row in task.predict(p.log())] == [["b", "a"], ["c"], ["a"]]
    sure = task.model_copy(update={"set_threshold": 0.95})
    assert [row["set"] for row in sure.predict(p.log())] == [["b"], ["c"], ["a"]]
    scores = task.metrics(p.log(), known([[0], [0], [0]]))
    assert (scores["coverage"], scores["set_size"]) == (pytest.approx(2 / 3), pytest.approx(4 / 3))
    details = task.details(p.log(), known([[0], [0], [1]]))
    assert details["asked"] == 0.5
    assert [row.get("coverage") for row in details["per_class"]] == [0.5, 0.0, None]


@pytest.mark.parametrize("plain", [Classify(classes=("a", "b")), Multilabel(labels=("a", "b"))])
def test_without_an_asked_coverage_there_are_no_sets(plain):
    output = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    target = known(torch.tensor([[0], [1]] * 15) if plain.kind == "classify" else torch.tensor([[0.0, 1], [1, 0]] * 15))
    ready = plain.calibrate(output, target)
    assert ready.set_threshold == 0
    assert "set" not in ready.predict(output)[0]
    assert not {"coverage", "set_size"} & set(ready.metrics(output, target))
    assert "asked" not in ready.details(output, target)
    asked = plain.model_copy(update={"coverage": 0.8})
    again = Task.parse(json.loads(asked.calibrate(output, target).model_dump_json()))
    assert again.predict(output) == asked.calibrate(output, target).predict(output)
    for wrong in (0.0, 1.0, -1, "high"):
        with pytest.raises(ValidationError):
            Task.parse({"type": plain.kind, "coverage": wrong})


@pytest.mark.parametrize(("draw", "task"), [
    (classes, Classify(classes=tuple(range(6)), coverage=0.8)),
    (labels, Multilabel(labels=tuple("abcd"), coverage=0.8)),
])  # fmt: skip
def test_sets_work_on_mixed_outputs(draw, task):
    """One of two mixed models knows nothing."""
    rng = np.random.default_rng(0)
    first, target = draw(3000, rng)
    mixed = task.mix([first, torch.tensor(rng.normal(size=first.shape))], torch.tensor([0.6, 0.4]))
    ready = task.calibrate(mixed[:1000], target[slice(0, 1000)])
    assert ready.metrics(mixed[1000:], target[slice(1000, None)])["coverage"] == pytest.approx(0.8, abs=0.04)


# multilabel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "asked"), [(49, 0.9), (50, 0.7)])
def test_sets_hold_all_true_labels_as_often_as_asked(n, asked):
    task = Multilabel(labels=tuple("abcd"), coverage=asked)
    mean, error = averages(task, labels, n, asked)
    exact = math.ceil((n + 1) * asked) / (n + 1)
    assert exact - 3 * error < mean < exact + 3 * error + 0.01


def test_a_set_of_labels_may_be_empty_and_a_row_without_labels_is_always_held():
    task = Multilabel(labels=("a", "b"), coverage=0.5, set_threshold=0.6)
    output = torch.tensor([[0.5, 0.7], [0.1, 0.1], [0.9, 0.8]]).logit()
    assert [row["set"] for row in task.predict(output)] == [["b"], [], ["a", "b"]]
    scores = task.metrics(output, known([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))
    assert (scores["coverage"], scores["set_size"]) == (pytest.approx(2 / 3), 1.0)
    few = task.model_copy(update={"coverage": 0.6}).calibrate(output[:1], known([[1.0, 1.0]])).predict(output)
    assert all(row["set"] == ["a", "b"] for row in few)


# regress -------------------------------------------------------------------------------------------------------------


def numbers(objective, n, rng):
    """Skewed noise that grows with x; quantiles that are too narrow, a mean and a deviation that are wrong."""
    x = rng.uniform(0, 1, n)
    y = x + (0.3 + x) * (rng.gamma(2.0, 1.0, n) - 2)
    spread = (0.3 + x)[:, None]
    table = {
        "quantiles": x[:, None] + spread * [-0.9, -0.2, 0.8],
        "gaussian": np.stack([x + 0.2, np.log(np.expm1(0.5 * (0.3 + x) - 1e-3))], 1),
        "squared": x[:, None],
    }
    table["beta_nll"] = table["gaussian"]
    return torch.tensor(table[objective]), known(y[:, None])


@pytest.mark.parametrize("objective", ["quantiles", "gaussian", "beta_nll", "squared"])
@pytest.mark.parametrize(("n", "asked"), [(49, 0.9), (99, 0.5)])
def test_intervals_hold_the_value_as_often_as_asked(objective, n, asked):
    task = Regress(objective=objective, interval=asked, mean=(0.0,), scale=(1.0,))
    if objective == "quantiles":
        task = task.model_copy(update={"quantiles": (0.1, 0.5, 0.9)})
    mean, error = averages(task, lambda count, rng: numbers(objective, count, rng), n, asked)
    exact = math.ceil((n + 1) * asked) / (n + 1)
    assert exact - 3 * error < mean < exact + 3 * error


@pytest.mark.parametrize("wide", [False, True])
def test_the_margin_is_that_of_conformalised_quantile_regression(wide):
    """Romano et al. 2019: the rank of max(low - y, y - high); it may also narrow an interval."""
    rng = np.random.default_rng(0)
    y, scale = rng.normal(50, 4, 199), 4.0
    task = Regress(objective="quantiles", quantiles=(0.05, 0.5, 0.95), mean=(50.0,), scale=(scale,))
    reach = 3.0 if wide else 0.5
    output = torch.tensor([[-reach, 0.0, reach]], dtype=torch.double).expand(199, 3)
    ready = task.calibrate(output, known(((y - 50) / scale)[:, None]))
    scores = np.sort(np.maximum(50 - reach * scale - y, y - 50 - reach * scale))
    row = ready.predict(output)[0]
    assert ready.margin[0] * scale == pytest.approx(scores[math.ceil(200 * 0.9) - 1])
    assert (ready.margin[0] < 0) == wide
    assert row["high"] == pytest.approx(50 + (reach + ready.margin[0]) * scale)
    assert row["low"] == pytest.approx(50 - (reach + ready.margin[0]) * scale)
    assert row["quantiles"] == task.predict(output)[0]["quantiles"]
    assert ready.calibrate(output, known(((y - 50) / scale)[:, None])) == ready


def test_each_target_has_its_own_margin_and_the_interval_always_holds_the_value():
    rng = np.random.default_rng(0)
    task = Regress(targets=("a", "b"), objective="quantiles", quantiles=(0.1, 0.5, 0.9), interval=0.8,
                   mean=(0.0, 0.0), scale=(1.0, 1.0))  # fmt: skip
    output = torch.tensor([[-1.0, 0, 1, -1, 0, 1]], dtype=torch.double).expand(500, 6)
    target = known(rng.normal(0, 1, (500, 2)) * [3.0, 0.1])
    ready = task.calibrate(output, target)
    assert ready.margin == (pytest.approx(2.85, abs=0.4), pytest.approx(-0.87, abs=0.02))
    scores = ready.metrics(output, target)
    assert (scores["a/coverage"], scores["b/coverage"]) == (pytest.approx(0.8, abs=0.01), pytest.approx(0.8, abs=0.01))
    narrow = ready.predict(torch.tensor([[-0.1, 0.0, 0.2] * 2]))[0]
    assert narrow["low"]["b"] <= narrow["value"]["b"] <= narrow["high"]["b"]


def test_too_few_values_for_the_asked_share_take_the_largest_error():
    task = Regress(objective="quantiles", interval=0.99, mean=(0.0,), scale=(1.0,))
    output, y = torch.zeros(20, 5), torch.arange(20.0)[:, None]
    assert task.calibrate(output, known(y)).margin == (19.0,)
    assert task.calibrate(output[:9], known(y[:9])) == task


# The report ----------------------------------------------------------------------------------------------------------


def report(scores, kind="classify", asked=0.9, side="test"):
    return {side: {"rows": 90, "tasks": {"y": {"kind": kind, "scores": scores, "details": {"asked": asked}}}}}


def test_the_report_says_what_was_asked_and_what_held():
    sets = {"accuracy": 0.8, "coverage": 0.912, "set_size": 1.34}
    said = "Sets hold the truth in 91 % of the test rows (asked 90 %), 1.3 classes on average."
    assert promises(report(sets), "y") == [said]
    assert said in task_section(report(sets), "y")
    (said,) = promises(report(sets, "multilabel"), "y")
    assert "hold all true labels in" in said
    assert "1.3 labels" in said
    (said,) = promises(report({"coverage": 0.8, "width": 12.345}, "regress", 0.995, "valid"), "y")
    assert said == "Intervals hold the truth in 80 % of the valid values (asked 99.5 %), 12.3 wide on average."
    (said,) = promises(report({"coverage": 0.8}, "regress", 0.5, "valid") | {"fit": {"seconds": 1}}, "y")
    assert said == "Intervals hold the truth in 80 % of the valid values (asked 50 %). These rows also set them."
    for nothing in ({}, {"accuracy": 0.8}, {"coverage": None}):
        assert promises(report(nothing), "y") == []
    assert promises(report(sets, asked=math.nan), "y") == []


def test_quantiles_are_drawn_against_what_they_promise():
    details = {"quantiles": [{"level": q, "below": q**2} for q in (0.1, 0.5, 0.9)]}
    tasks = {"y": {"kind": "regress", "scores": {"r2": 0.5}, "headline": "r2", "details": details}}
    drawn = page({"test": {"rows": 9, "tasks": tasks}})
    assert "the share of true values below each quantile" in drawn
    assert drawn.count('class="dot"') == 3


def test_a_fit_reports_the_coverage_of_both_sides():
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    table = {
        "x": x.tolist(),
        "kind": [int(v) for v in (x + rng.normal(0, 0.7, 600) > 0) + 2 * (rng.random(600) < 0.3)],
        "price": (x + 0.5 * rng.normal(size=600)).tolist(),
    }
    spec = {
        "inputs": {"rest": {"type": "table", "numbers": ["x"]}},
        "outputs": {
            "kind": {"type": "classify", "coverage": 0.8},
            "price": {"type": "regress", "objective": "quantiles", "interval": 0.8},
        },
        "dim": 16,
        "training": {"epochs": 8, "refit": 0},
        "split": {"test": 0.3, "valid": 0.3},
    }
    model = pm.fit(spec, table, cache=False)
    for side, slack in (("valid", 0.02), ("test", 0.1)):
        tasks = model.report[side]["tasks"]
        assert tasks["kind"]["scores"]["coverage"] == pytest.approx(0.81, abs=slack)
        assert 1 < tasks["kind"]["scores"]["set_size"] < 4
        assert tasks["price"]["scores"]["coverage"] == pytest.approx(0.81, abs=slack)
        assert tasks["price"]["scores"]["r2"] > 0.6
    drawn = page(model.report)
    assert drawn.count("(asked 80 %)") == 4
    (row,) = model.predict([{"x": 3.0}])
    assert 1 in row["kind"]["set"]
    assert 0 not in row["kind"]["set"]
    assert row["price"]["low"] < 3 < row["price"]["high"]
    columns = model.predict([{"x": 3.0}]).to_columns()
    assert columns["kind.set"] == [row["kind"]["set"]]
    assert columns["price.quantiles.0.5"] == [row["price"]["value"]]
