"""What a model says it takes and answers: columns, examples, outputs."""

import json

import pytest

import polymodal as pm
import tiny
from polymodal.server.form import LEVELS, answer, example_row, facts, form, outputs
from polymodal.spec import Spec

ALL = ("text", "table", "image", "audio")


@pytest.fixture(scope="module")
def bundle():
    wanted = {
        "label": {"type": "classify", "coverage": 0.9},
        "price": "regress",
        "tags": {"type": "multilabel", "coverage": 0.8},
    }
    return tiny.fitted(*ALL, outputs=wanted)


def test_every_column_is_told(bundle):
    fields = form(bundle.spec)
    assert json.loads(json.dumps(fields)) == fields
    told = [(field["input"], field["modality"], field["column"], field["kind"]) for field in fields]
    assert told == [
        ("text", "text", "text", "text"),
        ("table", "table", "x", "number"),
        ("table", "table", "colour", "category"),
        ("image", "image", "image", "image"),
        ("audio", "audio", "audio", "audio"),
    ]
    assert fields[2]["levels"] == list(bundle.spec.inputs["table"].levels["colour"])
    assert fields[2]["level_count"] == 2


def test_media_are_data_urls_of_their_type(bundle):
    examples = {field["column"]: field["example"] for field in form(bundle.spec)}
    assert examples["image"].startswith("data:image/png;base64,")
    assert examples["audio"].startswith("data:audio/wav;base64,")


def test_the_example_row_is_predicted_as_it_stands(bundle):
    row = json.loads(json.dumps(example_row(bundle.spec)))
    assert list(row) == ["text", "x", "colour", "image", "audio"]
    predictions = bundle.predict([row], strict=True, allow_paths=False)
    assert predictions.absent == [[]]
    assert predictions.quarantined == []
    assert predictions.reports[0].warnings() == []


def test_a_column_without_example_is_left_out(bundle):
    from radar import Radar  # registers the modality

    spec = bundle.spec.model_copy(update={"inputs": {**bundle.spec.inputs, "front": Radar()}})
    assert form(spec)[-1] == {
        "input": "front", "modality": "radar", "column": "front", "kind": "radar", "example": None, "levels": [],
        "level_count": 0,
    }  # fmt: skip
    assert list(example_row(spec)) == ["text", "x", "colour", "image", "audio"]


def test_of_many_levels_the_most_frequent_are_listed():
    table = {"type": "table", "categories": ["c"], "rare": 1}
    part = Spec.parse({"inputs": {"t": table}, "outputs": {"y": "classify"}}).inputs["t"]
    part = part.fit([{"c": f"level {i}"} for i in range(300) for _ in range(300 - i)])
    spec = Spec.parse({"inputs": {"t": part}, "outputs": {"y": "classify"}})
    [field] = form(spec)
    assert field["levels"] == [f"level {i}" for i in range(LEVELS)]
    assert field["level_count"] == 300


def test_every_output_tells_what_is_known_of_its_answers(bundle):
    label, price, tags = outputs(bundle.spec)
    assert (label["task"], label["kind"], label["classes"], label["coverage"]) == ("label", "classify", ["a", "b"], 0.9)
    assert (price["kind"], price["targets"], price["interval"]) == ("regress", [], 0.9)
    assert price["mean"] == list(bundle.spec.outputs["price"].mean)
    assert (tags["labels"], tags["coverage"]) == (["big", "hot", "small"], 0.8)
    assert len(tags["thresholds"]) == 3
    assert json.loads(json.dumps([label, price, tags])) == [label, price, tags]


def test_the_keys_are_those_of_the_predictions(bundle):
    [row] = bundle.predict([example_row(bundle.spec)])
    for output in outputs(bundle.spec):
        assert list(output["keys"]) == list(row[output["task"]])
        assert all(output["keys"].values())


@pytest.mark.parametrize(
    "task",
    [
        {"type": "regress", "objective": "quantiles"},
        {"type": "regress", "objective": "squared"},
        {"type": "regress", "objective": "beta_nll"},
        {"type": "regress", "targets": ["x", "price"]},
        {"type": "regress", "targets": ["x", "price"], "objective": "quantiles"},
        {"type": "classify", "column": "label"},
        {"type": "multilabel", "column": "tags"},
    ],
)
def test_the_keys_of_every_kind_of_answer(task):
    column = {} if "targets" in task or "column" in task else {"column": "price"}
    bundle = tiny.fitted("text", outputs={"y": {**task, **column}})
    [row] = bundle.predict([example_row(bundle.spec)])
    schemas = answer(bundle.spec.outputs["y"])
    assert set(schemas) == set(row["y"])
    for key, schema in schemas.items():
        assert {"type": "object"}.items() <= schema.items() or not isinstance(row["y"][key], dict)
        if isinstance(row["y"][key], dict):
            assert schema["minProperties"] == schema["maxProperties"] == len(row["y"][key])


def test_a_task_of_another_kind_is_told_by_its_name():
    assert answer.dispatch(pm.Task)(None) == {}  # pyright: ignore
    assert facts.dispatch(pm.Task)(None) == {}  # pyright: ignore
