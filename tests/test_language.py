"""A language model: loading, its vocabulary, what it costs to be told an answer, and how likely labels are."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import BertConfig, BertLMHeadModel

from polymodal.errors import BundleError, DataError, SpecError
from polymodal.nn.language import loading
from polymodal.nn.language.decode import Decoding, positions, say
from polymodal.nn.language.loading import load_language
from polymodal.nn.language.losses import answer_loss
from polymodal.nn.language.tree import Tree, left_padded
from polymodal.nn.language.vocabulary import Spelling
from polymodal.nn.lowrank import add_low_rank
from polymodal.nn.weights import PACKAGED
from polymodal.types import Masked
from talker import tiny_language, tokenizer

smollm2 = pytest.mark.skipif(PACKAGED["smollm2"].locate() is None, reason="the packaged SmolLM2 is not installed")


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return load_language(tiny_language(tmp_path_factory.mktemp("language")))


def prompts(language, lengths=(5, 2, 7), gaps=True, seed=0):
    """Random embeddings with gaps between what is real."""
    torch.manual_seed(seed)
    mask = torch.zeros(len(lengths), 12, dtype=torch.bool)
    for row, size in zip(mask, lengths, strict=True):
        row[torch.randperm(12)[:size] if gaps else torch.arange(size)] = True
    return Masked(torch.randn(len(lengths), 12, language.width) * 0.3, mask)


def naive(language, asked, ids):
    """Log-likelihood of some ids behind one row's prompt, without any trick."""
    values = torch.cat([asked.values[0, asked.mask[0]], language.embed(torch.tensor(ids))])[None]
    logs = language.net(inputs_embeds=values).logits[0].log_softmax(-1)
    start = int(asked.mask.sum())
    return sum(logs[start - 1 + i, token] for i, token in enumerate(ids))


def test_a_model_is_loaded_once_and_named_by_its_content(language, tmp_path):
    assert load_language(language.name) is language
    assert load_language(tiny_language(tmp_path / "same")).digest == language.digest
    assert load_language(tiny_language(tmp_path / "other", seed=1)).digest != language.digest
    assert language.width == 32
    assert language.context == 256


