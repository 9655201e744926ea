"""The command line, verb by verb."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

import polymodal as pm
from polymodal import cli
from polymodal.diagnose.verdict import TRY
from polymodal.improving.run import Improvement
from tiny import columns, picture, spec

VERBS = ("inspect", "fit", "evaluate", "predict", "cache", "weights")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command as the entry point does: (status, standard output, standard error)."""

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["polymodal", *map(str, arguments)])
        monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        seen = capsys.readouterr()
        return stop.value.code, seen.out, seen.err

    return go


def strict_json(text):
    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def good(run):
    """Run a command that must succeed with JSON, and nothing else, on standard output."""

    def go(*arguments):
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        return strict_json(out)

    return go


@pytest.fixture
def bad(run):
    """Run a command that must fail: its lines of standard error."""

    def go(*arguments):
        status, out, err = run(*arguments)
        assert status == 2
        assert not out
        assert "Traceback" not in err
        lines = err.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines)
        return [line.removeprefix("error: ") for line in lines]

    return go


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with train.csv, a spec and a bundle."""
    place = tmp_path_factory.mktemp("cli")
    table = {name: cells for name, cells in columns(40).items() if name != "tags"}
    pd.DataFrame(table).to_csv(place / "train.csv", index=False)
    chosen = spec("text", "table", data={"train": "train.csv"})
    (place / "spec.yaml").write_text(yaml.safe_dump(chosen))
    pm.fit(place / "spec.yaml", cache=False).save(place / "model")
    return place


@pytest.mark.parametrize("arguments", [(), ("--help",), *((verb, "--help") for verb in VERBS)])
def test_help_does_not_load_torch(arguments):
    code = (
        f"import sys; sys.argv = ['polymodal', *{arguments!r}]\n"
        "from polymodal.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'onnxruntime', 'pandas', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_module_runs_as_a_program(folder):
    command = [sys.executable, "-m", "polymodal.cli", "predict", "nowhere", "train.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: nowhere must be a bundle's folder")


# Bad use


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "train.csv", "--tarjet", "label"], "No such option: --tarjet"),
        (["fit"], "Missing argument"),
        (["nonsense"], "No such command 'nonsense'"),
        (["fit", "train.csv"], "--target must name a column of train.csv"),
        (["fit", "spec.yaml", "--target", "label"], "--target must come with a table"),
        (["fit", "train.csv", "--target", "label", "--data", "train.csv"], "--data must come with a spec"),
        (["fit", "train.csv", "--target", "label", "--seed", "-1"], "seed must be 0 or more, got -1"),
        (["fit", "train.csv", "--target", "label", "--seed", "x"], "Invalid value for '--seed'"),
        (["fit", "train.csv", "--target", "lable"], "must have a column 'lable'"),
        (["fit", "train.csv", "--target", "label", "--device", "gpu7"], "device must be auto, cpu"),
        (["fit", "train.csv", "--target", "label", "--out", "."], "must be a new folder or hold nothing but a bundle"),
        (["fit", "none.csv", "--target", "label"], "none.csv"),
        (["fit", "none.yaml"], "none.yaml"),
        (["inspect", "none.csv"], "none.csv"),
        (["inspect", "spec.yaml"], "spec.yaml must end in one of"),
        (["inspect", "train.csv", "--target", "lable"], "Did you mean 'label'?"),
        (["evaluate", "model", "none.csv"], "none.csv"),
        (["evaluate", "nowhere", "train.csv"], "nowhere must be a bundle's folder"),
        (["predict", "model", "none.csv"], "none.csv"),
        (["predict", "model", "train.csv", "--out", "a.xlsx"], "must end in one of ['.conll', '.csv', '.jsonl',"),
        (["predict", "model", "train.csv", "--out", "no/such/a.csv"], "must lie in a folder that exists"),
        (["cache", "--remove", "abc/../def"], "--remove must be one of"),
        (["cache", "--remove", "abc", "--clear"], "--clear removes everything"),
    ],
)
def test_bad_use_is_one_line_and_status_2(bad, folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    lines = bad(*arguments)
    assert len(lines) == 1
    assert said in lines[0]
    assert (folder / "model" / "spec.json").is_file()


def test_every_fault_of_a_spec_has_a_line(bad, folder):
    chosen = spec("text", "table", data={"train": "train.csv"})
    chosen |= {"fusion": "concad", "dim": "wide", "training": {"epochs": 0, "lerning_rate": 1}}
    (folder / "faulty.yaml").write_text(yaml.safe_dump(chosen))
    lines = bad("fit", folder / "faulty.yaml", "--out", folder / "never")
    assert [line.split(":")[0] for line in sorted(lines)] == [
        "dim",
        "fusion",
        "training.epochs",
        "training.lerning_rate",
    ]
    assert "Did you mean 'concat'?" in "\n".join(lines)
    assert not (folder / "never").exists()


def test_an_interrupt_is_no_traceback(run, monkeypatch, folder):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pm, "inspect", stop)
    status, _, err = run("inspect", folder / "train.csv")
    assert status == 130
    assert "Traceback" not in err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, folder):
    monkeypatch.setattr(pm, "inspect", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["polymodal", "inspect", str(folder / "train.csv")])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# Verbs


def test_inspect(good, run, folder):
    found = good("inspect", folder / "train.csv", "--target", "label", "--target", "price")
    assert set(found) == {"columns", "spec", "data"}
    assert found["columns"]["text"]["kind"] == "text"
    assert set(yaml.safe_load(found["spec"])["outputs"]) == {"label", "price"}
    assert good("inspect", folder / "train.csv")["spec"] is None
    status, out, _ = run("inspect", folder / "train.csv", "--target", "label")
    assert status == 0
    assert "40 rows" in out
    assert "outputs:\n  label: classify" in out
    assert "--target COLUMN" in run("inspect", folder / "train.csv")[1]


def test_fit_from_a_table_writes_a_spec_that_gives_the_same_model(good, run, folder):
    train = folder / "train.csv"
    (folder / "fast.yaml").write_text(yaml.safe_dump(spec("text", "table")))
    report = good("fit", folder / "fast.yaml", "--data", train, "--seed", 3, "--out", folder / "one")
    assert {"spec", "data", "valid", "fit", "bundle", "page", "warnings"} <= set(report)
    assert yaml.safe_load(report["spec"])["seed"] == 3
    files = {"spec.json", "weights.safetensors", "report.json", "README.md", "spec.yaml", "report.html"}
    assert {path.name for path in (folder / "one").iterdir()} == files
    written = yaml.safe_load((folder / "one" / "spec.yaml").read_text())
    assert written["data"] == {"train": "../train.csv"}
    status, out, _ = run("fit", folder / "one" / "spec.yaml", "--out", folder / "two")
    assert status == 0
    assert "polymodal fit" in out
    weights = [(folder / name / "weights.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    good("fit", folder / "one" / "spec.yaml", "--seed", 4, "--out", folder / "two")
    assert (folder / "two" / "weights.safetensors").read_bytes() != weights[0]
    assert not list(folder.glob("*.resume.safetensors"))


def test_fit_with_several_targets_and_tables(good, folder):
    table = pd.read_csv(folder / "train.csv").drop(columns="text")
    table.iloc[:30].to_csv(folder / "part.csv", index=False)
    table.iloc[30:].to_csv(folder / "rest.csv", index=False)
    command = ["fit", folder / "part.csv", "--target", "label", "--target", "price", "--no-cache"]
    report = good(*command, "--test", folder / "rest.csv", "--out", folder / "several", "--self-contained")
    assert set(report["test"]["tasks"]) == {"label", "price"}
    assert report["test"]["rows"] == 10
    written = yaml.safe_load((folder / "several" / "spec.yaml").read_text())
    assert written["data"] == {"train": "../part.csv", "test": "../rest.csv"}
    assert good("predict", folder / "several", folder / "rest.csv")["predictions"][0].keys() == {"label", "price"}


def test_paths_of_a_spec_start_at_its_file(good, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    report = good("fit", folder / "spec.yaml", "--out", "here")
    assert report["data"]["rows"] == 40
    assert (tmp_path / "here" / "spec.json").is_file()
    again = good("fit", tmp_path / "here" / "spec.yaml", "--out", "there")
    assert again["valid"]["tasks"] == report["valid"]["tasks"]


def test_fit_prints_spec_scores_and_places(run, folder):
    status, out, _ = run("fit", folder / "spec.yaml", "--out", folder / "printed")
    assert status == 0
    assert "inputs:" in out
    assert "all inputs" in out
    assert "without text" in out
    assert str(folder / "printed") in out
    assert "report.html" in out


def test_a_full_disk_after_the_bundle_is_one_line(bad, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pm, "save_page", full)
    (line,) = bad("fit", folder / "spec.yaml", "--out", folder / "full", "--json")
    assert "No space left on device" in line
    assert (folder / "full" / "spec.json").is_file()


def test_evaluate(good, run, folder):
    report = good("evaluate", folder / "model", folder / "train.csv", "--seed", 1)
    assert report["rows"] == 40
    assert report["tasks"]["label"]["headline"] == "accuracy"
    page = folder / "evaluation.html"
    status, out, _ = run("evaluate", folder / "model", folder / "train.csv", "--report", page)
    assert status == 0
    assert "label (classify, 40 rows)" in out
    assert page.read_text().startswith("<!doctype html>")


def test_evaluate_says_what_was_broken(run, folder):
    table = pd.read_csv(folder / "train.csv").astype({"x": object})
    table.loc[3, "x"] = "many"
    table.to_csv(folder / "broken.csv", index=False)
    status, _, err = run("evaluate", folder / "model", folder / "broken.csv")
    assert status == 0
    assert "note:" in err
    assert "row 3, column 'x' ('many')" in err


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_predict_writes_a_table(run, good, folder, tmp_path, ending):
    file = tmp_path / f"predictions.{ending}"
    status, out, _ = run("predict", folder / "model", folder / "train.csv", "--out", file)
    assert status == 0
    assert "40 predictions" in out
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    readers = {"parquet": pd.read_parquet, "csv": pd.read_csv, "jsonl": lambda p: pd.read_json(p, lines=True)}
    frame = readers[ending](file)
    wanted = good("predict", folder / "model", folder / "train.csv")["predictions"]
    assert list(frame["label"]) == [row["label"]["class"] for row in wanted]
    assert frame["label.probability"].tolist() == pytest.approx([row["label"]["probability"] for row in wanted])
    if ending == "parquet":
        assert pq.read_table(file).num_rows == 40


def test_predict_prints_rows_as_they_are(run, folder, tmp_path):
    table = columns(20)
    table["label"] = [":apple: [red]" if y == "a" else "b" for y in table["label"]]
    pm.fit(spec("table"), table, cache=False).save(tmp_path / "m")
    status, out, _ = run("predict", tmp_path / "m", folder / "train.csv")
    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0
    assert [int(number) for number, _ in rows] == list(range(40))
    assert {strict_json(row)["label"]["class"] for _, row in rows} <= {":apple: [red]", "b"}
    assert ":apple: [red]" in out


def test_predict_notes_missing_columns_and_broken_cells(run, good, folder, tmp_path):
    pd.DataFrame({"x": ["1.5", "oops"], "colour": ["red", "mauve"]}).to_csv(tmp_path / "new.csv", index=False)
    status, _, err = run("predict", folder / "model", tmp_path / "new.csv")
    assert status == 0
    for said in ("text: the table has no such column", "row 1, column 'x'", "colour: unseen category"):
        assert said in err
    found = good("predict", folder / "model", tmp_path / "new.csv")
    assert found["absent"] == [["text"], ["text"]]
    assert "row 1, column 'x'" in found["quarantined"][0]


def test_strict_stops(bad, folder, tmp_path):
    pd.DataFrame({"text": ["a", "b"], "x": ["1.5", "oops"]}).to_csv(tmp_path / "new.csv", index=False)
    for command in (["predict", folder / "model", tmp_path / "new.csv"], ["inspect", tmp_path / "new.csv"]):
        if command[0] == "inspect":
            pd.DataFrame({"x": [*map(str, range(40)), "oops"]}).to_csv(tmp_path / "new.csv", index=False)
        (line,) = bad(*command, "--strict")
        assert "column 'x' ('oops')" in line
        assert "--strict" in line


def test_cache_looks_and_cleans(good, run, bad, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    assert good("cache")["shelves"] == []
    table = {"image": [picture(i, bool(i % 2)) for i in range(20)], "label": ["a", "b"] * 10}
    pm.fit(spec("image"), table)
    (shelf,) = good("cache")["shelves"]
    assert shelf["label"] == "image"
    assert shelf["rows"] == 20
    assert shelf["key"] in run("cache")[1]
    assert shelf["key"] in bad("cache", "--remove", "unknown")[0]
    assert good("cache", "--remove", shelf["key"])["freed"] == shelf["bytes"]
    pm.fit(spec("image"), table)
    after = good("cache", "--clear")
    assert after["shelves"] == []
    assert after["freed"] > 0


def test_no_cache_keeps_nothing(good, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    good("fit", folder / "spec.yaml", "--no-cache", "--out", tmp_path / "m")
    assert not list(tmp_path.glob("cache/*"))


def test_weights(good, run):
    found = good("weights")
    assert {w["name"] for w in found} == set(pm.PACKAGED)
    assert all(os.path.isfile(w["path"]) == w["installed"] for w in found)
    assert "minilm" in run("weights")[1]


def test_warnings_are_notes(run, folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "file"))
    (tmp_path / "a.png").write_bytes(picture(1))
    table = {"image": ["a.png"] * 12, "label": ["a", "b"] * 6}
    pd.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(spec("image", data={"train": "t.csv"})))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, _, err = run("fit", tmp_path / "s.yaml", "--out", tmp_path / "m")
    assert status == 0
    assert "note: the feature cache" in err
    assert "features.py" not in err


@pytest.fixture
def own(run, folder, tmp_path, monkeypatch):
    """A copy of the bundle that holds a folder of backbones, and an `improve` that accepts it as it is."""
    place = tmp_path / "own"
    shutil.copytree(folder / "model", place)
    monkeypatch.chdir(tmp_path)
    content = {"input": "text", "accepted": True, "reason": "better"}

    def accepted(bundle, *_, **__):
        return Improvement(bundle, True, "better", content)

    monkeypatch.setattr(pm, "improve", accepted)
    return place


def test_improve_in_place_keeps_the_old_one_and_its_backbones(good, own, folder, monkeypatch):
    (own / "backbones").mkdir()
    (own / "spec.yaml").write_text("# mine\n")
    asked = []
    save = pm.Bundle.save
    monkeypatch.setattr(pm.Bundle, "save", lambda self, *a, **k: asked.append(k) or save(self, *a))
    for kept in ("own.old1", "own.old2"):
        told = good("improve", own, folder / "train.csv", "--input", "text")
        assert told["kept"] == str(own.with_name(kept))
        assert (own / "report.html").is_file()
        assert (own / "spec.yaml").read_text() == "# mine\n"
    assert asked == [{"self_contained": True}, {"self_contained": False}]
    told = good("improve", own, folder / "train.csv", "--out", own.with_name("new"))
    assert told["kept"] is None
    assert (own.with_name("new") / "report.html").is_file()


def test_a_failed_write_of_an_improvement_leaves_the_old_one_alone(bad, own, folder, monkeypatch):
    before = sorted(p.name for p in own.iterdir())
    for place, fault in (("shutil.copytree", PermissionError), ("polymodal.folder.Content._fill", OSError)):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_, fault=fault: (_ for _ in ()).throw(fault(28, "No space left on device")))
            (line,) = bad("improve", own, folder / "train.csv", "--json")
        assert "No space left on device" in line
        assert sorted(p.name for p in own.iterdir()) == before
        assert not own.with_name("own.old1").exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(bad, own, folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda _, mode: mode == os.R_OK)
    (line,) = bad("improve", own, folder / "train.csv", "--json")
    assert "must be a folder that can be written to" in line


def test_diagnose_tries_with_the_users_own_names(good, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"task": "label", "input": "text", "kind": "under-trained", "text": "text: under-trained."}
    content = {"verdict": [entry | {"try": f"{TRY} --input text"}], "tasks": {}, "weakest": "text", "summary": ""}
    monkeypatch.setattr(pm.Bundle, "diagnose", lambda *_, **__: pm.Diagnosis(content))
    table = folder / "train.csv"
    told = good("diagnose", folder / "model", table, "--train", table)
    assert told["verdict"][0]["try"] == f"polymodal improve {folder / 'model'} {table} --input text"


def test_json_has_no_word_for_what_is_not_finite(good, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"verdict": [], "tasks": {}, "weakest": None, "summary": "", "cpu_seconds": float("nan")}
    monkeypatch.setattr(pm.Bundle, "diagnose", lambda *_, **__: pm.Diagnosis(content))
    assert good("diagnose", folder / "model", folder / "train.csv")["cpu_seconds"] is None


@pytest.mark.parametrize("verb", ["evaluate", "diagnose"])
def test_a_seed_below_zero_is_bad_use(bad, folder, verb):
    assert "seed must be 0 or more, got -1" in bad(verb, folder / "model", folder / "train.csv", "--seed", -1)[0]
