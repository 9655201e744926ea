"""Embedder: tokens from the fastest runtime, which must agree with torch."""

import hashlib
import threading

import pytest
import torch
from torch import nn

import loud
import polymodal as pm
import shy
from polymodal.data.embedding import Embedder
from polymodal.errors import BundleError
from polymodal.nn.adapt import Thawed
from polymodal.nn.backbone import Backbone
from polymodal.nn.provider import GraphFile
from polymodal.nn.quantise import quantise
from polymodal.nn.runtime import Half, graph_of
from polymodal.nn.weights import PACKAGED
from polymodal.part import Modality
from polymodal.types import Masked
from tiny import SCRATCH, picture, sound

CPU = torch.device("cpu")
NEEDS = {"text": ("minilm",), "image": ("efficientnet-lite0",), "audio": ("speech-embedding", "speech-mel")}
CELLS = {
    "text": ["A red apple.", "An old iron bridge over the river."],
    "image": [picture(1), picture(2, True)],
    "audio": [sound(1), sound(2, 900.0)],
}


def embedder(part, name="it"):
    spec = pm.Spec.parse({"inputs": {name: part}, "outputs": {"y": "classify"}})
    return Embedder(spec, CPU)


@pytest.mark.parametrize("kind", NEEDS)
def test_the_runtime_agrees_with_torch(kind):
    if any(PACKAGED[name].locate() is None for name in NEEDS[kind]):
        pytest.skip("the packaged backbone is not installed")
    part = Modality.parse(kind).fit([])
    x = part.collate([part.read(cell).value for cell in CELLS[kind]])
    fast = embedder(part).embed("it", x)
    with torch.inference_mode():
        slow = part.backbone().eval()(x)
    scale = slow.values[slow.mask].abs().max()
    assert torch.equal(fast.mask, slow.mask)
    rounding = (slow.values - slow.values.half().float()).abs().max()
    error = (fast.values - slow.values)[slow.mask].abs().max()
    assert error <= 1e-4 * scale + 2 * rounding


@pytest.mark.skipif(PACKAGED["efficientnet-lite0"].locate() is None, reason="the backbone is not installed")
def test_absent_rows_stay_absent_and_change_nothing():
    part = Modality.parse({"type": "image", "size": 64}).fit([])
    image = part.read(picture(1)).value
    one = embedder(part)
    alone, among = one.embed("it", part.collate([image])), one.embed("it", part.collate([None, image]))
    assert among.present.tolist() == [False, True]
    assert not among.values[0].any()
    assert torch.allclose(among.values[1], alone.values[0], atol=1e-3)
    nothing = one.embed("it", part.collate([None, None]))
    assert nothing.values.shape == (2, 1, part.backbone().width)
    assert not nothing.mask.any()


def test_without_a_backbone_values_pass_as_they_are():
    part = Modality.parse(SCRATCH["image"]).fit([])
    x = part.collate([part.read(picture(1)).value])
    assert embedder(part).embed("it", x) is x
    assert embedder(part).digests == {}


def test_the_key_names_what_tokens_depend_on():
    def key(**settings):
        return embedder({**SCRATCH["image"], **settings}).key("it")

    assert key() == key(column="photo") == key(augmentation={"flip": True})
    assert len({key(), key(size=48), key(denoise=True), key(resize="pad")}) == 4


class Odd(Backbone):
    """A backbone that no graph can hold."""

    def __init__(self):
        super().__init__()
        self.net, self.width, self.digest = Untraceable(), 3, "odd"

    def tensors(self, x):
        return (x.values[:, :, 0].float(),)

    def tokens(self, y, x):
        return Masked(y.unsqueeze(1), x.mask[:, :1])


class Untraceable(nn.Module):
    def forward(self, x):
        return (
            torch.linalg.lstsq(torch.eye(x.shape[1]), x.flatten(1)[:, : x.shape[1]].T).solution.T[:, :1].expand(-1, 3)
        )


def test_a_backbone_that_cannot_be_exported_runs_in_torch_and_says_so(monkeypatch):
    part = Modality.parse(SCRATCH["image"]).fit([])
    odd, one = Odd(), embedder(part)
    monkeypatch.setattr(one, "backbone", lambda name: odd)
    x = Masked(torch.rand(2, 4, 2), torch.ones(2, 4, dtype=torch.bool))
    with pytest.warns(UserWarning, match=r"it: its backbone runs in torch, since ONNX cannot hold it"):
        y = one.embed("it", x)
    assert torch.allclose(y.values, odd(x).values, atol=1e-3)
    assert torch.equal(one.embed("it", x).values, y.values)  # says it once


def test_other_backbones_than_in_training_are_refused(tmp_path):
    one = embedder(SCRATCH["image"])
    one.check({}, tmp_path)
    with pytest.raises(BundleError, match=r"'it' must have digest abc, got None. Install the version"):
        one.check({"it": "abc"}, tmp_path)
    one.digests  # noqa: B018


