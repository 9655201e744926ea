"""Tasks: targets, losses, predictions, metrics, mixtures and calibration."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn import metrics as reference
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.nn import functional

from polymodal.errors import DataError, SpecError
from polymodal.nn.optimise import minimise
from polymodal.task import Task, VectorTask
from polymodal.tasks import Classify, Multilabel, Regress
from polymodal.types import Fused, Masked


def pair(i):
    return {"a": float(i % 5), "b": None if i % 4 == 1 else 10.0 * (i % 3)}


CASES = {
    "classify": (Classify(), ["a", None, "b", "c"] * 8),
    "classify weighted": (Classify(class_weights={"a": 3}, label_smoothing=0.1), ["a", None, "b", "b"] * 8),
    "classify sets": (Classify(coverage=0.8), ["a", None, "b", "c"] * 8),
    "multilabel": (Multilabel(pos_weight="balanced"), [["x"], None, ["x", "y"], []] * 8),
    "multilabel sets": (Multilabel(coverage=0.8, tune_thresholds=True), [["x"], None, ["x", "y"], []] * 8),
    "regress": (Regress(), [1.0, None, "2.5", 4] * 8),
    "regress squared": (Regress(objective="squared"), [1.0, None, 2.5, 4] * 8),
    "regress beta": (Regress(objective="beta_nll"), [1.0, None, 2.5, 4] * 8),
    "regress quantiles": (Regress(objective="quantiles"), [1.0, None, 2.5, 4] * 8),
    "regress several": (Regress(targets=("a", "b")), [None if i % 7 == 0 else pair(i) for i in range(32)]),
    "regress several squared": (Regress(targets=("a", "b"), objective="squared"), [None, *map(pair, range(31))]),
    "regress several beta": (Regress(targets=("a", "b"), objective="beta_nll"), [None, *map(pair, range(31))]),
    "regress several quantiles": (
        Regress(targets=("a", "b"), objective="quantiles", quantiles=(0.2, 0.7)),
        [None, *map(pair, range(31))],
    ),
}


@pytest.fixture(params=CASES)
def fitted(request):
    """A fitted task, its training values, their target and random outputs."""
    task, values = CASES[request.param]
    task = task.fit(values)
    output = torch.randn(len(values), task.size, generator=torch.Generator().manual_seed(0))
    return task, values, task.collate(values), output


def same(left, right, tolerance=1e-5):
    """Predictions are equal up to rounding."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k], tolerance) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(same(a, b, tolerance) for a, b in zip(left, right, strict=True))
    if isinstance(left, float):
        return left == pytest.approx(right, rel=tolerance, abs=tolerance)
    return left == right


# Every task ----------------------------------------------------------------------------------------------------------


def test_fitted_and_calibrated_task_survives_json(fitted):
    task, values, target, output = fitted
    task = task.calibrate(output, target)
    again = Task.parse(json.loads(task.model_dump_json()))
    assert isinstance(again, Task)
    assert again == task
    assert again.predict(output) == task.predict(output)
    assert torch.equal(again.collate(values).values, target.values)


def test_fit_is_pure_and_repeatable(fitted):
    task, values, _, _ = fitted
    before = task.model_dump_json()
    assert task.fit(values) == task
    assert task.model_dump_json() == before


def test_predictions_and_details_are_json(fitted):
    task, values, target, output = fitted
    for ready in (task, task.calibrate(output, target)):
        rows = ready.predict(output)
        assert len(rows) == len(values)
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows
        json.dumps(ready.details(output, target), allow_nan=False)
        assert all(type(score) is float and math.isfinite(score) for score in ready.metrics(output, target).values())


def test_unlabelled_rows_count_nowhere(fitted):
    task, _, target, output = fitted
    assert not target.present.all()
    wild = torch.where(target.present[:, None], output, torch.nan).requires_grad_()
    noise = target.values.clone()
    noise[~target.present] = 0 if noise.dtype == torch.long else torch.nan
    masked = Masked(noise, target.mask)
    loss = task.loss(wild, masked)
    loss.backward()
    assert wild.grad is not None
    assert (wild.grad[~target.present] == 0).all()
    assert wild.grad.isfinite().all()
    labelled = target[target.present]
    assert loss.item() == pytest.approx(task.loss(output[target.present], labelled).item(), rel=1e-6)
    assert task.metrics(wild, masked) == task.metrics(output[target.present], labelled)
    assert task.calibrate(wild, masked) == task.calibrate(output[target.present], labelled)


def test_no_labels_cost_nothing_and_score_nothing(fitted):
    task, values, _, output = fitted
    target = task.collate([None] * len(values))
    leaf = output.clone().requires_grad_()
    loss = task.loss(leaf, target)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()
    assert task.metrics(output, target) == {}
    json.dumps(task.details(output, target))
    assert task.calibrate(output, target) == task
    assert task.predict(output[:0]) == []


def test_loss_is_a_mean_over_rows(fitted):
    """So that ranks which weigh by labelled rows equal one rank on the joined batch."""
    task, _, target, output = fitted
    halves = [slice(0, 13), slice(13, None)]
    total = sum(task.loss(output[rows], target[rows]) * target[rows].present.sum() for rows in halves)
    assert task.loss(output, target).item() == pytest.approx((total / target.present.sum()).item(), rel=1e-5)


