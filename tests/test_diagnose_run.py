"""Diagnose, end to end: models trained on tables whose answer is known, and a verdict that names each input right."""

import json
import math
from dataclasses import asdict
from functools import cache

import numpy as np
import pytest
import torch

import polymodal as pm
import toys
from polymodal import evaluate
from polymodal.baselines import fit_baselines
from polymodal.data.embedding import Embedder
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.diagnose import run
from polymodal.diagnose.run import Diagnosis, diagnose
from polymodal.errors import DataError, SpecError
from polymodal.learn import Learner
from polymodal.model import Model
from polymodal.train import Trainer
from polymodal.types import Masked

CPU = torch.device("cpu")
TRAINING = {"epochs": 12, "learning_rate": 2e-2, "batch_size": 100, "refit": 0}
SIZES = {"train": 400, "valid": 200, "test": 300}


def signal(label, g, noise, scale=1.0):
    """Two numbers per row, the first of them about -1 or 1."""
    values = noise * torch.randn(len(label), 2, generator=g)
    values[:, 0] += 2.0 * label - 1
    return scale * values


def flipped(label, g, rate):
    return torch.where(torch.rand(len(label), generator=g) < rate, 1 - label, label)


def xor(y, g, side):
    a = torch.randint(2, y.shape, generator=g)
    return {"a": signal(a, g, 0.1), "b": signal((a + y) % 2, g, 0.1)}


def good(y, g, side):
    return {"a": signal(flipped(y, g, 0.05), g, 1.2), "b": signal(flipped(y, g, 0.05), g, 1.2)}


def copy(y, g, side):
    a = signal(y, g, 0.7)
    return {"a": a, "b": a + 0.05 * torch.randn(a.shape, generator=g)}


def useless(y, g, side):
    return {"a": signal(y, g, 0.8), "b": torch.randn(len(y), 2, generator=g)}


def harmful(y, g, side):
    """Input b is the label in training and validation, and a coin elsewhere."""
    b = torch.randint(2, y.shape, generator=g) if side == "test" else y
    return {"a": signal(y, g, 0.8), "b": signal(b, g, 0.3)}


def slow(y, g, side):
    """A large number that is right in 3 of 4 rows, and a tiny one that is right in 19 of 20."""
    return {"fast": signal(flipped(y, g, 0.25), g, 0.1, 3.0), "slow": signal(flipped(y, g, 0.05), g, 0.1, 0.01)}


SIDES = {side: i for i, side in enumerate(SIZES)}


def rows_of(scene, number, side, rows=None):
    """Inputs (n, 2) by name, and labels (n,)."""
    g = torch.Generator().manual_seed(100 * number + SIDES[side])
    y = torch.randint(2, (rows or SIZES[side],), generator=g)
    return scene(y, g, side), y


def table_of(scene, number, side="test", rows=None):
    inputs, y = rows_of(scene, number, side, rows)
    return Table.read({name: values.tolist() for name, values in inputs.items()} | {"y": y.tolist()})


def prepared_of(scene, number, side):
    inputs, y = rows_of(scene, number, side)
    known = torch.ones(len(y), 1, dtype=torch.bool)
    return toys.prepared({n: Masked(x[:, None], known) for n, x in inputs.items()}, {"y": Masked(y[:, None], known)})


@cache
def trained(scene, number, whole):
    """A model as `Learner` gives it; without ``whole``, the fusion model alone: no own heads trained, no blend."""
    training = TRAINING if whole else TRAINING | {"balance": "none"}
    sides = {side: prepared_of(scene, number, side) for side in ("train", "valid")}
    spec = toys.spec(tuple(sides["train"].inputs), training=training, seed=number)
    if whole:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate, "REPEATS", 2)  # the report on validation rows is not looked at
            learned = Learner(spec, CPU, None, "test", lambda *_: None).learn(sides["train"], sides["valid"])
        return learned.model, learned.history
    torch.manual_seed(number)
    model = Model(spec)
    history = Trainer(model, sides["train"], sides["valid"], CPU).run()
    fit_baselines(model, sides["train"], sides["valid"], CPU)
    return model, history


def diagnosed(scene, number, whole=True, table=None, **options):
    model, history = trained(scene, number, whole)
    table = table_of(scene, number) if table is None else table
    embedder = Embedder(model.spec, CPU, None)
    prepared = prepare(model.spec, table, embedder)
    fit_report = {"history": [asdict(epoch) for epoch in history]}
    options = {"curve_rows": 0} | options
    return diagnose(model, prepared, table, embedder, CPU, fit_report=fit_report, **options)


def kinds(diagnosis):
    return {entry["input"]: entry["kind"] for entry in diagnosis.content["verdict"]}


