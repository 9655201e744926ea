"""Inputs of words, and outputs that are no vector, through everything that a bundle is asked: three tiny ones."""

import json
import math
import subprocess
import sys

import jsonschema_rs
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import polymodal as pm
import tiny
from polymodal.card import card
from polymodal.data.loader import prepare
from polymodal.diagnose.losses import chances, losses, reciprocal_ranks, searches
from polymodal.diagnose.rows import Answered, classes, comparable, contradict, row_scores
from polymodal.diagnose.scores import Scorer
from polymodal.diagnose.weighing import rules
from polymodal.evaluate import answers
from polymodal.exporting.run import difference as exported_difference
from polymodal.report.page import page
from polymodal.server.app import create_app
from polymodal.server.form import outputs as told
from polymodal.server.schemas import prediction
from polymodal.server.settings import Settings
from polymodal.server.tensors import outputs as tensors
from polymodal.tasks.match import Match
from polymodal.tracing.answer import difference
from polymodal.trials.agreement import Reference

PEOPLE, PLACES = ("Ada", "Grace", "Alan", "Linus"), ("Oslo", "Rome", "Lima", "Kyiv")
WORDS = {"type": "words", "backbone": "none", "min_count": 1}
SPECS = {
    "tagged": ({"words": WORDS, "image": tiny.SCRATCH["image"]}, {"tags": "tag"}),
    "matched": ({"text": tiny.SCRATCH["text"], "image": tiny.SCRATCH["image"]}, {"pair": {"type": "match"}}),
    "both": ({"words": WORDS}, {"topic": "classify", "tags": "tag"}),
}
EPOCHS = {"both": 12}
NAMES = list(SPECS)
TEXT = "Ada Smith, dearest, lives in Oslo. \U0001f600 Linus too"


def columns(rows: int = 32) -> dict[str, list]:
    """Sentences with names and places, what they are about, and pictures that go with it."""
    dice, found = np.random.default_rng(3), {name: [] for name in ("words", "tags", "text", "image", "topic", "size")}
    for i in range(rows):
        who, where = [str(dice.choice(PEOPLE)), "Smith"][: 1 + i % 2], str(dice.choice(PLACES))
        words, tags = ["the", "train", "to", where, "is", "late"], ["O", "O", "O", "B-LOC", "O", "O"]
        if i % 3:
            words = [*who, "lives", "in", where]
            tags = [*("B-PER", "I-PER")[: len(who)], "O", "O", "B-LOC"]
        row = (words, tags, " ".join(words), tiny.picture(i, bool(i % 3)), "people" if i % 3 else "travel", i % 5)
        for column, cell in zip(found.values(), row, strict=True):
            column.append(cell)
    return found


def spec(name: str, **more) -> dict:
    inputs, outputs = SPECS[name]
    return {
        "inputs": inputs,
        "outputs": outputs,
        "dim": 16,
        "training": {"epochs": EPOCHS.get(name, 4), "batch_size": 8},
        **more,
    }


@pytest.fixture(scope="session")
def bundles():
    """The three, fitted when they are first asked for."""
    made = {}

    def get(name: str) -> pm.Bundle:
        if name not in made:
            made[name] = pm.fit(spec(name), columns(), cache=False)
        return made[name]

    return get


@pytest.fixture(scope="session")
def saved(bundles, tmp_path_factory):
    def place(name: str):
        path = tmp_path_factory.getbasetemp() / f"kinds-{name}"
        return path if path.exists() else bundles(name).save(path)

    return place


@pytest.fixture(scope="session", params=NAMES)
def bundle(request, bundles):
    return bundles(request.param)


each = pytest.mark.parametrize("name", NAMES)


def answered(bundle, task):
    """A task's labelled rows, all of them."""
    table = pm.Table.read(columns())
    prepared = prepare(bundle.spec, table, bundle.embedder)
    return Answered.of(task, bundle.spec, answers(bundle.model, prepared, bundle.device), prepared, table)


def test_predictions_are_json_and_each_row_is_answered_alike_by_itself(bundle):
    rows = pm.Table.read(columns(5))
    together = bundle.predict(rows)
    assert json.loads(json.dumps(together)) == together
    for i in range(5):
        [one] = bundle.predict(rows.select([i]))
        assert Reference([together[i]], 1e-5).agrees(Reference([together[i]], 1e-5).compare(0, one))


def test_entities_stand_in_the_text_where_they_are_said_to(bundles):
    [row] = bundles("tagged").predict([{"words": TEXT}])
    for entity in row["tags"]["entities"]:
        assert TEXT[entity["start"] : entity["end"]] == entity["text"]
    assert len(row["tags"]["tags"]) == len(row["tags"]["gates"])


