"""Scores on resamples: what the task itself says of the same rows, at less cost."""

import math

import numpy as np
import pytest
import torch

from polymodal import metrics
from polymodal.diagnose import scores as module
from polymodal.diagnose.scores import Scorer, choose_metrics, difference, interval, scored
from polymodal.diagnose.weighing import rules
from polymodal.errors import SpecError
from polymodal.task import Task
from polymodal.tasks.classify import Classify
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.types import Masked

ROWS = 60


def outputs_of(kind):
    """A fitted task, raw outputs of 60 rows and their targets, a third of them unlabelled."""
    g = torch.Generator().manual_seed(0)
    known = torch.rand(ROWS, 1, generator=g) > 1 / 3
    if kind == "classify":
        label = torch.randint(4, (ROWS, 1), generator=g) % 3
        logits = torch.nn.functional.one_hot(label[:, 0], 4) + torch.randn(ROWS, 4, generator=g).round(decimals=1)
        return Classify(classes=("a", "b", "c", "d"), temperature=1.5), logits, Masked(label, known)
    if kind == "multilabel":
        label = (torch.rand(ROWS, 3, generator=g) > 0.6).float()
        task = Multilabel(labels=("a", "b", "c"))
        return task, label + torch.randn(ROWS, 3, generator=g) - 0.5, Masked(label, known.expand(-1, 3).clone())
    task = Regress(objective="squared", mean=(1000.0,), scale=(3.0,))
    y = torch.randn(ROWS, 1, generator=g)
    return task, y + 0.5 * torch.randn(ROWS, 1, generator=g), Masked(y, known)


KNOWN = [(kind, name) for kind in ("classify", "multilabel", "regress") for name in rules(outputs_of(kind)[0])]


@pytest.mark.parametrize(("kind", "metric"), [*KNOWN, ("classify", "ece"), ("classify", "average_precision")])
def test_a_sample_holds_what_the_task_says_of_every_resample(kind, metric):
    task, output, target = outputs_of(kind)
    scorer = Scorer(task, metric, target, repeats=40, seed=1)
    sample = scorer(output)
    rows = target.present.nonzero().flatten()
    assert scorer.count == len(rows) < ROWS
    assert sample[0] == pytest.approx(task.metrics(output, target)[metric], rel=1e-6)
    for i in (1, 7, 40):
        drawn = rows[np.repeat(np.arange(len(rows)), scorer.counts[i])]
        assert len(drawn) == len(rows)
        assert sample[i] == pytest.approx(task.metrics(output[drawn], target[drawn])[metric], rel=1e-6)


@pytest.mark.parametrize(("kind", "metric"), KNOWN)
def test_known_metrics_are_not_computed_anew_for_each_resample(kind, metric, monkeypatch):
    task, output, target = outputs_of(kind)
    asked = []
    original = type(task).metrics
    monkeypatch.setattr(type(task), "metrics", lambda *a: asked.append(1) or original(*a))
    Scorer(task, metric, target, repeats=40, seed=1)(output)
    assert len(asked) == 1


def test_a_metric_that_means_something_else_by_its_name_is_asked_of_the_task(monkeypatch):
    monkeypatch.setitem(Task.known, "classify", Classify)  # a subclass enters itself there

    class Strange(Classify):
        def metrics(self, output, target):
            return {"accuracy": float(len(output)) + float(output.sum())}

    _, output, target = outputs_of("classify")
    sample = Scorer(Strange(classes=("a", "b", "c", "d")), "accuracy", target, repeats=3, seed=0)(output)
    assert sample[0] == pytest.approx(float(output[target.present].sum()) + int(target.present.sum()))


def test_a_dear_metric_gets_fewer_resamples(monkeypatch):
    task, output, target = outputs_of("classify")
    monkeypatch.setattr(module, "WORK", 100)
    monkeypatch.setattr(module, "FEWEST", 5)
    sample = Scorer(task, "ece", target, repeats=20, seed=0)(output)
    assert np.isfinite(sample[:6]).all()
    assert np.isnan(sample[6:]).all()
    assert interval(sample) is not None


def test_undefined_scores_are_left_out_of_intervals():
    task, output, _ = outputs_of("classify")
    one = Masked(torch.zeros(ROWS, 1, dtype=torch.long), torch.ones(ROWS, 1, dtype=torch.bool))
    sample = Scorer(task, "auroc", one, repeats=5, seed=0)(output)
    assert scored(sample) == {"score": None, "interval": None}
    assert difference(sample) == {"value": None, "interval": None, "noise": True}


