"""An export runs without Polymodal, answers as the bundle does, and never writes over anything else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import polymodal as pm
import radar
import shy
import tiny
from polymodal.errors import BundleError, DataError, SpecError
from polymodal.exporting import compare, export
from polymodal.nn.weights import PACKAGED

FILES = ("README.md", "example.npz", "export.json", "model.onnx", "run.py")
assert radar  # known by its import


@pytest.fixture(scope="module")
def bundle() -> pm.Bundle:
    return tiny.fitted("text", "table", "image", "audio", outputs={"label": "classify", "price": "regress"})


@pytest.fixture(scope="module")
def exported(bundle, tmp_path_factory):
    return export(bundle, tmp_path_factory.mktemp("export") / "out")


@pytest.fixture(scope="module")
def backed() -> pm.Bundle:
    """A bundle with a backbone and a modality without examples."""
    spec = {
        "inputs": {"a": "test-shy", "sweeps/left": {"type": "radar", "column": "s"}},
        "outputs": {"label": "classify"}, "training": tiny.FAST, "dim": 16,
    }  # fmt: skip
    return pm.fit(spec, _sweeps(40), cache=False)


def _sweeps(rows):
    rng = np.random.default_rng(0)
    labels = ["ab"[i % 2] for i in range(rows)]
    vectors = [(rng.normal(size=(1 + i % 3, shy.WIDTH)) + (i % 2)).tolist() for i in range(rows)]
    sweeps = [rng.normal(size=(1 + i % 4, 3)).tolist() if i % 5 else None for i in range(rows)]
    return {"a": vectors, "s": sweeps, "label": labels}


def run_it(folder):
    """Run the script of an export as a process that knows nothing of Polymodal."""
    script = [sys.executable, "-I", "-W", "error", str(folder / "run.py")]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_writes_every_file_and_tells_what_it_compared(exported):
    assert exported.files == FILES
    assert {path.name for path in exported.folder.iterdir()} == set(FILES)
    what = [entry["what"] for entry in exported.compared]
    assert what[:3] == ["predict, all rows at once", "predict, row by row", "model, without nothing"]
    assert what[3:] == [
        *(f"model, without {name}" for name in ("text", "table", "image", "audio")),
        "model, without text, table", "model, without text, image", "model, without text, audio",
    ]  # fmt: skip
    assert all(entry["rows"] == 4 and entry["largest"] < 1e-4 for entry in exported.compared)
    lines = exported.lines()
    assert len(lines) == len(what) + 1
    assert "largest difference" in lines[1]


def test_the_script_runs_without_polymodal_and_finds_differences(exported, tmp_path):
    done = run_it(exported.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("largest difference") == 2
    copy = tmp_path / "copy"
    shutil.copytree(exported.folder, copy)
    example = dict(np.load(copy / "example.npz"))
    example["model.onnx:label.output"] += 0.1
    np.savez(copy / "example.npz", **example)
    assert run_it(copy).returncode == 1


def test_graphs_are_checked_and_described(exported, bundle):
    said = json.loads((exported.folder / "export.json").read_text())
    (graph,) = said["graphs"]
    model = onnx.load(exported.folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [p["name"] for p in graph["inputs"]] == [node.name for node in model.graph.input]
    by_name = {p["name"]: p for p in graph["inputs"]}
    assert by_name["image.values"] == {
        "name": "image.values", "dtype": "uint8", "shape": ["batch", 1, 3, 32, 32], "meaning": "collated values.",
    }  # fmt: skip
    assert by_name["text.values"]["shape"] == ["batch", "text.length"]
    assert "absent" in by_name["text.mask"]["meaning"]
    assert [p["name"] for p in graph["outputs"]] == ["label.output", "price.output"]
    assert said["outputs"]["label"]["settings"]["classes"] == ["a", "b"]
    assert said["outputs"]["label"]["settings"]["temperature"] == bundle.spec.outputs["label"].temperature
    assert said["inputs"]["audio"]["settings"]["sample_rate"] == 16000
    assert said["inputs"]["text"]["settings"]["vocabulary"]
    assert "waveform" in said["inputs"]["audio"]["collate"].lower()
    readme = (exported.folder / "README.md").read_text()
    assert "model.onnx" in readme
    assert "run.py" in readme


def test_example_holds_what_the_bundle_says(exported, bundle):
    example = np.load(exported.folder / "example.npz")
    assert example["model.onnx:label.output"].shape == (4, 2)
    assert set(example["model.onnx:image.mask"].flatten()) == {True}


def test_backbones_have_graphs_of_their_own_and_rows_come_from_a_table(backed, tmp_path):
    found = export(backed, tmp_path / "out", table=_sweeps(30))
    assert found.files == tuple(sorted((*FILES, "a-backbone.onnx")))
    assert found.compared[0]["what"] == "backbone of a"
    assert {entry["rows"] for entry in found.compared[1:]} == {16}
    said = json.loads((found.folder / "export.json").read_text())
    assert [graph["file"] for graph in said["graphs"]] == ["a-backbone.onnx", "model.onnx"]
    assert said["inputs"]["a"]["to_model"] == "the summary of the backbone's tokens"
    assert said["inputs"]["a"]["numbers"]["digest"] == "deaf-1"
    assert "backbone" not in said["inputs"]["sweeps/left"]
    assert run_it(found.folder).returncode == 0


def test_backbone_without_any_row_needs_a_table(backed, tmp_path):
    with pytest.raises(SpecError, match="Give a table"):
        export(backed, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_is_replaced(bundle, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    export(bundle, folder)
    before = (folder / "model.onnx").stat().st_ino
    export(bundle, folder, table=tiny.columns(3, media=True))
    assert (folder / "model.onnx").stat().st_ino != before
    assert np.load(folder / "example.npz")["model.onnx:label.output"].shape == (3, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("there", ["file", "stranger", "beside an export", "no export"])
def test_nothing_else_is_written_over(there, bundle, exported, tmp_path):
    folder = tmp_path / "out"
    if there == "file":
        folder.write_text("mine")
    elif there == "beside an export":
        shutil.copytree(exported.folder, folder)
        (folder / "mine.txt").write_text("mine")
    else:
        folder.mkdir()
        (folder / ("export.json" if there == "no export" else "mine.txt")).write_text('{"mine": 1}')
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(BundleError, match="must be a new folder"):
        export(bundle, folder)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_other_formats_are_refused(bundle, tmp_path):
    with pytest.raises(SpecError, match="Did you mean 'onnx'"):
        export(bundle, tmp_path / "out", to="onx")


def test_table_that_cannot_be_read_is_refused(bundle, tmp_path):
    with pytest.raises(DataError):
        export(bundle, tmp_path / "out", table=tmp_path / "none.csv")
    assert not list(tmp_path.iterdir())


def test_graphs_that_differ_leave_nothing_behind(bundle, backed, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "TOLERANCE", 1e-12)
    for one, table in ((bundle, tiny.columns(8, media=True)), (backed, _sweeps(8))):
        with pytest.raises(SpecError, match="must answer as the bundle"):
            export(one, tmp_path / "out", table=table)
        assert not list(tmp_path.iterdir())


def test_earlier_export_stays_where_the_new_one_fails(bundle, exported, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(exported.folder, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(compare, "TOLERANCE", 1e-12)
    with pytest.raises(SpecError):
        export(bundle, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_folder_that_cannot_be_written_is_a_fault_of_the_user(bundle, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="could not be written"):
        export(bundle, tmp_path / "file" / "out")


@pytest.mark.slow
@pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="minilm is not installed")
def test_tokenizer_lies_beside_the_graph_of_a_text_backbone(tmp_path):
    text = {"type": "text", "backbone": "minilm", "window": 16, "overlap": 4}
    spec = {"inputs": {"text": text}, "outputs": {"label": "classify"}, "training": tiny.FAST, "dim": 16}
    found = export(pm.fit(spec, tiny.columns(20), cache=False), tmp_path / "out")
    assert {"text-backbone.onnx", "text-tokenizer.json"} < set(found.files)
    said = json.loads((found.folder / "export.json").read_text())["inputs"]["text"]
    assert said["tensor_files"] == ["text-tokenizer.json"]
    assert (said["numbers"]["begin"], said["numbers"]["end"], said["numbers"]["pad"]) == ([101], [102], 0)
    assert "model" in json.loads(Path(found.folder, "text-tokenizer.json").read_text())
    assert run_it(found.folder).returncode == 0