@pytest.mark.parametrize("cells", [{}, {"image": None}, {"text": ""}])
@each
def test_a_row_without_what_a_task_is_about_gets_an_empty_answer(bundles, name, cells):
    [row] = bundles(name).predict([{"words": None, "text": None, "image": None} | cells])
    if name == "matched":
        assert row["pair"] == {"similarity": None, "pairs": {}}
    else:
        assert row["tags"]["entities"] == [] == row["tags"]["tags"] == row["tags"]["words"]


def test_columns_of_a_file_hold_entities_as_json_and_pairs_where_there_are_any(bundles, tmp_path):
    found = bundles("tagged").predict([{"words": TEXT}, {"words": None, "image": tiny.picture(0)}])
    cells = found.to_columns()
    assert [json.loads(cell) for cell in cells["tags"]] == [row["tags"]["entities"] for row in found]
    rows = pm.Table.read(columns(2))
    part = bundles("matched").predict([dict.fromkeys(("text", "image")), {c: rows.column(c)[1] for c in rows.columns}])
    assert part.to_columns()["pair.pairs.text-image"][0] is None
    for ending in ("csv", "jsonl", "parquet"):
        for one in (found, part):
            pm.write_table(one.to_columns(), tmp_path / f"x.{ending}")
            assert len(pm.Table.read(tmp_path / f"x.{ending}")) == 2


def test_evaluation_and_its_page_and_card(bundle):
    report, outputs = bundle.evaluate(columns()), bundle.spec.outputs
    for task, part in outputs.items():
        assert f"{task} ({part.kind}, 32 rows)" in str(report)
    linear = sum("linear model's share" in block for block in str(report).split("\n\n"))
    assert linear == ("topic" in outputs)  # nothing is said of what a task does not have
    assert ("only text" in str(report)) is False or "pair" not in outputs
    titles = {
        "tags": ("Entities per type", "Words per tag", "Words, means over tags"),
        "pair": ("Retrieval, each way",),
    }
    drawn = page({"test": report.to_dict(), "data": report.to_dict()["data"]})
    assert all(title in drawn for task in outputs for title in titles.get(task, ()))
    shown = card(bundle.spec, bundle.report)
    assert ("tags, for each word of words" in shown) == ("tags" in outputs)
    assert ("none: text and image of one row" in shown) == ("pair" in outputs)


@pytest.fixture(scope="session")
def diagnosed(bundles):
    made = {}

    def get(name: str) -> dict:
        if name not in made:
            table = columns() | {"tags": [*columns()["tags"][:-1], None]}
            made[name] = (
                bundles(name).diagnose(table, train=columns(8), curve_rows=4 * (name == "both"), repeats=10).to_dict()
            )
        return made[name]

    return get


@each
def test_diagnosis_is_whole_and_drawn(bundles, diagnosed, name, tmp_path):
    found, bundle = diagnosed(name), bundles(name)
    assert found["tasks"].keys() == bundle.spec.outputs.keys()
    for task in found["tasks"].values():
        assert task["inputs"].keys() == bundle.spec.inputs.keys()
        assert math.isfinite(task["score"])
        assert math.isfinite(task["floor"]["score"])
    assert pm.save_diagnosis(found, tmp_path / "page.html").stat().st_size > 10_000
    assert str(pm.Diagnosis(found))


def test_a_match_is_worth_what_chance_finds_without_two_sides(diagnosed):
    [task] = diagnosed("matched")["tasks"].values()
    assert task["hidden"] == pytest.approx(1 / 32, abs=0.01) == task["floor"]["score"]
    assert task["floor"]["by"] == "random"
    for seen in task["inputs"].values():
        assert seen["gain"]["value"] == 0
        assert seen["own_head"] is None
        assert seen["linear"] is None
        assert seen["shapley"]["value"] == pytest.approx(task["lift"]["value"] / 2)


def test_words_are_all_that_tags_rest_on_and_curves_fall(diagnosed):
    inputs = diagnosed("tagged")["tasks"]["tags"]["inputs"]
    assert inputs["image"]["own_head"] is None
    assert inputs["image"]["alone"]["score"] == 0
    curves = diagnosed("both")["tasks"]["tags"]["inputs"]["words"]["curves"]
    assert curves["removed"]["steps"][-1]["score"] == 0 < curves["removed"]["clean"]
    assert {"typos", "lowercase"} < curves.keys()