def test_loss_has_the_right_gradient_in_float64_and_takes_bfloat16(fitted):
    task, _, target, output = fitted
    leaf = output.double().requires_grad_()
    plain = task.model_copy(update={"beta": 0.0}) if isinstance(task, Regress) else task  # else not the value's own
    assert torch.autograd.gradcheck(lambda x: plain.loss(x, target), (leaf,))
    half = task.loss(output.bfloat16(), target)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(task.loss(output, target).item(), rel=0.05)


def test_head_maps_pooled_vectors_to_outputs(fitted):
    task = fitted[0]
    assert isinstance(task, VectorTask)
    assert task.head(8)(Fused(torch.randn(3, 8), {})).shape == (3, task.size)


def test_mix_of_one_output_predicts_the_same(fitted):
    task, _, target, output = fitted
    for ready in (task, task.calibrate(output, target)):
        mixed = ready.mix([output], torch.ones(1))
        assert same(ready.predict(mixed), ready.predict(output))
        other = torch.full_like(output, torch.nan)
        assert same(ready.predict(ready.mix([other, output], torch.tensor([0.0, 1.0]))), ready.predict(output))


def test_mix_takes_weights_per_row_and_passes_gradients(fitted):
    task, _, target, output = fitted
    leaf, other = output.clone().requires_grad_(), output.flip(0).clone().requires_grad_()
    weights = torch.rand(len(output), 2, generator=torch.Generator().manual_seed(0))
    weights[0], weights[1] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    weights = (weights / weights.sum(1, keepdim=True)).requires_grad_()
    mixed = task.mix([leaf, other], weights)
    assert same(task.predict(mixed[:2]), [*task.predict(output[:1]), *task.predict(other[1:2])])
    task.loss(mixed, target).backward()
    for tensor in (leaf, other, weights):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    nothing = task.mix([output, output], torch.zeros(len(output), 2))
    assert nothing.isfinite().all()


# classify ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a ", None, "", "b"], ("a", "b")),
        ([3, 10, 3, float("nan")], (3, 10)),
        ([1.0, 2.5], (1.0, 2.5)),
        ([True, False], (False, True)),
        ([2, "2", 1.0, 1, "x"], (1, 2, "x")),
        ([np.int64(7), np.int64(5)], (5, 7)),
    ],
)
def test_classes_keep_the_labels_value_and_type(values, classes):
    task = Classify().fit(values)
    assert task.classes == classes
    assert [type(label) for label in task.classes] == [type(label) for label in classes]
    assert Classify().fit(values[::-1]) == task
    again = Classify.model_validate_json(task.model_dump_json())
    assert [type(label) for label in again.classes] == [type(label) for label in classes]
    answer = task.predict(torch.eye(len(classes)) * 9)
    assert tuple(row["class"] for row in answer) == classes


def test_labels_are_compared_by_text():
    task = Classify(classes=(1, True, "x"))
    cells = ["1", 1, 1.0, " 1 ", "true", "True", True, " x"]
    assert task.collate(cells).values.flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    with pytest.raises(DataError, match="got '01'"):
        task.collate(["01"])


def test_given_classes_keep_their_order_and_allow_for_more():
    task = Classify(classes=("z", "a", "new")).fit(["a", "z"])
    assert task.classes == ("z", "a", "new")
    with pytest.raises(DataError, match="got 'b'"):
        Classify(classes=("z", "a")).fit(["a", "z", "b"])


@pytest.mark.parametrize("values", [["a", "a", None], [None, ""], []])
def test_one_class_only_is_a_clear_error(values):
    with pytest.raises(DataError, match=r"at least two classes.*Add rows of another class"):
        Classify().fit(values)


@pytest.mark.parametrize("bad", [["a"], {"a": 1}, float("inf"), b"a"])
def test_classify_refuses_what_is_no_label(bad):
    with pytest.raises(DataError, match="label must be a text"):
        Classify().fit(["a", "b", bad])


def test_unknown_class_is_named_with_the_known_ones():
    task = Classify().fit(["apple", "pear"])
    with pytest.raises(DataError, match=r"\['apple', 'pear'\], got 'appel'. Did you mean 'apple'\?"):
        task.collate(["pear", "appel"])


@pytest.mark.parametrize(
    "wrong", [{"classes": ["a"]}, {"classes": [1, "1"]}, {"label_smoothing": 1.0}, {"class_weights": {"a": 0}}]
)
def test_classify_refuses_wrong_settings(wrong):
    with pytest.raises(ValidationError):
        Classify(**wrong)


def test_classify_must_be_fitted_and_weights_must_name_classes():
    with pytest.raises(SpecError, match="Call fit"):
        Classify().head(4)
    with pytest.raises(SpecError, match="Did you mean 'apple'"):
        Classify(class_weights={"aple": 2.0}).fit(["apple", "pear"])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classify_loss_is_cross_entropy(smoothing):
    values = ["a", "b", "b", "c", "b", "a"]
    task = Classify(label_smoothing=smoothing).fit(values)
    output, index = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 2, 1, 0])
    expected = functional.cross_entropy(output, index, label_smoothing=smoothing)
    torch.testing.assert_close(task.loss(output, task.collate(values)), expected)


