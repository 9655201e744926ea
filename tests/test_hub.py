import builtins
import json

import pytest
import torch

from polymodal.errors import BundleError, SpecError
from polymodal.modalities.text import Text
from polymodal.nn import hub
from polymodal.types import Masked

transformers = pytest.importorskip("transformers")
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "apple", "##s", "a"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=32)
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=24, **SMALL)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)).save_pretrained(folder)
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=["group", "layer"])
def audio_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    torch.manual_seed(0)
    convolutions = dict(conv_dim=(8, 8, 8), conv_kernel=(10, 3, 2), conv_stride=(5, 4, 4), num_conv_pos_embeddings=8)
    more = dict(feat_extract_norm=request.param, num_conv_pos_embedding_groups=2, **convolutions, **SMALL)
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**more)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": 16000, "do_normalize": true}')
    return folder


def run(backbone, x):
    with torch.no_grad():
        return backbone(x)


def test_text_equals_the_model(text_folder):
    part = Text(backbone=f"hf:{text_folder}", window=16, overlap=2)
    model = transformers.BertModel.from_pretrained(text_folder).eval()
    x = part.collate(["Red apples", None, "a red apple a red apple"])
    assert x.values[0, :3].tolist() == [5, 6, 7]
    backbone = part.backbone()
    y = run(backbone, x[x.present])
    with torch.no_grad():
        expected = model(torch.tensor([[2, 5, 6, 7, 3]])).last_hidden_state
    assert torch.allclose(y.values[:1, :5], expected, atol=1e-5)
    assert y.mask.sum(1).tolist() == [5, 8]
    assert part.encoder(8)(y).values.shape == (2, 8, 8)
    assert part.summary(y).shape == (2, 16)


def test_long_text_goes_in_windows(text_folder):
    part = Text(backbone=f"hf:{text_folder}", window=16, overlap=2, max_tokens=40)
    reading = part.read("red " * 50)
    assert reading.repairs == ("cut after 40 tokens",)
    assert run(part.backbone(), part.collate([reading.value])).mask.sum() == 42
    with pytest.raises(SpecError, match="window must be at most 24"):
        Text(backbone=f"hf:{text_folder}", window=32).backbone()


def test_digest_names_the_weights(text_folder, image_folder, tmp_path):
    first, again = hub.text_backbone(f"hf:{text_folder}", 16, 2), hub.text_backbone(f"hf:{text_folder}", 16, 2)
    assert first.digest == again.digest  # although each draws its missing pooler anew
    torch.manual_seed(1)
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text((image_folder / "preprocessor_config.json").read_text())
    assert hub.image_backbone(f"hf:{tmp_path}").digest != hub.image_backbone(f"hf:{image_folder}").digest


def test_image_equals_the_model(image_folder):
    backbone = hub.image_backbone(f"hf:{image_folder}")
    model = transformers.ViTModel.from_pretrained(image_folder).eval()
    pixels = torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8)
    y = run(backbone, Masked(pixels, torch.ones(2, 1, dtype=torch.bool)))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        expected = model((pixels[:, 0] / 255 - mean) / std).last_hidden_state[:, 1:]
    assert torch.allclose(y.values, expected, atol=1e-5)
    assert y.values.shape == (2, 16, backbone.width)
    assert y.at[0, [0, 3, 12]].tolist() == [[0.125, 0.125], [0.125, 0.875], [0.875, 0.125]]
    other = torch.randint(0, 256, (1, 1, 3, 50, 50), dtype=torch.uint8)
    assert run(backbone, Masked(other, torch.ones(1, 1, dtype=torch.bool))).values.shape == (1, 16, 16)


def test_convolutional_image_model(tmp_path):
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 40}, "crop_size": 32}')
    pixels = torch.randint(0, 256, (1, 1, 3, 32, 32), dtype=torch.uint8)
    y = run(hub.image_backbone(f"hf:{tmp_path}"), Masked(pixels, torch.ones(1, 1, dtype=torch.bool)))
    assert y.values.shape == (1, 16, 8)
    assert y.at[0, 1].tolist() == [0.125, 0.375]


def test_audio_equals_the_model_and_ignores_padding(audio_folder):
    backbone = hub.audio_backbone(f"hf:{audio_folder}")
    model = transformers.Wav2Vec2Model.from_pretrained(audio_folder).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(audio_folder)
    clips = [torch.randn(1600) + 0.3, torch.randn(900), torch.randn(20)]
    x = Masked.pad(clips, torch.zeros(()))
    y = run(backbone, Masked(torch.where(x.mask, x.values, 7.0), x.mask))
    assert y.mask.sum(1).tolist() == [20, 11, 1]  # by hand from kernels and strides
    for clip, row in zip(clips[:2], y.split(), strict=False):
        inputs = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            expected = model(inputs["input_values"]).last_hidden_state
        assert torch.allclose(row.values, expected, atol=1e-4)
    seen = 10 + 2 * 5 + 1 * 20  # samples of one frame: 10, two steps of 5 more, one of 20
    assert torch.allclose(y.at[0, :2, 0], torch.tensor([seen / 2, seen / 2 + 80]) / 16000)


def test_what_is_no_such_model(text_folder, image_folder, tmp_path):
    for load, folder in ((hub.image_backbone, text_folder), (hub.audio_backbone, text_folder)):
        with pytest.raises(BundleError, match="must take"):
            load(f"hf:{folder}")
    with pytest.raises(BundleError, match="must be a folder"):
        hub.text_backbone(f"hf:{image_folder}")
    with pytest.raises(BundleError, match=r"hf:/no/such/folder.*must be a folder"):
        hub.image_backbone("hf:/no/such/folder")
    transformers.ViTConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(BundleError, match="safetensors"):
        hub.image_backbone(f"hf:{tmp_path}")


def test_missing_weights_are_not_drawn_at_random(image_folder, tmp_path):
    for file in image_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BundleError, match="weights must be complete"):
        hub.image_backbone(f"hf:{tmp_path}")


def test_missing_extra_is_told(monkeypatch):
    real = builtins.__import__

    def fake(name, *more):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", fake)
    for load in (hub.text_backbone, hub.image_backbone, hub.audio_backbone):
        with pytest.raises(SpecError, match=r'pip install "polymodal\[hub\]"'):
            load("hf:org/name")
