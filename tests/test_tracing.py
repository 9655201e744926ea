"""The graph of a model answers as the model does: every fusion, task and modality, any rows absent, any lengths."""

import itertools
import os
import subprocess
import sys
from typing import Any, Literal

import onnx
import pytest
import torch
from torch import nn

import radar
import shy
import tiny
import toys
from polymodal.data.embedding import Embedder
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.errors import DataError, SpecError
from polymodal.model import Model
from polymodal.nn.bert import MINILM_WIDTH
from polymodal.nn.blocks import TokenEncoder
from polymodal.nn.signal import LogMel
from polymodal.nn.weights import PACKAGED
from polymodal.part import Fusion
from polymodal.spec import Spec
from polymodal.tracing import answer, answerer, flat, trace
from polymodal.types import Masked

assert radar  # known by its import
TASKS = {
    "label": {"type": "classify", "classes": ["a", "b", "c"]},
    "tags": {"type": "multilabel", "labels": ["u", "v"]},
    "size": {
        "type": "regress",
        "targets": ["w", "h", "deep"],
        "objective": "gaussian",
        "mean": [0] * 3,
        "scale": [1] * 3,
    },
    "cost": {"type": "regress", "objective": "squared", "mean": [0], "scale": [1]},
    "wide": {"type": "regress", "targets": ["k", "l"], "objective": "quantiles", "mean": [0, 1], "scale": [1, 2]},
    "late": {"type": "regress", "targets": ["m", "n"], "objective": "beta_nll", "mean": [0, 0], "scale": [1, 1]},
}
ONE = {"label": TASKS["label"]}
COLUMNS = {
    "x": [1, 2.5, None, 4, 3, 2], "c": ["u", "u", "v", "v", None, "u"], "b": [True, None, False, True, True, False],
    "d": ["2024-01-31", None, "2025-07-01 12:30", "2024-03-01", "2024-03-02", "2024-05-05"],
    "t": ["red apple", "a red apple on a table", None, "old stone", "stone", "red stone"],
    "n": [["Red", "apple"], "A stone on the Table", None, ["old"], ["Stone", "."], ["red", "stone"]],
    "r": [[[10, 0.1, 3], [20, 0.2, -1]], [[5, 0, 0]], None, [[1, 1, 1]] * 4, [[2, 0, 1]], [[3, 1, 0]]],
    "i": [*(tiny.picture(i) for i in range(5)), None], "s": [*(tiny.sound(i, 250.0 * (i + 1)) for i in range(5)), None],
}  # fmt: skip
PARTS: dict[str, Any] = {
    "x": {
        "type": "table", "numbers": ["x"], "categories": ["c"], "booleans": ["b"], "dates": ["d"], "rare": 1,
    },
    "t": {"type": "text", "backbone": "none", "min_count": 1},
    "n": {"type": "words", "backbone": "none", "min_count": 1},
    "r": {"type": "radar"},
    "i": {"type": "image", "backbone": "none", "size": 36},
    "s": {"type": "audio", "backbone": "none"},
}  # fmt: skip


class Placed(shy.Shy):
    """Tokens of a backbone whose encoder takes three coordinates."""

    type: Literal["test-placed"] = "test-placed"  # pyright: ignore[reportIncompatibleVariableOverride]

    def encoder(self, dim: int) -> nn.Module:
        return TokenEncoder(self.width, dim, coordinates=3)


class Stubborn(toys.Vectors):
    """An encoder whose graph depends on what was traced."""

    type: Literal["test-stubborn"] = "test-stubborn"  # pyright: ignore[reportIncompatibleVariableOverride]
    sort: str = "constant"

    def encoder(self, dim: int) -> nn.Module:
        return Branching(self.width, dim, self.sort)


class Branching(nn.Module):
    def __init__(self, width, dim, sort):
        super().__init__()
        self.net, self.sort = nn.Linear(width, dim), sort

    def forward(self, x):
        y = self.net(x.values)
        y = y + torch.linalg.svdvals(y) if self.sort == "unknown" else y * float(y.abs().max())
        return Masked(y, x.mask)