@pytest.mark.parametrize("chosen", ["balanced", {1: 2.0, "0": 0.5}])
def test_class_weights_change_the_loss_as_in_torch(chosen):
    values = [0] * 30 + [1] * 10
    task = Classify(class_weights=chosen, label_smoothing=0).fit(values)
    output, index = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(values)
    weight = torch.tensor([1 / 30, 1 / 10] if chosen == "balanced" else [0.5, 2.0])
    expected = functional.cross_entropy(output, index, weight)  # divides by the sum of weights: 1 on average here too
    torch.testing.assert_close(task.loss(output, task.collate(values)), expected)
    plain = Classify().fit(values)
    assert abs(plain.loss(output, plain.collate(values)) - expected) > 1e-3


def test_classify_metrics_equal_the_reference():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 200)
    task = Classify(temperature=2.0).fit(true.tolist())
    output = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) + 2 * torch.tensor(np.eye(3)[true]).float()
    got = task.metrics(output, task.collate(true.tolist()))
    p = (output.double() / 2).softmax(1).numpy()
    assert next(iter(got)) == "accuracy"
    expected = {
        "accuracy": reference.accuracy_score(true, p.argmax(1)),
        "balanced_accuracy": reference.balanced_accuracy_score(true, p.argmax(1)),
        "macro_f1": reference.f1_score(true, p.argmax(1), average="macro"),
        "micro_f1": reference.f1_score(true, p.argmax(1), average="micro"),
        "mcc": reference.matthews_corrcoef(true, p.argmax(1)),
        "auroc": reference.roc_auc_score(true, p, multi_class="ovr"),
        "average_precision": reference.average_precision_score(np.eye(3)[true], p),
        "nll": reference.log_loss(true, p),
        "brier": reference.brier_score_loss(true, p, scale_by_half=True),  # pyright: ignore[reportArgumentType]
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert set(got) - set(expected) == {"ece"}
    details = task.details(output, task.collate(true.tolist()))
    assert details["confusion"] == reference.confusion_matrix(true, p.argmax(1)).tolist()
    assert details["per_class"][0]["auroc"] == pytest.approx(reference.roc_auc_score(true == 0, p[:, 0]))
    assert task.answers(output).tolist() == p.argmax(1).tolist()


def test_scores_that_one_class_cannot_have_are_left_out():
    task = Classify().fit(["a", "b"])
    scores = task.metrics(torch.randn(3, 2), task.collate(["a", "a", "a"]))
    assert "auroc" not in scores
    assert "accuracy" in scores


def test_classify_mixes_probabilities():
    task = Classify().fit(["a", "b", "c"])
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mixed = task.mix([x, y], torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(mixed.softmax(-1), 0.3 * x.softmax(-1) + 0.7 * y.softmax(-1))


def test_classify_calibrate_recovers_a_known_temperature():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8000, 4, generator=generator) * 2
    true = torch.multinomial(logits.softmax(1), 1, generator=generator)
    task = Classify().fit(range(4))
    target = Masked(true, torch.ones_like(true, dtype=torch.bool))
    ready = task.calibrate(logits * 3, target)
    assert ready.temperature == pytest.approx(3, rel=0.05)
    before, after = task.metrics(logits * 3, target), ready.metrics(logits * 3, target)
    assert after["ece"] < before["ece"] / 3
    assert after["nll"] < before["nll"]
    assert after["accuracy"] == before["accuracy"]
    assert ready.loss(logits, target) == task.loss(logits, target)


# multilabel ----------------------------------------------------------------------------------------------------------


def test_multilabel_reads_lists_and_texts():
    task = Multilabel().fit(["b | a", ["c"], None])
    assert task.labels == ("a", "b", "c")
    target = task.collate(["a|b", ["b", "a", "a"], "", None, [], "|", np.array(["c"])])
    assert target.values.int().tolist() == [[1, 1, 0], [1, 1, 0], [0] * 3, [0] * 3, [0] * 3, [0] * 3, [0, 0, 1]]
    assert target.present.tolist() == [True, True, False, False, True, True, True]
    assert Multilabel(separator=";").fit(["a|b;c"]).labels == ("a|b", "c")
    assert Multilabel(labels=("z", "a")).fit(["a"]).labels == ("z", "a")


@pytest.mark.parametrize(
    ("bad", "message"), [(3.5, "must be a list"), ([1.5], "must be a text"), (["x", "d"], "got 'd'")]
)
def test_multilabel_refuses_what_is_no_target(bad, message):
    task = Multilabel().fit([["x"], ["y"]])
    with pytest.raises(DataError, match=message):
        task.collate([["x"], bad])


def test_multilabel_needs_a_label():
    with pytest.raises(DataError, match="at least one label"):
        Multilabel().fit([[], None, "|"])
    with pytest.raises(SpecError, match="Call fit"):
        _ = Multilabel().size
    with pytest.raises(ValidationError):
        Multilabel(labels=("a", "a"))


@pytest.mark.parametrize("chosen", ["none", "balanced"])
def test_multilabel_loss_is_binary_cross_entropy(chosen):
    values = [["a"], ["a", "b"], ["a"], []]
    task = Multilabel(pos_weight=chosen).fit(values)
    output, target = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), task.collate(values)
    factor = torch.tensor([1 / 3, 3.0]) if chosen == "balanced" else None
    expected = functional.binary_cross_entropy_with_logits(output, target.values, pos_weight=factor)
    torch.testing.assert_close(task.loss(output, target), expected)


