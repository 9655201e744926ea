import time

import numpy as np
import pytest
from pydantic import ValidationError

from polymodal.data.leakage import leakage
from polymodal.data.split import Split, split
from polymodal.data.table import Table
from polymodal.errors import DataError, SpecError


def table(**columns):
    return Table.read(columns)


def sizes(sides):
    return {side: len(rows) for side, rows in sides.items()}


def partition(sides, n):
    assert np.sort(np.concatenate(list(sides.values()))).tolist() == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 7, 100])
def test_random_parts_every_row_once(n):
    sides = split(table(a=list(range(n))), Split(valid=0.15, test=0.2 if n > 2 else 0))
    partition(sides, n)
    assert len(sides["train"]) >= 1
    assert len(sides["valid"]) == max(1, round(0.15 * n))
    assert len(sides["test"]) == (max(1, round(0.2 * n)) if n > 2 else 0)


def test_the_seed_and_nothing_else_decides():
    t = table(a=list(range(100)))
    first, again, other = (split(t, Split(seed=s))["valid"].tolist() for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_no_validation_on_request():
    assert sizes(split(table(a=[1, 2]), Split(valid=0))) == {"train": 2, "valid": 0, "test": 0}


def test_too_few_rows():
    with pytest.raises(DataError, match=r"at least 2 rows .* got 1"):
        split(table(a=[1]), Split())
    with pytest.raises(DataError, match=r"at least 3 rows .* got 2"):
        split(table(a=[1, 2]), Split(test=0.2))


@pytest.mark.parametrize("seed", range(5))
def test_stratified_keeps_shares_within_one_row(seed):
    rng = np.random.default_rng(seed)
    labels = [*rng.choice(list("abcdef"), 400, p=[0.5, 0.3, 0.1, 0.06, 0.03, 0.01]).tolist(), "once"]
    sides = split(table(y=labels), Split(valid=0.15, test=0.25, seed=seed), {"y": True})
    partition(sides, 401)
    assert (len(sides["valid"]), len(sides["test"])) == (60, 100)
    for label in set(labels):
        n = labels.count(label)
        for side, share in (("valid", 0.15), ("test", 0.25)):
            got = sum(labels[i] == label for i in sides[side])
            assert abs(got - share * n) < 1 + 1e-9 or n == 1
        assert any(labels[i] == label for i in sides["train"])
    assert 400 in sides["train"]


def test_stratified_is_the_default_for_one_class_target_only():
    t = table(y=["a"] * 90 + ["b"] * 10, z=list(range(100)))
    as_class = split(t, Split(valid=0.1), {"y": True})
    assert sum(i >= 90 for i in as_class["valid"]) == 1
    assert split(t, Split(), {"z": False})["valid"].tolist() == split(t, Split(by="random"))["valid"].tolist()
    assert split(t, Split(), {"y": True, "z": True})["valid"].tolist() == split(t, Split(by="random"))["valid"].tolist()
    by_column = split(t, Split(by="stratified", column="y", valid=0.1), {"y": True, "z": False})
    assert sum(i >= 90 for i in by_column["valid"]) == 1
    with pytest.raises(SpecError, match="column must say"):
        split(t, Split(by="stratified"), {"y": True, "z": False})


def test_stratified_with_nothing_but_rare_classes_still_validates():
    sides = split(table(y=["a", "b"]), Split(), {"y": True})
    assert sizes(sides) == {"train": 1, "valid": 1, "test": 0}


def test_groups_stay_together_and_sizes_are_near():
    rng = np.random.default_rng(0)
    who = rng.integers(0, 60, 1000).tolist()
    sides = split(table(who=who), Split(by="group", column="who", valid=0.15, test=0.2))
    partition(sides, 1000)
    people = [{who[i] for i in rows} for rows in sides.values()]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    assert abs(len(sides["valid"]) - 150) <= 1
    assert abs(len(sides["test"]) - 200) <= 1


def test_groups_find_the_exact_sum_that_greed_misses():
    who = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 8
    for seed in range(5):
        sides = split(table(who=who), Split(by="group", column="who", valid=0.35, seed=seed))
        assert len(sides["valid"]) == 7


def test_many_groups_missing_groups_and_too_few():
    who = [None, None, *range(3000), *range(3000)]
    sides = split(table(who=who), Split(by="group", column="who", valid=0.2))
    assert abs(len(sides["valid"]) - 1200) <= 2
    with pytest.raises(DataError, match="at least 2 groups, got 1"):
        split(table(who=["a", "a", "a"]), Split(by="group", column="who"))


@pytest.mark.parametrize(
    "stamp", [lambda i: i, lambda i: f"2024-01-{i + 1:02d}", lambda i: f"2024-01-01T{i:02d}:00:00+01:00", str]
)
def test_time_trains_on_the_past(stamp):
    order = np.random.default_rng(0).permutation(20)
    sides = split(table(t=[stamp(int(i)) for i in order]), Split(by="time", column="t", valid=0.2, test=0.1))
    assert sorted(order[sides["train"]]) == list(range(14))
    assert sorted(order[sides["valid"]]) == [14, 15, 16, 17]
    assert sorted(order[sides["test"]]) == [18, 19]


def test_equal_times_stay_on_one_side():
    sides = split(table(t=[1, 1, 1, 1, 2, 2, 2, 3]), Split(by="time", column="t", valid=0.2, test=0.3))
    assert [sides[s].tolist() for s in ("train", "valid", "test")] == [[0, 1, 2, 3], [4, 5, 6], [7]]
    with pytest.raises(DataError, match="at least 2 different times"):
        split(table(t=[1, 1, 1]), Split(by="time", column="t"))
    with pytest.raises(DataError, match="row 1: t must be a number, a date"):
        split(table(t=[1, "soon", 3]), Split(by="time", column="t"))


def test_given_sides_are_respected():
    t = table(part=["train", "dev", "TEST", "Validation", "train"])
    sides = split(t, Split(given="part"))
    assert [sides[s].tolist() for s in ("train", "valid", "test")] == [[0, 4], [1, 3], [2]]
    with pytest.raises(SpecError, match="no effect"):
        split(t, Split(given="part", valid=0.3))
    with pytest.raises(DataError, match="row 1: part must be train, valid or test, got None"):
        split(table(part=["train", None]), Split(given="part"))


def test_given_without_validation_takes_it_from_train():
    part = ["train"] * 20 + ["test"] * 5
    sides = split(table(part=part), Split(given="part", valid=0.2))
    assert sides["test"].tolist() == list(range(20, 25))
    assert len(sides["valid"]) == 4
    assert max(sides["valid"]) < 20
    partition(sides, 25)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"by": "random", "column": "a"}, "no effect"),
        ({"column": "a"}, "no effect"),
        ({"by": "group"}, "must name the column"),
        ({"by": "time"}, "must name the column"),
        ({"valid": 0.6, "test": 0.5}, "below 1"),
        ({"given": "a", "test": 0.1}, "no effect"),
        ({"bye": 1}, "Extra inputs"),
        ({"valid": 1.0}, "less than 1"),
    ],
)
def test_settings_without_effect_or_sense(settings, words):
    with pytest.raises(ValidationError, match=words):
        Split(**settings)