@pytest.mark.parametrize(
    ("name", "fault", "told"),
    [
        ("smolm2", SpecError, "Did you mean 'smollm2'?"),
        ("hf:", SpecError, "decoder.backbone must be one of"),
        ("hf:nowhere/at-all-here", BundleError, "Check the name and the network"),
    ],
)
def test_what_is_no_language_model_is_refused(name, fault, told, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(fault) as error:
        load_language(name)
    assert told in str(error.value)


def test_without_transformers_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    monkeypatch.setattr(loading, "_LOADED", {})
    with pytest.raises(SpecError, match=r"pip install .polymodal\[language\]"):
        load_language("hf:somewhere")


def test_what_a_user_writes_is_never_taken_for_a_special_token(language):
    words = language.vocabulary
    ids = words.ids("<end>yes<start>")
    assert not set(ids) & {words.end, words.around(None, True)[0][0]}
    assert words.text(ids) == "<end>yes<start>"
    assert words.text([*words.ids("red"), words.end]) == "red"


def test_the_template_is_laid_around_what_is_said(language, tmp_path):
    words = language.vocabulary
    before, after = words.around("be old", True)
    whole = words._framed.decode(before, skip_special_tokens=False)
    assert whole == "<start>system be old<end><start>user "
    assert words._framed.decode(after, skip_special_tokens=False) == "<end><start>assistant "
    assert words.around(None, False) == ([before[0]], [])
    plain = load_language(tiny_language(tmp_path, pad=False, template=False)).vocabulary
    assert plain.around(None, True) == ([before[0]], [])
    assert plain.pad == plain.end


def test_text_that_comes_in_pieces_is_never_half_a_character(language):
    text = "no 日本 🙂 yes"
    spelling, pieces = Spelling(language.vocabulary), []
    for token in language.vocabulary.ids(text):
        pieces.append(spelling.add(token))
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + spelling.finish() == text
    half = Spelling(language.vocabulary)
    assert half.add(language.vocabulary.ids("日")[0]) == ""
    assert half.finish() == "\ufffd"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_answer_costs_what_its_tokens_are_unlikely(language, packed, checkpointing):
    asked = prompts(language)
    answers = [torch.tensor(ids) for ids in ([3, 4, 5], [9], [7, 8, 2, 1])]
    costs = answer_loss(language, asked, answers, packed=packed, checkpointing=checkpointing)
    expected = [-naive(language, asked[i : i + 1], ids.tolist()) for i, ids in enumerate(answers)]
    torch.testing.assert_close(costs, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_packing_and_computing_again_change_no_gradient(language, monkeypatch):
    monkeypatch.setattr("polymodal.nn.language.losses.WINDOW", 12)
    answers = [torch.tensor(ids) for ids in ([3, 4, 5], [9], [7, 8, 2, 1])]
    found = []
    for packed in (False, True):
        for checkpointing in (False, True):
            own = language.private()
            changes = add_low_rank(own.net, 2, 4.0, seed=0)
            for change in changes.values():
                change.up.data.normal_(generator=torch.Generator().manual_seed(1))
            asked = prompts(own)
            asked.values.requires_grad_()
            answer_loss(own, asked, answers, packed=packed, checkpointing=checkpointing).sum().backward()
            found.append([asked.values.grad, *(change.down.grad for change in changes.values())])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)
    assert not found[0][0][~prompts(language).mask].any(), "what is not real gets no gradient"


def test_an_answer_of_nothing_and_one_that_does_not_fit_name_their_row(language):
    with pytest.raises(DataError, match="row 1: answer must have a token"):
        answer_loss(language, prompts(language, (2, 2)), [torch.tensor([1]), torch.tensor([], dtype=torch.long)])
    with pytest.raises(DataError, match=r"row 0 of a batch: .* must fit a context of 256 tokens, got 302"):
        answer_loss(language, prompts(language, (2,)), [torch.ones(300, dtype=torch.long)])


def test_labels_side_by_side_are_as_likely_as_each_alone(language):
    asked, end = prompts(language), language.vocabulary.end
    labels = [[3, 4, 5], [3, 4], [9], [7, 8, 2, 1]]
    scores = Tree(labels, end).scores(language, asked)
    expected = [[naive(language, asked[i : i + 1], [*ids, end]) for ids in labels] for i in range(3)]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    again = Tree(labels, end).scores(language, asked, checkpointing=True)
    torch.testing.assert_close(scores, again)


def test_scores_of_labels_have_a_gradient(language):
    asked = prompts(language)
    asked.values.requires_grad_()
    scores = Tree([[3], [4, 5]], language.vocabulary.end).scores(language, asked)
    functional.cross_entropy(scores, torch.tensor([0, 1, 0])).backward()
    assert asked.values.grad[asked.mask].abs().sum() > 0


def test_left_padding_keeps_order():
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]])
    x = left_padded(Masked(torch.arange(8.0).view(2, 4, 1), mask))
    assert x.mask.tolist() == [[True, True], [False, True]]
    assert x.values[..., 0].tolist()[0] == [0, 2]
    assert x.values[1, 1].item() == 7
    assert positions(x.mask).tolist() == [[0, 1], [0, 0]]


def test_a_private_model_shares_frozen_weights_and_hides_its_changes(language):
    own = language.private()
    assert own.net is not language.net
    assert own.net.model.embed_tokens.weight is language.net.model.embed_tokens.weight
    x = torch.randn(1, 3, 32)
    before = language.net(inputs_embeds=x).logits
    for change in add_low_rank(own.net, 2, 4.0, seed=0).values():
        change.up.data.normal_()
    assert torch.equal(language.net(inputs_embeds=x).logits, before)
    assert not torch.allclose(own.net(inputs_embeds=x).logits, before)
    half = own.in_half()
    assert half.net.model.embed_tokens.weight.dtype == torch.bfloat16
    ups = [p for p in own.net.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(ups, (p for p in half.net.parameters() if p.requires_grad), strict=True))
    assert half.net.lm_head.weight is half.net.model.embed_tokens.weight, "tied as before"


@smollm2
def test_the_packaged_model_is_made_ready_once_and_knows_a_capital():
    language = load_language("smollm2")
    assert (language.width, language.context) == (576, 8192)
    before, after = language.vocabulary.around(None, True)
    ids = [*before, *language.vocabulary.ids("What is the capital of France?"), *after]
    asked = Masked(language.embed(torch.tensor([ids])), torch.ones(1, len(ids), dtype=torch.bool))
    assert say(language, asked, Decoding(tokens=12))[0].text == "The capital of France is Paris."


def test_a_model_that_looks_ahead_or_lacks_weights_is_refused(tmp_path):
    folder = tmp_path / "bert"
    words = tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    BertLMHeadModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    with pytest.raises(BundleError, match=r"looks ahead|weights must be complete"):
        load_language(f"hf:{folder}")
    name = tiny_language(tmp_path / "holes")
    file = tmp_path / "holes" / "model.safetensors"
    tensors = load_file(file)
    save_file({key: t for key, t in tensors.items() if "layers.1." not in key}, file, {"format": "pt"})
    with pytest.raises(BundleError, match="weights must be complete"):
        load_language(name)