def test_multilabel_metrics_equal_the_reference():
    rng = np.random.default_rng(0)
    truth = rng.random((150, 3)) < 0.4
    values = [[name for name, yes in zip("abc", row, strict=True) if yes] for row in truth]
    task = Multilabel().fit(values)
    output = torch.tensor(rng.normal(size=(150, 3)) + 2 * truth - 1)
    got, p = task.metrics(output, task.collate(values)), output.sigmoid().numpy()
    guess = p >= 0.5
    expected = {
        "macro_f1": reference.f1_score(truth, guess, average="macro"),
        "micro_f1": reference.f1_score(truth, guess, average="micro"),
        "auroc": reference.roc_auc_score(truth, p),
        "average_precision": reference.average_precision_score(truth, p),
        "exact_match": reference.accuracy_score(truth, guess),
        "hamming_loss": reference.hamming_loss(truth, guess),
        "nll": reference.log_loss(truth.ravel(), p.ravel()),
        "brier": reference.brier_score_loss(truth.ravel(), p.ravel()),
    }
    assert next(iter(got)) == "macro_f1"
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert (task.answers(output).numpy() == guess).all()


def test_threshold_decides_which_labels_are_predicted():
    output = torch.tensor([[0.0, 2.0]])
    labels = {t: Multilabel(labels=("a", "b"), threshold=t).predict(output)[0]["labels"] for t in (0.4, 0.6, 0.9)}
    assert labels == {0.4: ["a", "b"], 0.6: ["b"], 0.9: []}


def test_tuned_thresholds_reach_the_best_f1():
    rng = np.random.default_rng(0)
    truth = rng.random((300, 2)) < (0.1, 0.5)
    values = [[name for name, yes in zip("ab", row, strict=True) if yes] for row in truth]
    output = torch.tensor(rng.normal(size=(300, 2)).round(1) + truth - 3)
    task = Multilabel(tune_thresholds=True).fit(values)
    target = task.collate(values)
    ready = task.calibrate(output, target)
    p = ready.probabilities(output).numpy()
    for k, threshold in enumerate(ready.thresholds):
        f1 = reference.f1_score(truth[:, k], p[:, k] >= threshold)
        assert f1 == pytest.approx(max(reference.f1_score(truth[:, k], p[:, k] >= t) for t in np.unique(p[:, k])))
    untuned = Multilabel().fit(values).calibrate(output, target)
    assert untuned.thresholds == ()
    assert ready.metrics(output, target)["macro_f1"] > untuned.metrics(output, target)["macro_f1"] + 0.1


def test_multilabel_calibrate_recovers_a_known_temperature():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3, generator=generator) * 2
    target = Masked(torch.bernoulli(logits.sigmoid(), generator=generator), torch.ones(4000, 3, dtype=torch.bool))
    ready = Multilabel(labels=("a", "b", "c")).calibrate(logits * 0.4, target)
    assert ready.temperature == pytest.approx(0.4, rel=0.05)


