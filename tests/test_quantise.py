"""Int8 graphs: near their float graph, with the layers that matter left in float; scored, accepted, kept."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import loud
import polymodal as pm
from polymodal import cli, quantising
from polymodal.errors import BundleError, DataError, SpecError
from polymodal.int8 import Loss, loss
from polymodal.nn import quantise as quantiser
from polymodal.nn.backbone import Backbone
from polymodal.nn.quantise import Quantised, agreement, depends_on_others, quantise
from polymodal.nn.runtime import Session, graph_of
from polymodal.nn.weights import PACKAGED
from polymodal.part import Modality
from polymodal.types import Masked
from tiny import picture


class Grid(nn.Module):
    def __init__(self, layers):
        super().__init__()
        widths = [3] + [8] * layers
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.flatten(2).transpose(1, 2)


class Pictures(Backbone):
    def __init__(self):
        super().__init__()
        self.net, self.width, self.digest = Grid(5).eval(), 8, "pictures"

    def tensors(self, x):
        return (x.values[:, 0],)

    def tokens(self, y, x):
        return Masked(y, x.mask.expand(-1, y.shape[1]))


@pytest.fixture(scope="module")
def grid():
    torch.manual_seed(0)
    graph = graph_of(Pictures(), Masked(torch.rand(2, 1, 3, 8, 8), torch.ones(2, 1, dtype=torch.bool)))
    return graph, [(torch.rand(1, 3, 8, 8),) for _ in range(16)]


@pytest.fixture(scope="module")
def words():
    one = loud.backbone()
    x = Masked(torch.randn(2, 3, loud.WIDTH), torch.ones(2, 3, dtype=torch.bool))
    return graph_of(one, x), [(torch.randn(1, 3, loud.WIDTH),) for _ in range(16)]


def ops(graph):
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_a_convolutional_net_becomes_static_with_its_first_layers_in_float(grid):
    graph, examples = grid
    made = quantise(graph, examples)
    assert made.method == "static-3"
    assert made.agreement > 0.99
    assert not depends_on_others(made.method)
    nodes = onnx.load_from_string(made.graph).graph.node
    turned = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    weights = [node.input[1] in turned for node in nodes if node.op_type == "Conv"]
    assert weights == [False, False, False, True, True]
    x = torch.rand(3, 3, 8, 8)
    assert Session(made.graph)(x).shape == Session(graph)(x).shape


def test_a_static_row_does_not_depend_on_the_rows_beside_it(grid):
    graph, examples = grid
    session, x = Session(quantise(graph, examples).graph), torch.rand(4, 3, 8, 8)
    assert torch.allclose(session(x)[:1], session(x[:1]), atol=1e-6)


def test_more_is_left_in_float_until_the_agreement_is_enough(grid, monkeypatch):
    tried, make = [], quantiser._make_static

    def noted(source, target, kept, reader):
        tried.append(len([name for name in kept if "Conv" in name]))
        make(source, target, kept, reader)

    monkeypatch.setattr(quantiser, "_make_static", noted)
    monkeypatch.setattr(quantiser, "STEPS", (0, 2, 4, 6))
    monkeypatch.setattr(quantiser, "ENOUGH", 0.0)
    assert quantise(*grid).method == "static-0"
    assert tried == [0]
    monkeypatch.setattr(quantiser, "ENOUGH", 2.0)
    best = quantise(*grid)
    assert tried[1:] == [0, 2, 4]
    assert best.agreement > 0.99


def test_any_other_net_becomes_dynamic(words, monkeypatch):
    graph, examples = words
    monkeypatch.setattr(quantiser, "ENOUGH", 0.0)
    made = quantise(graph, examples)
    assert (made.method, made.agreement > 0.99) == ("dynamic", True)
    assert depends_on_others(made.method)
    assert ops(made.graph).count("MatMulInteger") == 2
    monkeypatch.setattr(quantiser, "ENOUGH", 2.0)
    finer = quantise(graph, examples)
    assert (finer.method, ops(finer.graph).count("MatMulInteger")) == ("dynamic-wide", 1)
    assert finer.agreement > made.agreement


def test_few_examples_are_refused(words):
    with pytest.raises(ValueError, match="examples must be 2 or more, got 1"):
        quantise(words[0], words[1][:1])


def test_agreement_is_the_mean_cosine_of_positions_that_hold_something():
    a = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])
    b = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    assert agreement([a], [b]) == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_packaged_convolutional_backbones_agree(kind):
    needs = {"image": ["efficientnet-lite0"], "audio": ["speech-mel", "speech-embedding"]}[kind]
    if any(PACKAGED[name].locate() is None for name in needs):
        pytest.skip("the packaged backbone is not installed")
    part = Modality.parse({"type": "image", "size": 64} if kind == "image" else "audio").fit([])
    cells = [part.read(picture(i)).value for i in range(8)] if kind == "image" else []
    cells = cells or [0.1 * torch.randn(20_000) for _ in range(8)]
    rows = [part.collate([cell]) for cell in cells]
    one = part.backbone()
    made = quantise(graph_of(one, rows[0]), [one.tensors(row) for row in rows])
    assert made.method.startswith("static")
    assert made.agreement > 0.97


@pytest.mark.slow
def test_it_needs_no_package_beyond_the_core():
    code = (
        "import sys\nfor name in ('sympy', 'scipy', 'openvino', 'neural_compressor'): sys.modules[name] = None\n"
        "import loud, torch\nfrom polymodal.nn.quantise import quantise\nfrom polymodal.nn.runtime import graph_of\n"
        "from polymodal.types import Masked\nx = Masked(torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool))\n"
        "print(quantise(graph_of(loud.backbone(), x), [(torch.randn(1, 3, 16),) for _ in range(4)]).method)"
    )
    place = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=place)
    assert done.stdout.startswith("dynamic"), done.stderr
    assert not done.stderr


# A bundle's int8 ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle():
    return loud.fitted()


@pytest.fixture(scope="module")
def found(bundle):
    return quantising.quantise(bundle, loud.table(40, seed=1), calibrate=loud.table(30), rows=16)


def test_int8_is_scored_on_the_same_rows_and_accepted(bundle, found):
    assert found.accepted == ["a"]
    assert found.rows == 40
    entry = found.inputs["a"].entry
    assert (entry.method.split("-")[0], entry.backbone, entry.alone) == ("dynamic", "loud-1", True)
    assert entry.agreement > 0.99
    assert entry.example > 0.99
    assert [(one.task, one.metric) for one in entry.losses] == [("y", "accuracy")]
    expected = bundle.evaluate(loud.table(40, seed=1))["y"]["accuracy"]
    assert entry.losses[0].score_float == pytest.approx(expected)
    assert found.together == entry.losses
    assert "int8" in found.lines()[0]


def test_without_a_table_to_calibrate_its_first_rows_are_not_scored(bundle):
    assert quantising.quantise(bundle, loud.table(40, seed=1), rows=16).rows == 24
    with pytest.raises(DataError, match="must have labelled rows to score beside the 40"):
        quantising.quantise(bundle, loud.table(40, seed=1), rows=64)


def test_rows_that_ranges_were_taken_from_are_not_scored(bundle):
    table = loud.table(40, seed=1)
    assert quantising.quantise(bundle, table, calibrate=table, rows=16).rows == 24
    assert quantising.quantise(bundle, table, calibrate=loud.table(16), rows=16).rows == 40


def test_a_task_without_a_score_is_told(tmp_path):
    table = loud.table(40, seed=1) | {"z": [0.5, 1.5] * 20}
    spec = {"inputs": {"a": "test-loud"}, "outputs": {"y": "classify", "z": "regress"}, "dim": 8}
    two = pm.fit(spec | {"training": {"epochs": 1, "batch_size": 16}}, table, cache=False)
    found = quantising.quantise(two, table | {"z": [None] * 40}, rows=16, limit=0.9)
    assert found.unscored == ["z"]
    assert [one.task for one in found.inputs["a"].entry.losses] == ["y"]
    assert "z: the table gives it no score, so what it loses is not known" in found.lines()
    assert json.loads(json.dumps(found.to_dict()))["unscored"] == ["z"]


def test_what_gives_no_score_in_int8_stays_in_float(bundle, monkeypatch):
    scores = quantising._Trial.scores
    monkeypatch.setattr(quantising._Trial, "scores", lambda self, rows: {} if rows else scores(self, rows))
    lost = quantising.quantise(bundle, loud.table(40, seed=1), calibrate=loud.table(30), rows=16)
    assert lost.accepted == []
    assert lost.inputs["a"].entry.worst.loss == np.inf


def test_what_loses_too_much_stays_in_float(bundle, monkeypatch, tmp_path):
    blank = loud.LoudBackbone()
    torch.nn.init.zeros_(blank.net[2].weight)  # pyright: ignore
    x = bundle.embedder.example("a")

    def spoilt(graph, examples):
        return Quantised(graph_of(blank, x), "static-0", 0.0)

    monkeypatch.setattr(quantising, "quantise_graph", spoilt)
    lost = quantising.quantise(bundle, loud.table(40, seed=1), calibrate=loud.table(30), rows=16)
    assert lost.accepted == []
    assert lost.inputs["a"].entry.worst.loss > 0.2
    assert "stays in float: it loses 0.005 or more" in str(lost)
    with pytest.raises(SpecError, match="int8 must be accepted for an input, got none"):
        lost.save(bundle.save(tmp_path / "model"))
    kept = quantising.quantise(bundle, loud.table(40, seed=1), calibrate=loud.table(30), rows=16, limit=0.9)
    assert kept.accepted == ["a"]


def test_together_the_worst_stays_in_float_first(found, monkeypatch):
    one = {"task": "y", "metric": "accuracy", "score_float": 1.0, "score_int8": 1.0}
    trial = quantising._Trial(None, None, pm.Table.read(loud.table(4)), None, None, 0.005, None)  # pyright: ignore
    losses = {"a": 0.002, "b": 0.004}
    entries = {
        n: found.inputs["a"].entry.model_copy(update={"losses": [Loss(**one, loss=x)]}) for n, x in losses.items()
    }

    def lost(self, names):
        return [Loss(**one, loss=sum(losses[n] for n in names))]

    monkeypatch.setattr(quantising._Trial, "losses", lost)
    all_found = {n: quantising.Found(b"", entry, True) for n, entry in entries.items()}
    together = trial.settle(all_found)
    assert [n for n, each in all_found.items() if each.accepted] == ["a"]
    assert together[0].loss == 0.002


@pytest.mark.parametrize(
    ("metric", "before", "after", "expected"),
    [
        ("accuracy", 0.9, 0.8, 0.1),
        ("mae", 2.0, 2.2, 0.1),
        ("mae", 0.0, 1.0, np.inf),
        ("mae", 0.0, 0.0, 0.0),
        ("mae", 2.0, np.nan, np.inf),
    ],
)
def test_loss_is_a_difference_or_the_share_that_an_error_grew_by(metric, before, after, expected):
    assert loss(metric, before, after) == pytest.approx(expected)


def test_arguments_are_checked(bundle):
    with pytest.raises(SpecError, match="rows must be 8 or more, got 7"):
        quantising.quantise(bundle, loud.table(), rows=7)
    with pytest.raises(SpecError, match="limit must be above 0, got 0"):
        quantising.quantise(bundle, loud.table(), limit=0)
    few = quantising.quantise(bundle, loud.table(20), calibrate=loud.table(4))
    assert "must have it in 8 rows to calibrate with, got 4" in str(few)


def test_a_bundle_keeps_its_int8(bundle, found, tmp_path):
    place = found.save(bundle.save(tmp_path / "model"))
    loaded = pm.load(place, device="cpu")
    assert set(loaded.embedder.int8) == {"a"}
    again = pm.load(loaded.save(tmp_path / "again"), device="cpu")
    assert again.int8.note == loaded.int8.note
    loaded.save(place)  # over itself
    assert pm.load(place, device="cpu").int8 is not None
    found.save(place)  # anew, in the place of what is there
    assert sorted(p.name for p in place.parent.iterdir()) == ["again", "model"]
    assert sorted(p.name for p in (place / "int8").iterdir()) == ["0.onnx", "int8.json"]


def test_the_command_line_puts_int8_into_a_bundle(bundle, tmp_path, capsys):
    place, (scored, ranged) = bundle.save(tmp_path / "model"), (tmp_path / "scored.jsonl", tmp_path / "ranged.jsonl")
    for file, table in ((scored, loud.table(40, seed=1)), (ranged, loud.table(30))):
        rows = zip(*table.values(), strict=True)
        file.write_text("".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in rows))
    command = ["export", str(place), "--to", "int8", "--table", str(scored), "--calibrate", str(ranged)]
    with pytest.raises(SystemExit) as end:
        cli.app(command)
    assert not end.value.code
    assert "40 rows of " in capsys.readouterr().out.replace("\n", " ")
    assert (place / "int8" / "int8.json").is_file()


def test_int8_of_other_weights_is_dropped_on_saving_and_refused_on_loading(bundle, found, tmp_path):
    place = found.save(bundle.save(tmp_path / "model"))
    loaded = pm.load(place, device="cpu")
    with torch.no_grad():
        next(loaded.model.parameters()).add_(1)
    other = loaded.save(tmp_path / "other")
    assert not (other / "int8").exists()
    with pytest.raises(BundleError, match="must hold the model that was scored in int8"):
        found.save(other)
    (place / "int8").rename(other / "int8")
    with pytest.raises(BundleError, match="must be of this bundle's weights and backbones"):
        pm.load(other)


@pytest.mark.parametrize("what", ["graph", "gone", "note", "pattern"])
def test_damaged_int8_is_refused(bundle, found, tmp_path, what):
    place = found.save(bundle.save(tmp_path / "model"))
    graph, note = place / "int8" / "0.onnx", place / "int8" / "int8.json"
    if what == "graph":
        graph.write_bytes(graph.read_bytes()[:-9])
    elif what == "gone":
        graph.unlink()
    elif what == "note":
        note.write_text("{")
    else:
        content = json.loads(note.read_text())
        content["inputs"]["a"]["file"] = "../../secret.onnx"
        note.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="int8"):
        pm.load(place)


def test_a_folder_that_cannot_be_written_keeps_what_it_had(bundle, found, tmp_path, monkeypatch):
    place = found.save(bundle.save(tmp_path / "model"))
    before = (place / "int8" / "int8.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polymodal.folder.write_int8", full)
    with pytest.raises(BundleError, match="No space left"):
        found.save(place)
    assert (place / "int8" / "int8.json").read_bytes() == before
    assert [p.name for p in place.parent.iterdir()] == ["model"]
