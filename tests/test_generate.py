"""A language model as the decoder: from a spec to answers in words and to classes, with any of its inputs."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import polymodal as pm
import toys  # noqa: F401  (a modality of plain vectors)
from polymodal import asking, cli
from polymodal.data.embedding import Embedder
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.decoder.conversation import Conversation
from polymodal.errors import BundleError, SpecError
from polymodal.model import Model
from polymodal.spec import Spec
from talker import tiny_language

CPU = torch.device("cpu")
SAID = ("red apple", "old bridge")


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return tiny_language(tmp_path_factory.mktemp("talker"))


def rows(count=48, seed=0):
    """The vector says which of two things it is; the question asks for it or whether it is red."""
    rng = np.random.default_rng(seed)
    kinds = [i % 2 for i in range(count)]
    asked = ["what is it" if rng.random() < 0.5 else "is it red" for _ in kinds]
    found = {
        "v": [[[float(rng.normal(4 * k - 2, 0.3)), 1.0]] if i % 11 != 10 else None for i, k in enumerate(kinds)],
        "asked": asked,
        "kind": [SAID[k] for k in kinds],
    }
    found["answer"] = [
        SAID[k] if a == "what is it" else ("yes", "no")[k] for k, a in zip(kinds, found["asked"], strict=True)
    ]
    return found


def spec(name, outputs=None, training=None, **decoder):
    decoder = {"backbone": name, "projector": "mlp", "adapt": "lora"} | decoder
    return {
        "inputs": {"v": "test-vectors", "asked": {"type": "prompt", "backbone": name}},
        "outputs": outputs or {"answer": {"type": "generate", "decoder": decoder, "decoding": {"tokens": 6}}},
        "dim": 8,
        "training": {"epochs": 1, "batch_size": 16, "refit": 0} | (training or {}),
    }


@pytest.fixture(scope="module")
def learned(name):
    """A bundle that has learned to answer, all of its language model included."""
    plan = spec(
        name, training={"epochs": 40, "learning_rate": 5e-3, "rates": {"language": 3e-3}, "patience": 0}, adapt="all"
    )
    return pm.fit(plan, rows(96), cache=False)


def test_it_answers_in_words_by_looking_and_by_what_it_is_asked(learned):
    scores = learned.evaluate(rows(60, seed=1)).content["tasks"]["answer"]
    assert scores["headline"] == "cider"
    assert scores["scores"]["exact_match"] > 0.8
    for name in ("v", "asked"):
        assert scores["without"][name]["exact_match"] < 0.75
        assert scores["shuffled"][name]["exact_match"] < 0.75
    assert "  shuffled v" in str(learned.evaluate(rows(20)))
    assert scores["details"]["answers"][0]["right"] == [rows(60, seed=1)["answer"][0]]


def test_a_bundle_answers_the_same_after_loading_and_with_any_input_absent(learned, tmp_path):
    asked = [{"v": [[2.0, 1.0]], "asked": "what is it"}, {"asked": "is it red"}, {"v": [[2.0, 1.0]]}, {}]
    with pytest.raises(pm.DataError):
        learned.predict([{}])
    before = learned.predict(asked)
    assert before.absent == [[], ["v"], ["asked"], ["v", "asked"]]
    assert json.loads(json.dumps(list(before))) == list(before)
    assert all(0 < row["answer"]["probability"] <= 1 for row in before)
    again = pm.load(learned.save(tmp_path / "model"))
    assert list(again.predict(asked)) == list(before)
    alone = [again.predict([row])[0]["answer"]["text"] for row in asked[:3]]
    assert alone == [row["answer"]["text"] for row in before[:3]]


def test_a_frozen_language_model_is_in_no_bundle_unless_it_is_asked_for(name, tmp_path):
    model = pm.fit(spec(name), rows(24), cache=False)
    place = model.save(tmp_path / "model", self_contained=True)
    state = {id(tensor) for tensor in model.model.state_dict(keep_vars=True).values()}
    frozen = [p for p in model.model.decoders["answer"].language.net.parameters() if not p.requires_grad]
    assert sum(p.numel() for p in frozen) > 9000
    assert not any(id(p) in state for p in frozen)
    assert list((place / "backbones" / "hub").rglob("model.safetensors"))
    assert model.spec.outputs["answer"].decoder.digest.startswith("language-")


def test_another_language_model_than_the_one_it_was_fitted_with_is_refused(tmp_path):
    place = Path(tmp_path / "talker")
    name = tiny_language(place)
    bundle = pm.fit(spec(name), rows(24), cache=False).save(tmp_path / "model")
    manifest = json.loads((bundle / "spec.json").read_text())
    manifest["spec"]["outputs"]["answer"]["decoder"]["digest"] = "language-another"
    (bundle / "spec.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="must have digest language-another"):
        pm.load(bundle)


def test_classes_are_read_as_likely_answers_with_all_that_classify_has(name):
    outputs = {
        "kind": {"type": "classify", "decoder": {"backbone": name, "prompt": "<v> what is it", "adapt": "all"}},
        "plain": {"type": "classify", "column": "kind"},
    }
    training = {"epochs": 25, "learning_rate": 5e-3, "rates": {"language": 2e-3}, "patience": 0}
    model = pm.fit(spec(name, outputs, training), rows(96), cache=False)
    report = model.evaluate(rows(60, seed=1))
    assert report["kind"]["accuracy"] > 0.85
    assert {"ece", "nll", "brier"} <= report["kind"].keys()
    assert model.spec.outputs["kind"].temperature != 1.0
    answer = model.predict([{"v": [[-2.0, 1.0]]}])[0]["kind"]
    assert answer["class"] == "red apple"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


def batch_of(plan, table):
    prepared = prepare(plan, Table.read(table), Embedder(plan, CPU))
    return prepared.batch(torch.arange(len(prepared)))


def fitted(plan, table):
    """A spec fitted to a table, and a model of it with something in its low-rank changes."""
    parsed = Spec.parse(plan)
    parsed = parsed.fit(lambda n: table[n], lambda n: table[parsed.outputs[n].columns(n)[0]])
    torch.manual_seed(0)
    model = Model(parsed)
    for head in model.decoders.values():
        for p in head.parts["language"]:
            p.data.normal_(std=0.1)
    return parsed, model.eval()


def costs(model, plan, table, size=0):
    for head in model.decoders.values():
        head.size = size
    batch = batch_of(plan, table)
    found = model(batch.inputs, targets=batch.targets).decoded["answer"]
    model.zero_grad()
    plan.outputs["answer"].loss(found, batch.targets["answer"]).backward()
    return found.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("more", [{"packed": True}, {"checkpointing": True}, {"microbatch": 5}])
def test_packing_pieces_and_computing_again_cost_and_teach_the_same(name, more):
    table, size = rows(12), more.pop("microbatch", 0)
    plan, model = fitted(spec(name), table)
    expected, gradients = costs(model, plan, table)
    other_plan, other = fitted(spec(name, **more), table)
    other.load_state_dict(model.state_dict())
    got, theirs = costs(other, other_plan, table, size)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert theirs.keys() == gradients.keys()
    assert any("changes" in n for n in gradients)
    for n, gradient in gradients.items():
        torch.testing.assert_close(theirs[n], gradient, atol=1e-4, rtol=1e-3)


def test_merged_changes_answer_the_same_and_follow_what_is_learned(name):
    table = rows(6)
    plan, apart = fitted(spec(name), table)
    merging, merged = fitted(spec(name, merge=True), table)
    batch, head = batch_of(plan, table), merged.decoders["answer"]
    merged.load_state_dict(apart.state_dict())

    def costs_of(model, plan):
        with torch.no_grad():
            return model(batch.inputs, targets=batch.targets).decoded["answer"]

    first = costs_of(merged, merging)
    torch.testing.assert_close(first, costs_of(apart, plan))
    assert not any(p.requires_grad for p in head._held.merged().net.parameters())
    assert head._held.merged() is head._held.merged()
    assert head.language is head._held.exact, "with gradients, both are apart"
    memory = head.memory
    assert memory is head.memory
    with torch.no_grad():
        for model in (apart, merged):
            for p in model.decoders["answer"].parts["language"]:
                p.mul_(2)
    torch.testing.assert_close(costs_of(merged, merging), costs_of(apart, plan))
    assert not torch.allclose(costs_of(merged, merging), first)
    assert head.memory is not memory, "what was read by other weights is of no use"
    assert apart.state_dict().keys() == merged.state_dict().keys()


def test_a_conversation_needs_a_chat_template(name):
    table = rows(2)
    plan, model = fitted(spec(name, chat=False), table)
    with pytest.raises(SpecError, match="needs a language model with a chat template"):
        asking.prompts(model, "answer", batch_of(plan, table).inputs, Conversation(answers=("no",)))


def test_what_stands_behind_an_absent_input_is_not_read(name):
    table = rows(12)
    plan, model = fitted(spec(name), table)
    batch = batch_of(plan, table)
    gone = torch.arange(12) == 3
    dirty = {n: type(x)(x.values.masked_fill(x.values != 0, 7), x.mask, x.at) for n, x in batch.inputs.items()}
    clean = model(batch.without("v").inputs, targets=batch.targets).decoded["answer"]
    dirty["asked"] = batch.inputs["asked"]
    dirty["v"] = dirty["v"].without(torch.ones(12, dtype=torch.bool))
    torch.testing.assert_close(model(dirty, targets=batch.targets).decoded["answer"], clean)
    only = {n: x.without(gone) for n, x in batch.inputs.items()}
    assert model(only, targets=batch.targets).decoded["answer"].isfinite().all()


def test_stages_train_what_they_name_and_nothing_else(name):
    stages = [{"epochs": 1, "train": ["projector"]}, {"epochs": 1, "train": ["language"]}]
    plan = Spec.parse(spec(name, training={"stages": stages, "epochs": 2}))
    assert plan.training.epochs == 2
    first = pm.fit(spec(name, training={"stages": stages[:1]}), rows(24), cache=False).model
    second = pm.fit(spec(name, training={"stages": stages[1:]}), rows(24), cache=False).model
    torch.manual_seed(0)
    start = Model(first.spec)
    head, one, two = (m.decoders["answer"] for m in (start, first, second))
    assert any(not torch.equal(a, b) for a, b in zip(head.parts["projector"], one.parts["projector"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(head.parts["language"], one.parts["language"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(head.parts["projector"], two.parts["projector"], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(head.parts["language"], two.parts["language"], strict=True))


@pytest.mark.parametrize(
    ("decoder", "training", "told"),
    [
        ({"prompt": "<v> <image>"}, {}, "prompt must name inputs among ['v', 'asked', 'fused'], got <image>."),
        ({"prompt": "<v> what"}, {}, "got none for 'asked'. Write <asked> where it belongs"),
        ({"prompt": "<v> <v> <asked>"}, {}, "one place for each input, got <v> twice"),
        ({"prompt": "what is it"}, {}, "prompt must have a place for an input"),
        ({"backbone": "smollm2"}, {}, "decoder.backbone must be that of input 'asked'"),
        ({"projector": "linear", "count": 3}, {}, "count has no effect with projector linear"),
        ({"adapt": "none", "rank": 2}, {}, "rank has no effect with adapt none"),
        ({"adapt": "all", "merge": True}, {}, "merge has no effect with adapt all"),
        ({"chat": False, "system": "be old"}, {}, "system has no effect without chat"),
        ({}, {"mixup": 0.2}, "mixup cannot mix what a language model reads"),
        ({"adapt": "none"}, {"rates": {"language": 1e-3}}, "language only where a decoder adapts"),
        ({}, {"stages": [{"epochs": 2}], "epochs": 3}, "epochs must be those of the stages, 2, got 3"),
        ({}, {"stages": [{"epochs": 2, "train": ["fusion"]}]}, "training.stages.0.train.0"),
    ],
)
def test_a_decoder_that_makes_no_sense_is_refused_with_its_path(name, decoder, training, told):
    plan = spec(name, training=training, **decoder)
    if training.get("stages"):
        plan["training"] = {k: v for k, v in plan["training"].items() if k != "epochs"} | training
    with pytest.raises(SpecError) as error:
        Spec.parse(plan)
    assert told in str(error.value)


@pytest.mark.parametrize("training", [{"stages": [{"epochs": 1}]}, {"rates": {"projector": 1e-3}}, {"microbatch": 2}])
def test_settings_for_a_language_model_need_one(training):
    plan = {"inputs": {"v": "test-vectors"}, "outputs": {"kind": "classify"}, "training": training}
    with pytest.raises(SpecError, match="has no effect"):
        Spec.parse(plan)


def test_the_fused_vector_has_a_place_too(name):
    model = pm.fit(spec(name, prompt="<fused> what is it"), rows(24), cache=False)
    assert model.predict([{"v": [[1.0, 1.0]], "asked": "no"}])[0]["answer"].keys() == {"text", "probability"}
    assert model.spec.outputs["answer"].reads == ()


def test_a_prompt_that_is_too_long_is_an_error_or_cut_on_its_left(tmp_path):
    short = tiny_language(tmp_path, context=40)
    long = rows(24) | {"asked": ["is it red " * 9] * 24}
    with pytest.raises(pm.DataError, match="context of 40 tokens, got"):
        pm.fit(spec(short, prompt="<v> <asked>"), long, cache=False)
    model = pm.fit(spec(short, prompt="<v> <asked>", truncate="left"), long, cache=False)
    assert model.predict({"v": [None], "asked": ["is it red " * 9]})[0]["answer"]["text"] is not None


def test_targets_that_are_no_text_count_as_unlabelled_and_are_told(name):
    table = rows(24)
    table["answer"][3], table["answer"][5] = {"no": "text"}, None
    model = pm.fit(spec(name), table, cache=False)
    assert any("row 3: target must be a text" in line for line in model.warnings)


def test_a_diagnosis_judges_answers_by_what_is_right(learned):
    found = learned.diagnose(rows(24, seed=2), metric="exact_match", curve_rows=0, repeats=20).to_dict()
    assert found["tasks"]["answer"]["metric"] == "exact_match"
    assert {one["input"] for one in found["verdict"]} == {"v", "asked"}


def test_the_command_line_answers_a_row_and_what_is_typed(learned, tmp_path, capsys, monkeypatch):
    place = str(learned.save(tmp_path / "model"))
    expected = learned.predict([{"asked": "is it red"}])[0]["answer"]["text"]
    with pytest.raises(SystemExit) as end:
        cli.app(["chat", place, "--asked", "is it red"])
    assert not end.value.code
    assert capsys.readouterr().out == f"{expected}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("is it red\nis it red\n\nnever read\n"))
    with pytest.raises(SystemExit):
        cli.app(["chat", place])
    assert capsys.readouterr().out == f"{expected}\n" * 2
    with pytest.raises(SpecError, match="got '--colour'"):
        cli.app(["chat", place, "--colour", "red"], standalone_mode=False)


def test_a_bundle_that_answers_in_no_words_has_none_to_talk_with():
    model = pm.fit(
        {"inputs": {"v": "test-vectors"}, "outputs": {"kind": "classify"}, "training": {"epochs": 1}}, rows(24)
    )
    with pytest.raises(SpecError, match="must have an output that answers in words"):
        list(pm.talk(model, {"v": [[1.0, 1.0]]}))


def test_a_fit_that_was_killed_between_its_stages_ends_with_the_same_weights(name, tmp_path):
    stages = [{"epochs": 2, "train": ["projector", "rest"]}, {"epochs": 2}]
    plan = spec(name, training={"stages": stages})
    plan["training"].pop("epochs")
    plan["training"]["patience"] = 0

    def killed(what, done, total):
        del total
        if what == "train" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pm.fit(plan, rows(24), cache=False, resume=tmp_path / "state", progress=killed)
    assert (tmp_path / "state").is_file()
    resumed = pm.fit(plan, rows(24), cache=False, resume=tmp_path / "state").model.state_dict()
    whole = pm.fit(plan, rows(24), cache=False).model.state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_several_right_answers_are_all_right_and_the_first_is_learned(name):
    task = Spec.parse(spec(name)).outputs["answer"]
    task = task.fit([["red apple", "apple", "apple"], '["no", "yes"]'])
    target = task.collate([["red apple", "apple", "apple"], '["no", "yes"]'])
    ids = task.vocabulary.ids("apple")
    output = torch.tensor([[-1.0, *ids], [-1.0, *ids]])
    scores = task.metrics(output, target)
    assert scores["exact_match"] == 0.5
    assert scores["vqa_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    costs = Model(Spec.parse(spec(name)).model_copy(update={"outputs": {"answer": task}}))
    batch = {"asked": costs.spec.inputs["asked"].collate(["what is it", "no"])}
    first = task.collate(["red apple", "no"])
    with torch.no_grad():
        torch.testing.assert_close(
            *(costs.eval()(batch, targets={"answer": y}).decoded["answer"] for y in (target, first))
        )


def test_what_an_input_did_to_what_is_said_is_told_in_nats(learned):
    rows = [{"v": [[2.0, 1.0]], "asked": "what is it"}, {"asked": "is it red"}]
    told = learned.predict(rows, explain=True).explanations
    for row, answer in zip(told, learned.predict(rows), strict=True):
        found = row["answer"]
        assert found["unit"] == f"log-probability of {answer['answer']['text']!r} in nats"
        assert sum(found["inputs"].values()) == pytest.approx(found["value"] - found["base"], abs=1e-4)
        assert found["value"] < 0
    assert told[0]["answer"]["inputs"].keys() == {"v", "asked"}
    assert told[1]["answer"]["inputs"].keys() == {"asked"}
    assert [piece["part"] for piece in told[0]["answer"]["parts"]["asked"]] == ["what", "is", "it"]
    alone = learned.predict(rows[:1], explain=True).explanations[0]["answer"]
    assert alone["inputs"] == pytest.approx(told[0]["answer"]["inputs"], abs=1e-3)
