"""Choice of runtimes: the fastest that is right, measured once, remembered, forced."""

import json
import warnings

import pytest
import torch

import loud
import polymodal as pm
from polymodal import measuring, quantising, runtimes
from polymodal.errors import SpecError
from polymodal.nn import provider, race, runtime
from polymodal.runtimes import choose
from polymodal.types import Masked


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    measuring._warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def fitted():
    return loud.fitted()


@pytest.fixture(scope="module")
def unquantised(fitted, tmp_path_factory):
    return fitted.save(tmp_path_factory.mktemp("bundles") / "model")


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    place = fitted.save(tmp_path_factory.mktemp("bundles") / "model")
    found = quantising.quantise(fitted, loud.table(40, seed=1), calibrate=loud.table(30), rows=16)
    found.save(place)
    return place


@pytest.fixture
def bundle(saved):
    return pm.load(saved, device="cpu")


@pytest.fixture
def plain(unquantised):
    return pm.load(unquantised, device="cpu")


@pytest.fixture
def speeds(monkeypatch):
    """Milliseconds that each runtime is said to take."""
    said = {"torch": 4.0, "onnxruntime": 3.0, "openvino": 2.0, "onnxruntime-int8": 1.0}
    monkeypatch.setattr(measuring, "race", lambda runs, x, clocks: {name: said[name] for name in runs})
    return said


def by_name(choice):
    return {row.runtime: row for row in choice.measured}


def test_the_fastest_that_is_right_is_chosen(bundle, speeds):
    choice = choose(bundle, threads=1)
    assert choice.names == choice.embedder.runtimes == {"a": "onnxruntime-int8"}
    rows = by_name(choice)
    assert set(rows) == {"torch", "onnxruntime", "openvino", "onnxruntime-int8"}  # no OpenVINO with a dynamic graph
    assert [name for name, row in rows.items() if row.chosen] == ["onnxruntime-int8"]
    assert rows["onnxruntime"].difference < 1e-3
    assert "of y accuracy on 40 rows" in rows["onnxruntime-int8"].why
    speeds["torch"] = 0.5
    assert choose(bundle, threads=1, remeasure=True).names == {"a": "torch"}


def test_it_really_measures(bundle):
    choice = choose(bundle, threads=1)
    assert all(row.ms is not None and min(row.ms) > 0 for row in choice.measured)
    best = min(choice.measured, key=lambda row: row.mean)
    assert best.chosen
    table = loud.table(10, seed=2)
    before = list(bundle.predict(table))
    bundle.embedder = choice.embedder
    found = bundle.predict(table)
    assert [set(row["y"]) for row in found] == [set(row["y"]) for row in before]


def test_a_race_takes_the_best_round_and_drops_who_is_far_behind():
    now, calls = [0.0], []
    took = {"torch": iter([9.0, 3.0, 1.0, 2.0]), "onnxruntime": iter([9.0, 8.0, 0.0, 0.0])}

    def run(name):
        def go(x):
            calls.append(name)
            now[0] += next(took[name])
            return x

        return go

    x = Masked(torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool))
    clocks = [lambda: now[0], lambda: 2 * now[0]]
    assert race.race({name: run(name) for name in took}, [x], clocks) == {"torch": 500.0, "onnxruntime": 4000.0}
    assert calls.count("torch") == 4
    assert calls.count("onnxruntime") == 2


def test_a_second_start_does_not_measure(bundle, speeds, monkeypatch):
    first = choose(bundle, threads=1)
    assert not first.remembered
    monkeypatch.setattr(measuring, "race", lambda *_: pytest.fail("measured again"))
    second = choose(bundle, threads=1)
    assert second.remembered
    assert (second.names, second.measured) == (first.names, first.measured)
    assert set(second.embedder._ready) == {"a"}  # started and warm
    assert "measured earlier" in second.lines()[0]


def test_remeasure_and_other_threads_measure_again(bundle, speeds):
    choose(bundle, threads=1)
    speeds["openvino"] = 0.1
    assert choose(bundle, threads=1).names == {"a": "onnxruntime-int8"}
    assert choose(bundle, threads=2).names == {"a": "openvino"}
    assert choose(bundle, threads=1, remeasure=True).names == {"a": "openvino"}
    assert choose(bundle, threads=1).names == {"a": "openvino"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"rows": [], "probe": []}', b"[1]"])
def test_an_unreadable_memory_is_measured_again(bundle, speeds, cache, content):
    choose(bundle, threads=1)
    (file,) = (cache / "runtimes").iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    assert not choose(bundle, threads=1).remembered
    assert json.loads(file.read_bytes())["rows"] == json.loads(good)["rows"]


def test_a_memory_of_what_cannot_run_here_is_measured_again(bundle, speeds, cache):
    good = choose(bundle, threads=1)
    (file,) = (cache / "runtimes").iterdir()
    file.write_text(file.read_text().replace('"onnxruntime-int8"', '"half"'))
    again = choose(bundle, threads=1)
    assert not again.remembered
    assert again.names == good.names


def test_a_graph_that_was_damaged_since_is_noticed(plain, speeds, cache):
    speeds["onnxruntime"] = 0.1
    wanted = choose(plain, threads=1).embedder.embed("a", plain.embedder.example("a")).values
    (graph,) = (cache / "graphs").glob("*.onnx")
    other = loud.LoudBackbone()
    torch.nn.init.ones_(other.net[2].weight)
    graph.write_bytes(runtime.graph_of(other, plain.embedder.example("a")))
    choice = choose(loud_again(plain), threads=1)
    assert not choice.remembered
    assert torch.allclose(choice.embedder.embed("a", plain.embedder.example("a")).values, wanted, atol=1e-3)


