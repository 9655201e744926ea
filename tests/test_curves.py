"""Robustness curves: known answers on models that read one input, cost, determinism, and real noises end to end."""

import json
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn

import polymodal as pm
import toys
from polymodal.data.embedding import Embedder
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.diagnose import curves as file
from polymodal.diagnose.curves import area, curves, spread
from polymodal.nn.backbone import Backbone
from polymodal.nn.weights import PACKAGED
from polymodal.part import Corruption
from polymodal.spec import Spec
from polymodal.types import Masked
from tiny import FAST, columns, fitted

CPU = torch.device("cpu")
TENTHS = tuple(i / 10 for i in range(1, 11))
METRIC = {"y": "accuracy"}


def flip(values, share, rng):
    """Turn the sign of a share of the present values."""
    here = [i for i, value in enumerate(values) if value is not None]
    turned = {here[k] for k in rng.permutation(len(here))[: round(share * len(here))]}
    return [-value if i in turned else value for i, value in enumerate(values)]


def fade(values, share, rng):
    """Let everything become nothing in the second half of the steps."""
    return [None if share > 0.5 else value for value in values]


class Double(Backbone):
    """Tokens are twice the values. Counts the rows that it sees."""

    width, digest, seen = 2, "double", 0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()

    def tensors(self, x):
        return (x.values,)

    def tokens(self, y, x):
        Double.seen += len(y)
        return Masked(2 * y, x.mask)


class Turned(toys.Vectors):
    """Vectors with noises whose effect is known."""

    type: Literal["test-turned"] = "test-turned"
    noises: tuple[str, ...] = ("flip", "fade")
    double: bool = False

    @property
    def corruptions(self):
        found = {"flip": Corruption("share", TENTHS, flip), "fade": Corruption("share", TENTHS, fade)}
        found["nothing"] = Corruption.each("of nothing", TENTHS, lambda value, *_: value.clone())
        return {name: found[name] for name in self.noises}

    def backbone(self):
        return Double() if self.double else None


class Filed(Turned):
    """Of a kind that comes in files."""

    media: ClassVar[bool] = True
    type: Literal["test-filed"] = "test-filed"

    def read(self, content):
        return super().read([float(content[-2:]) / 10 - 4.5, 0.0])


class Reader:
    """A model that says 1 where the first number of input a is above 0, and 0 where it is absent."""

    def __init__(self, spec):
        self.spec = spec

    def answer(self, inputs):
        told = inputs["a"].mean()[:, 0]
        return SimpleNamespace(decoded={n: torch.stack([torch.zeros_like(told), told], 1) for n in self.spec.outputs})


def make(a="test-turned", rows=40, cells=None, labels=None, **outputs) -> tuple[Any, ...]:
    """A reader of a and what `curves` takes with it; b has no noises of its own and says nothing."""
    spec = Spec.parse({
        "inputs": {"a": a, "b": "test-vectors"},
        "outputs": {"y": toys.BINARY, **outputs},
        "fusion": {"type": "concat", "dropout": 0.0},
    })  # fmt: skip
    y = [i % 2 for i in range(rows)]
    cells = [[2.0 * label - 1, 0.01 * i] for i, label in enumerate(y)] if cells is None else cells
    labels = y if labels is None else labels
    table = Table.read(
        {"a": cells, "b": [[1.0, float(i)] for i in range(rows)], **dict.fromkeys(("y", *outputs), labels)}
    )
    embedder = Embedder(spec, CPU)
    return Reader(spec), table, prepare(spec, table, embedder), embedder, CPU


def draw(made, rows=20, seed=0, metric=METRIC) -> Any:
    return curves(*made, rows=rows, seed=seed, metric=metric)


def scores(curve) -> list[float]:
    return [curve["clean"], *(step["score"] for step in curve["steps"])]


def test_an_input_that_decides_alone_falls_as_it_is_corrupted():
    found = draw(make())["y"]
    assert scores(found["a"]["flip"]) == pytest.approx([1.0, *(1 - share for share in TENTHS)], abs=0.001)
    assert found["a"]["flip"]["area"] == pytest.approx(0.5, abs=0.001)
    assert scores(found["a"]["fade"]) == [1.0] * 6 + [0.5] * 5
    assert found["a"]["fade"]["area"] == pytest.approx(0.775)