def test_nothing_is_copied_where_there_is_no_backbone(tmp_path):
    embedder(SCRATCH["image"]).copy_files(tmp_path / "backbones")
    assert not (tmp_path / "backbones").exists()


def test_without_store_shares_the_loaded_backbones():
    one = embedder(SCRATCH["image"])
    one.store = pm.FeatureStore()
    other = one.without_store()
    assert other.store is None
    assert one.store is not None
    assert other._ready is one._ready


def test_an_adapted_backbone_takes_the_place_of_its_modalitys(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    one = embedder("test-shy")
    x = one.modalities["it"].collate([torch.ones(2, 4), None])
    thawed = Thawed(shy.deaf(), "all")
    with torch.no_grad():
        thawed.parameters[-1].fill_(0.5)
    changed = thawed.adapter().apply(shy.deaf())
    other = one.with_adapted("it", changed)
    assert other.backbone("it") is changed
    assert one.backbone("it") is shy.deaf()
    assert (one.adapted, other.digests) == ({}, {"it": changed.digest})
    assert one.key("it") != other.key("it")
    assert one.embed("it", x).values[0].tolist() == [[0.0, 1.0, 1.0, 1.0]] * 2
    assert other.embed("it", x).values[0].tolist() == [[2.0] * 4] * 2
    assert torch.equal(other.without_store().embed("it", x).values, other.embed("it", x).values)


def test_an_embedder_forgets_what_it_kept_of_an_adapted_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    one = embedder("test-shy")
    one.store = pm.FeatureStore()
    other = one.with_adapted("it", Thawed(shy.deaf(), "all").adapter().apply(shy.deaf()))
    x = one.modalities["it"].collate([torch.ones(2, 4)])
    for each in (one, other):
        each.embed("it", x)
        each.store.open(each.key("it"))
    other.forget("it")
    assert (tmp_path / one.key("it")).is_dir()
    assert not (tmp_path / other.key("it")).exists()
    assert [path.name.startswith("deaf-1-") for path in (tmp_path / "graphs").iterdir()] == [True]
    other.forget("it")
    with pytest.raises(ValueError, match="adapted backbone, got 'it'"):
        one.forget("it")


def test_the_environment_chooses_the_runtime(monkeypatch):
    part = Modality.parse(SCRATCH["image"]).fit([])
    odd, x = Odd(), Masked(torch.rand(2, 4, 2), torch.ones(2, 4, dtype=torch.bool))
    monkeypatch.setenv("POLYMODAL_RUNTIME", "torch")
    one = embedder(part)
    monkeypatch.setattr(one, "backbone", lambda name: odd)
    one.embed("it", x)  # no attempt at ONNX, so no warning
    assert one._ready["it"] is odd
    monkeypatch.setenv("POLYMODAL_RUNTIME", "onnx")
    other = embedder(part)
    monkeypatch.setattr(other, "backbone", lambda name: odd)
    with pytest.raises(pm.SpecError, match=r"POLYMODAL_RUNTIME must be one of .* got 'onnx'"):
        other.embed("it", x)


# Runtimes by name -----------------------------------------------------------------------------------------------------


@pytest.fixture
def loudly(tmp_path, monkeypatch):
    """An embedder of two inputs with backbones, one of them with an int8 graph, and a batch."""
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    x = Masked(torch.randn(3, 4, loud.WIDTH), torch.arange(4) < torch.tensor([[4], [2], [3]]))
    made = quantise(graph_of(loud.backbone(), x), [(torch.randn(1, 3, loud.WIDTH),) for _ in range(8)])
    (tmp_path / "0.onnx").write_bytes(made.graph)
    graph = GraphFile(tmp_path / "0.onnx", hashlib.sha256(made.graph).hexdigest(), alone=True)
    spec = pm.Spec.parse({"inputs": {"it": "test-loud", "too": "test-loud"}, "outputs": {"y": "classify"}})
    return Embedder(spec, CPU, int8={"it": graph}), x


def test_runtimes_are_named_per_input(loudly):
    one, x = loudly
    assert one.runtimes == {"it": "onnxruntime", "too": "onnxruntime"}
    other = one.with_runtimes({"it": "torch"})
    assert other.runtimes == {"it": "torch", "too": "onnxruntime"}
    assert one.runtimes["it"] == "onnxruntime"
    assert torch.allclose(other.embed("it", x).values, one.embed("it", x).values, atol=2e-3)
    assert other._ready["it"] is loud.backbone()


def test_only_backbones_whose_runtime_changes_start_anew(loudly):
    one, x = loudly
    for name in ("it", "too"):
        one.embed(name, x)
    other = one.with_runtimes({"it": "torch"})
    assert set(one._ready) == {"it", "too"}
    assert other._ready == {"too": one._ready["too"]}
    assert set(other.with_runtimes({}, torch.get_num_threads())._ready) == {"too"}
    assert not other.with_runtimes({}, torch.get_num_threads() + 1)._ready
    two = one.with_runtimes({}, 2)
    assert two.start("it", x).net.engine.session.get_session_options().intra_op_num_threads == 2


def test_int8_is_near_and_has_features_of_its_own(loudly):
    one, x = loudly
    fast = one.with_runtimes({"it": "onnxruntime-int8"})
    found, wanted = fast.embed("it", x), one.embed("it", x)
    assert torch.equal(found.mask, wanted.mask)
    assert not torch.equal(found.values, wanted.values)
    assert torch.cosine_similarity(found.values, wanted.values, -1)[found.mask].min() > 0.98
    assert fast.key("it") != one.key("it")
    assert fast.key("too") == one.key("too")
    assert one.with_runtimes({"it": "torch"}).key("it") == one.key("it")


def test_a_row_in_int8_does_not_depend_on_the_rows_beside_it(loudly):
    one, x = loudly
    fast = one.with_runtimes({"it": "onnxruntime-int8"})
    x = Masked(x.values * torch.tensor([1.0, 50.0, 0.1])[:, None, None], x.mask)
    together = fast.embed("it", x)
    for i in range(3):
        alone = fast.embed("it", x[i : i + 1])
        assert torch.equal(together.values[i][together.mask[i]], alone.values[0][alone.mask[0]])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"it": "onnxruntim"}, "runtime must be one of .* got 'onnxruntim'. Did you mean 'onnxruntime'"),
        ({"it": "half"}, "runtime 'half' must run on CUDA, got device 'cpu'"),
        ({"too": "onnxruntime-int8"}, "must have an int8 graph, got none for input 'too'. .* --to int8"),
        ({"image": "torch"}, "runtimes must be of inputs with a backbone, got 'image'"),
    ],
)
def test_runtimes_that_cannot_be(loudly, names, message):
    with pytest.raises(pm.SpecError, match=message):
        loudly[0].with_runtimes(names)


