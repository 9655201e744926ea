"""Worst rows, label errors, copies and leaks: planted faults are found, and clean data is left alone."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
import toys
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.diagnose import labels, neighbours
from polymodal.diagnose import problems as module
from polymodal.diagnose.problems import problems
from polymodal.diagnose.rows import Answered, comparable, contradict, plain, quarters
from polymodal.evaluate import answers
from polymodal.model import Model
from polymodal.spec import Spec
from polymodal.task import Task
from polymodal.tasks.classify import Classify
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.types import Masked

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle():
    return tiny.fitted(outputs={"label": "classify", "price": "regress", "tags": "multilabel"})


def full(*columns):
    return Masked(torch.stack([torch.as_tensor(c) for c in columns], 1), torch.ones(len(columns[0]), len(columns)) > 0)


def answered(task, output, target, given=None):
    rows = np.arange(len(output))
    given = [None] * len(rows) if given is None else given
    return Answered("y", task, rows, rows, torch.as_tensor(output).float(), target, given)


def rows_of(bundle, columns):
    table = Table.read(columns)
    return table, prepare(bundle.spec, table, bundle.embedder.without_store())


def test_it_is_json_with_every_part_of_the_contract(bundle):
    table, prepared = rows_of(bundle, tiny.columns(60))
    found = problems(bundle.model, prepared, table, CPU, train=prepared.select(np.arange(5)))
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"worst", "labels", "conflicts", "leakage", "slices", "notes"}
    assert all(set(found[part]) == {"label", "price", "tags"} for part in ("worst", "labels", "slices"))
    assert found == problems(bundle.model, prepared, table, CPU, train=prepared.select(np.arange(5)))


def test_worst_rows_are_those_of_largest_loss_and_say_what_each_input_would_have_cost(bundle):
    columns = tiny.columns(40)
    columns["label"][3], columns["text"][7] = "b" if columns["label"][3] == "a" else "a", None
    table, prepared = rows_of(bundle, columns)
    some = prepared.select(np.arange(2, 40))  # row numbers stay those of the table
    seen = answers(bundle.model, some, CPU)
    task = bundle.spec.outputs["label"]
    loss = {
        int(row): float(task.loss(seen.outputs["label"][[i]], seen.targets["label"][[i]]))
        for i, row in enumerate(some.rows)
    }
    worst = problems(bundle.model, some, table, CPU)["worst"]["label"]
    assert [entry["row"] for entry in worst] == sorted(loss, key=lambda row: -loss[row])[: module.WORST]
    assert all(entry["loss"] == pytest.approx(loss[entry["row"]]) for entry in worst)
    assert all(entry["truth"] == columns["label"][entry["row"]] for entry in worst)
    entry = next(entry for entry in worst if entry["row"] == 3)
    assert entry["predicted"] in "ab"
    assert list(entry["by_input"]) == ["text", "table"]
    alone = answers(bundle.model, prepared.select([3]), CPU, ["table"])
    assert entry["by_input"]["text"] == pytest.approx(float(task.loss(alone.outputs["label"], alone.targets["label"])))
    assert all("text" not in entry["by_input"] for entry in worst if entry["row"] == 7)


def test_rows_without_a_label_are_left_out(bundle):
    columns = tiny.columns(40)
    columns["label"][:30] = [None] * 30
    table, prepared = rows_of(bundle, columns)
    found = problems(bundle.model, prepared, table, CPU)
    assert {entry["row"] for entry in found["worst"]["label"]} == set(range(30, 40))
    columns["label"] = [None] * 40
    table, prepared = rows_of(bundle, columns)
    found = problems(bundle.model, prepared, table, CPU)
    assert (found["worst"]["label"], found["slices"]["label"]) == ([], [])
    assert "unavailable" in found["labels"]["label"]


def test_flipped_classes_are_found():
    task, rng = Classify(classes=("a", "b", "c")), np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    given, wrong = truth.copy(), np.arange(0, 300, 10)
    given[wrong] = (truth[wrong] + 1) % 3
    output = 6.0 * np.eye(3)[truth] + 0.1 * rng.normal(size=(300, 3))
    found = labels.label_errors(answered(task, output, full(given), [task.classes[k] for k in given]))
    rows = {entry["row"] for entry in found}
    assert rows <= set(wrong.tolist())
    assert len(rows) >= 25
    assert all(entry["given"] == task.classes[given[entry["row"]]] for entry in found)
    assert all(entry["suggested"] == task.classes[truth[entry["row"]]] for entry in found)
    assert [entry["quality"] for entry in found] == sorted(entry["quality"] for entry in found)
    clean = answered(task, output, full(truth), [task.classes[k] for k in truth])
    assert labels.label_errors(clean) == []


def test_a_flipped_label_of_many_is_found():
    task, rng = Multilabel(labels=("x", "y", "z")), np.random.default_rng(1)
    truth = rng.random((200, 3)) < 0.4
    given = truth.copy()
    given[11] = ~truth[11]
    output = 8.0 * truth - 4.0 + rng.normal(size=truth.shape) * 0.3
    found = labels.label_errors(answered(task, output, full(*torch.tensor(given.T).float())))
    assert [entry["row"] for entry in found] == [11]
    assert found[0]["suggested"] == [name for name, yes in zip(task.labels, truth[11], strict=True) if yes]


@pytest.mark.parametrize("block", [2000, 60])
def test_a_wrong_number_is_found(monkeypatch, block):
    monkeypatch.setattr(labels, "BLOCK", block)
    rng = np.random.default_rng(2)
    truth = rng.normal(size=150)
    given = truth.copy()
    given[17] += 12.0
    task = Regress(objective="squared").fit(given.tolist())
    output = (truth + 0.1 * rng.normal(size=150) - task.mean[0]) / task.scale[0]
    found = labels.label_errors(answered(task, output[:, None], task.collate(given.tolist()), given.tolist()))
    assert found[0]["row"] == 17
    assert len(found) <= 3
    assert found[0]["given"] == pytest.approx(given[17])
    assert found[0]["suggested"] == pytest.approx(truth[17], abs=0.5)


def test_where_label_errors_cannot_be_had_the_reason_is_given(monkeypatch):
    one_class = answered(Classify(classes=("a", "b")), np.zeros((30, 2)), full(np.zeros(30, int)))
    assert "two classes" in labels.label_errors(one_class)["unavailable"]
    several = Regress(targets=("p", "q"), objective="squared").fit([{"p": 1, "q": 2}, {"p": 3, "q": 1}])
    two = answered(several, np.zeros((30, 2)), full(np.zeros(30), np.ones(30)))
    assert "not for 2 together" in labels.label_errors(two)["unavailable"]
    number = Regress(objective="squared").fit([1.0, 2.0])
    assert "20 rows" in labels.label_errors(answered(number, np.zeros((5, 1)), full(np.zeros(5))))["unavailable"]
    assert "not for" in labels.find.dispatch(Task)(SimpleNamespace(kind="other"), one_class, 0)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    assert labels.label_errors(one_class) == {"unavailable": "Run: pip install 'polymodal[diagnose]'"}


def vectors(values, target, absent=()):
    """A model of inputs a and b, its rows, and their table; b is noise."""
    generator = torch.Generator().manual_seed(3)
    here = torch.ones(len(values), 1, dtype=torch.bool)
    gone = here.clone()
    gone[list(absent)] = False
    b = Masked(torch.randn(len(values), 1, 2, generator=generator), here)
    prepared = toys.prepared({"a": Masked(values[:, None], gone), "b": b}, {"y": full(target)})
    return prepared, Table.read({"y": target.tolist()})


def wide(width=24):
    mapping = {"a": {"type": "test-vectors", "width": width}, "b": "test-vectors"}
    return Model(Spec.parse({"inputs": mapping, "outputs": {"y": toys.BINARY}, "dim": 8})).eval()


def copies(count=60, width=24):
    """Rows 10 and 40 nearly the same, 20 and 50 nearly the same; labels differ in the first pair only."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, width, generator=generator), torch.arange(count) % 2
    x[40], x[50] = x[10] + 0.01, x[20] + 0.01
    y[40], y[50] = 1 - y[10], y[20]
    return x, y