def careful(read):
    """A `Vectors.read` that says what is wrong with a cell that does not fit."""

    def reading(self, content):
        if len(content) % self.width:
            raise DataError(f"vector must have {self.width} numbers, got {len(content)}.")
        return read(self, content)

    return reading


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize(
    ("scene", "expected", "weakest"),
    [
        (xor, {"a": "fine", "b": "fine"}, None),
        (good, {"a": "fine", "b": "fine"}, None),
        (copy, {"a": "redundant", "b": "redundant"}, None),
        (useless, {"a": "fine", "b": "unused"}, None),
        (harmful, {"a": "fine", "b": "harmful"}, None),
        (slow, {"fast": "fine", "slow": "under-trained"}, "slow"),
    ],
)
def test_the_verdict_names_each_input_right(scene, expected, weakest, number, monkeypatch):
    monkeypatch.setattr(run, "problems", lambda *_, **__: None)  # takes time, and the verdict does without
    found = diagnosed(scene, number, whole=scene is not slow)
    assert kinds(found) == expected
    assert found.content["weakest"] == weakest


def test_exclusive_or_is_a_synergy_of_two_inputs_that_say_nothing_alone():
    content = diagnosed(xor, 0).content
    task = content["tasks"]["y"]
    assert task["score"] > 0.97
    assert [entry["inputs"] for entry in task["subsets"]] == [[], ["a"], ["b"], ["a", "b"]]
    assert all(entry["score"] < 0.6 for entry in task["subsets"][:3])
    (pair,) = task["pairs"]
    assert pair["kind"] == "synergy"
    assert pair["interaction"] == pytest.approx(0.5, abs=0.1)
    for name in "ab":
        seen = task["inputs"][name]
        assert seen["contribution"]["value"] > 0.35
        assert seen["ceiling"]["score"] < 0.6
        assert seen["permuted"]["score"] == pytest.approx(0.5, abs=0.07)
        assert not seen["shapley"]["noise"]
    assert "a and b only work together" in content["summary"]


def test_a_copy_is_a_redundancy_of_two_inputs_that_say_all_alone():
    task = diagnosed(copy, 0).content["tasks"]["y"]
    (pair,) = task["pairs"]
    assert (pair["kind"], pair["noise"]) == ("redundancy", False)
    for name in "ab":
        assert task["inputs"][name]["alone"]["score"] > 0.85
        assert task["inputs"][name]["contribution"]["value"] == pytest.approx(0.0, abs=0.02)


def test_what_the_blend_repairs_is_no_longer_weak():
    """The linear model of the whole answer uses the slow input: now the fast one adds nothing to it."""
    found = diagnosed(slow, 0)
    assert kinds(found) == {"fast": "redundant", "slow": "fine"}


def test_the_numbers_add_up():
    content = diagnosed(good, 1).content
    task = content["tasks"]["y"]
    a, b = task["inputs"]["a"], task["inputs"]["b"]
    assert a["shapley"]["value"] + b["shapley"]["value"] == pytest.approx(task["score"] - task["chance"])
    assert a["contribution"]["value"] == pytest.approx(task["score"] - b["alone"]["score"])
    assert a["without"] == pytest.approx(b["alone"]["score"])
    assert a["gain"]["value"] == pytest.approx(a["alone"]["score"] - task["chance"])
    assert a["headroom"]["value"] == pytest.approx(a["ceiling"]["score"] - a["alone"]["score"])
    low, high = task["interval"]
    assert low < task["score"] < high
    assert task["score"] == task["scores"]["accuracy"]


def test_chance_needs_no_input_however_badly_the_model_does_without_any():
    model, _ = trained(useless, 0, True)
    table = table_of(useless, 0)
    y = [1 if i % 4 else label for i, label in enumerate(table.column("y"))]
    table = table.with_column("y", y)
    content = diagnosed(useless, 0, table=table).content["tasks"]["y"]
    prepared = prepare(model.spec, table, Embedder(model.spec, CPU, None))
    majority = float(prepared.targets["y"].values.float().mean())
    assert content["chance"] == pytest.approx(max(majority, content["hidden"]))
    assert majority > 0.8
    assert content["subsets"][0]["score"] == content["chance"]


def test_less_is_better_of_errors():
    task = diagnosed(useless, 0, metric="nll").content["tasks"]["y"]
    assert (task["metric"], task["higher_is_better"]) == ("nll", False)
    assert task["inputs"]["a"]["contribution"]["value"] > 0.2
    assert task["inputs"]["a"]["without"] > task["score"]
    assert kinds(diagnosed(useless, 0, metric="nll"))["a"] == "fine"


