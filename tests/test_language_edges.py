"""Language models at their edges: other architectures, contexts that are too short, stages, seeds, targets."""

import copy

import numpy as np
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

import polymodal as pm
import toys  # noqa: F401  (a modality of plain vectors)
from polymodal.errors import DataError, SpecError
from polymodal.modalities.prompt import Prompt
from polymodal.nn.language.decode import Decoding, say
from polymodal.nn.language.loading import load_language
from polymodal.nn.language.losses import answer_loss
from polymodal.nn.language.vocabulary import Vocabulary
from polymodal.nn.lowrank import add_low_rank, merge_low_rank
from polymodal.spec import Spec
from polymodal.tasks.generate import _texts
from talker import batch, prompts, sliding_language, tiny_language, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*loss_type:UserWarning")


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return tiny_language(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A model whose linear layers are of another kind, and which drops out in training mode."""
    words, folder = tokenizer(), tmp_path_factory.mktemp("gpt2")
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=4, n_positions=64, **ends)
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    return f"hf:{folder}"


def rows(count=16, answers=("red apple", "old bridge")):
    kinds = [i % 2 for i in range(count)]
    return {
        "v": [np.array([[2.0 * k - 1, 1.0]], np.float32) for k in kinds],
        "asked": ["what is it"] * count,
        "answer": [answers[k] for k in kinds],
    }


def spec(name, outputs=None, training=None, tokens=6, **decoder):
    decoder = {"backbone": name, "chat": False} | decoder
    return {
        "inputs": {"v": "test-vectors", "asked": {"type": "prompt", "backbone": name}},
        "outputs": outputs or {"answer": {"type": "generate", "decoder": decoder, "decoding": {"tokens": tokens}}},
        "dim": 8,
        "training": {"epochs": 1, "batch_size": 8, "refit": 0} | (training or {}),
    }


def reading(name, **decoder):
    return {"kind": {"type": "classify", "column": "answer", "decoder": {"backbone": name, "chat": False} | decoder}}


def test_layers_computed_again_drop_nothing(gpt2):
    language, asked = load_language(gpt2), batch(prompts(load_language(gpt2), 5, 3))
    answers = [torch.tensor([3, 4]), torch.tensor([9])]
    plain = answer_loss(language, asked, answers)
    with torch.no_grad():
        torch.testing.assert_close(answer_loss(language, asked, answers, checkpointing=True), plain)
    assert pm.fit(spec(gpt2, checkpointing=True), rows(), cache=False).predict([{"asked": "what is it"}])


def test_low_rank_changes_of_a_model_with_other_linear_layers(gpt2):
    language = load_language(gpt2).private()
    assert len(add_low_rank(language.net, 2, 4.0, seed=0)) == 8
    for p in language.net.parameters():
        if p.requires_grad:
            p.data.normal_(std=0.1)
    merged = language.with_net(copy.deepcopy(language.net))
    merge_low_rank(merged.net)
    asked, answers = batch(prompts(language, 5)), [torch.tensor([3, 4])]
    expected = answer_loss(language, asked, answers)
    torch.testing.assert_close(answer_loss(merged, asked, answers), expected)
    assert not torch.allclose(answer_loss(load_language(gpt2), asked, answers), expected)


def test_what_cannot_be_masked_reads_no_classes(tmp_path):
    words = tokenizer()
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=len(words), hidden_size=32, n_layer=1, n_head=4)).save_pretrained(
        tmp_path / "b"
    )
    words.save_pretrained(tmp_path / "b")
    for other in (f"hf:{tmp_path / 'b'}", sliding_language(tmp_path / "sliding")):
        with pytest.raises(SpecError, match=r"must take a mask|must see 1024 positions"):
            pm.fit(spec(other, reading(other)), rows(), cache=False)


def test_a_context_that_is_too_short_is_an_error_also_where_classes_are_read(tmp_path):
    short = tiny_language(tmp_path, context=40)
    long = rows() | {"asked": ["is it red " * 9] * 16}
    with pytest.raises(DataError, match="context of 40"):
        pm.fit(spec(short, reading(short)), long, cache=False)
    with pytest.raises(SpecError, match=r"decoding\.tokens must be below the language model's context of 40"):
        pm.fit(spec(short, tokens=40), rows(), cache=False)
    with pytest.raises(SpecError, match="classes must be shorter"):
        pm.fit(spec(short, reading(short)), rows(answers=("no" * 41, "yes")), cache=False)


def test_a_prompt_is_cut_to_leave_room_for_what_is_learned(tmp_path):
    short = tiny_language(tmp_path, context=40)
    long = rows(answers=("red apple is old no", "yes")) | {"asked": ["is it red " * 9] * 16}
    assert pm.fit(spec(short, tokens=2, truncate="left"), long, cache=False).predict([{"asked": "is it red " * 9}])


def test_stages_outlast_patience(name):
    stages = [{"epochs": 4, "train": ["projector"]}, {"epochs": 2, "train": ["language"]}]
    plan = spec(name, training={"stages": stages, "patience": 1, "learning_rate": 1e-9})
    plan["training"].pop("epochs")
    history = pm.fit(plan, rows(), cache=False).report["fit"]["history"]
    assert len(history) > 4


def test_a_step_without_a_target_of_what_learns_is_no_error(name):
    outputs = {
        "answer": {"type": "generate", "decoder": {"backbone": name}, "decoding": {"tokens": 2}},
        "kind": {"type": "classify", "column": "label"},
    }
    table = rows() | {"label": ["a", "b"] * 8}
    table["answer"] = ["yes" if i in (0, 1, 2) else None for i in range(16)]
    plan = spec(name, outputs, {"stages": [{"epochs": 1, "train": ["language"]}], "batch_size": 1})
    plan["training"].pop("epochs")
    assert pm.fit(plan, table, cache=False)


@pytest.mark.parametrize(
    ("inputs", "decoder", "training", "told"),
    [
        (["asked"], {"adapt": "none"}, {}, "nothing would learn"),
        (["asked"], {}, {"stages": [{"epochs": 1, "train": ["projector"]}]}, "must not train the projector alone"),
        (["v", "asked"], {}, {"stages": [{"epochs": 1}], "balance": "mmpareto"}, "left out with balance mmpareto"),
    ],
)
def test_what_would_learn_nothing_is_refused(name, inputs, decoder, training, told):
    plan = spec(name, training=training, **decoder)
    plan["inputs"] = {n: plan["inputs"][n] for n in inputs}
    if "stages" in training:
        plan["training"].pop("epochs")
    with pytest.raises(SpecError, match=told):
        Spec.parse(plan)


def test_places_and_inputs_must_fit(name):
    plan = spec(name)
    plan["inputs"] = {"fused": plan["inputs"]["asked"], "v": "test-vectors"}
    with pytest.raises(SpecError, match="has its own meaning of <fused>"):
        Spec.parse(plan)
    plan["inputs"] = {"élan": "test-vectors", "my image": "test-vectors"}
    assert Spec.parse(plan).outputs["answer"].decoder.inputs == ("élan", "my image")
    two = {n: {"type": "generate", "decoder": {"backbone": name, "prompt": "<asked>"}} for n in ("one", "two")}
    with pytest.raises(SpecError, match="must have a place for 'v'"):
        Spec.parse(spec(name, two))
    with pytest.raises(SpecError, match="packed has no effect where classes are read"):
        pm.fit(spec(name, reading(name, packed=True)), rows(), cache=False)


def test_sampled_answers_do_not_depend_on_their_place(name):
    language = load_language(name)
    one, two = prompts(language, 6, 9)
    how = Decoding(tokens=12, temperature=1.5, seed=3)
    forth, back = say(language, batch([one, two]), how), say(language, batch([two, one]), how)
    assert [x.text for x in forth] == [x.text for x in back][::-1]
    assert say(language, batch([two]), how)[0].text == forth[1].text


def test_beams_that_stop_at_a_text_compete_by_the_mean_of_their_tokens(name):
    language = load_language(name)
    for prompt in prompts(language, *range(3, 13)):
        beam = say(language, batch([prompt]), Decoding(tokens=8, beams=4, stop=("a", "o", "1", "e", "J")))[0]
        costs = answer_loss(
            language, batch([prompt]), [torch.tensor([*beam.ids, *[language.vocabulary.end] * beam.ended])]
        )
        assert beam.score == pytest.approx(-float(costs), abs=1e-3)


def test_the_probability_of_an_answer_is_the_mean_of_its_tokens_the_end_included(name):
    task = Spec.parse(spec(name)).outputs["answer"]
    words = task.vocabulary
    raw = torch.tensor([[np.log(0.25), words.ids("yes")[0], words.end], [np.log(0.25), *words.ids("yes") * 2]])
    assert [row["probability"] for row in task.predict(raw.double())] == pytest.approx([0.5, 0.5])
    assert [row["text"] for row in task.predict(raw.double())] == ["yes", "yesyes"]
    wanted = task.wanted(raw.double())
    assert wanted.values[0, wanted.mask[0]].tolist() == [*words.ids("yes"), words.end]


def test_moving_a_model_leaves_the_weights_of_others_where_they_are(name):
    one, other = (pm.fit(spec(name), rows(), cache=False).model for _ in range(2))
    one.to(torch.float64)
    assert {p.dtype for p in one.decoders["answer"].language.net.parameters()} == {torch.float64}
    assert {p.dtype for p in other.decoders["answer"].language.net.parameters()} == {torch.float32}
    assert {p.dtype for p in load_language(name).net.parameters()} == {torch.float32}
    learned = {id(p) for p in one.decoders["answer"].language.net.parameters() if p.requires_grad}
    assert learned == {id(p) for p in one.decoders["answer"].parts["language"]}, "what is trained is still the head's"


def test_seeds_draw_other_changes(name):
    first, second = (pm.fit(spec(name), rows(), seed=seed, cache=False).model.decoders["answer"] for seed in (1, 2))
    down = [next(p for n, p in head.language.net.named_parameters() if n.endswith("down")) for head in (first, second)]
    assert not torch.equal(*down)


def test_targets_are_taken_as_they_stand():
    assert _texts("[10, 20]") == ["[10, 20]"]
    assert _texts('["red", "blue"]') == ["red", "blue"]
    assert _texts(3.0) == ["3"]
    assert _texts(2.5) == ["2.5"]


def test_words_are_counted_in_tokens_and_cut_between_characters(name):
    part = Prompt(backbone=name, max_tokens=10)
    reading = part.read("😀" * 4)
    assert reading.value == "😀" * 2
    assert reading.repairs == ("cut after 10 tokens",)
    assert part.read("😀" * 2).repairs == ()


def test_the_end_is_what_the_template_puts_behind_an_answer(tmp_path):
    words = tokenizer()
    words.add_tokens(["<turn>"], special_tokens=True)
    words.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}<turn>{% endfor %}"
    tiny_language(tmp_path)
    language = load_language(f"hf:{tmp_path}")
    found = Vocabulary(words, [language.vocabulary.end])
    assert found.end == words.convert_tokens_to_ids("<turn>")
    assert language.vocabulary.end == words.eos_token_id
    assert language.vocabulary.end in found.ends