def stirred(spec) -> Model:
    """A model whose every part has a say."""
    torch.manual_seed(0)
    model = Model(spec).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for _, family in model.linear.items():
        for _, linear in family.items():
            linear.weight.normal_(0, 0.1)
    model.share.fill_(0.3)
    model.certainty.uniform_(0.8, 1.3)
    return model


def toy(**settings) -> Model:
    return stirred(toys.spec(("a", "b"), **settings))


def rows(spec: Spec) -> dict[str, Masked]:
    """Six real rows, some cells absent."""
    table = Table.read({name: column for name, column in COLUMNS.items() if name in _columns(spec)})
    prepared = prepare(spec, table, Embedder(spec, torch.device("cpu")), targets=False)
    return prepared.batch(torch.arange(6)).inputs


def _columns(spec: Spec) -> set[str]:
    return {column for name, part in spec.inputs.items() for column in part.columns(name)}


def fitted(names: str, **settings) -> Spec:
    """A spec whose parts have learned from the columns."""
    spec = Spec.parse({"inputs": {n: PARTS[n] for n in names}, "outputs": ONE, "dim": 16, **settings})
    found = {}
    for name, part in spec.inputs.items():
        cells = zip(*(COLUMNS[column] for column in part.columns(name)), strict=True)
        content = [dict(zip(part.columns(name), cell, strict=True)) if part.spans else cell[0] for cell in cells]
        found[name] = part.fit([None if c is None else part.read(c).value for c in content])
    return spec.model_copy(update={"inputs": found})