@pytest.mark.parametrize("exact", [4000, 0])
def test_near_copies_with_other_labels_are_found_exactly_and_along_random_directions(monkeypatch, exact):
    monkeypatch.setattr(neighbours, "EXACT", exact)
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    x, y = copies(width=100)
    prepared, table = vectors(x, y)
    found = problems(wide(100), prepared, table, CPU)
    mine = [entry for entry in found["conflicts"] if entry["input"] == "a"]
    assert [entry["rows"] for entry in mine] == [[10, 40]]
    assert mine[0]["labels"] == y[[10, 40]].tolist()
    assert 0.99 < mine[0]["similarity"] <= 1.0
    assert any("random directions" in note for note in found["notes"]) == (exact == 0)


def test_an_absent_input_has_no_copies():
    x, y = copies()
    prepared, table = vectors(x, y, absent=[40])
    found = problems(wide(), prepared, table, CPU)["conflicts"]
    assert not [entry for entry in found if entry["input"] == "a"]


def test_similarity_is_the_cosine_of_equal_lengths_and_less_for_others():
    raw = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [3.0, 0.0], [-3.0, 0.0]])
    one = neighbours.Features.of(raw, torch.ones(6, dtype=torch.bool), 0)
    like = one.similarity(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 2, 4]))
    assert like.tolist() == pytest.approx([1.0, -1.0, 0.0, 2 * 3 / 10])