def test_unknown_column():
    with pytest.raises(DataError, match="Did you mean 'who'"):
        split(table(who=[1, 2]), Split(by="group", column="woh"))


def test_leaks_are_found_with_their_rows():
    a, b, c, d = (bytes([i]) * 16 for i in range(4))
    digests = {"image": [a, b, a, c, None, None], "text": [a, b, c, d, a, b]}
    sides = {"train": np.array([0, 1, 4]), "valid": np.array([2, 5]), "test": np.array([3])}
    leaks = {(leak.input, leak.sides): leak.rows.tolist() for leak in leakage(digests, sides)}
    assert leaks == {("image", ("train", "valid")): [[0, 2]], ("text", ("train", "valid")): [[1, 5]]}
    only = leakage(digests, sides, alone=["image"])
    assert [leak.input for leak in only] == ["image"]


def test_whole_rows_and_arrays():
    a, b = b"a" * 16, b"b" * 15 + b"\0"
    digests = {"x": [a, a, None, b, None], "y": [b, b, a, None, a]}
    sides = {"train": np.array([0, 3]), "valid": np.array([1, 2, 4])}
    found = [leak for leak in leakage(digests, sides, alone=()) if leak.input is None]
    assert [leak.rows.tolist() for leak in found] == [[[0, 1]]]
    arrays = {
        name: (np.frombuffer(b"".join(d or bytes(16) for d in column), np.uint8).reshape(-1, 16),
               np.array([d is None for d in column]))
        for name, column in digests.items()
    }  # fmt: skip
    for one, other in zip(leakage(digests, sides), leakage(arrays, sides), strict=True):
        assert (one.input, one.rows.tolist()) == (other.input, other.rows.tolist())


def test_leakage_takes_many_rows_in_its_stride():
    n = 200_000
    digests = np.random.default_rng(0).integers(0, 256, (n, 16), dtype=np.uint8)
    digests[-5:] = digests[:5]
    start = time.process_time()
    leaks = leakage({"x": (digests, np.zeros(n, bool))}, {"train": np.arange(n // 2), "valid": np.arange(n // 2, n)})
    assert leaks[0].rows.tolist() == [[i, n - 5 + i] for i in range(5)]
    assert time.process_time() - start < 5
