"""Slices: planted bad groups are found, noise is not, and the tests agree with the field's own."""

import numpy as np
import pytest
import torch
from scipy import stats

from polymodal.data.table import Table
from polymodal.diagnose import slices as module
from polymodal.diagnose.rows import Answered, RowScores, row_scores
from polymodal.diagnose.slices import benjamini_hochberg, by_column, by_presence, chances, fisher, slices
from polymodal.task import Task
from polymodal.tasks.classify import Classify
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.types import Masked

TASK = Classify(classes=("a", "b"))


def classified(right, truth=None):
    """Rows answered rightly or not."""
    right = np.asarray(right, bool)
    truth = np.arange(len(right)) % 2 if truth is None else np.asarray(truth)
    guess = np.where(right, truth, 1 - truth)
    target = Masked(torch.from_numpy(truth)[:, None], torch.ones(len(right), 1, dtype=torch.bool))
    rows = np.arange(len(right))
    return Answered("y", TASK, rows, rows, torch.eye(2)[torch.from_numpy(guess)] * 4, target, truth.tolist())


def table_of(answered, **columns):
    return Table.read({"y": ["ab"[k] for k in answered.given], **columns})


def everything(count):
    return {"x": np.ones(count, bool)}


def test_a_planted_slice_is_found_first_and_called_significant():
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], 300)
    right = rng.random(300) < np.where(colour == "red", 0.5, 0.95)
    answered = classified(right)
    table = table_of(answered, colour=colour.tolist(), size=rng.normal(size=300).tolist())
    found, tested = slices(answered, table, everything(300))
    assert (found[0]["slice"], found[0]["by"]) == ("colour = red", "column")
    assert found[0]["significant"]
    assert found[0]["rows"] == (colour == "red").sum()
    assert found[0]["score"] == pytest.approx(right[colour == "red"].mean())
    assert found[0]["rest"] == pytest.approx(right[colour != "red"].mean())
    assert found[0]["interval"][0] < found[0]["score"] < found[0]["interval"][1]
    assert not any(entry["significant"] for entry in found[1:])
    assert tested == 3 + 4 + 2  # colours, quarters, classes


def test_a_bad_class_and_a_bad_presence_pattern_are_found():
    rng, count = np.random.default_rng(1), 400
    truth, here = rng.integers(0, 2, count), rng.random(count) < 0.7
    answered = classified(rng.random(count) < np.where(truth == 1, 0.6, 0.97), truth)
    found, _ = slices(answered, table_of(answered), everything(count))
    assert (found[0]["slice"], found[0]["by"], found[0]["significant"]) == ("y is b", "class", True)
    answered = classified(rng.random(count) < np.where(here, 0.97, 0.6), truth)
    found, _ = slices(answered, table_of(answered), {"image": here, "text": np.ones(count, bool)})
    assert (found[0]["slice"], found[0]["by"], found[0]["significant"]) == ("without image", "presence", True)


def test_noise_is_seldom_called_significant(monkeypatch):
    """By the procedure of Benjamini and Hochberg under the null hypothesis, in at most 5 % of tables."""
    monkeypatch.setattr(module, "LISTED", 1)  # significant ones come first
    called = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        answered = classified(rng.random(120) < 0.8)
        columns = {f"c{i}": rng.choice(list("pqr"), 120).tolist() for i in range(4)}
        found, _ = slices(answered, table_of(answered, **columns), everything(120))
        called += any(entry["significant"] for entry in found)
    assert called <= 6


def test_small_slices_and_small_tables_are_not_tested():
    colour = ["red"] * 9 + ["green"] * 31
    answered = classified([False] * 9 + [True] * 31)
    found, _ = slices(answered, table_of(answered, colour=colour), everything(40))
    assert not [entry for entry in found if entry["by"] == "column"]
    few = classified([False] * 19)
    assert slices(few, table_of(few), everything(19)) == ([], 0)


def test_slices_of_the_same_rows_count_once_and_better_ones_are_not_listed():
    mark = ["p"] * 20 + ["q"] * 20
    answered = classified([False] * 10 + [True] * 30)
    found, tested = slices(answered, table_of(answered, one=mark, other=mark), everything(40))
    assert tested == 2 + 2
    assert [entry["slice"] for entry in found if entry["by"] == "column"] == ["one = p"]


def test_the_exact_test_is_fishers():
    for hits, drawn, all_hits, total in [(3, 10, 40, 50), (0, 12, 90, 120), (10, 10, 40, 50), (7, 30, 12, 300)]:
        table = [[hits, drawn - hits], [all_hits - hits, total - drawn - all_hits + hits]]
        wanted = stats.fisher_exact(table, alternative="less").pvalue
        assert fisher(hits, drawn, all_hits, total) == pytest.approx(wanted, rel=1e-9)


def test_the_permutation_test_agrees_with_scipys():
    rng = np.random.default_rng(5)
    values = rng.exponential(size=80)
    group = np.arange(80) < 20
    values[group] += 0.35
    ours = chances(RowScores("mae", False, values), [group], seed=0)[0]
    wanted = stats.permutation_test(
        (values[group], values[~group]),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        alternative="greater",
        n_resamples=4000,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue
    assert ours == pytest.approx(wanted, abs=0.015)
    assert chances(RowScores("mae", False, values), [group], seed=0)[0] == ours


def test_where_all_rows_are_alike_nothing_is_rare():
    same = RowScores("mae", False, np.full(40, 0.3))
    assert chances(same, [np.arange(40) < 15]).tolist() == [1.0]


def test_adjusted_p_are_those_of_scipy():
    p = np.array([0.001, 0.2, 0.013, 0.04, 0.9, 0.013])
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))