def test_multilabel_mixes_probabilities_without_saturating():
    task = Multilabel(labels=("a", "b"))
    x, y = torch.tensor([[1.0, 50.0]]), torch.tensor([[-2.0, 60.0]])
    mixed = task.mix([x, y], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(mixed.sigmoid(), 0.25 * x.sigmoid() + 0.75 * y.sigmoid())
    assert mixed[0, 1].item() == pytest.approx(50 + math.log(4), abs=1e-3)


# regress -------------------------------------------------------------------------------------------------------------


def unpacked(task, output):
    """The distribution of a raw output, in standardised units, built without the task."""
    k = task.count
    factor = torch.zeros(len(output), k, k, dtype=output.dtype)
    at = k
    for i in range(k):
        for j in range(i + 1):
            entry = output[:, at]
            factor[:, i, j] = functional.softplus(entry) + 1e-3 if i == j else entry
            at += 1
    return MultivariateNormal(output[:, :k], scale_tril=factor)


def several(k, n=40, seed=0):
    """A fitted task of k targets, a full target and random outputs, float64."""
    names = tuple("abcd"[:k])
    rows = np.random.default_rng(seed).normal(5, 3, (n, k))
    values = [dict(zip(names, row, strict=True)) if k > 1 else row[0] for row in rows.tolist()]
    task = Regress(targets=names).fit(values)
    output = torch.randn(n, task.size, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return task, values, output, rows


@pytest.mark.parametrize("k", [1, 2, 4])
def test_gaussian_loss_is_the_multivariate_normals(k):
    task, values, output, _ = several(k)
    target = task.collate(values)
    expected = -unpacked(task, output).log_prob(target.values.double()).mean()
    torch.testing.assert_close(task.loss(output, target), expected)


def test_a_row_with_missing_targets_contributes_its_marginal():
    task, values, output, _ = several(3)
    target = task.collate(values)
    mask = torch.rand(target.mask.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0] = False
    mask[1] = True
    joint, total = unpacked(task, output), 0.0
    for i in range(1, len(mask)):
        seen = mask[i].nonzero().flatten()
        if len(seen):
            covariance = joint.covariance_matrix[i][seen][:, seen]
            marginal = MultivariateNormal(joint.loc[i, seen], covariance)
            total -= marginal.log_prob(target.values[i, seen].double())
    expected = total / mask.any(1).sum()
    partial = Masked(target.values, mask)
    torch.testing.assert_close(task.loss(output, partial), expected)
    leaf = output.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: task.loss(x, partial), (leaf,))


def test_squared_loss_is_the_mean_squared_error():
    task, values, _, _ = several(2)
    task = task.model_copy(update={"objective": "squared"})
    target, output = task.collate(values), torch.randn(40, 2)
    torch.testing.assert_close(task.loss(output, target), functional.mse_loss(output, target.values))


def test_regress_predicts_in_the_targets_own_units():
    task, values, output, rows = several(2)
    perfect = output.clone()
    perfect[:, :2] = task.collate(values).values
    answer = task.predict(perfect)
    assert same([row["value"] for row in answer], values)
    std = unpacked(task, perfect).variance.sqrt().numpy() * rows.std(0)
    assert answer[3]["std"] == pytest.approx(dict(zip("ab", std[3], strict=True)))
    assert answer[3]["high"]["a"] == pytest.approx(values[3]["a"] + 1.6448536 * std[3, 0], rel=1e-5)
    np.testing.assert_allclose(task.answers(perfect), rows, rtol=1e-5)
    np.testing.assert_allclose(task.truth(task.collate(values)), rows, rtol=1e-5)


def test_interval_sets_the_width():
    wide, narrow = (Regress(interval=p).fit([1.0, 2.0]).predict(torch.zeros(1, 2))[0] for p in (0.9, 0.5))
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
    assert wide["std"] == narrow["std"]


def test_one_target_is_a_plain_number_and_names_its_column():
    assert Regress().columns("price") == ("price",)
    assert Regress(column="cost").columns("price") == ("cost",)
    assert Regress(targets=("a", "b")).columns("x") == ("a", "b")
    one = Regress(targets=("a",)).fit([1.0, 2.0])
    assert isinstance(one.predict(torch.zeros(1, 2))[0]["value"], float)


def test_targets_are_missing_each_for_itself():
    task = Regress(targets=("a", "b")).fit([{"a": 1, "b": 2}, {"a": 3, "b": ""}, {"a": None, "b": "4"}])
    target = task.collate([{"a": 1, "b": None}, {"a": float("nan"), "b": 2}, None, {"a": "", "b": ""}, {"a": 3}])
    assert target.mask.tolist() == [[True, False], [False, True], [False] * 2, [False] * 2, [True, False]]
    assert task.mean == (2.0, 3.0)


@pytest.mark.parametrize("bad", ["12 kg", float("inf"), "inf", [1.0], b"1"])
def test_regress_refuses_what_is_no_number(bad):
    task = Regress().fit([1.0, 2.0])
    with pytest.raises(DataError, match=r"number is expected.*Mend the cell"):
        task.collate([1.0, bad])
    with pytest.raises(DataError, match="number is expected"):
        Regress().fit([1.0, 2.0, bad])


def test_regress_names_the_target_that_is_wrong():
    task = Regress(targets=("a", "b"))
    with pytest.raises(
        DataError, match=r"target 'b' must have at least two different numbers, got one value only \(2\)"
    ):
        task.fit([{"a": 1, "b": 2}, {"a": 2, "b": 2}])
    with pytest.raises(DataError, match=r"target must have .* got no value"):
        Regress().fit([None, ""])
    with pytest.raises(DataError, match=r"mapping of \['a', 'b'\], got 3"):
        task.fit([3])
    with pytest.raises(SpecError, match="Call fit"):
        task.collate([{"a": 1, "b": 2}])
    with pytest.raises(ValidationError, match="column must be left out"):
        Regress(targets=("a",), column="a")
    with pytest.raises(ValidationError, match="different columns"):
        Regress(targets=("a", "a"))


def test_regress_metrics_equal_the_reference():
    task, values, output, rows = several(2)
    task = task.model_copy(update={"spread": 1.5})
    target = task.collate(values)
    got, center = task.metrics(output, target), output[:, :2].numpy() * rows.std(0) + rows.mean(0)
    standard = unpacked(task, output)
    joint = MultivariateNormal(
        torch.tensor(center), scale_tril=1.5 * torch.tensor(rows.std(0))[:, None] * standard.scale_tril
    )
    std = joint.variance.sqrt()
    reach = 1.6448536269514722 * std.numpy()
    expected = {
        "r2": reference.r2_score(rows, center),
        "nll": -joint.log_prob(torch.tensor(rows)).mean().item(),
        "coverage": (abs(rows - center) <= reach).mean(),
        "a/r2": reference.r2_score(rows[:, 0], center[:, 0]),
        "a/mae": reference.mean_absolute_error(rows[:, 0], center[:, 0]),
        "b/rmse": reference.root_mean_squared_error(rows[:, 1], center[:, 1]),
        "b/nll": -Normal(joint.loc[:, 1], std[:, 1]).log_prob(torch.tensor(rows[:, 1])).mean().item(),
        "b/width": 2 * reach[:, 1].mean(),
    }
    assert next(iter(got)) == "r2"
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    single, values, output, _ = several(1)
    assert list(single.metrics(output, single.collate(values))) == ["r2", "mae", "rmse", "nll", "coverage", "width"]


def test_gaussian_training_recovers_a_known_covariance():
    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, -3.0], [-3.0, 9.0]])
    x = rng.normal(size=(3000, 1))
    y = x @ np.array([[5.0, 2.0]]) + rng.multivariate_normal([0, 0], covariance, 3000)
    values = [{"a": a, "b": b if i % 3 else None} for i, (a, b) in enumerate(y.tolist())]
    task = Regress(targets=("a", "b")).fit(values)
    target, features = task.collate(values), torch.from_numpy(x).float()
    linear = torch.nn.Linear(1, task.size)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = task.loss(linear(features), target)
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        output = linear(features)
    factor = unpacked(task, output).scale_tril[0].numpy() * np.array(task.scale)[:, None]
    np.testing.assert_allclose(factor @ factor.T, covariance, rtol=0.12)
    details = task.details(output, target)
    assert details["correlation"][0][1] == pytest.approx(-0.5, abs=0.05)
    scores = task.metrics(output, target)
    assert scores["coverage"] == pytest.approx(0.9, abs=0.02)
    assert scores["a/rmse"] == pytest.approx(2, rel=0.05)
    assert all(abs(row["level"] - row["coverage"]) < 0.04 for row in details["levels"])


