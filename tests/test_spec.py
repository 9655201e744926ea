"""Spec: what it accepts, what it refuses and how it says so."""

import json

import pytest
import yaml

from polymodal.errors import SpecError
from polymodal.spec import VERSION, Spec

SMALL = {"inputs": {"note": {"type": "text", "backbone": "none"}}, "outputs": {"label": "classify"}}
LARGE = {
    "inputs": {
        "note": {"type": "text", "backbone": "none", "strip_urls": True, "augmentation": {"drop": 0.1}},
        "photo": {"type": "image", "backbone": "none", "size": 32, "grid": 1, "column": "file"},
        "voice": {"type": "audio", "backbone": "none", "high_pass": 80},
        "rest": {"type": "table", "numbers": ["x", "y"], "categories": ["c"], "number_embedding": "periodic"},
    },
    "fusion": {"type": "concat", "dropout": 0.25},
    "outputs": {
        "label": {"type": "classify", "classes": ["no", 1, True, "yes", "1e3", "null"], "weight": 0.5},
        "tags": "multilabel",
        "size": {"type": "regress", "targets": ["width", "height"]},
    },
    "dim": 32,
    "training": {"epochs": 3, "precision": "bfloat16"},
    "split": {"by": "group", "column": "who", "test": 0.2},
    "data": {"train": "train.csv"},
    "seed": 7,
}


def refused(**changes) -> str:
    with pytest.raises(SpecError) as caught:
        Spec.parse({**SMALL, **changes})
    return str(caught.value)


@pytest.mark.parametrize("mapping", [SMALL, LARGE], ids=["small", "large"])
def test_yaml_and_json_round_trips_give_the_same_spec(mapping, tmp_path):
    spec = Spec.parse(mapping)
    assert Spec.parse(yaml.safe_load(spec.to_yaml())) == spec
    assert Spec.parse(json.loads(spec.model_dump_json())) == spec
    for name, text in (("a.yaml", spec.to_yaml()), ("a.json", spec.model_dump_json())):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert Spec.parse(tmp_path / name) == Spec.parse(str(tmp_path / name)) == spec
    assert Spec.parse(spec) is spec


def test_yaml_is_short_and_in_the_order_of_reading():
    assert Spec.parse(SMALL).to_yaml() == (
        "inputs:\n  note:\n    type: text\n    backbone: none\nfusion: concat\noutputs:\n  label: classify\n"
    )


def test_a_fitted_spec_survives_both_formats_and_fitting_is_pure():
    spec = Spec.parse(LARGE)
    before = spec.model_dump_json()
    cells = {
        "note": ["a red apple", None, "a red car"],
        "photo": [None] * 3,
        "voice": [None] * 3,
        "rest": [{"x": 1.0, "c": "u"}, {"x": 2.0, "y": 5.0, "c": "u"}, None],
    }
    targets = {
        "label": ["no", "yes", None],
        "tags": [["a"], ["b"], None],
        "size": [{"width": 1, "height": 2}, {"width": 3, "height": 5}, {"width": 2, "height": 1}],
    }
    told: list[str] = []
    fitted = spec.fit(cells.__getitem__, targets.__getitem__, told.append)
    assert told == [*cells, *targets]
    assert spec.model_dump_json() == before
    assert fitted != spec
    assert fitted == spec.fit(cells.__getitem__, targets.__getitem__)
    assert Spec.parse(json.loads(fitted.model_dump_json())) == fitted
    assert Spec.parse(yaml.safe_load(fitted.to_yaml())) == fitted


def test_every_fault_is_told_at_once_with_its_path():
    text = refused(
        inputs={"im": {"type": "imgae"}, "note": {"type": "text", "windwo": 5}, "n": 3},
        outputs={"y": {"type": "classify", "label_smoothing": 2}},
        training={"epochs": 0, "learning_rte": 1},
        dims=3,
    )
    for line in (
        "inputs.im: modality type must be one of",
        "Did you mean 'image'?",
        "inputs.note.windwo: no such setting. Did you mean 'window'? Known here: ",
        "inputs.n: modality must be a type's name or a mapping with a type, got 3.",
        "outputs.y.label_smoothing: Input should be less than 1, got 2.",
        "training.epochs: Input should be greater than or equal to 1, got 0.",
        "training.learning_rte: no such setting. Did you mean 'learning_rate'?",
        "dims: no such setting. Did you mean 'dim'?",
    ):
        assert line in text
    assert len(text.splitlines()) == 7


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({"inputs": {"a": {"type": "image", "bakbone": "none"}}}, "backbone"),
        ({"inputs": {"a": {"type": "text", "augmentation": {"typoo": 0.1}}}}, "typo"),
        ({"fusion": {"type": "concat", "droput": 0.1}}, "dropout"),
        ({"outputs": {"y": {"type": "regress", "objctive": "squared"}}}, "objective"),
        ({"split": {"tst": 0.1}}, "test"),
        ({"fusion": "conct"}, "concat"),
    ],
)
def test_a_near_miss_is_offered_in_every_part(changes, near):
    assert f"Did you mean {near!r}?" in refused(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"split": {"column": "who"}}, "column has no effect"),
        ({"split": {"by": "random", "column": "who"}}, "column has no effect"),
        ({"split": {"by": "group"}}, "column must name the column"),
        ({"split": {"by": "time", "column": "t", "seed": 1}}, "seed has no effect"),
        ({"split": {"given": "side", "test": 0.2}}, "test has no effect"),
        ({"split": {"valid": 0.5, "test": 0.5}}, "must be below 1"),
        ({"inputs": {"a": {"type": "text", "backbone": "none", "window": 64}}}, "no effect"),
        ({"inputs": {"a": {"type": "table", "booleans": ["x"], "clip": 3.0}}}, "no effect"),
    ],
)
def test_a_setting_without_effect_or_partner_is_refused(changes, reason):
    assert reason in refused(**changes)


