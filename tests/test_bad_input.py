"""Everything that can be wrong with what a user gives, and what the user sees of it."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest

import polymodal as pm
from polymodal.errors import BundleError, DataError, SpecError
from tiny import columns, fitted, picture, sound, spec


def media_table(kind, broken):
    """Cells of one medium, of which the last is broken, beside numbers that tell the label."""
    table = columns(24)
    make = {"image": picture, "audio": sound}[kind]
    return {kind: [*[make(i) for i in range(23)], broken], "x": table["x"], "label": table["label"]}


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb():
    """A PNG of 100 bytes that claims 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


BROKEN = {
    "missing file": ("image", "gone.png", "gone.png must be a file, but does not exist"),
    "truncated JPEG": ("image", picture(1, kind="JPEG")[:200], None),
    "truncated WAV": ("audio", sound(1)[:30], None),
    "text named .png": ("image", "notes.png", None),
    "20,000 x 20,000": ("image", bomb(), "decompression bomb"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_medium_is_absent_counted_and_reported(case, tmp_path):
    kind, cell, said = BROKEN[case]
    (tmp_path / "notes.png").write_text("no picture at all")
    if isinstance(cell, str):
        cell = str(tmp_path / cell)
    table = media_table(kind, cell)
    model = pm.fit(spec(kind, "table", inputs=inputs_of(kind)), table, cache=False)
    seen = model.report["data"]["inputs"][kind]
    assert (seen["present"], seen["absent"], seen["quarantined"]) == (23, 1, 1)
    (row,) = seen["quarantined_rows"]
    assert row["row"] == 23
    assert row["column"] == kind
    assert len(row["reason"]) > 20
    assert said is None or said in row["reason"]
    assert not isinstance(cell, str) or cell in f"{row['origin']} {row['reason']}"
    assert any(f"{kind}: 1 broken, first: row 23" in line for line in model.warnings)
    with pytest.raises(DataError, match=rf"row 23, column '{kind}'.*--strict"):
        pm.fit(spec(kind, "table", inputs=inputs_of(kind)), table, cache=False, strict=True)
    predicted = model.predict({name: values[22:] for name, values in table.items() if name != "label"})
    assert predicted.absent == [[], [kind]]
    assert "row 1" in predicted.quarantined[0]
    without = model.predict([{"x": table["x"][23]}])[0]
    assert predicted[1]["label"]["probability"] == pytest.approx(without["label"]["probability"], abs=1e-6)


def inputs_of(kind):
    return {kind: spec(kind)["inputs"][kind], "table": {"type": "table", "numbers": ["x"]}}


def test_a_truncated_wav_of_half_its_samples_is_broken_or_told():
    found = fitted("audio", table=media_table("audio", sound(1)[:3000])).report["data"]["inputs"]["audio"]
    assert found["quarantined"] + sum(found["repaired"].values()) == 1


@pytest.mark.parametrize(
    ("cell", "quarantined"), [("many", 1), (float("inf"), 1), ("-inf", 1), (float("nan"), 0), (None, 0), ("", 0)]
)
def test_no_number_in_a_number_column(cell, quarantined):
    table = columns(24)
    table["x"][5] = cell
    model = fitted("table", table=table)
    seen = model.report["data"]["inputs"]["table"]
    assert seen["quarantined"] == quarantined
    assert seen["present"] == 24
    if quarantined:
        row = seen["quarantined_rows"][0]
        assert (row["row"], row["column"]) == (5, "x")
        assert "number is expected, got" in row["reason"]
        with pytest.raises(DataError, match="row 5, column 'x'"):
            pm.fit(spec("table"), table, cache=False, strict=True)
    answer = model.predict([{"x": cell, "colour": "red"}])
    assert list(answer) == list(model.predict([{"colour": "red"}]))
    assert len(answer.quarantined) == quarantined


def test_numbers_of_an_arrow_column_may_be_nan_and_inf():
    table = pd.DataFrame(columns(24))
    table.loc[[2, 3], "x"] = np.nan, np.inf
    seen = pm.fit(spec("table"), table, cache=False).report["data"]["inputs"]["table"]
    assert seen["quarantined"] == 1
    assert seen["quarantined_rows"][0]["row"] == 3


def test_an_unknown_category_is_told_and_kept_apart():
    model = fitted("table")
    found = model.predict([{"x": 0.5, "colour": "mauve"}, {"x": 0.5, "colour": "red"}])
    assert any("colour: unseen category" in line for line in found.warnings)
    assert found.absent == [[], []]
    assert found[0] != found[1]
    assert not found.quarantined


def test_an_unknown_class_in_evaluation_counts_as_unlabelled_and_is_told():
    table = columns(10)
    table["label"][4] = "c"
    report = fitted("table").evaluate(table).to_dict()
    assert report["rows"] == 9
    (line,) = [line for line in report["warnings"] if "label" in line]
    assert line.startswith(
        "label: 1 targets count as unlabelled, first: row 4: class must be one of ['a', 'b'], got 'c'"
    )
    with pytest.raises(DataError, match=r"target 'label': row 4: class must be one of \['a', 'b'\], got 'c'"):
        fitted("table").evaluate(table, strict=True)
    with pytest.raises(DataError, match=r"target 'label': row 0: class must be one of \['a', 'b'\], got 'c'"):
        fitted("table").evaluate({**columns(10), "label": ["c"] * 10})


def test_a_class_that_only_validation_rows_have_does_not_stop_a_fit():
    table = columns(20)
    table["label"][19] = "c"
    table["side"] = ["train"] * 14 + ["valid"] * 6
    model = pm.fit(spec("table") | {"split": {"given": "side"}}, table)
    assert model.report["fit"]["rows"]["valid"] == 5
    assert any("1 targets count as unlabelled" in line for line in model.warnings)


@pytest.mark.parametrize("table", [{"x": [], "label": []}, [], pd.DataFrame({"x": [], "label": []})])
def test_an_empty_table(table):
    with pytest.raises(DataError, match="must have at least one row, got none"):
        pm.fit(table, target="label")
    with pytest.raises(DataError, match="must have at least one row, got none"):
        pm.fit(spec("table"), table)
    with pytest.raises(DataError, match="must have at least one row, got none"):
        pm.inspect(table)


def test_a_csv_of_a_header_only(tmp_path):
    (tmp_path / "t.csv").write_text("x,label\n")
    with pytest.raises(DataError, match=r"t\.csv must have at least one row"):
        pm.fit(tmp_path / "t.csv", target="label")


def test_one_class_only():
    table = columns(24) | {"label": ["a"] * 24}
    for fit in (lambda: pm.fit(table, target="label"), lambda: fitted("table", table=table)):
        with pytest.raises(DataError, match=r"at least two classes, got only 'a' in .* Add rows of another class"):
            fit()


def test_every_target_empty():
    table = columns(24) | {"label": [None] * 24}
    with pytest.raises(DataError, match=r"label.*must have labelled rows"):
        pm.fit(table, target="label")


@pytest.mark.parametrize("kind", ["text", "image", "audio", "table"])
def test_a_modality_absent_from_all_of_training_or_test(kind):
    table = columns(24, media=kind in ("image", "audio"))
    held = {name: list(values) for name, values in table.items()}
    gone = ["x", "colour"] if kind == "table" else [kind]
    other = "table" if kind == "text" else "text"
    table |= {name: [None] * 24 for name in gone}
    model = pm.fit(spec(kind, other), table, test=held, cache=False)
    assert any(f"{kind}: nothing present in 24 rows" in line for line in model.warnings)
    assert model.report["test"]["data"]["inputs"][kind]["present"] == 24
    found = model.predict({name: values for name, values in held.items() if name != "label"})
    assert all(np.isfinite(row["label"]["probability"]) for row in found)
    turned = pm.fit(spec(kind, other), held, test=table, cache=False)
    scores = turned.report["test"]["tasks"]["label"]
    assert scores["without"][kind] == scores["scores"]
    assert any(f"test: {kind}: nothing present in 24 rows" in line for line in turned.warnings)


def test_a_column_missing_at_predict_and_evaluate():
    model = fitted("text", "table")
    found = model.predict({"text": ["red apple pie"]})
    assert found.absent == [["table"]]
    assert any("table: the table has no such column" in line for line in found.warnings)
    report = model.evaluate({name: cells for name, cells in columns().items() if name != "text"})
    assert "text: the table has no such column: absent in every row" in report.content["warnings"]
    with pytest.raises(DataError, match=r"at least one of the columns \['colour', 'text', 'x'\], got \['y'\]"):
        model.predict({"y": [1]})
    with pytest.raises(DataError, match=r"must have a column 'label', got"):
        model.evaluate({"text": ["red apple pie"]})


def test_a_spec_that_names_a_column_the_table_lacks():
    table = columns()
    table["colr"] = table.pop("colour")
    with pytest.raises(DataError, match=r"must have the column 'colour' of 'table', got .*Did you mean 'colr'\?"):
        pm.fit(spec("table"), table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": {"im": "imgae"}}, "inputs.im: modality type must be one of .* got 'imgae'. Did you mean 'image'?"),
        ({"inputs": {"text": 3}}, "inputs.text: modality must be .* got 3"),
        ({"fusion": {"type": "vote", "frob": 1}}, "frob"),
        ({"outputs": {"label": "clasify"}}, "Did you mean 'classify'?"),
        ({"outputs": {}}, "outputs: "),
        ({"dim": "wide"}, "dim: .* got 'wide'"),
        ({"training": {"epochs": 0}}, "training.epochs: .* got 0"),
        ({"inputs": {"table": {"type": "table", "numbers": 5}}}, "inputs.table.*numbers.* got 5"),
    ],
)
def test_a_wrong_type_in_a_spec(change, said):
    import re

    with pytest.raises(SpecError) as caught:
        pm.fit(spec() | change, columns())
    assert re.search(said.replace("?", r"\?"), str(caught.value))
    assert len(str(caught.value).splitlines()) == 1


def test_an_absent_target():
    with pytest.raises(DataError, match=r"must have a column 'lable', got .* Did you mean 'label'\?"):
        pm.fit(columns(), target="lable")
    with pytest.raises(DataError, match=r"must have the column 'lable' of 'lable', got"):
        pm.fit(spec(outputs={"lable": "classify"}), columns())


def test_two_rows():
    table = {"x": [1.0, 2.0], "label": ["a", "b"]}
    parts = {"inputs": {"table": {"type": "table", "numbers": ["x"]}}}
    with pytest.raises(DataError, match="at least two classes, got only"):
        pm.fit(table, target="label", cache=False)
    everything = spec(split={"valid": 0.0}) | parts
    model = pm.fit(everything, table, cache=False)
    assert len(model.predict(table)) == 2
    assert "valid" not in model.report
    one = pm.fit(everything | {"outputs": {"label": "regress"}}, {"x": [1.0, 2.0], "label": [0.5, 1.5]}, cache=False)
    assert np.isfinite(one.predict(table)[0]["label"]["value"])


def test_a_single_row():
    with pytest.raises(DataError, match=r"at least 2 rows for the sides of its split, got 1|at least two classes"):
        pm.fit({"x": [1.0], "label": ["a"]}, target="label")


def test_neither_spec_nor_target():
    for thing in ("train.csv", pd.DataFrame(columns())):
        with pytest.raises(SpecError, match=r"spec must be a mapping or a file .* With a table, name its target="):
            pm.fit(thing)
    with pytest.raises(SpecError, match="got both a table and a target"):
        pm.fit(columns(), columns(), target="label")
    with pytest.raises(SpecError, match="must have a table to learn from, got none"):
        pm.fit(spec())


# Bundles and disks


def test_a_full_disk_leaves_the_old_bundle(tmp_path):
    model = fitted("table")
    place = model.save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    size = (place / "weights.safetensors").stat().st_size
    code = f"""
import resource, signal, polymodal as pm
model = pm.load({str(place)!r}, device="cpu")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))
try:
    model.save({str(place)!r})
except pm.BundleError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert f"refused: {place} could not be written: File too large. Nothing there was changed." in done.stdout, done
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert list(pm.load(place).predict(columns())) == list(model.predict(columns()))


def test_no_space_for_a_new_bundle(tmp_path, monkeypatch):
    model = fitted("table")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(BundleError, match=r"new could not be written: No space left on device\. Nothing"):
        model.save(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_bundle_in_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="must be a folder that can be written to"):
        fitted("table").save(tmp_path / "file" / "model")


@pytest.mark.parametrize("file", ["spec.json", "weights.safetensors", "report.json"])
def test_half_a_bundle_is_refused(tmp_path, file):
    place = fitted("table").save(tmp_path / "model")
    whole = (place / file).read_bytes()
    (place / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=file):
        pm.load(place)
    (place / file).unlink()
    with pytest.raises(BundleError, match=rf"{file}.*incomplete"):
        pm.load(place)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere must be a bundle's folder.*polymodal fit --out"):
        pm.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="incomplete"):
        pm.load(tmp_path)


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    table = columns(24, media=True)
    with pytest.warns(RuntimeWarning, match=r"cache .*cannot be written.*Set POLYMODAL_CACHE to a folder with space"):
        kept = pm.fit(spec("image"), table)
    fresh = pm.fit(spec("image"), table, cache=False)
    assert list(kept.predict(table)) == list(fresh.predict(table))


def test_two_fits_at_once_on_one_cache(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
from tiny import columns, spec
import polymodal as pm
pm.fit(spec("image"), columns(40, media=True)).save({str(tmp_path)!r} + "/" + sys.argv[1])
"""
    environment = os.environ | {"POLYMODAL_CACHE": str(tmp_path / "cache")}
    both = [subprocess.Popen([sys.executable, "-c", code, n], env=environment, stderr=subprocess.PIPE) for n in "ab"]
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()
    assert not list((tmp_path / "cache").glob("**/.tmp-*"))
    rows = {shelf.label: shelf.rows for shelf in pm.FeatureStore(tmp_path / "cache").usage()}
    assert rows.keys() == {"image"}
    assert 40 <= rows["image"] <= 80