def test_gaussian_mix_has_the_mixtures_mean_and_covariance():
    task, _, x, _ = several(3)
    y = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.double)
    got = unpacked(task, task.mix([x, y], torch.tensor([0.3, 0.7])))
    parts = [unpacked(task, output) for output in (x, y)]
    mean = 0.3 * parts[0].mean + 0.7 * parts[1].mean
    second = sum(
        w * (d.covariance_matrix + d.mean[..., None] * d.mean[:, None]) for w, d in zip((0.3, 0.7), parts, strict=True)
    )
    torch.testing.assert_close(got.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.covariance_matrix, second - mean[..., None] * mean[:, None], rtol=1e-6, atol=1e-6)
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([[0.3, 0.7]]).expand(40, 2)),
        Independent(Normal(torch.stack([d.mean for d in parts], 1), torch.stack([d.stddev for d in parts], 1)), 1),
    )
    torch.testing.assert_close(got.variance, mixture.variance, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", ["gaussian", "beta_nll", "squared"])
def test_regress_calibrate_makes_the_interval_cover(objective):
    rng = np.random.default_rng(0)
    values = rng.normal(7, 3, 8000)
    task = Regress(objective=objective, interval=0.8).fit(values.tolist())
    output = torch.zeros(8000, task.size)
    if objective != "squared":
        output[:, 1] = math.log(math.expm1(0.5 - 1e-3))  # says half of the true standard deviation
    target = task.collate(values.tolist())
    ready = task.calibrate(output, target)
    fitted = ready.spread if objective != "squared" else ready.residual[0]
    assert fitted == pytest.approx(2 if objective != "squared" else 1, rel=0.05)
    assert ready.metrics(output, target)["coverage"] == pytest.approx(0.8, abs=0.01)
    assert ready.calibrate(output, target) == ready
    assert ready.predict(output[:1])[0]["std"] == pytest.approx(3, rel=0.05)
    assert task.calibrate(output[:9], target[:9]) == task
    if objective == "squared":
        assert task.predict(output[:1])[0].keys() == {"value"}
        assert "coverage" not in task.metrics(output, target)


def test_extreme_outputs_stay_finite():
    task, values, output, _ = several(3)
    target = task.collate(values)
    for size in (-60.0, 60.0):
        leaf = (torch.sign(output) * size).float().requires_grad_()
        loss = task.loss(leaf, Masked(target.values, target.mask & (torch.rand(target.mask.shape) < 0.7)))
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        json.dumps(task.predict(task.mix([leaf, leaf * 0.5], torch.tensor([0.5, 0.5]))), allow_nan=False)


def test_settling_builds_a_calibration_in():
    generator = torch.Generator().manual_seed(0)
    labels = [0, 1, 2, 1] * 20
    task = Classify().fit(labels)
    output = 6 * torch.randn(80, 3, generator=generator)
    fitted = task.calibrate(output, task.collate(labels))
    assert fitted.certainty > 1.5
    settled = task.settle(output, torch.tensor(fitted.certainty))
    torch.testing.assert_close(task.probabilities(settled), fitted.probabilities(output), atol=1e-5, rtol=0)
    numbers = torch.randn(80, generator=generator).tolist()
    regress = Regress().fit(numbers)
    raw = torch.randn(80, regress.size, generator=generator)
    spread = regress.calibrate(raw, regress.collate(numbers))
    assert spread.certainty != 1
    wide = regress.predict(regress.settle(raw, torch.tensor(spread.certainty)))
    for ours, theirs in zip(wide, spread.predict(raw), strict=True):
        assert ours["std"] == pytest.approx(theirs["std"], rel=1e-4)
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)


# regress: beta_nll ---------------------------------------------------------------------------------------------------