def test_an_input_falls_to_chance_as_it_is_removed_and_an_idle_one_is_flat():
    found = draw(make())["y"]
    removed = scores(found["a"]["removed"])
    assert removed[0] == 1
    assert removed[-1] == 0.5, "every row is said to be 0"
    assert removed == sorted(removed, reverse=True), "what is hidden stays hidden"
    assert removed[5] == pytest.approx(0.75, abs=0.1)
    assert list(found["b"]) == ["removed"], "an input without noises of its own can still be removed"
    assert scores(found["b"]["removed"]) == [1.0] * 11
    assert found["b"]["removed"]["area"] == 1.0


def test_the_mapping_is_as_documented():
    found = draw(make())
    curve = found["y"]["a"]["flip"]
    assert set(curve) == {"unit", "rows", "clean", "steps", "area"}
    assert [step["level"] for step in curve["steps"]] == list(TENTHS)
    assert [step["severity"] for step in curve["steps"]] == list(TENTHS)
    assert [step["severity"] for step in found["y"]["b"]["removed"]["steps"]] == list(TENTHS)
    assert (curve["unit"], found["y"]["b"]["removed"]["unit"]) == ("share", "share of rows")
    assert json.loads(json.dumps(found)) == found


def test_a_seed_gives_the_same_curves_and_another_one_others():
    made = make(cells=[[(-1) ** i * (1 if i % 7 else -1), 0.0] for i in range(1, 41)])
    one, two, other = draw(made), draw(made), draw(made, seed=1)
    assert one == two
    assert one != other


def test_only_labelled_rows_that_have_the_input_are_sampled():
    cells = [None if i < 20 else [2.0 * (i % 2) - 1, 0.1 * i] for i in range(40)]
    labels = [None if i % 4 == 0 else i % 2 for i in range(40)]
    found = draw(make(cells=cells, labels=labels), rows=30)["y"]["a"]
    assert found["flip"]["rows"] == 15
    assert found["flip"]["clean"] == 1.0
    assert found["removed"]["rows"] == 30
    assert found["removed"]["steps"][-1]["score"] == pytest.approx(1 / 3)


def test_an_input_that_no_row_has_gets_no_curves():
    found = draw(make(cells=[None] * 40))["y"]
    assert list(found) == ["b"]


def test_a_row_whose_file_is_gone_is_not_sampled(tmp_path):
    files = [tmp_path / f"{i:02d}.txt" for i in range(40)]
    for i, place in enumerate(files):
        place.write_text(f"{i:02d}")
    made = make("test-filed", cells=[str(place) for place in files])
    for place in files[:30]:
        place.unlink()
    assert draw(made, rows=40)["y"]["a"]["flip"]["rows"] == 10
    for place in files[30:]:
        place.unlink()
    assert list(draw(made)["y"]["a"]) == ["removed"]


def test_selected_rows_are_read_from_their_own_cells():
    model, table, prepared, *rest = make()
    half = prepared.select(np.arange(39, 9, -2))  # all labelled 1
    found = curves(model, table, half, *rest, rows=20, seed=0, metric=METRIC)["y"]["a"]
    assert found["flip"]["rows"] == 15
    assert found["flip"]["clean"] == 1.0
    assert scores(found["flip"])[-1] == 0.0


def test_tasks_are_scored_by_their_own_metric_on_their_own_rows():
    made = make(z={**toys.BINARY, "column": "y"})
    found = draw(made, metric={"y": "accuracy", "z": "macro_f1"})
    assert scores(found["z"]["a"]["flip"])[0] == 1.0
    assert scores(found["z"]["a"]["fade"])[-1] == pytest.approx(1 / 3)
    assert list(draw(made)) == ["y"]


def test_a_score_that_is_not_defined_is_none():
    found = draw(make(labels=[1] * 40), metric={"y": "auroc"})["y"]["a"]["flip"]
    assert found["clean"] is None
    assert found["area"] is None
    assert {step["score"] for step in found["steps"]} == {None}


def test_the_sample_is_spread_over_the_classes():
    labels = [int(i < 10) for i in range(40)]  # a quarter
    cells = [[2.0 * label - 1, 0.1 * i] for i, label in enumerate(labels)]
    for seed in range(3):
        found = draw(make(cells=cells, labels=labels), rows=2, seed=seed)["y"]["a"]
        assert found["flip"]["rows"] == 8, "four times as many of an input that costs nothing"
        assert found["fade"]["steps"][-1]["score"] == 0.75, "two of eight are of the class of a quarter"