@each
def test_problems_are_listed_without_inventing_any(diagnosed, name):
    problems = diagnosed(name)["problems"]
    if name == "matched":
        assert problems["conflicts"] == []
        assert "not for match" in problems["labels"]["pair"]["unavailable"]
        assert all(row["by_input"] == {} for row in problems["worst"]["pair"])
        assert [row["truth"] for row in problems["worst"]["pair"]] == [row["row"] for row in problems["worst"]["pair"]]
    else:
        assert isinstance(problems["labels"]["tags"], list)
        assert all(len(row["predicted"]) == len(row["truth"]) for row in problems["worst"]["tags"])
        assert all(row["row"] != 31 for row in problems["worst"]["tags"])


@each
def test_weighted_metrics_equal_those_of_the_rows_themselves(bundles, name):
    for task, part in bundles(name).spec.outputs.items():
        seen = answered(bundles(name), task)
        scores = part.metrics(seen.output, seen.target)
        for metric, rule in rules(part).items():
            if metric in scores:
                assert rule(seen.output, seen.target)(np.ones((1, len(seen))))[0] == pytest.approx(scores[metric])


def test_resamples_of_tags_equal_rows_drawn_again_and_those_of_a_match_keep_the_gallery(bundles):
    seen = answered(bundles("tagged"), "tags")
    rows = np.random.default_rng(0).integers(0, len(seen), len(seen))
    weights = np.bincount(rows, minlength=len(seen))[None].astype(float)
    drawn = seen.task.metrics(seen.output[rows], seen.target[torch.from_numpy(rows)])
    for metric, rule in rules(seen.task).items():
        assert rule(seen.output, seen.target)(weights)[0] == pytest.approx(drawn[metric])
    seen = answered(bundles("matched"), "pair")
    assert isinstance(seen.task, Match)
    ranks = np.stack([search.ranking.rank for search in searches(seen.task, seen.output, seen.target)])
    found = rules(seen.task)["recall_at_5"](seen.output, seen.target)(weights)[0]
    assert found == pytest.approx((ranks[:, rows] <= 5).mean())
    assert Scorer(seen.task, "recall_at_5", seen.target, 5, 0)(seen.output).shape == (6,)


def test_losses_of_rows_have_the_mean_that_the_task_says(bundles):
    seen = answered(bundles("tagged"), "tags")
    each_row = losses(seen.task, seen.output, seen.target)
    assert each_row.mean() == pytest.approx(float(seen.task.loss(seen.output, seen.target)), rel=1e-4)
    seen = answered(bundles("matched"), "pair")
    assert isinstance(seen.task, Match)
    ranks = reciprocal_ranks(seen.task, seen.output, seen.target)
    assert losses(seen.task, seen.output, seen.target) == pytest.approx(1 - ranks)
    gone = seen.output.clone()
    gone[3, 0] = torch.nan
    assert np.flatnonzero(np.isnan(reciprocal_ranks(seen.task, gone, seen.target))).tolist() == [3]
    assert np.isnan(losses(seen.task, gone[3:4], seen.target[3:4])).all()
    assert chances(answered(bundles("tagged"), "tags").task, seen.target) == []


def test_rows_are_grouped_by_their_entities_and_compared_by_how_many_words_they_have(bundles):
    seen = answered(bundles("tagged"), "tags")
    groups = classes(seen.task, seen)
    assert list(groups) == ["tags has LOC", "tags has PER", "tags has no entity"]
    assert groups["tags has LOC"].all()
    assert groups["tags has PER"].sum() == 21
    scored = row_scores(seen.task, seen)
    assert scored.metric == "row_f1"
    assert scored.higher_is_better
    assert scored.values.max() <= 1
    codes, tolerance = comparable(seen.task, seen.target)
    assert contradict(codes[:1], codes[1:2], tolerance).item()
    assert not contradict(codes[:1], codes[3:4], tolerance).item()
    seen = answered(bundles("matched"), "pair")
    assert row_scores(seen.task, seen).metric == "reciprocal_rank"
    codes, tolerance = comparable(seen.task, seen.target)
    assert not contradict(codes[:1], codes[1:2], tolerance).any()


def test_a_wrong_tag_is_found(bundles):
    table = columns()
    table["tags"][0] = ["O", "B-PER", "O", "O", "O", "O"]
    worst = bundles("both").diagnose(table, curve_rows=0, repeats=2).to_dict()["problems"]
    assert worst["labels"]["tags"][0]["row"] == 0 == worst["worst"]["tags"][0]["row"]
    assert worst["labels"]["tags"][0]["given"] == table["tags"][0]


