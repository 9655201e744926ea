"""Every score equals scikit-learn's, on random data with ties."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference

from polymodal import metrics
from polymodal.report.words import lower_is_better


def close(expected):
    return pytest.approx(expected, rel=1e-9, abs=1e-9)


def drawn(seed, n=300, k=4):
    """True and predicted classes and probabilities, with many ties."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, k, n)
    p = rng.integers(1, 6, (n, k)) + 2.0 * metrics.one_hot(true, k) * rng.integers(0, 2, (n, 1))
    p = p / p.sum(1, keepdims=True)
    return true, p.argmax(1), p


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [2, 4])
def test_classes_equal_the_reference(seed, k):
    true, guess, _ = drawn(seed, k=k)
    truth, guessed = metrics.one_hot(true, k), metrics.one_hot(guess, k)
    assert metrics.accuracy(true, guess) == close(reference.accuracy_score(true, guess))
    assert metrics.balanced_accuracy(true, guess, k) == close(reference.balanced_accuracy_score(true, guess))
    assert (metrics.confusion(true, guess, k) == reference.confusion_matrix(true, guess)).all()
    assert metrics.macro_f1(truth, guessed) == close(reference.f1_score(true, guess, average="macro"))
    assert metrics.micro_f1(truth, guessed) == close(reference.f1_score(true, guess, average="micro"))
    expected = reference.precision_recall_fscore_support(true, guess)
    got = metrics.per_class(truth, guessed)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(got[name], np.asarray(column), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_ranking_equals_the_reference_with_ties(seed):
    true, _, p = drawn(seed)
    positive, score = true == 0, p[:, 0]
    assert len(np.unique(score)) < len(score)
    assert metrics.auroc(positive, score) == close(reference.roc_auc_score(positive, score))
    assert metrics.average_precision(positive, score) == close(reference.average_precision_score(positive, score))
    truth = metrics.one_hot(true, 4)
    assert metrics.macro(metrics.auroc, truth, p) == close(
        reference.roc_auc_score(true, p, multi_class="ovr", average="macro")
    )
    assert metrics.macro(metrics.average_precision, truth, p) == close(
        reference.average_precision_score(truth, p, average="macro")
    )


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_equal_the_reference(seed):
    true, _, p = drawn(seed)
    assert metrics.log_loss(true, p) == close(reference.log_loss(true, p))
    assert metrics.brier(metrics.one_hot(true, 4), p) == close(
        reference.brier_score_loss(true, p, scale_by_half=True, labels=range(4))  # pyright: ignore[reportArgumentType]
    )
    true, _, p = drawn(seed, k=2)
    assert metrics.brier(metrics.one_hot(true, 2), p) == close(reference.brier_score_loss(true, p[:, 1]))


@pytest.mark.parametrize("seed", range(3))
def test_multilabel_f1_equals_the_reference(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.random((50, 6)) < 0.3, rng.random((50, 6)) < 0.3
    truth[:, 5] = guess[:, 5] = False  # a label that occurs nowhere counts nowhere
    assert metrics.macro_f1(truth, guess) == close(
        reference.f1_score(truth, guess, average="macro", zero_division=np.nan)  # pyright: ignore[reportArgumentType]
    )
    assert metrics.micro_f1(truth, guess) == close(reference.f1_score(truth, guess, average="micro"))


def test_numbers_equal_the_reference():
    rng = np.random.default_rng(0)
    true, guess, std = rng.normal(size=80), rng.normal(size=80), rng.uniform(0.5, 2, 80)
    assert metrics.r2(true, guess) == close(reference.r2_score(true, guess))
    assert metrics.mae(true, guess) == close(reference.mean_absolute_error(true, guess))
    assert metrics.rmse(true, guess) == close(reference.root_mean_squared_error(true, guess))
    assert metrics.gaussian_nll(true, guess, std) == close(-stats.norm.logpdf(true, guess, std).mean())
    assert metrics.coverage(np.array([0.0, 1, 2, 3]), np.zeros(4), np.full(4, 2.0)) == 0.75


def test_undefined_scores_are_nan_and_left_out():
    one = np.zeros(5, int)
    scores = {
        "auroc": metrics.auroc(one == 0, np.arange(5)),
        "average_precision": metrics.average_precision(one == 1, np.arange(5)),
        "r2": metrics.r2(np.ones(5), np.arange(5)),
        "accuracy": metrics.accuracy(one, one),
        "micro_f1": metrics.micro_f1(np.zeros((2, 2)), np.zeros((2, 2))),
        "ece": metrics.ece(one[:0], one[:0]),
        "mae": metrics.mae(one[:0], one[:0]),
        "rmse": metrics.rmse(one[:0], one[:0]),
        "r2 of nothing": metrics.r2(one[:0], one[:0]),
    }
    assert [name for name, score in scores.items() if math.isnan(score)] == [n for n in scores if n != "accuracy"]
    assert metrics.defined(scores) == {"accuracy": 1.0}


def test_macro_leaves_out_classes_that_do_not_occur():
    true, _, p = drawn(0, k=3)
    wider = np.hstack([p, np.zeros((len(p), 1))])
    for score in (metrics.auroc, metrics.average_precision):
        narrow = metrics.macro(score, metrics.one_hot(true, 3), p)
        assert metrics.macro(score, metrics.one_hot(true, 4), wider) == close(narrow)


def test_ece_is_the_mean_gap_over_equal_width_bins():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(500), [0.0, 1.0, 1 / 15]])
    right = rng.random(503) < confidence**2
    gap = 0.0
    for i in range(15):
        rows = (confidence > i / 15) & (confidence <= (i + 1) / 15) | ((i == 0) & (confidence == 0))
        gap += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
    assert metrics.ece(right, confidence) == close(gap)
    bins = metrics.reliability(right, confidence)
    assert sum(row["count"] for row in bins) == 503
    assert all(row["low"] <= row["confidence"] <= row["high"] for row in bins)
    assert len(metrics.reliability(right, confidence, bins=5)) == 5


