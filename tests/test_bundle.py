"""Saving, loading and asking a bundle."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from PIL import Image

import polymodal as pm
import shy
from polymodal.errors import BundleError, DataError
from polymodal.nn import weights
from polymodal.nn.adapt import Thawed
from polymodal.nn.weights import PACKAGED
from polymodal.predictions import Predictions
from tiny import SCRATCH, columns, fitted, picture, sound, spec

OUTPUTS = {
    "label": "classify",
    "tags": "multilabel",
    "price": "regress",
    "both": {"type": "regress", "targets": ["price", "x2"]},
    "plain": {"type": "regress", "objective": "squared", "column": "price"},
}


def wide():
    table = columns(media=True)
    return table | {"x2": [2 * x for x in table["x"]]}


@pytest.fixture(scope="module")
def model():
    outputs = dict(OUTPUTS)
    return fitted("text", "image", "audio", "table", table=wide(), outputs=outputs)


@pytest.fixture
def saved(model, tmp_path):
    return model.save(tmp_path / "model")


def gaps():
    some = {name: values[:6] for name, values in wide().items() if name not in OUTPUTS and name != "x2"}
    some["image"] = [None, *some["image"][1:]]
    some["text"] = [*some["text"][:5], None]
    return some


def test_a_loaded_bundle_predicts_bit_for_bit_like_the_saved_one(model, saved):
    loaded = pm.load(saved, device="cpu")
    assert list(loaded.predict(gaps())) == list(model.predict(gaps()))
    assert loaded.spec == model.spec
    assert loaded.report == json.loads(json.dumps(model.report))
    assert set(loaded.predict(gaps())[0]) == set(OUTPUTS)


def test_evaluate_equals_before_saving(model, saved):
    before, after = model.evaluate(wide()).to_dict(), pm.Bundle.load(saved).evaluate(wide()).to_dict()
    assert before == after
    assert str(pm.Report(after)) == str(model.evaluate(wide()))


def test_evaluate_takes_a_seed_for_its_intervals():
    small = fitted("table", outputs={"price": "regress"})
    one, same, other = (small.evaluate(columns(), seed=s).to_dict()["tasks"]["price"]["interval"] for s in (1, 1, 2))
    assert one == same != other


def test_nothing_in_a_bundle_is_pickled(saved):
    assert {file.suffix for file in saved.rglob("*") if file.is_file()} == {".json", ".safetensors", ".md"}


def test_saving_over_a_bundle_replaces_it(model, saved):
    (saved / "report.html").write_text("of the old one")
    model.save(saved)
    assert not (saved / "report.html").exists()
    assert sorted(p.name for p in saved.parent.iterdir()) == ["model"]


def test_saving_refuses_a_folder_of_something_else(model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("meow")
    with pytest.raises(BundleError, match=r"photos must be a new folder .* got \['cat.txt'\], which would be lost"):
        model.save(tmp_path / "photos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="file must be a folder, got a file"):
        model.save(tmp_path / "file")
    assert (tmp_path / "photos" / "cat.txt").read_text() == "meow"


def test_saving_never_takes_a_users_files_along(model, saved, tmp_path):
    (saved / "predictions.parquet").write_text("mine")
    with pytest.raises(BundleError, match=r"got \['predictions.parquet'\], which would be lost"):
        model.save(saved)
    assert (saved / "predictions.parquet").read_text() == "mine"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "spec.json").write_text('{"inputs": {}}')
    with pytest.raises(BundleError, match="must be a bundle's manifest"):
        model.save(tmp_path / "own")
    assert (tmp_path / "own" / "spec.json").exists()


def test_saving_into_an_empty_folder_and_the_working_directory(model, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    model.save(".")
    assert (tmp_path / "empty" / "spec.json").is_file()


def test_a_failed_swap_leaves_the_old_bundle(model, saved, monkeypatch):
    before, real = (saved / "spec.json").read_bytes(), os.replace

    def replace(source, target):
        if str(source).endswith(".new"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(BundleError, match="could not be written: Input/output error"):
        model.save(saved)
    assert (saved / "spec.json").read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def edit(saved, **changes):
    manifest = json.loads((saved / "spec.json").read_text()) | changes
    (saved / "spec.json").write_text(json.dumps(manifest))


def test_a_newer_format_is_refused(saved):
    edit(saved, bundle=99, polymodal="9.9")
    with pytest.raises(BundleError, match=r"format must be at most 2, got 99\. Install polymodal 9\.9"):
        pm.load(saved)


def test_a_spec_this_version_does_not_know_is_refused(saved):
    manifest = json.loads((saved / "spec.json").read_text())
    manifest["spec"]["inputs"]["text"]["frobnicate"] = 1
    edit(saved, spec=manifest["spec"])
    with pytest.raises(BundleError, match=r"made by polymodal .*frobnicate"):
        pm.load(saved)


def test_something_else_called_spec_json_is_refused(saved):
    (saved / "spec.json").write_text("[1, 2]")
    with pytest.raises(BundleError, match="must be a bundle's manifest"):
        pm.load(saved)


def test_tampered_weights_are_refused(saved):
    content = bytearray((saved / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "weights.safetensors").write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"weights\.safetensors must be the file that was saved"):
        pm.load(saved)


def test_another_backbone_than_in_training_is_refused(saved):
    edit(saved, backbones={"text": "feedbeef"})
    with pytest.raises(BundleError, match=r"input 'text' must have digest feedbeef, got None"):
        pm.load(saved)


def test_an_unknown_device_is_a_clear_error(saved):
    with pytest.raises(pm.SpecError, match=r"device must be auto, cpu, cuda .* got 'gpu7'"):
        pm.load(saved, device="gpu7")


# Adapted backbones


@pytest.fixture(scope="module")
def adapted():
    """A bundle whose backbone was changed twice, without a fit between."""
    plain, rows = shy.fitted(shy.table(60)), []
    base = shy.deaf()
    for method, change in (("lora", 0.3), ("last", 0.7)):
        thawed = Thawed(base, method)
        with torch.no_grad():
            for parameter in thawed.parameters:
                parameter.add_(change)
        rows.append(thawed.adapter())
        base = rows[-1].apply(base)
    embedder = plain.embedder.with_adapted("a", base)
    return pm.Bundle(plain.spec, plain.model, plain.report, plain.device, embedder, adapters={"a": tuple(rows)})


@pytest.fixture
def held(adapted, tmp_path):
    return adapted.save(tmp_path / "model")


def vectors():
    return {name: cells for name, cells in shy.table(10, seed=2).items() if name != "y"}


def test_an_adapted_backbone_comes_back_bit_for_bit(adapted, held):
    loaded = pm.load(held)
    assert list(loaded.predict(vectors())) == list(adapted.predict(vectors()))
    assert loaded.embedder.digests == adapted.embedder.digests
    assert list(loaded.predict(vectors())) != list(shy.fitted(shy.table(60)).predict(vectors()))
    again = loaded.save(held.with_name("again"))
    assert (again / "adapters.safetensors").read_bytes() == (held / "adapters.safetensors").read_bytes()


def test_the_manifest_says_what_was_adapted(held, model):
    manifest = json.loads((held / "spec.json").read_text())
    assert manifest["bundle"] == 2
    assert [entry["method"] for entry in manifest["adapters"]] == ["lora", "last"]
    assert manifest["adapters"][0] == {"input": "a", "method": "lora", "rank": 8, "alpha": 16.0, "layers": ["1"]}
    plain = model.save(held.with_name("plain"))
    assert json.loads((plain / "spec.json").read_text())["bundle"] == 1  # what older versions read too
    assert not (plain / "adapters.safetensors").exists()


def test_damaged_adapters_are_refused(held):
    content = bytearray((held / "adapters.safetensors").read_bytes())
    content[-1] ^= 1
    (held / "adapters.safetensors").write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"adapters\.safetensors must be the file that was saved"):
        pm.load(held)
    (held / "adapters.safetensors").unlink()
    with pytest.raises(BundleError, match=r"adapters\.safetensors must be readable"):
        pm.load(held)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dora"}, "method must be one of"),
        ({"rank": 0}, "rank and alpha must be above 0"),
        ({"layers": ["0"]}, r"adapter 0 must change \['0'\], got \['1'\]"),
        ({"input": "b"}, "must be of an input with a backbone, got 'b'"),
        ({"input": "c"}, "must be of an input with a backbone, got 'c'"),
        ({"method": "last"}, "a: adapter must be of this backbone"),
        ({"alpha": 3.0}, "the backbone of input 'a' must have digest"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(held, change, message):
    listed = json.loads((held / "spec.json").read_text())["adapters"]
    edit(held, adapters=[listed[0] | change, listed[1]])
    with pytest.raises(BundleError, match=message):
        pm.load(held)


def test_a_manifest_that_leaves_adapters_out_is_refused(held):
    for adapters in ([], {}, None):
        edit(held, adapters=adapters)
        with pytest.raises(BundleError, match="must name what it holds, got no adapters"):
            pm.load(held)
    edit(held, adapters=[{"input": "a"}])
    with pytest.raises(BundleError, match="adapters must be as this version writes them"):
        pm.load(held)


# What predict takes


def plain_table():
    table = columns(6)
    return {name: table[name] for name in ("text", "x", "colour")}


@pytest.fixture(scope="module")
def plain():
    return fitted("text", "table")


def test_every_kind_of_table_gives_the_same_predictions(plain, tmp_path):
    data = plain_table()
    frame = pd.DataFrame(data)
    frame.to_csv(tmp_path / "new.csv", index=False)
    rows = [dict(zip(data, cells, strict=True)) for cells in zip(*data.values(), strict=True)]
    tables = [data, rows, frame, pl.DataFrame(data), pa.table(data), tmp_path / "new.csv", str(tmp_path / "new.csv")]
    answers = [list(plain.predict(table)) for table in tables]
    assert all(answer == answers[0] for answer in answers)


def test_none_and_left_out_are_the_same(plain):
    left_out = plain.predict([{"text": "red apple pie"}])
    nothing = plain.predict([{"text": "red apple pie", "x": None, "colour": None}])
    assert list(left_out) == list(nothing)
    assert left_out.absent == nothing.absent == [["table"]]
    assert plain.predict([{"text": None}]).absent == [["text", "table"]]


def test_a_row_does_not_depend_on_its_neighbours(plain):
    together = plain.predict([{"text": "red apple pie"}, {"x": 3.0}, {"text": "old iron bridge", "x": 1.0}])
    alone = [plain.predict([row])[0] for row in ({"text": "red apple pie"}, {"x": 3.0})]
    for one, other in zip(together, alone, strict=False):
        assert one["label"]["probability"] == pytest.approx(other["label"]["probability"], abs=1e-6)


def test_pictures_and_bytes_as_cells(model):
    content = picture(1)
    opened = Image.open(io.BytesIO(content))
    pixels = np.asarray(opened)
    answers = [model.predict([{"image": cell}])[0] for cell in (content, opened, pixels)]
    assert answers[0] == answers[1] == answers[2]
    assert model.predict([{"audio": sound(3)}]).absent == [["text", "image", "table"]]


def test_paths_can_be_forbidden(model, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    row = [{"image": str(tmp_path / "a.png")}]
    assert model.predict(row).absent == [["text", "audio", "table"]]
    refused = model.predict(row, allow_paths=False)
    assert "image" in refused.absent[0]
    assert "must be sent as bytes or a data URL" in refused.quarantined[0]


def test_rows_are_numbered_through_all_chunks(model, monkeypatch):
    monkeypatch.setattr("polymodal.bundle.CHUNK", 2)
    rows = [{"text": "red apple"}] * 4 + [{"image": b"no picture"}]
    seen = []
    found = model.predict(rows, progress=lambda *step: seen.append(step))
    assert len(found) == 5
    assert found.quarantined[0].startswith("row 4, column 'image'")
    assert "image: 1 broken, first: row 4" in "\n".join(found.warnings)
    assert seen == [("predict", 2, 5), ("predict", 4, 5), ("predict", 5, 5)]
    with pytest.raises(DataError, match="row 4, column 'image'"):
        model.predict(rows, strict=True)


def test_to_columns_keeps_what_two_tasks_call_the_same():
    found = Predictions()
    found.append({"y": {"class": "a", "probability": 0.9}, "y.probability": {"value": 7.0}})
    found.absent.append([])
    assert found.to_columns() == {"y": ["a"], "y.probability_": [0.9], "y.probability": [7.0], "absent": [""]}


def test_to_columns(model):
    found = model.predict(gaps())
    flat = found.to_columns()
    assert all(len(column) == len(found) for column in flat.values())
    assert flat["label"] == [row["label"]["class"] for row in found]
    assert flat["label.probabilities.a"] == [row["label"]["probabilities"]["a"] for row in found]
    assert flat["price.low"] == [row["price"]["low"] for row in found]
    assert flat["both.x2"] == [row["both"]["value"]["x2"] for row in found]
    assert flat["absent"] == ["image", "", "", "", "", "text"]


# Self-contained


def python(code: str, *hidden: str, **environment: str) -> str:
    """Run code in a new process in which some packages do not exist."""
    hide = f"""
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else find(name, package)
"""
    done = subprocess.run(
        [sys.executable, "-c", hide + code], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(name):
    return PACKAGED[name].locate() is not None


@pytest.mark.skipif(not all(map(installed, PACKAGED)), reason="a packaged backbone is not installed")
def test_a_self_contained_bundle_needs_no_weight_package(tmp_path):
    inputs = {"text": "text", "image": "image", "audio": "audio"}
    data = columns(24, media=True)
    model = pm.fit(spec("table") | {"inputs": inputs}, data)
    model.save(tmp_path / "whole", self_contained=True)
    model.save(tmp_path / "bare")
    row = {"text": "red apple pie", "image": str(tmp_path / "a.png"), "audio": str(tmp_path / "a.wav")}
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "a.wav").write_bytes(sound(1))
    packages = {w.package.split(".")[0] for w in PACKAGED.values()}
    whole = str(tmp_path / "whole")
    code = f"import json, polymodal as pm; print(json.dumps(pm.load({whole!r}).predict([{row!r}])))"
    there = python(code, *packages, POLYMODAL_CACHE=str(tmp_path / "cache"))
    assert json.loads(there) == json.loads(json.dumps(model.predict([row])))
    attempt = f"""