def betas(beta, k=2, n=40):
    """A fitted task of k targets, its target with gaps, and random outputs, float64."""
    plain, values, _, _ = several(k, n)
    task = Regress(targets=plain.targets, objective="beta_nll", beta=beta).fit(values)
    full = task.collate(values)
    mask = torch.rand(full.mask.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    output = torch.randn(n, task.size, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    return task, Masked(full.values, mask), output


def slope(task, target, output):
    """The loss's gradient."""
    leaf = output.clone().requires_grad_()
    return torch.autograd.grad(task.loss(leaf, target), leaf)[0]


def published(output, target, beta, k):
    """Seitzer et al. 2022, with the variance in the weight held constant; summed over targets, mean over rows."""
    leaf = output.clone().requires_grad_()
    mean, std = leaf[:, :k], functional.softplus(leaf[:, k:]) + 1e-3
    error = target.values.double() - mean
    each = (std.square().log() / 2 + error.square() / (2 * std.square())) * std.detach() ** (2 * beta)
    loss = (each * target.mask).sum() / target.mask.any(1).sum()
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 3])
def test_beta_nll_has_the_published_gradient_and_the_plain_likelihoods_value(beta, k):
    task, target, output = betas(beta, k)
    torch.testing.assert_close(slope(task, target, output), published(output, target, beta, k))
    density = Normal(output[:, :k], functional.softplus(output[:, k:]) + 1e-3)
    expected = -(density.log_prob(target.values.double()) * target.mask).sum() / target.mask.any(1).sum()
    torch.testing.assert_close(task.loss(output, target), expected)


def test_beta_nll_of_zero_is_the_gaussian_objective_of_one_target():
    task, target, output = betas(0.0, 1)
    gaussian = task.model_copy(update={"objective": "gaussian"})
    assert task.size == gaussian.size == 2
    torch.testing.assert_close(task.loss(output, target), gaussian.loss(output, target))
    torch.testing.assert_close(slope(task, target, output), slope(gaussian, target, output))
    assert task.predict(output) == gaussian.predict(output)
    assert task.metrics(output, target) == pytest.approx(gaussian.metrics(output, target))


def test_beta_nll_of_one_teaches_the_means_like_squared_errors():
    task, target, output = betas(1.0, 2)
    squared = task.model_copy(update={"objective": "squared"})
    means = slope(task, target, output)[:, :2]
    torch.testing.assert_close(means, slope(squared, target, output[:, :2]))  # (error^2 / 2) * 2 / K, K = 2
    assert not torch.allclose(means, slope(task.model_copy(update={"beta": 0.5}), target, output)[:, :2], rtol=0.05)


def test_beta_nll_is_the_gaussian_objective_without_covariances():
    task, target, output = betas(0.0, 3)
    gaussian = task.model_copy(update={"objective": "gaussian"})
    zero = torch.zeros(len(output), dtype=torch.double)
    m, d = output[:, :3].unbind(1), output[:, 3:].unbind(1)
    wide = torch.stack([*m, d[0], zero, d[1], zero, zero, d[2]], 1)
    torch.testing.assert_close(task.loss(output, target), gaussian.loss(wide, target))
    assert same(task.predict(output), gaussian.predict(wide))
    assert task.metrics(output, target) == pytest.approx(gaussian.metrics(wide, target))
    assert "correlation" not in task.details(output, target)
    other = output.flip(0)
    mixed, weights = task.mix([output, other], torch.tensor([0.3, 0.7])), torch.tensor([[0.3, 0.7]]).expand(40, 2)
    parts = [Normal(x[:, :3], functional.softplus(x[:, 3:]) + 1e-3) for x in (output, other)]
    mixture = MixtureSameFamily(
        Categorical(weights),
        Independent(Normal(torch.stack([p.mean for p in parts], 1), torch.stack([p.stddev for p in parts], 1)), 1),
    )
    std = functional.softplus(mixed[:, 3:]) + 1e-3
    torch.testing.assert_close(std.square(), mixture.variance, rtol=1e-6, atol=1e-6)
    wider = task.predict(task.settle(output, torch.tensor(2.0)))[0]["std"]["b"]
    assert wider == pytest.approx(2 * task.predict(output)[0]["std"]["b"], rel=1e-6)


# regress: quantiles --------------------------------------------------------------------------------------------------


def standard(task, quantiles):
    """Raw outputs of quantiles (N, Q) of one target, in its own unit."""
    return torch.tensor((np.asarray(quantiles) - task.mean[0]) / task.scale[0])


def test_pinball_loss_is_least_at_the_empirical_quantiles():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 400)
    task = Regress(objective="quantiles", quantiles=(0.1, 0.5, 0.8)).fit(values.tolist())
    target = task.collate(values.tolist())
    truth = np.quantile(values, [0.1, 0.5, 0.8])

    def loss(quantiles):
        return task.loss(standard(task, np.tile(quantiles, (400, 1))), target).item()

    for k in range(3):
        for shift in (-0.3, 0.3):
            assert loss(truth) < loss(truth + shift * np.eye(3)[k])
    expected = np.mean(
        [
            reference.mean_pinball_loss(values, np.full(400, q), alpha=p)
            for q, p in zip(truth, task.quantiles, strict=True)
        ]
    )
    assert loss(truth) * task.scale[0] == pytest.approx(expected, rel=1e-5)
    raw = standard(task, np.tile(truth, (400, 1)))
    assert task.metrics(raw, target)["pinball"] == pytest.approx(expected, rel=1e-6)
    details = task.details(raw, target)["quantiles"]
    assert [row["level"] for row in details] == [0.1, 0.5, 0.8]
    assert [row["below"] for row in details] == pytest.approx([0.1, 0.5, 0.8], abs=0.003)