def test_identical_rows_with_other_labels_are_found_by_their_content(bundle):
    columns = tiny.columns(40)
    for name in ("text", "x", "colour", "price", "tags"):
        columns[name][9] = columns[name][4]
    columns["label"][4], columns["label"][9] = "a", "b"
    table, prepared = rows_of(bundle, columns)
    whole = [c for c in problems(bundle.model, prepared, table, CPU)["conflicts"] if c["input"] is None]
    assert [(c["task"], c["rows"], c["labels"]) for c in whole] == [("label", [4, 9], ["a", "b"])]


def test_a_text_that_repeats_stands_once_for_all_its_copies(bundle):
    columns = tiny.columns(40)
    columns["text"] = ["red apple pie" if i < 20 else f"old iron bridge {i}" for i in range(40)]
    table, prepared = rows_of(bundle, columns)
    found = problems(bundle.model, prepared, table, CPU)["conflicts"]
    same = [c for c in found if c["input"] == "text" and c["task"] == "label" and max(c["rows"]) < 20]
    assert [c["rows"] for c in same] == [[0, 1]]


def test_numbers_contradict_only_beyond_a_standard_deviation_and_where_both_are_known():
    task = Regress(targets=("p", "q"), objective="squared")
    task = task.fit([{"p": 0.0, "q": 0.0}, {"p": 2.0, "q": 2.0}])
    target = task.collate([{"p": 0.0, "q": 1.0}, {"p": 1.9, "q": None}, {"p": 0.9, "q": 1.0}, {"p": None, "q": 5.0}])
    values, tolerance = comparable(task, target)
    first = values[:1].expand(4, -1)
    assert contradict(first, values, tolerance).tolist() == [False, True, False, True]
    assert not contradict(values[1:2], values[3:4], tolerance).any()  # they share no target


def test_leaks_from_training_are_told_exact_and_near(bundle):
    columns = tiny.columns(40)
    train = {name: values[:20] for name, values in columns.items()}
    test = {name: values[20:] for name, values in columns.items()}
    for name, values in test.items():
        values[5] = train[name][8]
    table, prepared = rows_of(bundle, test)
    _, learned = rows_of(bundle, train)
    lines = problems(bundle.model, prepared, table, CPU, train=learned)["leakage"]
    assert any(line.startswith("whole rows: 1 rows are in training too (row 5 = training row 8") for line in lines)
    assert any(line.startswith("text: 1 rows are in training too (row 5 = training row 8") for line in lines)
    assert not any(line.startswith("table") for line in lines)  # rows of a table may be alike
    assert problems(bundle.model, prepared, table, CPU)["leakage"] == []


def test_a_near_copy_in_training_is_a_leak():
    x, y = copies()
    prepared, table = vectors(x, y)
    found = problems(wide(), prepared.select(np.arange(30, 60)), table, CPU, train=prepared.select(np.arange(30)))
    line = next(line for line in found["leakage"] if line.startswith("a: "))
    assert "2 rows are nearly in training" in line
    assert "row 40 = training row 10" in line
    assert "row 50 = training row 20" in line


def test_many_rows_are_sampled_and_that_is_said(monkeypatch):
    x, y = copies(200)
    prepared, table = vectors(x, y)
    monkeypatch.setattr(module, "MOST", 120)
    monkeypatch.setattr(neighbours, "PAIRED", 50)
    model = wide()
    found = problems(model, prepared, table, CPU)
    assert "rows: a random sample of 120 of 200" in found["notes"]
    assert "near copies: sought among a random sample of 50 rows" in found["notes"]
    assert found == problems(model, prepared, table, CPU) != problems(model, prepared, table, CPU, seed=1)


def test_cells_become_json():
    class Odd:
        def __str__(self):
            return "odd"

    cells = [np.float32(1.5), np.int64(3), None, True, float("nan"), {"a": {1}}, np.array([1, 2]), Odd()]
    assert plain(cells) == [1.5, 3, None, True, "nan", {"a": [1]}, [1, 2], "odd"]


def test_quarters_keep_equal_values_together_and_leave_missing_ones_out():
    values = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, np.nan])
    found = quarters("x", values)
    assert sum(int(rows.sum()) for rows in found.values()) == 7
    first = next(iter(found.items()))
    assert first[0].startswith("x in 0 to 0")
    assert first[1].sum() == 4
    assert quarters("x", np.array([np.nan])) == {}