def loud_again(bundle):
    """The same bundle with nothing started."""
    bundle.embedder._ready.clear()
    return bundle


def test_where_nothing_can_be_kept_it_measures_each_time_and_says_so_once(plain, speeds, cache):
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "runtimes").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="Runtimes are measured anew by every start"):
        first = choose(plain, threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = choose(plain, threads=1)
    assert not second.remembered
    assert first.names == second.names


def test_a_runtime_that_gives_other_tokens_is_not_chosen(plain, speeds, monkeypatch):
    real = measuring._difference
    seen = []

    def wrong(found, wanted):
        seen.append(real(found, wanted))
        return 0.5 if len(seen) > 2 else seen[-1]  # torch is asked twice

    monkeypatch.setattr(measuring, "_difference", wrong)
    choice = choose(plain, threads=1)
    assert choice.names == {"a": "torch"}
    assert by_name(choice)["onnxruntime"].why == "differs from torch by more than 0.001"
    assert by_name(choice)["onnxruntime"].ms is None


def test_int8_that_gives_other_tokens_here_is_not_chosen(bundle, speeds):
    entry = bundle.int8.note.inputs["a"]
    note = bundle.int8.note.model_copy(update={"inputs": {"a": entry.model_copy(update={"example": 1.5})}})
    bundle.int8 = type(bundle.int8)(bundle.int8.folder, note)
    choice = choose(bundle, threads=1)
    assert choice.names == {"a": "openvino"}
    assert "its loss is not known here" in by_name(choice)["onnxruntime-int8"].why


def test_a_backbone_that_onnx_cannot_hold_runs_in_torch(plain, speeds, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr(runtime, "_export", refuse)
    choice = choose(plain, threads=1)
    assert choice.names == {"a": "torch"}
    assert by_name(choice)["onnxruntime"].why == "ONNX cannot hold it: no such operator"


def test_what_is_not_installed_is_said(plain, speeds, monkeypatch):
    monkeypatch.setattr(measuring, "installed", lambda name: not name.startswith("openvino"))
    choice = choose(plain, threads=1)
    assert choice.names == {"a": "onnxruntime"}
    assert "pip install 'polymodal[openvino]'" in by_name(choice)["openvino"].why


def test_an_input_without_an_example_keeps_its_runtime(speeds):
    choice = choose(loud.fitted(example=False), threads=1)
    assert choice.names == {"a": "onnxruntime"}
    assert by_name(choice)["onnxruntime"].why == "no example to measure with"


def test_a_bundle_without_backbones_has_nothing_to_choose():
    from tiny import fitted

    choice = choose(fitted("table", outputs={"price": "regress"}))
    assert (choice.names, choice.lines()) == ({}, ["no input has a backbone"])


def test_a_runtime_can_be_forced(bundle, plain, monkeypatch):
    monkeypatch.setattr(measuring, "race", lambda *_: pytest.fail("measured"))
    for name in ("torch", "onnxruntime", "onnxruntime-int8"):
        choice = choose(bundle, runtime=name, threads=3)
        assert (choice.names, choice.embedder.runtimes, choice.threads) == ({"a": name}, {"a": name}, 3)
        assert choice.lines() == [f"a: {name}"]
    assert choice.embedder.embed("a", plain.embedder.example("a")).values.shape == (1, 2, loud.WIDTH)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openvin", r"runtime must be one of \['auto', 'torch', .* got 'openvin'. Did you mean 'openvino'"),
        ("half", "runtime 'half' must run on CUDA, got device 'cpu'"),
        ("onnxruntime-int8", "must have an int8 graph, got none for input 'a'. Make one with polymodal export MODEL"),
        ("openvino-int8", "polymodal export MODEL --to int8"),
    ],
)
def test_a_runtime_that_cannot_be_forced(plain, monkeypatch, name, message):
    monkeypatch.setattr(provider.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(SpecError, match=message):
        choose(plain, runtime=name)


def test_forced_openvino_must_be_installed(plain, monkeypatch):
    monkeypatch.setattr(provider, "installed", lambda name: False)
    with pytest.raises(SpecError, match=r"pip install 'polymodal\[openvino\]'"):
        choose(plain, runtime="openvino")


def test_forced_int8_leaves_others_in_float(bundle):
    names = runtimes._forced(bundle.embedder, "onnxruntime-int8", ["a"])
    assert names == {"a": "onnxruntime-int8"}
    bundle.embedder.modalities["b"] = bundle.embedder.modalities["a"]
    names = runtimes._forced(bundle.embedder, "onnxruntime-int8", ["a", "b"])
    assert names == {"a": "onnxruntime-int8", "b": "onnxruntime"}


def test_threads_must_be_positive(plain):
    with pytest.raises(SpecError, match="threads must be 1 or more, got 0"):
        choose(plain, threads=0)


def test_the_table_says_what_was_measured(bundle, speeds):
    lines = choose(bundle, threads=1).lines()
    assert lines[0] == "milliseconds a row in batches of 1 and 4, 1 threads, measured now"
    assert [line.split()[:2] for line in lines[2:]] == [["a", name] for name in speeds]
    assert "chosen; loses" in lines[-1]


def test_contents_of_several_lengths_are_measured():
    x = Masked(torch.arange(3.0)[None, :, None], torch.ones(1, 3, dtype=torch.bool), torch.arange(3.0)[None, :, None])
    found = race.stretched(x)
    assert [y.mask.shape[1] for y in found] == [1, 3, 6, 12]
    assert found[2].values[0, :, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert all(bool(y.mask.all()) for y in found)