TWO = {"outputs": {"label": "classify", "tags": "multilabel"}}
PAIR = {"inputs": {"note": {"type": "text", "backbone": "none"}, "rest": {"type": "table", "numbers": ["x"]}}}


@pytest.mark.parametrize(
    ("training", "others", "reason"),
    [
        ({"objective": "upgrad"}, PAIR, "training.objective must be joint with one task, got upgrad"),
        (
            {"objective": "dwa"},
            {"outputs": {"label": "classify", "size": "regress"}},
            "training.objective dwa must have losses that are never negative, got outputs.size with gaussian",
        ),
        ({"balance": "ogm_ge"}, {}, "training.balance ogm_ge must have two inputs or more, got one"),
        ({"balance": "mmpareto"}, {}, "training.balance mmpareto must have two inputs or more"),
        ({"balance": "gradient_blending"}, {}, "training.balance gradient_blending must have two inputs"),
        ({"balance": "ogm_ge"}, {**PAIR, "outputs": {"size": "regress"}}, "must have a classify output"),
        ({"balance": "mmpareto"}, {**PAIR, "outputs": {"space": "match"}}, "must have an output that one input can"),
        ({"mixup": 0.2}, {**PAIR, "fusion": "vote"}, "training.mixup must have a fused vector, got fusion vote"),
        ({"alignment": {}}, {}, "training.alignment must have two inputs or more"),
        ({"alignment": {"inputs": ["note", "rset"]}}, PAIR, "got 'rset'. Did you mean 'rest'?"),
        ({"alignment": {}}, {**PAIR, "outputs": {"alignment": "classify"}}, "Rename the output"),
    ],
)
def test_training_that_these_parts_make_void_is_refused(training, others, reason):
    assert reason in refused(training=training, **others)


@pytest.mark.parametrize(
    "objective", ["uncertainty", "dwa", "gradnorm", "pcgrad", "mgda", "upgrad", "cagrad", "nashmtl"]
)
def test_every_objective_takes_several_tasks(objective):
    assert Spec.parse({**SMALL, **TWO, "training": {"objective": objective}})


def test_gradients_of_negative_losses_may_be_combined():
    several = {"label": "classify", "size": "regress"}
    assert Spec.parse({**SMALL, "outputs": several, "training": {"objective": "mgda"}})


@pytest.mark.parametrize("version", [VERSION + 1, 0, -1, "x"])
def test_an_unknown_version_is_refused(version):
    assert "version" in refused(version=version)


def test_an_input_must_not_be_a_target_and_all_such_are_named():
    text = refused(
        inputs={"label": "text", "t": {"type": "table", "numbers": ["x", "w"]}},
        outputs={"label": "classify", "size": {"type": "regress", "targets": ["w", "h"]}},
    )
    assert "inputs.label: column 'label' is what outputs.label predicts." in text
    assert "inputs.t: column 'w' is what outputs.size predicts." in text
    assert Spec.parse({"inputs": {"y": {"type": "text", "column": "z"}}, "outputs": {"y": "classify"}})


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
@pytest.mark.parametrize("bad", [{}, [], None, 3, "text"])
def test_inputs_and_outputs_must_be_mappings_with_something_in_them(kind, bad):
    assert refused(**{kind: bad}).startswith(f"{kind}: ")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.yaml", None, "No such file"),
        ("list.yaml", b"- a\n- b\n", "must be a mapping"),
        ("bad.yaml", b"inputs: [", "must be YAML or JSON"),
        ("bad.json", b"{", "must be YAML or JSON"),
        ("photo.png", b"\x89PNG\r\n\xff\xfe", "not text"),
        ("empty.yaml", b"", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_spec(name, content, reason, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=reason):
        Spec.parse(tmp_path / name)


@pytest.mark.parametrize("value", [3, None, ["a"]])
def test_something_else_than_a_spec_is_refused(value):
    with pytest.raises(SpecError, match="spec must be a mapping or the path"):
        Spec.parse(value)


def test_specs_are_frozen():
    spec = Spec.parse(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 3


def test_a_column_that_only_groups_rows_may_be_an_input_too():
    spec = Spec.parse({**PAIR, "outputs": {"space": {"type": "match", "column": "note"}}})
    assert spec.outputs["space"].columns("space") == ("note",)