@pytest.mark.parametrize(("kind", "expected"), [("test-turned", 40), ("test-filed", 12), ("double", 12)])
def test_files_and_backbones_are_sampled_sparingly(kind, expected, tmp_path):
    a, cells = ({"type": "test-turned", "double": True} if kind == "double" else kind), None
    if kind == "test-filed":
        cells = [f"data:,{i:02d}" for i in range(40)]
    assert draw(make(a, cells=cells), rows=12)["y"]["a"]["flip"]["rows"] == expected


def test_large_values_are_sampled_yet_more_sparingly(monkeypatch):
    made = make({"type": "test-turned", "double": True})
    each = 8  # bytes of two numbers
    for most, expected in ((10 * each, 10), (0, 8), (1000 * each, 20)):
        monkeypatch.setattr(file, "MOST", most)
        assert draw(made)["y"]["a"]["flip"]["rows"] == expected


def test_what_is_known_is_not_embedded_again(monkeypatch):
    monkeypatch.setenv("POLYMODAL_RUNTIME", "torch")
    made = make({"type": "test-turned", "double": True, "noises": ["nothing"]})
    Double.seen = 0
    found = draw(made)["y"]["a"]["nothing"]
    assert Double.seen == 0, "nothing changed: the clean tokens serve"
    assert scores(found) == [1.0] * 11
    made = make({"type": "test-turned", "double": True, "noises": ["flip"]})
    Double.seen = 0
    draw(made)
    assert Double.seen == 20, "each row is turned once and stays so"


def test_the_model_sees_tokens_of_corrupted_values(monkeypatch):
    """With a backbone and a summary between the values and the model, the scores are the same."""
    monkeypatch.setenv("POLYMODAL_RUNTIME", "torch")
    plain, deep = (
        draw(make({"type": "test-turned", "double": double}), rows=5 if not double else 20) for double in (0, 1)
    )
    assert plain == deep


def test_progress_tells_the_steps():
    told = []
    curves(*make(), rows=8, seed=0, metric=METRIC, progress=lambda *what: told.append(what))
    assert told == [("corrupt a", i, 20) for i in range(1, 21)]


def test_area_is_the_trapezoid_rule():
    assert area([1.0] * 11) == pytest.approx(1.0)
    assert area([1.0, 0.0]) == 0.5
    assert area([2.0, 4.0, 2.0]) == pytest.approx(3.0)
    assert area([1.0, None]) is None


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (3, 10), (7, 7), (1000, 32)])
def test_spread_positions_are_even_and_different(count, wanted):
    places = spread(count, wanted)
    assert len(places) == len(set(places.tolist())) == min(count, wanted)
    assert np.ptp(np.diff(places)) <= 1
    assert 0 <= places[0] <= places[-1] < count


def test_every_noise_of_a_trained_model_is_drawn():
    table = Table.read(columns(16, media=True))
    bundle = fitted("text", "image", "audio", "table", table=table)
    prepared = prepare(bundle.spec, table, bundle.embedder)
    found = curves(bundle.model, table, prepared, bundle.embedder, CPU, rows=1, seed=0, metric={"label": "nll"})
    for name, part in bundle.spec.inputs.items():
        assert list(found["label"][name]) == [*part.corruptions, "removed"]
        for noise, curve in found["label"][name].items():
            assert len(curve["steps"]) == 10
            assert np.isfinite(scores(curve)).all()
            assert len(set(scores(curve))) > 1 or noise == "shuffled", "this model hardly knows the order of words"


@pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged backbone is not installed")
def test_changed_texts_are_embedded_by_the_real_backbone(monkeypatch):
    table = Table.read(columns(16))
    spec = {"inputs": {"text": "text"}, "outputs": {"label": "classify"}, "dim": 16, "training": FAST}
    bundle = pm.fit(spec, table, cache=False)
    prepared = prepare(bundle.spec, table, bundle.embedder)
    seen = []
    embed = bundle.embedder.embed
    monkeypatch.setattr(bundle.embedder, "embed", lambda name, x: seen.append(len(x)) or embed(name, x))
    found = curves(bundle.model, table, prepared, bundle.embedder, CPU, rows=2, seed=0, metric={"label": "nll"})
    assert 2 * 10 < sum(seen) < 2 * 40, "some of the forty steps left a text as it was"
    assert max(seen) <= 2
    dropped = scores(found["label"]["text"]["dropped"])
    everything = scores(found["label"]["text"]["removed"])
    assert len(set(dropped)) > 3
    assert all(np.isfinite([*dropped, *everything]))