def test_explanations_add_up_to_what_is_expected_of_the_answer(bundle):
    rows = pm.Table.read({column: cells[:2] for column, cells in columns().items()})
    for row, answer in zip((found := bundle.predict(rows, explain=True)).explanations, found, strict=True):
        assert row.keys() == bundle.spec.outputs.keys()
        for task, why in row.items():
            assert sum(why["inputs"].values()) == pytest.approx(why["value"] - why["base"], abs=1e-6)
            assert why["parts"].keys() == bundle.spec.inputs.keys()
            if "similarity" in answer[task]:
                assert (why["unit"], why["value"]) == ("cosine", pytest.approx(answer[task]["similarity"]))
            elif "entities" in answer[task]:
                assert why["unit"].startswith("expected words of ")
                assert why["base"] == 0
                assert 0 < why["value"] <= len(answer[task]["tags"])


@each
def test_a_saved_bundle_answers_bit_for_bit(bundles, saved, name):
    rows = columns(4)
    assert pm.load(saved(name)).predict(rows) == bundles(name).predict(rows)


@each
def test_every_way_to_an_answer_agrees(saved, name):
    found = pm.verify(saved(name), columns(6))
    assert found.ok, found.lines()
    assert {check.name: check.verdict for check in found.checks}["model as one ONNX graph"] == "ok"
    assert name != "tagged" or pm.verify(saved(name)).ok