def test_every_kind_of_column_gives_slices():
    count = 40
    half = ["yes", "no"] * (count // 2)
    days = [f"2024-01-{1 + i % 28:02d}" for i in range(count)]
    words = [f"{'a fine day and more of it ' * (i % 4)}number {i}" for i in range(count)]
    assert set(by_column("nice", half)) == {"nice = yes", "nice = no"}
    assert len(by_column("day", days)) == 4
    assert all(words.startswith("day of day in ") for words in by_column("day", days))
    assert all(name.startswith("words of text in ") for name in by_column("text", words))
    numbers = by_column("x", [None] * 12 + [float(i) + 0.5 for i in range(28)])
    assert next(iter(numbers)) == "x is missing"
    assert [int(rows.sum()) for rows in numbers.values()] == [12, 7, 7, 7, 7]
    files = [None if i < 12 else f"{i}.jpg" for i in range(count)]
    assert set(by_column("image", files, media=["image"])) == {"image is missing"}
    codes = by_column("kind", ["p"] * 25 + ["q"] * 11 + ["r"] * 4)
    assert set(codes) == {"kind = p", "kind = q"}  # too few r


def test_presence_patterns():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    found = {group.words: group.rows.tolist() for group in by_presence({"a": a, "b": b})}
    assert found["every input present"] == [True, False, False, False]
    assert found["without b"] == [False, True, False, False]
    assert found["without a and b"] == [False, False, False, True]


def test_row_scores_of_each_task():
    right = row_scores(TASK, classified([True, False, True]))
    assert (right.metric, right.higher_is_better, right.values.tolist()) == ("accuracy", True, [1.0, 0.0, 1.0])
    tags, rows = Multilabel(labels=("x", "y")), np.arange(2)
    both = Masked(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool))
    exact = row_scores(tags, Answered("t", tags, rows, rows, torch.tensor([[3.0, -3.0], [3.0, 3.0]]), both, []))
    assert (exact.metric, exact.values.tolist()) == ("exact_match", [1.0, 0.0])
    price = Regress(objective="squared").fit([0.0, 4.0])
    far = row_scores(price, Answered("p", price, rows, rows, torch.zeros(2, 1), price.collate([0.0, 5.0]), []))
    assert (far.metric, far.higher_is_better) == ("mae", False)
    assert far.values.tolist() == pytest.approx([2.0, 3.0])
    several = Regress(targets=("p", "q"), objective="squared").fit([{"p": 0.0, "q": 0.0}, {"p": 4.0, "q": 20.0}])
    target = several.collate([{"p": 4.0, "q": 20.0}, {"p": 6.0, "q": None}])
    mean = row_scores(several, Answered("s", several, rows, rows, torch.zeros(2, 2), target, []))
    assert mean.metric == "mae in standard deviations"
    assert mean.values.tolist() == pytest.approx([1.0, 2.0])
    other = row_scores.dispatch(Task)(TASK, classified([True, False]))
    assert other.metric == "loss"
    assert other.values[0] < other.values[1]


def test_slices_of_numbers_and_of_several_labels():
    rng, count = np.random.default_rng(3), 120
    truth = rng.normal(size=count)
    price = Regress(objective="squared").fit(truth.tolist())
    output = torch.from_numpy((truth - price.mean[0]) / price.scale[0]).float()[:, None]
    output += 0.1 * torch.randn(count, 1, generator=torch.Generator().manual_seed(0))
    shop = np.where(np.arange(count) % 3 == 0, "north", "south")
    output[torch.from_numpy(shop == "north")] += 1.0
    rows = np.arange(count)
    answered = Answered("price", price, rows, rows, output, price.collate(truth.tolist()), truth.tolist())
    table = Table.read({"price": truth.tolist(), "shop": shop.tolist()})
    found, _ = slices(answered, table, everything(count), seed=0)
    assert (found[0]["slice"], found[0]["metric"], found[0]["significant"]) == ("shop = north", "mae", True)
    assert not found[0]["higher_is_better"]
    assert found[0]["score"] > found[0]["rest"]
    assert found == slices(answered, table, everything(count), seed=0)[0]
    tags = Multilabel(labels=("x", "y"))
    holds = torch.from_numpy(rng.random((count, 2)) < 0.5)
    logits = torch.where(holds, 4.0, -4.0)
    logits[holds[:, 1], 0] *= -1  # wrong wherever y holds
    target = Masked(holds.float(), torch.ones(count, 2, dtype=torch.bool))
    found, _ = slices(Answered("t", tags, rows, rows, logits, target, []), table, everything(count))
    assert (found[0]["slice"], found[0]["score"]) == ("t has y", 0.0)


def test_at_most_so_many_are_listed(monkeypatch):
    monkeypatch.setattr(module, "LISTED", 2)
    rng = np.random.default_rng(0)
    answered = classified(rng.random(100) < 0.7)
    columns = {f"c{i}": rng.choice(list("pqr"), 100).tolist() for i in range(5)}
    found, tested = slices(answered, table_of(answered, **columns), everything(100))
    assert (len(found), tested > 10) == (2, True)