def test_every_option_changes_what_it_says():
    table = table_of(good, 0, rows=120)
    plain = diagnosed(good, 0, table=table).content
    task = plain["tasks"]["y"]
    more = diagnosed(good, 0, table=table, repeats=50).content["tasks"]["y"]
    other = diagnosed(good, 0, table=table, seed=5).content["tasks"]["y"]
    curved = diagnosed(good, 0, table=table, curve_rows=20).content["tasks"]["y"]
    assert more["interval"] != task["interval"] != other["interval"]
    assert more["score"] == other["score"] == task["score"]
    assert "curves" not in task["inputs"]["a"]
    removed = curved["inputs"]["a"]["curves"]["removed"]
    assert removed["steps"][-1]["score"] == pytest.approx(curved["inputs"]["b"]["alone"]["score"])
    spec = trained(good, 0, True)[0].spec
    train = prepare(spec, table_of(good, 0, rows=60), Embedder(spec, CPU, None))
    leaky = diagnosed(good, 0, table=table_of(good, 0, rows=60), train=train).content
    assert leaky["problems"]["leakage"]
    assert not plain["problems"]["leakage"]


def test_the_same_call_says_the_same():
    one, again = (diagnosed(copy, 1).to_dict() for _ in range(2))
    one.pop("cpu_seconds"), again.pop("cpu_seconds")
    assert one == again


def test_it_is_json_and_prints_the_verdict_first():
    found = diagnosed(slow, 0, whole=False, curve_rows=8)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    assert set(found.content) >= {
        "source", "rows", "inputs", "kinds", "seed", "settings", "cpu_seconds", "tasks", "learning", "problems",
        "verdict", "weakest", "summary",
    }  # fmt: skip
    text = str(found)
    assert text == str(Diagnosis(found.to_dict()))
    assert text.startswith("fast: fine.")
    assert "Try: polymodal improve model/ train.csv --input slow" in text
    for words in ("y (accuracy, 300 rows)", "ceiling", "Shapley", found.content["summary"], "everything .7"):
        assert words in text


def test_unlabelled_rows_are_left_out_and_a_table_without_labels_is_an_error():
    table = table_of(useless, 0, rows=100)
    half = table.with_column("y", [y if i < 60 else None for i, y in enumerate(table.column("y"))])
    content = diagnosed(useless, 0, table=half).content
    assert content["rows"] == content["tasks"]["y"]["rows"] == 60
    none = table.with_column("y", [None] * 100)
    with pytest.raises(DataError, match="must have labelled rows to diagnose on, got none"):
        diagnosed(useless, 0, table=none)
    with pytest.raises(SpecError, match="metric must be one of"):
        diagnosed(useless, 0, metric="accurate")


def test_an_absent_input_is_unused_and_broken_cells_make_one_noisy():
    table = table_of(useless, 0, rows=100)
    torn = table.with_column("a", [[1.0, 2.0, 3.0] if i % 4 == 0 else cell for i, cell in enumerate(table.column("a"))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys.Vectors, "read", careful(toys.Vectors.read))
        content = diagnosed(useless, 0, table=torn).content
    assert content["tasks"]["y"]["inputs"]["a"]["broken"] == 0.25
    assert content["verdict"][0]["kind"] == "noisy"
    assert "25 % of its cells could not be read" in content["verdict"][0]["text"]
    gone = table.with_column("b", [None] * 100)
    content = diagnosed(useless, 0, table=gone).content
    assert content["tasks"]["y"]["inputs"]["b"]["present"] == 0.0
    assert content["tasks"]["y"]["inputs"]["b"]["permuted"] is None
    assert content["verdict"][1]["text"] == "b: unused. It is absent from every row."


def test_progress_is_told():
    told = set()
    diagnosed(copy, 0, progress=lambda what, done, total: told.add((what, done == total)))
    assert {("subsets", True), ("subsets", False), ("permuted inputs", True)} <= told


def test_broken_cells_of_one_column_do_not_stand_for_the_row():
    """A third of one of three columns is a ninth of the cells."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 90)
    rows = {name: (rng.normal(size=90) + 3 * y * (name == "p")).tolist() for name in ("p", "q", "r")}
    rows["y"] = y.tolist()
    inputs = {"t": {"type": "table", "numbers": ["p", "q", "r"]}}
    bundle = pm.fit({"inputs": inputs, "outputs": {"y": "classify"}, "dim": 8}, rows, cache=False)
    torn = rows | {"q": [value if i % 3 else "torn" for i, value in enumerate(rows["q"])]}
    content = bundle.diagnose(torn, curve_rows=0).content
    assert content["tasks"]["y"]["inputs"]["t"]["broken"] == pytest.approx(1 / 9)
    assert content["verdict"][0]["kind"] == "fine"


@pytest.mark.parametrize("wrong", [{"repeats": 1}, {"curve_rows": -1}, {"seed": -1}])
def test_numbers_that_are_too_low_are_refused(wrong):
    with pytest.raises(SpecError, match=f"{next(iter(wrong))} must be"):
        diagnosed(useless, 0, **wrong)


def test_what_is_not_finite_is_none_in_json():
    content = {"a": math.inf, "b": [math.nan, 1.0]}
    assert Diagnosis(content).to_dict() == {"a": None, "b": [None, 1.0]}