def test_weighted_auroc_is_undefined_where_one_class_is_drawn():
    task, _, _ = outputs_of("classify")
    target = Masked(torch.tensor([[0], [1]]), torch.ones(2, 1, dtype=torch.bool))
    weigh = rules(task)["auroc"](torch.eye(2, 4), target)
    assert weigh(np.array([[1.0, 1.0]])).tolist() == [1.0]
    assert math.isnan(weigh(np.array([[2.0, 0.0]]))[0])


def test_differences_of_samples_are_paired():
    """Two outputs that are right on the same rows but one differ by that one, however the rows are drawn."""
    task, output, target = outputs_of("classify")
    scorer = Scorer(task, "accuracy", target, repeats=300, seed=0)
    same = difference(scorer(output) - scorer(output * 2))
    assert same == {"value": 0.0, "interval": [0.0, 0.0], "noise": True}
    right = torch.nn.functional.one_hot(target.values[:, 0], 4).float()
    apart = difference(scorer(right) - scorer(output))
    wide = np.subtract(*interval(Scorer(task, "accuracy", target, 300, 1)(output))[::-1])
    assert not apart["noise"]
    assert apart["interval"][1] - apart["interval"][0] == pytest.approx(wide, abs=0.06)


def test_the_interval_is_that_of_a_binomial():
    """Percentiles of an accuracy against the normal approximation: p +- 1.96 sqrt(p (1 - p) / n)."""
    n = 400
    label = torch.arange(n)[:, None] % 2
    output = torch.nn.functional.one_hot((torch.arange(n) % 5 == 0).long(), 2).float()
    target = Masked(torch.zeros_like(label), torch.ones_like(label, dtype=torch.bool))
    low, high = interval(Scorer(Classify(classes=(0, 1)), "accuracy", target, 2000, 0)(output))
    half = 1.96 * math.sqrt(0.8 * 0.2 / n)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.008)


def test_resamples_follow_the_seed():
    task, output, target = outputs_of("regress")
    one, again, other = (Scorer(task, "r2", target, 9, seed)(output) for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one[1:] != other[1:]).any()


def test_signs_say_what_helps():
    task, _, target = outputs_of("regress")
    assert Scorer(task, "r2", target, 2, 0).sign == 1
    assert Scorer(task, "rmse", target, 2, 0).sign == -1


def test_metrics_are_chosen_by_name_and_by_task():
    seen = {"label": {"accuracy": 0.9, "nll": 0.1}, "price": {"r2": 0.5, "coverage": 0.9, "mae": 2.0}, "none": {}}
    assert choose_metrics(seen, None) == {"label": "accuracy", "price": "r2"}
    assert choose_metrics(seen, "nll") == {"label": "nll", "price": "r2"}
    assert choose_metrics(seen, "price.mae") == {"label": "accuracy", "price": "mae"}
    for wrong in ("coverage", "label.mae", "accurate"):
        with pytest.raises(SpecError, match=r"metric must be one of \['accuracy', 'mae', 'nll', 'r2'\], got"):
            choose_metrics(seen, wrong)


def test_weighted_metrics_agree_with_the_plain_ones_on_ties():
    """AUROC with many equal scores, against the formula on the repeated rows."""
    rng = np.random.default_rng(0)
    task = Classify(classes=(0, 1))
    logits = torch.from_numpy(rng.integers(0, 3, (50, 2)).astype(float))
    label = torch.from_numpy(rng.integers(0, 2, (50, 1)))
    counts = rng.integers(0, 4, 50)
    weigh = rules(task)["auroc"](logits, Masked(label, torch.ones_like(label, dtype=torch.bool)))
    p = task.probabilities(logits).numpy()[:, 1].repeat(counts)
    assert weigh(counts[None].astype(float))[0] == pytest.approx(
        metrics.auroc(label[:, 0].numpy().repeat(counts) == 1, p)
    )


def test_a_metric_that_a_constant_answer_wins_is_no_measure_of_inputs():
    seen = {"y": {"accuracy": 0.9, "ece": 0.1}}
    with pytest.raises(SpecError, match="metric must be one of"):
        choose_metrics(seen, "ece")