@each
def test_an_export_answers_the_same(bundles, name, tmp_path):
    found = pm.export(bundles(name), tmp_path / "export")
    said, example = json.loads((found.folder / "export.json").read_text()), np.load(found.folder / "example.npz")
    shapes = {port["name"]: port["shape"][:2] for port in said["graphs"][0]["outputs"]}
    assert ("tags.output" in shapes) == (name != "matched")
    assert all(shape == ["batch", "tags.length"] for n, shape in shapes.items() if n == "tags.output")
    assert {len(example[f"model.onnx:{n}"]) for n in shapes} == {4}
    if name == "tagged":  # by itself, where there is a NaN
        ran = subprocess.run([sys.executable, found.folder / "run.py"], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_an_export_may_be_compared_on_rows_without_words(bundles, tmp_path):
    rows = [{"image": tiny.picture(i), "words": "Ada" if i == 2 else None} for i in range(3)]
    assert pm.export(bundles("tagged"), tmp_path / "export", table=rows).compared


def test_differences_see_nan_and_length(bundles):
    part, raw = bundles("tagged").spec.outputs["tags"], answered(bundles("tagged"), "tags").output
    longer = torch.cat([raw, torch.full_like(raw[:, :2], torch.nan)], 1)
    assert difference(part, longer, raw) == 0
    moved = raw.clone()
    moved[0, 0, 0] += 0.5
    assert difference(part, moved, raw) == pytest.approx(0.5, rel=1e-3)
    moved[1, -1] = 0.0 if bool(raw[1, -1].isnan().any()) else torch.nan
    assert difference(part, moved, raw) == math.inf
    match = bundles("matched").spec.outputs["pair"]
    assert difference(match, torch.zeros(2, 3, 4), torch.zeros(3, 3, 4)) == math.inf
    one = np.array([[1.0, np.nan]])
    assert exported_difference(one, one) == 0
    assert exported_difference(one + 1, one) == 1
    assert exported_difference(np.nan_to_num(one), one) == np.inf == exported_difference(one[:, :1], one)


def entity(kind="PER", first=0, stop=1, probability=0.9, **more):
    return {"type": kind, "first": first, "stop": stop, "probability": probability, **more}


@pytest.mark.parametrize(
    ("entities", "tags", "number", "labels", "ties"),
    [
        ([entity(), entity("LOC", 2, 3, 0.5)], 3, 0.0, 0, 0),
        ([entity(probability=0.8), entity("LOC", 2, 3, 0.5)], 3, 0.1, 0, 0),
        ([entity()], 3, 0.0, 0, 1),  # as likely as not
        ([entity("LOC", 2, 3, 0.5)], 3, 0.0, 1, 0),
        ([entity(), entity("LOC", 1, 3, 0.99)], 3, 0.0, 1, 1),
        ([entity(text="x"), entity("LOC", 2, 3, 0.5)], 3, math.inf, 0, 0),
        ([], 2, math.inf, 0, 0),
    ],
)
def test_agreement_takes_entities_for_labels(entities, tags, number, labels, ties):
    expected = {"entities": [entity(), entity("LOC", 2, 3, 0.5)], "tags": ["O"] * 3}
    found = Reference([{"y": expected}], 1e-3).compare(0, {"y": {"entities": entities, "tags": ["O"] * tags}})
    assert (found.number, found.labels, found.ties) == (pytest.approx(number), labels, ties)


def test_gates_are_numbers_of_an_agreement():
    expected = {"entities": [entity(gate=0.25)], "tags": ["O"], "gates": [0.25]}
    for changed, number in (
        ({"gates": [0.75]}, 0.5),
        ({"gates": []}, math.inf),
        ({"entities": [entity(gate=0.5)]}, 0.25),
    ):
        assert Reference([{"y": expected}], 1e-3).compare(0, {"y": expected | changed}).number == number


@each
def test_a_server_answers_as_predict_does_in_every_form(bundles, saved, name):
    bundle = bundles(name)
    row = {column: cells[1] for column, cells in columns().items() if column in bundle.spec.inputs}
    [want] = bundle.predict([row])
    sent = {c: tiny_text(cell) for c, cell in row.items()}
    with TestClient(create_app(Settings.make(f"m={saved(name)}", watch=0))) as client:
        while client.get("/readyz").status_code != 200:
            pass
        reply = client.post("/v1/predict", json={"inputs": sent, "explain": True}).json()
        assert Reference([want], 1e-4).agrees(Reference([want], 1e-4).compare(0, reply["predictions"][0]))
        jsonschema_rs.Draft202012Validator(prediction(bundle.spec)).validate(reply["predictions"][0])
        assert reply["explanations"][0].keys() == want.keys()
        asked = client.get("/v1/spec").json()
        assert [field["kind"] for field in asked["inputs"]] == [part.kind for part in bundle.spec.inputs.values()]
        assert all(one["keys"].keys() == want[one["task"]].keys() for one in asked["outputs"])
        forms = {c: (None, cell if isinstance(cell, str) else json.dumps(cell)) for c, cell in sent.items()}
        if "words" in row:
            forms["words"] = (None, " ".join(row["words"]))
            for wrong in (5, {"a": 1}, True):
                assert client.post("/v1/predict", json={"inputs": {"words": wrong}}).status_code == 422
        assert client.post("/v1/predict", files=forms).json()["predictions"] == reply["predictions"]
        data = [{"name": c, "shape": [1], "datatype": "BYTES", "data": [cell[1]]} for c, cell in forms.items()]
        out = client.post("/v2/models/m/infer", json={"inputs": data}).json()["outputs"]
        part = {tensor["name"]: tensor["data"] for tensor in out}
        for n in {"tags", "pair"} & want.keys():
            assert json.loads(part[n][0]) == reply["predictions"][0][n]
        assert client.get("/openapi.json").status_code == 200


def tiny_text(cell):
    import base64

    return base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell


@each
def test_what_is_told_of_the_outputs(bundles, name):
    facts = {one["task"]: one for one in told(bundles(name).spec)}
    if name == "matched":
        assert facts["pair"]["sides"] == ["text", "image"]
    else:
        assert (facts["tags"]["types"], facts["tags"]["input"]) == (["LOC", "PER"], "words")
        assert ("gates" in facts["tags"]["keys"]) == (name == "tagged")
    assert {tensor.name for tensor in tensors(bundles(name).spec.outputs)} > facts.keys()


@each
def test_a_search_compares_trials(name):
    metric = {"tagged": "tags.entity_f1", "matched": "pair.recall_at_5", "both": "loss"}[name]
    start = spec(name, training={"epochs": 1, "batch_size": 8})
    found = pm.search(
        start, columns(), space={"training.clip": [0.0, 1.0]}, trials=2, folds=2, metric=metric, cache=False
    )
    assert len(found.content["trials"]) == 2
    assert math.isfinite(found.content["best"]["score"])


def test_an_input_is_improved_by_what_it_can_say_alone(bundles):
    found = pm.improve(bundles("tagged"), columns(), input="words", epochs=1)
    assert "validation rows the loss" in found.reason
    assert found.content["tasks"]["tags"]["metric"] == "entity_f1"
    with pytest.raises(pm.SpecError, match="nothing to learn by itself"):
        pm.improve(bundles("tagged"), columns(), input="image")
    with pytest.raises(pm.SpecError, match="nothing to learn by itself"):
        pm.improve(bundles("matched"), columns(), input="text")
    with pytest.raises(pm.SpecError, match="folds must be 1 with tag"):
        pm.improve(bundles("tagged"), columns(), input="words", folds=2)