import polymodal as pm
try:
    pm.load({str(tmp_path / "bare")!r})
except pm.PolymodalError as error:
    print(type(error).__name__, error)
"""
    refused = python(attempt, *packages, POLYMODAL_CACHE=str(tmp_path / "cache"))
    assert refused.startswith(("BundleError", "SpecError"))
    assert "pip install" in refused
    held = next((tmp_path / "whole").rglob("*.pth"))
    held.write_bytes(held.read_bytes()[:-9])
    assert "sha256 must be" in python(attempt.replace("bare", "whole"), *packages)


@pytest.fixture
def no_held_folders(monkeypatch):
    monkeypatch.setattr(weights, "_HELD", [])


def test_a_self_contained_bundle_holds_its_hub_model(tmp_path, no_held_folders):
    transformers = pytest.importorskip("transformers", reason="the extra hub is not installed")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path / "vit")
    inputs = {"image": {"type": "image", "backbone": f"hf:{tmp_path / 'vit'}", "size": 32}}
    data = columns(24, media=True)
    model = pm.fit(spec("table") | {"inputs": inputs}, data, cache=False)
    model.save(tmp_path / "whole", self_contained=True)
    shutil.rmtree(tmp_path / "vit")
    (tmp_path / "a.png").write_bytes(picture(1))
    row = [{"image": str(tmp_path / "a.png")}]
    moved = shutil.move(tmp_path / "whole", tmp_path / "moved")
    code = f"import json, polymodal as pm; print(json.dumps(pm.load({str(moved)!r}).predict({row!r})))"
    assert json.loads(python(code, POLYMODAL_CACHE=str(tmp_path / "cache"))) == json.loads(
        json.dumps(model.predict(row))
    )


def test_a_scratch_bundle_holds_no_backbones(model, tmp_path):
    place = model.save(tmp_path / "m", self_contained=True)
    assert not (place / "backbones").exists()
    assert isinstance(place, Path)
    assert "text" in SCRATCH
    assert list(pm.load(place).predict(gaps())) == list(model.predict(gaps()))