def test_quantiles_never_cross_and_sorting_never_raises_the_loss():
    task, values = Regress(objective="quantiles").fit([0.0, 1.0]), [0.3] * 200
    output = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    target = task.collate(values)
    for row, raw in zip(task.predict(output), output, strict=True):
        assert list(row["quantiles"]) == ["0.05", "0.25", "0.5", "0.75", "0.95"]
        assert list(row["quantiles"].values()) == sorted(row["quantiles"].values())
        assert row["value"] == pytest.approx(raw.median().item() * task.scale[0] + task.mean[0], rel=1e-5)
        assert (row["low"], row["high"]) == (row["quantiles"]["0.05"], row["quantiles"]["0.95"])
    for i in range(200):
        mine, one = output[i : i + 1], target[slice(i, i + 1)]
        assert task.loss(mine.sort(1).values, one) <= task.loss(mine, one) + 1e-7


def test_which_quantiles_make_the_value_and_the_interval():
    table = [0.0, 10.0, 20.0, 30.0, 40.0]

    def answer(**settings):
        task = Regress(objective="quantiles", **settings).fit([0.0, 1.0])
        return task.predict(standard(task, [table[: len(task.quantiles)]]))[0]

    assert [answer(interval=0.5)[key] for key in ("low", "value", "high")] == [10, 20, 30]
    assert [answer(interval=0.05)[key] for key in ("low", "value", "high")] == [20, 20, 20]
    assert [answer(quantiles=(0.1, 0.4, 0.9))[key] for key in ("low", "value", "high")] == [0, 10, 20]
    assert [answer(quantiles=(0.6,))[key] for key in ("low", "value", "high")] == [0, 0, 0]
    assert answer(quantiles=(0.4, 0.6))["value"] == 0


def test_quantiles_of_several_targets_are_told_apart():
    task = Regress(targets=("a", "b"), objective="quantiles", quantiles=(0.2, 0.8))
    task = task.fit([{"a": -1, "b": 9}, {"a": 1, "b": 11}])
    row = task.predict(torch.tensor([[-2.0, 2.0, -3.0, 3.0]]))[0]
    assert row["quantiles"] == {"0.2": {"a": -2, "b": 7}, "0.8": {"a": 2, "b": 13}}
    assert (row["low"], row["high"]) == ({"a": -2, "b": 7}, {"a": 2, "b": 13})
    target = task.collate([{"a": 0.0, "b": 20.0}, {"a": -9.0, "b": None}])
    scores = task.metrics(torch.tensor([[-2.0, 2.0, -3.0, 3.0]] * 2), target)
    assert scores["coverage"] == pytest.approx(1 / 3)
    assert scores["b/pinball"] == pytest.approx((0.2 * 13 + 0.8 * 7) / 2)
    assert scores["a/width"] == 4
    assert "nll" not in scores


def test_quantiles_are_averaged_level_by_level():
    """The average of two normals' quantiles is the normal whose mean and deviation are the averages."""
    task = Regress(objective="quantiles").fit([-1.0, 1.0])
    z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(task.quantiles)).double()
    first, second = (1.0 + 2.0 * z)[None], (-3.0 + 0.5 * z)[None]
    mixed = task.mix([first, second.flip(1)], torch.tensor([0.25, 0.75]))  # the order of raw numbers is no matter
    torch.testing.assert_close(mixed, (-2.0 + 0.875 * z)[None])
    assert task.certainty == 1
    assert torch.equal(task.settle(mixed, torch.tensor(3.0)), mixed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta": 0.3}, "beta has no effect with objective=gaussian"),
        ({"objective": "squared", "quantiles": [0.5]}, "quantiles has no effect"),
        ({"objective": "beta_nll", "beta": 1.5}, "less than or equal"),
        ({"objective": "quantiles", "quantiles": [0.5, 0.5]}, "quantiles must rise"),
        ({"objective": "quantiles", "quantiles": [0.9, 0.1]}, "quantiles must rise"),
        ({"objective": "quantiles", "quantiles": [0.0, 0.5]}, "greater than"),
        ({"objective": "quantiles", "quantiles": []}, "at least 1"),
    ],
)
def test_regress_refuses_settings_without_effect_or_sense(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Regress(**wrong)


@pytest.mark.parametrize("settings", [{"objective": "beta_nll"}, {"objective": "quantiles"}])
def test_linear_training_recovers_a_spread_that_varies(settings):
    """y = 2 x + (0.5 + x) e, x in 0..1: the deviation at both ends is known."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, 3000)
    y = 2 * x + (0.5 + x) * rng.normal(size=3000)
    task = Regress(**settings).fit(y.tolist())
    target, features = task.collate(y.tolist()), torch.from_numpy(np.stack([x, np.ones_like(x)], 1)).float()

    def loss(weights):
        return task.loss(features @ weights.view(2, -1), target)

    weights = minimise(loss, torch.zeros(2 * task.size), 200).view(2, -1)
    low, high = task.predict(torch.tensor([[0.0, 1.0], [1.0, 1.0]]) @ weights)
    assert (low["value"], high["value"]) == pytest.approx((0, 2), abs=0.15)
    assert (low["high"] - low["low"], high["high"] - high["low"]) == pytest.approx((3.29 * 0.5, 3.29 * 1.5), rel=0.15)