def agrees(model, run, inputs, tolerance=1e-4):
    want = model.answer(inputs).decoded
    got = run(inputs)
    assert got.keys() == want.keys()
    for n, y in want.items():
        torch.testing.assert_close(got[n], y, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("fusion", sorted(Fusion.known))
def test_every_fusion_answers_as_the_model_in_every_absence(fusion, tmp_path):
    model = toy(outputs=ONE, fusion=fusion)
    run = answerer(model, tmp_path)
    generator = torch.Generator().manual_seed(1)
    for size, length in ((1, 1), (1, 4), (7, 3), (16, 2)):
        inputs = {
            n: Masked(torch.randn(size, length, 2, generator=generator), torch.rand(size, length) < 0.6) for n in "ab"
        }
        agrees(model, run, inputs)
        for gone in itertools.product([False, True], repeat=2):
            hidden = {n: x.without(torch.full((size,), g)) for (n, x), g in zip(inputs.items(), gone, strict=True)}
            agrees(model, run, hidden)
    agrees(model, run, {"b": inputs["b"]})


@pytest.mark.parametrize("fusion", ["concat", "vote"])
def test_every_task_answers_as_the_model(fusion, tmp_path):
    model = toy(outputs=TASKS, fusion=fusion)
    run = answerer(model, tmp_path)
    for size in (1, 7):
        inputs = {n: Masked(torch.randn(size, 3, 2), torch.rand(size, 3) < 0.4) for n in "ab"}
        agrees(model, run, inputs)


def test_extreme_logits_stay_finite(tmp_path):
    """A naive log of a sigmoid is minus infinity from -104 on."""
    model = toy(outputs={"tags": TASKS["tags"], "label": TASKS["label"]})
    for head in (model.heads["tags"].project, model.heads["label"].project):
        head.bias.data += torch.linspace(-300, 300, len(head.bias))
    run = answerer(model, tmp_path)
    inputs = {n: Masked(torch.randn(4, 2, 2), torch.rand(4, 2) < 0.6) for n in "ab"}
    assert all(y.isfinite().all() for y in run(inputs).values())
    agrees(model, run, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", sorted({*Fusion.known} - {"concat", "vote"}))
def test_every_task_with_every_fusion(fusion, tmp_path):
    test_every_task_answers_as_the_model(fusion, tmp_path)


@pytest.mark.parametrize(
    ("name", "fusion"), [*((name, "attention") for name in "xtnris"), ("x", "vote"), ("s", "vote")]
)
def test_every_modality_from_scratch_on_real_rows(name, fusion, tmp_path):
    spec = fitted(name, fusion=fusion)
    model, inputs = stirred(spec), rows(spec)
    run = answerer(model, tmp_path)
    agrees(model, run, inputs)
    for i in range(6):
        agrees(model, run, {n: x[i : i + 1].split()[0] for n, x in inputs.items()})


def test_all_modalities_together_and_any_left_out(tmp_path):
    spec = fitted("xtnris")
    model, inputs = stirred(spec), rows(spec)
    run = answerer(model, tmp_path)
    agrees(model, run, inputs)
    for name in inputs:
        agrees(model, run, {n: x for n, x in inputs.items() if n != name})
        agrees(model, run, {name: inputs[name]})


@pytest.mark.parametrize("embedding", ["linear", "periodic"])
def test_every_embedding_of_numbers(embedding, tmp_path):
    spec = Spec.parse(fitted("x").model_dump(mode="json"))
    table = spec.inputs["x"].model_copy(update={"number_embedding": embedding})
    spec = spec.model_copy(update={"inputs": {"x": table}})
    model = stirred(spec)
    agrees(model, answerer(model, tmp_path), rows(spec))


@pytest.mark.parametrize("kind", ["test-shy", "test-placed"])
@pytest.mark.parametrize("fusion", ["attention", "concat"])
def test_tokens_and_summaries_of_a_backbone(kind, fusion, tmp_path):
    model = stirred(Spec.parse({"inputs": {"a": kind, "b": "radar"}, "outputs": ONE, "fusion": fusion, "dim": 16}))
    run, deep = answerer(model, tmp_path), fusion == "attention"
    assert ("a.at" in {port.name for port in run.ports}) == (deep and kind == "test-placed")
    tokens = torch.randn(5, 4 if deep else 1, shy.WIDTH)
    mask = torch.rand(5, tokens.shape[1]) < 0.7
    agrees(
        model, run, {"a": Masked(tokens, mask, torch.rand(*mask.shape, 3) if kind == "test-placed" and deep else None)}
    )


@pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged MiniLM is not installed")
@pytest.mark.parametrize("spelling", [True, False])
def test_words_of_a_backbone(spelling, tmp_path):
    part = {"type": "words", "backbone": "minilm", "spelling": spelling}
    model = stirred(Spec.parse({"inputs": {"a": part}, "outputs": ONE, "fusion": "attention", "dim": 16}))
    width = model.spec.inputs["a"].backbone().width
    tokens, mask = torch.randn(5, 4, width), torch.rand(5, 4) < 0.7
    tokens[..., MINILM_WIDTH:] = torch.randint(0, 2045, (5, 4, width - MINILM_WIDTH)).float()
    agrees(model, answerer(model, tmp_path), {"a": Masked(tokens, mask, torch.arange(4.0).expand(5, 4)[..., None])})


def test_positions_count_and_must_be_given(tmp_path):
    spec = fitted("t", fusion="attention")
    model, inputs = stirred(spec), rows(spec)["t"]
    run = answerer(model, tmp_path)
    here = run({"t": inputs})["label"]
    assert inputs.at is not None
    assert not torch.equal(here, run({"t": Masked(inputs.values, inputs.mask, inputs.at + 3)})["label"])
    with pytest.raises(DataError, match="must have positions"):
        run({"t": Masked(inputs.values, inputs.mask)})
    run({"t": Masked(inputs.values, inputs.mask & False)})


def test_what_lies_behind_the_mask_changes_nothing(tmp_path):
    model = toy(outputs=ONE, fusion="attention")
    run = answerer(model, tmp_path)
    inputs = {n: Masked(torch.randn(6, 3, 2), torch.rand(6, 3) < 0.5) for n in "ab"}
    for junk in (float("nan"), 1e9):
        dirty = {n: Masked(x.values.masked_fill(~x.mask[..., None], junk), x.mask) for n, x in inputs.items()}
        assert all(torch.equal(y, run(inputs)[n]) for n, y in run(dirty).items())


def test_model_left_as_it_was_and_eager_answers_the_same_bits(tmp_path):
    spec = fitted("xr")
    model, inputs = stirred(spec), rows(spec)
    before, state = model.answer(inputs).decoded, {n: t.clone() for n, t in model.state_dict().items()}
    answerer(model, tmp_path)
    assert not any(module.training for module in model.modules())
    assert toys.same(model, state)
    assert all(torch.equal(y, before[n]) for n, y in model.answer(inputs).decoded.items())


def test_eager_encoders_still_see_present_rows_only(tmp_path):
    model = toy()
    model.answer({"a": Masked(torch.randn(4, 2, 2), torch.tensor([[True], [False], [True], [False]]).expand(4, 2))})
    (seen,) = model.encoders["a"].seen
    assert len(seen) == 2


def test_traced_tells_every_tensor():
    found = trace(toy(outputs={"y": TASKS["label"]}))
    assert [(p.name, p.dtype, p.shape) for p in found.inputs] == [
        ("a.values", "float32", ("batch", "a.length", 2)),
        ("a.mask", "bool", ("batch", "a.length")),
        ("b.values", "float32", ("batch", "b.length", 2)),
        ("b.mask", "bool", ("batch", "b.length")),
    ]
    assert [(p.name, p.dtype, p.shape) for p in found.outputs] == [("y.output", "float32", ("batch", 3))]
    model = onnx.load_from_string(found.graph)
    onnx.checker.check_model(model, full_check=True)
    assert [node.name for node in model.graph.input] == [p.name for p in found.inputs]
    assert model.opset_import[0].version == 17


def test_flat_names_tensors():
    x = Masked(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, 1))
    assert list(flat({"a": x, "b": Masked(x.values, x.mask)})) == ["a.values", "a.mask", "a.at", "b.values", "b.mask"]


def test_graph_is_kept_and_used_again(tmp_path, monkeypatch):
    model = toy()
    answerer(model, tmp_path / "deep" / "er")
    (path,) = (tmp_path / "deep" / "er").iterdir()
    monkeypatch.setattr(answer, "trace_on", lambda *_: pytest.fail("traced again"))
    agrees(model, answerer(model, path.parent), {"a": Masked(torch.randn(2, 1, 2), torch.ones(2, 1, dtype=torch.bool))})


def test_other_weights_or_spec_make_another_graph(tmp_path):
    model = toy()
    answerer(model, tmp_path)
    model.share.fill_(0.4)
    answerer(model, tmp_path)
    answerer(toy(fusion="pool"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other weights"])
def test_damaged_graph_is_built_anew(damage, tmp_path):
    model = toy()
    answerer(model, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    spoiled = {"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\x08\x01no graph" * 50}
    other = toy()
    other.heads["y"].project.bias.data += 1
    path.write_bytes(spoiled.get(damage) if damage in spoiled else trace(other).graph)
    inputs = {"a": Masked(torch.randn(2, 1, 2), torch.ones(2, 1, dtype=torch.bool))}
    agrees(model, answerer(model, tmp_path), inputs)
    assert len(path.read_bytes()) == len(content)
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_written_keeps_the_graph_in_memory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = toy()
    with pytest.warns(RuntimeWarning, match="must be writable"):
        run = answerer(model, tmp_path / "file" / "cache")
    agrees(model, run, {"a": Masked(torch.randn(2, 1, 2), torch.ones(2, 1, dtype=torch.bool))})


@pytest.mark.parametrize(("sort", "reason"), [("constant", "difference of"), ("unknown", "can hold")])
def test_part_that_no_graph_can_hold_is_refused_in_words(sort, reason, tmp_path, capfd):
    spec = Spec.parse({"inputs": {"a": {"type": "test-stubborn", "sort": sort}}, "outputs": {"y": TASKS["label"]}})
    with pytest.raises(SpecError, match=reason):  # and every warning is an error here
        answerer(stirred(spec), tmp_path)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_nothing_given_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one of"):
        answerer(toy(), tmp_path)({})


def test_spectrogram_of_a_graph_is_that_of_the_model(monkeypatch):
    waves = Masked(0.1 * torch.randn(3, 5011), torch.arange(5011) < torch.tensor([[5011], [4000], [1]]))
    for rate in (16000, 22050, 8000):
        want = LogMel(rate)(waves)
        with monkeypatch.context() as patch:
            patch.setattr("polymodal.nn.signal.tracing", lambda: True)
            got = LogMel(rate)(waves)
        torch.testing.assert_close(got.values, want.values, atol=1e-5, rtol=0)
        assert torch.equal(got.mask, want.mask)


def test_import_of_the_package_stays_cheap():
    script = "import sys, polymodal; assert 'onnxruntime' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)