def test_ece_is_zero_for_honest_and_large_for_boastful_confidence():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20000)
    right = rng.random(20000) < confidence
    assert metrics.ece(right, confidence) < 0.02
    assert metrics.ece(right, np.ones(20000)) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("known", [0.5, 1.0, 2.5])
def test_fit_temperature_recovers_a_known_one(known):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (20000, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = (rng.random((20000, 1)) > p.cumsum(1)).sum(1)
    assert metrics.fit_temperature(logits * known, true) == pytest.approx(known, rel=0.05)


def test_fit_temperature_is_the_optimum_and_stays_finite_where_all_is_right():
    rng = np.random.default_rng(0)
    logits, true = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    logits[np.arange(200), true] += 1.0

    def cost(t):
        nll = torch.nn.functional.cross_entropy(torch.tensor(logits) / t, torch.tensor(true)).item()
        return nll + math.log(t) ** 2 / 400

    best = metrics.fit_temperature(logits, true)
    assert cost(best) < min(cost(best * 1.01), cost(best / 1.01))
    sure = metrics.fit_temperature(5.0 * metrics.one_hot(true, 3), true)
    assert 0.3 < sure < 1


def test_bootstrap_is_the_percentile_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)

    def score(rows):
        return float(x[rows].mean())

    low, high = metrics.bootstrap(score, 400)
    expected = stats.bootstrap((x,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(1))
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.015)
    assert (low, high) == metrics.bootstrap(score, 400, seed=0) != metrics.bootstrap(score, 400, seed=1)
    narrow = metrics.bootstrap(score, 400, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_without_a_score_is_nan():
    assert all(math.isnan(end) for end in metrics.bootstrap(lambda rows: math.nan, 5, repeats=10))
    assert all(math.isnan(end) for end in metrics.bootstrap(lambda rows: 1.0, 0))
    half = metrics.bootstrap(lambda rows: math.nan if rows[0] else 1.0, 5, repeats=50)
    assert half == (1.0, 1.0)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.9])
def test_pinball_equals_the_reference(level):
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(2, 100))
    expected = reference.mean_pinball_loss(true, predicted, alpha=level)
    assert metrics.pinball(true, predicted, level) == pytest.approx(expected)
    assert math.isnan(metrics.pinball(np.array([]), np.array([]), level))


@pytest.mark.parametrize(
    ("n", "level", "rank"), [(9, 0.9, 9), (8, 0.9, None), (99, 0.07, 7), (99, 0.9, 90), (20, 0.5, 11), (3, 1e-12, 1)]
)
def test_conformal_bound_is_a_rank(n, level, rank):
    scores = np.random.default_rng(0).permutation(n) + 1.0
    assert metrics.conformal_bound(scores, level) == (math.inf if rank is None else rank)
    assert metrics.conformal_bound(np.array([]), level) == math.inf


def test_a_further_score_stays_within_the_conformal_bound_as_often_as_asked():
    """For different scores the chance is exactly ceil((n + 1) level) / (n + 1)."""
    scores = np.random.default_rng(0).normal(size=(4000, 25))
    within = [row[0] <= metrics.conformal_bound(row[1:], 0.8) for row in scores]
    assert np.mean(within) == pytest.approx(20 / 25, abs=3 * math.sqrt(0.16 / 4000))


def test_the_report_and_the_metrics_agree_on_what_is_better():
    for name in metrics.LOWER_IS_BETTER:
        assert lower_is_better(name)
        assert not metrics.higher_is_better(f"price/{name}")
    assert not any(metrics.higher_is_better(name) == lower_is_better(name) for name in ("r2", "coverage", "set_size"))


@pytest.mark.parametrize("classes", [2, 5])
def test_mcc_is_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    true, guess = rng.integers(0, classes, 200), rng.integers(0, classes, 200)
    guess = np.where(rng.random(200) < 0.5, true, guess)
    found = metrics.mcc(metrics.confusion(true, guess, classes))
    assert found == pytest.approx(reference.matthews_corrcoef(true, guess))


def test_mcc_of_one_answer_is_zero():
    assert metrics.mcc(np.array([[7, 0], [3, 0]])) == 0.0


def test_r2_of_a_constant_is_not_defined_whatever_rounding_leaves():
    true = np.full(7, 0.1) * 3
    assert np.isnan(metrics.r2(true, true + 1))
