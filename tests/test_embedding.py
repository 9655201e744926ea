"""Embedder: tokens from the fastest runtime, which must agree with torch."""

import pytest
import torch
from torch import nn

import polymodal as pm
import shy
from polymodal.data.embedding import Embedder
from polymodal.errors import BundleError
from polymodal.nn.adapt import Thawed
from polymodal.nn.backbone import Backbone
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