def test_off_the_cpu_backbones_run_in_torch(loudly):
    one, _ = loudly
    one.device = torch.device("cuda")
    assert one.runtimes == {"it": "torch", "too": "torch"}
    assert one.with_runtimes({"it": "half"}).runtimes["it"] == "half"
    assert one.with_runtimes({"it": "half"}).key("it") != one.key("it")
    with pytest.raises(pm.SpecError, match="runtime 'openvino' must run on the CPU, got device 'cuda'"):
        one.with_runtimes({"it": "openvino"})


def test_half_starts_with_a_net_in_float16(loudly):
    one, x = loudly
    one._named["it"] = "half"  # as on CUDA
    assert isinstance(one.start("it", x).net, Half)


def test_an_int8_graph_that_was_replaced_is_refused(loudly):
    one, x = loudly
    one.int8["it"].file.write_bytes(b"another")
    with pytest.raises(BundleError, match="must be the file that was saved, got 7 other bytes"):
        one.with_runtimes({"it": "onnxruntime-int8"}).embed("it", x)
    one.int8["it"].file.unlink()
    with pytest.raises(BundleError, match="must be readable"):
        one.with_runtimes({"it": "onnxruntime-int8"}).embed("it", x)


def test_an_adapted_backbone_has_no_int8(loudly):
    one, _ = loudly
    fast = one.with_runtimes({"it": "onnxruntime-int8", "too": "torch"})
    other = fast.with_adapted("it", loud.LoudBackbone())
    assert other.runtimes == {"it": "onnxruntime", "too": "torch"}
    assert "it" in fast.int8
    assert "it" not in other.int8


def test_a_backbone_starts_once_whoever_asks_first(loudly, monkeypatch):
    one, x = loudly
    started, together = [], threading.Barrier(4)
    real = one.start
    monkeypatch.setattr(one, "start", lambda name, example: started.append(name) or real(name, example))

    def work():
        together.wait()
        one.embed("it", x)

    jobs = [threading.Thread(target=work) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert started == ["it"]


def test_an_input_shows_its_example(loudly):
    one, _ = loudly
    assert one.example("it").values.shape == (1, 2, loud.WIDTH)
    one.modalities["it"] = Modality.parse({"type": "test-loud", "example": False})
    assert one.example("it") is None


def test_renewing_makes_the_graph_anew(loudly, tmp_path):
    one, x = loudly
    wanted = one.embed("it", x).values
    (graph,) = (tmp_path / "graphs").glob("*.onnx")
    graph.write_bytes(b"damaged")
    one.renew("it")
    assert not graph.exists()
    assert torch.equal(one.embed("it", x).values, wanted)
    assert graph.exists()
