"""tag: targets in every form, losses, predictions, scores, the head with its gate, and all of it in a model."""

import itertools
import json
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from seqeval.metrics import classification_report as seqeval_report
from seqeval.scheme import IOB2, IOBES
from sklearn.metrics import classification_report
from torch import Tensor, nn
from torch.nn import functional

import polymodal as pm
import toys
from polymodal import schemes
from polymodal.errors import DataError, SpecError
from polymodal.model import Model
from polymodal.part import Modality, Reading
from polymodal.sentence import Sentence
from polymodal.spec import Spec
from polymodal.task import Labelled, Task
from polymodal.tasks import Tag
from polymodal.tracing import Answerer, trace
from polymodal.tracing.samples import Samples
from polymodal.types import Batch, Fused, Masked

DIM = 8
ROWS = (
    ("B-per I-per O B-loc", "Ann Lee saw Oslo"),
    ("O O O", "it was late"),
    (None, "not labelled"),
    ("B-loc", "Rome"),
    ("O B-per B-per I-per O", "hi Bo Cy Day !"),
)


def given(rows=ROWS):
    return [None if tags is None else Labelled(tags.split(), Sentence.of(text.split())) for tags, text in rows]


def fitted(**settings):
    return Tag(input="words", **settings).fit(given())


def raw(task, lengths, seed=0, spread=1.0, learned=True):
    """A raw output with a random chain that keeps the scheme's rules, and random words."""
    generator = torch.Generator().manual_seed(seed)
    head = task.head(DIM)
    if learned and head.chain is not None:
        torch.nn.init.normal_(head.chain, std=spread, generator=generator)
    sizes = torch.tensor(lengths)
    tokens = torch.randn(len(lengths), max([1, *lengths]), DIM, generator=generator) * 3 * spread
    x = Masked(tokens, torch.arange(tokens.shape[1]) < sizes[:, None])
    return head(Fused(torch.zeros(len(lengths), DIM), {"words": x})).detach()


LENGTHS = [len(text.split()) for _, text in ROWS]
every_head = pytest.mark.parametrize("head", ["crf", "linear"])
every_scheme = pytest.mark.parametrize("scheme", ["IOB2", "IOBES"])


# Targets -------------------------------------------------------------------------------------------------------------


@every_head
@every_scheme
def test_a_fitted_task_survives_json_and_fit_is_pure(head, scheme):
    plain = Task.parse({"type": "tag", "head": head, "scheme": scheme, "input": "words"})
    before = plain.model_dump_json()
    task = plain.fit(given())
    assert plain.fit(given()) == task
    assert task.fit(given()) == task
    assert plain.model_dump_json() == before
    assert Task.parse(json.loads(task.model_dump_json())) == task
    assert task.types == ("loc", "per")
    assert not task.entities
    assert task.words == pytest.approx(13 / 4)
    with pytest.raises(ValidationError):
        Task.parse({"type": "tag", "unheard": 1})


def as_entities(value):
    spans = schemes.spans(value.label)
    return [{"start": value.value.starts[s.first], "end": value.value.end(s.stop - 1), "type": s.type} for s in spans]


FORMS = {
    "list": lambda value: value.label,
    "tuple": lambda value: tuple(value.label),
    "array": lambda value: np.array(value.label),
    "JSON": lambda value: json.dumps(value.label),
    "blanks": lambda value: " ".join(value.label),
    "entities": as_entities,
    "JSON of entities": lambda value: json.dumps(as_entities(value)),
    **{
        scheme: lambda value, scheme=scheme: schemes.tags(schemes.spans(value.label), len(value.value), scheme)
        for scheme in ("IOB1", "IOBES", "BILOU")
    },
}


@pytest.mark.parametrize("form", FORMS)
@every_scheme
def test_every_form_of_a_target_says_the_same(form, scheme):
    task = fitted(scheme=scheme)
    target = task.collate(given())
    values = [value and Labelled(FORMS[form](value), value.value) for value in given()]
    other = Tag(input="words", scheme=scheme).fit(values)
    assert other.types == task.types
    assert other.entities == ("entities" in form)
    again = task.collate(values)
    assert torch.equal(other.collate(values).values, again.values), "whoever was fitted to another form reads it alike"
    assert target.values.dtype == torch.int16
    assert torch.equal(again.values, target.values)
    assert torch.equal(again.mask, target.mask)
    assert target.mask.sum(1).tolist() == [4, 3, 0, 1, 5]
    names = [task.tags[i] for i in target.values[0, :4]]
    assert names == (["B-per", "I-per", "O", "B-loc"] if scheme == "IOB2" else ["B-per", "E-per", "O", "S-loc"])


def test_broken_tags_lose_no_span():
    value = Labelled(["I-per", "I-per", "I-loc", "O"], Sentence.of(["a", "b", "c", "d"]))
    task = fitted()
    assert [task.tags[i] for i in task.collate([value]).values[0]] == ["B-per", "I-per", "B-loc", "O"]


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (["O"], "tags must be as many as the words, got 1 tags and 3 words"),
        (["O"] * 4, "tags must be as many as the words, got 4 tags and 3 words"),
        ([], "got 0 tags and 3 words"),
        (["O", "B-org", "O"], "type must be one of ['loc', 'per'], got 'org'"),
        (["O", "B-pe", "O"], "Did you mean 'per'?"),
        (["O", "Q-per", "O"], "got 'Q-per'"),
        (["O", None, "O"], "got None"),
        ("[not json", "must be JSON"),
        ('{"a": 1}', "must be a list"),
        (7, "must be a list of tags"),
    ],
)
def test_a_target_that_does_not_fit_its_sentence_is_refused_by_itself(label, told):
    task, sentence = fitted(), Sentence.of(["it", "was", "late"])
    with pytest.raises(DataError) as error:
        task.collate([Labelled(label, sentence)])
    assert told in str(error.value)


def test_a_broken_target_does_not_stop_a_fit():
    sentence = Sentence.of(["it", "was"])
    broken = [Labelled(label, sentence) for label in (["O"], 7, ["O", "Q-x"], ["O", None])]
    assert Tag(input="words").fit([*broken, *given()]) == fitted()


def test_entities_that_cut_a_word_are_refused_and_none_at_all_are_a_target():
    values = [Labelled(as_entities(value), value.value) for value in given() if value]
    task = Tag(input="words").fit(values)
    sentence = Sentence.of(["Ann", "Lee"])
    assert task.collate([Labelled([], sentence)]).values.tolist() == [[0, 0]]
    with pytest.raises(DataError, match="must not cut a word"):
        task.collate([Labelled([[0, 5, "per"]], sentence)])
    assert Tag(input="words").fit([*values, *given()]).types == task.types


def test_what_a_target_says_of_words_that_were_cut_off_is_left_out():
    task = fitted()
    whole = Sentence.of(["Ann", "Lee", "saw", "Oslo"])
    cut = Sentence(whole.text, whole.words[:1], whole.starts[:1])
    target = task.collate([Labelled(["B-per", "I-per", "O", "B-loc"], cut)])
    assert target.values.tolist() == [[task.tags.index("B-per")]]


def test_targets_without_a_span_or_with_one_that_is_not_named_are_no_task():
    nothing = [Labelled(["O"], Sentence.of(["a"]))]
    with pytest.raises(DataError, match="at least one span, got none in 1 labelled rows"):
        Tag(input="words").fit(nothing)
    assert Tag(input="words", types=("x",)).fit(nothing).tags == ["O", "B-x", "I-x"]
    with pytest.raises(DataError, match=r"type must be one of \['loc'\], got 'per'"):
        Tag(input="words", types=("loc",)).fit(given())
    with pytest.raises(DataError, match="got 2 tags and 1 words"):
        Tag(input="words").fit([Labelled(["O", "B-x"], Sentence.of(["a"]))])
    with pytest.raises(ValidationError, match="different texts"):
        Tag(types=("a", "a"))


def test_balance_counts_spans():
    task = fitted(scheme="IOBES")
    assert task.balance(task.collate(given())) == {"loc": 2, "per": 3}


# Losses --------------------------------------------------------------------------------------------------------------


def alone(output, k):
    """Chain and words of a raw output, read as the class says."""
    return output[0, : 2 + k, :k], output[:, 2 + k :, :k]


@every_scheme
def test_the_crfs_loss_is_the_likelihood_of_the_whole_sequence(scheme):
    task = Tag(input="words", scheme=scheme, types=("p",)).fit([Labelled(["B-p", "O"], Sentence.of(["a", "b"]))])
    output = raw(task, [3, 2])
    k = len(task.tags)
    (chain, words), truth = alone(output.double(), k), torch.tensor([[0, 1, 2], [0, 0, 0]])
    if scheme == "IOBES":
        truth[0] = torch.tensor([1, 2, 3])
    target = Masked(truth.to(torch.int16), torch.tensor([[True] * 3, [True, True, False]]))
    total = 0.0
    for b, n in enumerate((3, 2)):
        paths = torch.tensor(list(itertools.product(range(k), repeat=n)))
        scores = chain[0, paths[:, 0]] + chain[1, paths[:, -1]] + words[b, torch.arange(n), paths].sum(1)
        for t in range(1, n):
            scores = scores + chain[2:][paths[:, t - 1], paths[:, t]]
        total -= scores.log_softmax(0)[(paths == truth[b, :n]).all(1)]
    assert task.loss(output, target).item() == pytest.approx(float(total) / 2 / task.words, rel=1e-5)


def test_the_linear_heads_loss_is_cross_entropy_of_words():
    task = fitted(head="linear")
    output, target = raw(task, LENGTHS), task.collate(given())
    words = alone(output, 5)[1]
    total = functional.cross_entropy(words[target.mask], target.values[target.mask].long(), reduction="sum")
    assert task.loss(output, target).item() == pytest.approx(total.item() / 4 / task.words, rel=1e-6)
    assert fitted().loss(output, target).item() < 0.97 * task.loss(output, target).item(), "the rules are a help"


@every_head
def test_unlabelled_rows_padding_and_words_without_a_label_count_nowhere(head):
    task = fitted(head=head)
    output, target = raw(task, LENGTHS), task.collate(given())
    wild = output.clone()
    wild[2] = torch.nan
    leaf = wild.requires_grad_()
    loss = task.loss(leaf, target)
    loss.backward()
    labelled = target.present
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[2].any()
    assert loss.item() == pytest.approx(task.loss(output[labelled], target[labelled]).item(), rel=1e-6)
    assert task.metrics(leaf, target) == task.metrics(output[labelled], target[labelled])
    longer = functional.pad(output, (0, 0, 0, 3), value=torch.nan)
    wider = Masked(functional.pad(target.values, (0, 7), value=3), functional.pad(target.mask, (0, 7)))
    for one, other in ((longer, target), (output, wider), (longer, wider)):
        assert task.loss(one, other).item() == pytest.approx(loss.item(), rel=1e-6)
        assert task.metrics(one, other) == task.metrics(output, target)
    halves = [slice(0, 2), slice(2, None)]
    total = sum(task.loss(output[rows], target[rows]) * target[rows].present.sum() for rows in halves)
    assert loss.item() == pytest.approx((total / 4).item(), rel=1e-5), "a mean over rows, so that ranks add up"


@every_head
def test_no_labels_cost_nothing_and_score_nothing(head):
    task = fitted(head=head)
    leaf, target = raw(task, LENGTHS).requires_grad_(), task.collate([None] * 5)
    loss = task.loss(leaf, target)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()
    assert task.metrics(leaf, target) == {}
    assert task.headline(leaf, target) is None
    json.dumps(task.details(leaf, target))
    assert task.predict(leaf[:0]) == []


@every_head
def test_words_that_the_model_did_not_see_cost_nothing_but_are_missed(head):
    task = fitted(head=head)
    target, output = task.collate(given()), raw(task, [0] * 5)
    assert output.shape[1] == 2 + 5 + 1
    leaf = output.requires_grad_()
    loss = task.loss(leaf, target)
    loss.backward()
    assert loss.item() == 0
    scores = task.metrics(leaf, target)
    assert scores["entity_f1"] == scores["entity_recall"] == 0
    assert scores["token_accuracy"] == pytest.approx(6 / 13)
    assert task.predict(leaf)[0] == {"entities": [], "tags": []}


@every_head
def test_a_model_that_diverged_is_seen_to_have(head):
    task = fitted(head=head)
    layer, x = task.head(DIM), Masked(torch.full((5, 5, DIM), torch.nan), task.collate(given()).mask)
    output = layer(Fused(torch.zeros(5, DIM), {"words": x}))
    assert task.loss(output, task.collate(given())).isnan()


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_outputs_are_widened(head, dtype):
    task = fitted(head=head)
    output, target = raw(task, LENGTHS).to(dtype), task.collate(given())
    exact = task.loss(output.double(), target).item()
    assert task.loss(output, target).item() == pytest.approx(exact, rel=1e-5)
    assert task.predict(output) == task.predict(output.float())


# Predictions ---------------------------------------------------------------------------------------------------------


@every_head
@every_scheme
def test_predictions_are_plain_and_keep_the_schemes_rules(head, scheme):
    task = fitted(head=head, scheme=scheme)
    lengths = [1, 2, 7, 30, 0] * 6
    output = raw(task, lengths, spread=2.0)
    rows = task.predict(output)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    found = 0
    for row, n in zip(rows, lengths, strict=True):
        assert list(row) == ["entities", "tags"]
        assert len(row["tags"]) == n
        strict = schemes.spans(row["tags"], scheme)
        assert strict == schemes.spans(row["tags"]), "no tag is where it must not be"
        assert [(e["type"], e["first"], e["stop"]) for e in row["entities"]] == strict
        assert all(0 < e["probability"] <= 1 for e in row["entities"])
        found += len(strict)
    assert found > 50
    free = alone(output, len(task.tags))[1].nan_to_num().argmax(2)
    broken = [[task.tags[i] for i in row[:n]] for row, n in zip(free, lengths, strict=True)]
    assert any(schemes.spans(row, scheme) != schemes.spans(row) for row in broken)


@every_head
@every_scheme
def test_a_spans_probability_is_that_of_all_sequences_that_hold_it(head, scheme):
    task = Tag(input="words", head=head, scheme=scheme, types=("p", "q")).fit([])
    for seed in range(6):
        output = raw(task, [4 if scheme == "IOB2" else 3], seed=seed)
        k, n = len(task.tags), output.shape[1] - 2 - len(task.tags)
        chain, words = alone(output.double(), k)
        paths = [p for p in itertools.product(range(k), repeat=n)]
        index = torch.tensor(paths)
        scores = chain[0, index[:, 0]] + chain[1, index[:, -1]] + words[0, torch.arange(n), index].sum(1)
        for t in range(1, n):
            scores = scores + chain[2:][index[:, t - 1], index[:, t]]
        p = scores.softmax(0)
        held = [schemes.spans([task.tags[i] for i in path]) for path in paths]
        answer = task.predict(output)[0]
        for entity in answer["entities"]:
            span = (entity["type"], entity["first"], entity["stop"])
            expected = sum(float(x) for x, spans in zip(p, held, strict=True) if span in spans)
            assert entity["probability"] == pytest.approx(expected, abs=1e-9)


def test_locate_adds_text_and_characters():
    task, text = fitted(), "Zoë  Lee met 李明 🙂."
    sentence = Sentence(text, ("Zoë", "Lee", "met", "李明", "🙂", "."), (0, 5, 9, 13, 16, 17))
    entities = [
        {"type": "per", "first": 0, "stop": 2, "probability": 0.5},
        {"type": "per", "first": 3, "stop": 4, "probability": 0.5},
    ]
    found = task.locate({"entities": entities, "tags": []}, sentence)["entities"]
    assert found[0] == {
        "type": "per",
        "text": "Zoë  Lee",
        "start": 0,
        "end": 8,
        "first": 0,
        "stop": 2,
        "probability": 0.5,
    }
    assert (found[1]["text"], text[found[1]["start"] : found[1]["end"]]) == ("李明", "李明")
    assert "text" not in entities[0]
    assert task.locate({"entities": [], "tags": []}, None) == {"entities": [], "tags": [], "words": []}


def test_ten_thousand_words_are_answered():
    task = fitted()
    output = raw(task, [10_000], spread=2.0)
    target = Masked(torch.zeros(1, 10_000, dtype=torch.int16), torch.ones(1, 10_000, dtype=torch.bool))
    assert task.loss(output, target).isfinite()
    row = task.predict(output)[0]
    assert len(row["tags"]) == 10_000
    assert all(0 <= e["probability"] <= 1 for e in row["entities"])
    assert len(row["entities"]) > 1000


# Scores --------------------------------------------------------------------------------------------------------------


@every_scheme
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_seqeval_and_scikit_learn(scheme, seed):
    rng, types = np.random.default_rng(seed), ("a", "b", "c")
    task, values = Tag(input="words", scheme=scheme, types=types), []
    for n in rng.integers(1, 12, 40):
        row = [rng.choice(["O", "O", "B-a", "I-a", "B-b", "I-b"]) for _ in range(n)]
        values.append(Labelled(row, Sentence.of(["w"] * n)) if rng.random() < 0.9 else None)
    task = task.fit(values)
    target, output = task.collate(values), raw(task, [len(v.value) if v else 3 for v in values], seed=seed)
    for b in range(40):
        for t in range(int(target.mask[b].sum())):
            output[b, 2 + len(task.tags) + t, target.values[b, t].long()] += 4.0
    names, answers = task.tags, task.predict(output)
    rows = target.present.nonzero().flatten().tolist()
    true = [[names[i] for i in target.values[b][target.mask[b]]] for b in rows]
    found = [answers[b]["tags"] for b in rows]
    ours, details = task.metrics(output, target), task.details(output, target)
    theirs = seqeval_report(
        true, found, mode="strict", scheme={"IOB2": IOB2, "IOBES": IOBES}[scheme], output_dict=True, zero_division=0
    )
    assert next(iter(ours)) == "entity_f1"
    for name, average, key in (
        ("entity_f1", "micro", "f1-score"),
        ("entity_precision", "micro", "precision"),
        ("entity_recall", "micro", "recall"),
        ("entity_macro_f1", "macro", "f1-score"),
        ("entity_weighted_f1", "weighted", "f1-score"),
    ):
        assert ours[name] == pytest.approx(theirs[f"{average} avg"][key])
    for row in details["per_type"]:
        if row["type"] in theirs:
            assert row["f1"] == pytest.approx(theirs[row["type"]]["f1-score"])
            assert row["support"] == theirs[row["type"]]["support"]
    flat, guess = [x for row in true for x in row], [x for row in found for x in row]
    report = classification_report(flat, guess, output_dict=True, zero_division=0)
    assert sorted(row["tag"] for row in details["per_tag"]) == [x for x in report if x[0] in "OBIES" and "avg" not in x]
    for row in details["per_tag"]:
        other = report[row["tag"]]
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
            [other["precision"], other["recall"], other["f1-score"], other["support"]]
        )
    assert ours["token_accuracy"] == details["token_accuracy"] == pytest.approx(report["accuracy"])
    assert ours["token_macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert ours["token_weighted_f1"] == pytest.approx(report["weighted avg"]["f1-score"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = classification_report(flat, guess, labels=names[1:], output_dict=True, zero_division=0)
    assert ours["token_micro_f1"] == pytest.approx(inside["micro avg"]["f1-score"])
    json.dumps(details, allow_nan=False)


def test_the_headline_of_some_rows_is_the_score_of_those_rows():
    task = fitted()
    values, rng = given() * 4, np.random.default_rng(0)
    target, output = task.collate(values), raw(task, LENGTHS * 4)
    for b, t in target.mask.nonzero().tolist():
        output[b, 7 + t, target.values[b, t].long()] += 3.0
    score = task.headline(output, target)
    labelled = target.present.nonzero().flatten().numpy()
    for _ in range(5):
        rows = rng.choice(labelled, len(labelled))
        assert score(rows) == pytest.approx(task.metrics(output[rows], target[torch.as_tensor(rows)])["entity_f1"])


def test_joined_outputs_are_answered_as_the_batches_were():
    task = fitted()
    one, two = raw(task, [2, 5]), raw(task, [9, 1, 0])
    two[:, :7] = one[0, :7]
    joined = task.join([one, two])
    assert joined.shape == (5, 2 + 5 + 9, 6)
    assert task.predict(joined) == task.predict(one) + task.predict(two)


# The head and its gate -----------------------------------------------------------------------------------------------


def tokens(lengths, seed=0, dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(lengths)
    values = torch.randn(len(lengths), max([1, *lengths]), dim, generator=generator)
    return Masked(values, torch.arange(values.shape[1]) < sizes[:, None])


def gates_of(task, output):
    return output[:, 2 + len(task.tags) :, -1]


def test_the_gate_is_open_without_other_inputs_and_shut_where_a_row_has_none():
    words, pooled = tokens([3, 2, 0]), torch.zeros(3, DIM)
    task = fitted()
    assert gates_of(task, task.head(DIM)(Fused(pooled, {"words": words})))[words.mask].tolist() == [1] * 5
    task = task.model_copy(update={"gated": True})
    head = task.head(DIM)
    other = tokens([1, 0, 1], seed=1)
    found = gates_of(task, head(Fused(pooled, {"picture": other, "words": words}))).detach()
    assert found[0] == pytest.approx(torch.full((3,), 0.1192), abs=1e-3), "almost closed at first"
    assert found[1, :2].tolist() == [0, 0]
    assert found[2].isnan().all()
    assert gates_of(task, head(Fused(pooled, {"words": words})))[words.mask].tolist() == [0] * 5


def test_the_answer_is_that_of_the_words_plus_the_gate_times_the_rest():
    task = fitted().model_copy(update={"gated": True})
    words, other, pooled = tokens([3, 2]), tokens([1, 1], seed=1), torch.zeros(2, DIM)
    both, alone = task.head(DIM), task.head(DIM)
    nn.init.normal_(both.chain)
    nn.init.normal_(alone.chain)
    nn.init.normal_(both.gate.weight)
    output, own = both(Fused(pooled, {"words": words, "z": other})), alone(Fused(pooled, {"words": words}))
    answer = task.combine(output, {"words": own})
    gate = gates_of(task, output)[..., None]
    torch.testing.assert_close(answer[:, 7:, :5], own[:, 7:, :5] + gate * output[:, 7:, :5], equal_nan=True)
    torch.testing.assert_close(answer[:, :7], own[:, :7] + output[:, :7])
    torch.testing.assert_close(gates_of(task, answer), gates_of(task, output), equal_nan=True)
    assert torch.equal(task.combine(output, {}).nan_to_num(), output.nan_to_num())
    row = task.predict(answer)[0]
    assert row["gates"] == pytest.approx(gate[0, :, 0].tolist())
    for entity in row["entities"]:
        assert entity["gate"] == pytest.approx(np.mean(row["gates"][entity["first"] : entity["stop"]]))


def test_an_open_gate_costs():
    task = fitted(gate_cost=0.5).model_copy(update={"gated": True})
    output, target = raw(task, LENGTHS), task.collate(given())
    for b, n in enumerate(LENGTHS):
        output[b, 7 : 7 + n, -1] = torch.linspace(0, 1, n) if n > 1 else 0.2
    free = task.model_copy(update={"gate_cost": 0.0})
    mean = (0.5 + 0.5 + 0.2 + 0.5) / 4
    assert task.loss(output, target).item() == pytest.approx(free.loss(output, target).item() + 0.5 * mean, rel=1e-5)
    alone = task.model_copy(update={"gated": False})
    assert alone.loss(output, target).item() == pytest.approx(free.loss(output, target).item())


class Spoken(Modality):
    """Sentences as words, each known by itself."""

    worded = True
    type: Literal["test-spoken"] = "test-spoken"

    def read(self, content: Any) -> Reading:
        return Reading(Sentence.of(content))

    def collate(self, values: Sequence[Any]) -> Masked:
        rows = [v and torch.tensor([zlib.crc32(word.encode()) % 997 for word in v.words]) for v in values]
        return Masked.pad(rows, torch.zeros((), dtype=torch.long))

    def encoder(self, dim: int) -> nn.Module:
        return Known(dim)

    def summary(self, x: Masked) -> Tensor:
        return x.mask.sum(1, keepdim=True).float()


class Known(nn.Module):
    """A vector for each word."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(997, dim)

    def forward(self, x: Masked) -> Masked:
        return Masked(self.table(x.values), x.mask, x.at)


def test_a_task_finds_its_input_and_tells_what_is_wrong_with_it():
    def outputs(inputs, tag="tag"):
        return Spec.parse({"inputs": inputs, "outputs": {"y": tag}}).outputs["y"]

    one = outputs({"a": "test-spoken"})
    assert (one.about, one.gated, one.asks("a"), one.asks("b")) == ("a", False, True, False)
    two = outputs({"a": "test-spoken", "b": toys.Vectors()})
    assert (two.about, two.gated) == ("a", True)
    assert outputs({"a": "test-spoken", "b": "test-spoken"}, {"type": "tag", "input": "b"}).about == "b"
    with pytest.raises(SpecError, match=r"got none\. Give an input of the type words"):
        outputs({"b": toys.Vectors()})
    with pytest.raises(SpecError, match=r"got \['a', 'b'\]. Choose one"):
        outputs({"a": "test-spoken", "b": "test-spoken"})
    with pytest.raises(SpecError, match=r"made of words among \['words'\], got 'word'. Did you mean 'words'"):
        outputs({"words": "test-spoken", "word": toys.Vectors()}, {"type": "tag", "input": "word"})
    with pytest.raises(SpecError, match="must know its input"):
        Tag(types=("x",)).head(DIM)
    with pytest.raises(SpecError, match="must know its types"):
        Tag(input="words").head(DIM)


# In a model ----------------------------------------------------------------------------------------------------------


def spec(fusion="concat", head="crf", beside=True, **settings):
    inputs = {"words": "test-spoken", **({"z": toys.Vectors(width=3)} if beside else {})}
    parsed = Spec.parse(
        {"inputs": inputs, "fusion": fusion, "dim": 16, "outputs": {"y": {"type": "tag", "head": head}}, **settings}
    )
    return parsed.fit(lambda name: [], lambda name: given())


def batch_of(parsed):
    words = [None if i == 2 else Sentence.of(text.split()) for i, (_, text) in enumerate(ROWS)]
    inputs = {"words": parsed.inputs["words"].collate(words)}
    if "z" in parsed.inputs:
        inputs["z"] = parsed.inputs["z"].collate([torch.randn(1 + i % 2, 3) if i else None for i in range(5)])
    return Batch(inputs, {"y": parsed.outputs["y"].collate(given())})


@pytest.mark.parametrize("fusion", ["concat", "attention", "gated", "vote"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_model_answers_with_any_fusion_and_any_input_missing(fusion, beside):
    torch.manual_seed(0)
    parsed = spec(fusion, beside=beside)
    model, task = Model(parsed).eval(), parsed.outputs["y"]
    batch = batch_of(parsed)
    output = model(batch.inputs).decoded["y"]
    rows = task.predict(output)
    assert [len(row["tags"]) for row in rows] == [4, 3, 0, 1, 5]
    longer = {n: Masked(functional.pad(x.values, (*[0, 0] * (x.values.ndim - 2), 0, 4)), functional.pad(x.mask, (0, 4)))
              for n, x in batch.inputs.items()}  # fmt: skip
    padded = model(longer).decoded["y"]
    torch.testing.assert_close(padded[:, : output.shape[1]], output, equal_nan=True, atol=1e-5, rtol=1e-4)
    assert padded[:, output.shape[1] :].isnan().all()
    for b in range(5):
        one = model({n: x[b : b + 1] for n, x in batch.inputs.items()}).decoded["y"]
        torch.testing.assert_close(one[0], output[b, : one.shape[1]], equal_nan=True, atol=1e-5, rtol=1e-4)
    silent = model(batch.without("words").inputs).decoded["y"]
    assert task.predict(silent)[0]["entities"] == []
    if beside:
        assert task.predict(model({"z": batch.inputs["z"]}).decoded["y"])[0]["tags"] == []
        without = model({"words": batch.inputs["words"]}).decoded["y"]
        own = model({"words": batch.inputs["words"]}).single["y"]["words"]
        assert not gates_of(task, without)[batch.inputs["words"].mask].any()
        torch.testing.assert_close(without[:, 7:], own[:, 7:], equal_nan=True)
    loss = task.loss(model.train()(batch.inputs).decoded["y"], batch.targets["y"])
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_head
@pytest.mark.parametrize("fusion", ["concat", "vote"])
def test_a_models_graph_answers_as_the_model(head, fusion):
    torch.manual_seed(0)
    parsed = spec(fusion, head)
    model = Model(parsed).eval()
    run, samples = Answerer(trace(model).graph, model.names), Samples(model)
    task = parsed.outputs["y"]
    for rows, stretch, absent in ((1, 1.0, 0.0), (4, 2.0, 0.3), (2, 0.5, 1.0)):
        inputs = samples.draw(rows, stretch, absent)
        answer, expected = run(inputs)["y"], model.answer(inputs).decoded["y"]
        both = task.join([answer, expected])  # without any words, the graph keeps their length
        torch.testing.assert_close(both[:rows], both[rows:], atol=1e-4, rtol=1e-4, equal_nan=True)
        tags = [[row["tags"] for row in task.predict(y)] for y in (answer, expected)]
        assert tags[0] == tags[1]


NAMES = ("Jordan", "Paris", "Austin")


def sentences(rows=96, seed=0, tells=True):
    """Names of a person or a place, which only the picture tells, if any."""
    rng = np.random.default_rng(seed)
    table: dict[str, list[Any]] = {"words": [], "y": [], "z": []}
    for _ in range(rows):
        person = rng.random() < 0.5
        words = [str(x) for x in rng.choice(["so", "the", "was", *NAMES, "Bob", "Rome"], 5)]
        kinds = {"Bob": "B-per", "Rome": "B-loc", **dict.fromkeys(NAMES, "B-per" if person else "B-loc")}
        table["words"].append(words)
        table["y"].append([kinds.get(word, "O") for word in words])
        picture = rng.normal(size=3)
        picture[0] += 8 * (person - 0.5) if tells else 0
        table["z"].append(picture.tolist())
    return table


def learned(tells, beside=True):
    """Scores of a model trained on whole batches with its own heads, those of the words alone, and gates by word."""
    inputs = {"words": Spoken(), **({"z": toys.Vectors(width=3)} if beside else {})}
    parsed = Spec.parse({"inputs": inputs, "outputs": {"y": "tag"}, "dim": 16})

    def prepared(seed):
        table = sentences(400, seed, tells)
        words = [Sentence.of(row) for row in table["words"]]
        target = [Labelled(*pair) for pair in zip(table["y"], words, strict=True)]
        read = {n: [part.read(cell).value for cell in table[n]] for n, part in parsed.inputs.items()}
        return words, read, target

    _, read, target = prepared(0)
    parsed = parsed.fit(lambda name: read[name], lambda name: target)
    task = parsed.outputs["y"]
    torch.manual_seed(0)
    model = Model(parsed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.03)
    inputs, goal = {n: part.collate(read[n]) for n, part in parsed.inputs.items()}, task.collate(target)
    for _ in range(60):
        outputs = model(inputs)
        loss = task.loss(outputs.decoded["y"], goal) + task.loss(outputs.single["y"]["words"], goal)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    words, read, target = prepared(1)
    inputs, goal = {n: part.collate(read[n]) for n, part in parsed.inputs.items()}, task.collate(target)
    outputs = model.eval()(inputs)
    gates: dict[bool, list[float]] = {True: [], False: []}
    for answer, sentence in zip(task.predict(outputs.decoded["y"]), words, strict=True):
        for word, gate in zip(sentence.words, answer.get("gates", [0.0] * 5), strict=True):
            gates[word in NAMES].append(gate)
    both, alone = (task.metrics(x, goal) for x in (outputs.decoded["y"], outputs.single["y"]["words"]))
    return both, alone, {name: float(np.mean(found)) for name, found in gates.items()}


def test_a_picture_that_tells_helps_and_its_gate_shows_where():
    both, alone, gates = learned(tells=True)
    assert both["entity_f1"] > 0.97
    assert alone["entity_f1"] < 0.8
    assert gates[True] > 2 * gates[False]


def test_a_picture_of_noise_leaves_the_answer_to_the_words_and_its_gate_shut():
    both, alone, gates = learned(tells=False)
    without, _, _ = learned(tells=False, beside=False)
    assert both["token_accuracy"] >= alone["token_accuracy"] - 0.01
    assert both["token_accuracy"] >= without["token_accuracy"] - 0.01
    assert max(gates.values()) < 0.2


def test_a_table_with_broken_rows_goes_all_the_way(tmp_path):
    table = sentences(60)
    table["y"][3] = table["y"][3][:-1]
    table["y"][5] = None
    table["y"][7] = ["Q-x"] * 5
    table["words"][9] = None
    spec_ = {"inputs": {"words": "test-spoken"}, "outputs": {"y": "tag"}, "dim": 8, "training": {"epochs": 1}}
    model = pm.fit(spec_, table, cache=False)
    told = " ".join(model.warnings)
    assert "3 targets count as unlabelled, first: row 3: tags must be as many as the words, got 4 tags and 5" in told
    report = model.evaluate(sentences(40, 2))
    assert report.content["tasks"]["y"]["headline"] == "entity_f1"
    low, high = report.content["tasks"]["y"]["interval"]["entity_f1"]
    assert low <= report["y"]["entity_f1"] <= high
    rows = [{"words": ["so", "Bob"]}, {"words": None}]
    before = model.predict(rows)
    assert len(before[0]["y"]["tags"]) == 2
    assert before[1]["y"] == {"entities": [], "tags": [], "words": []}
    json.dumps(list(before))
    again = pm.load(model.save(tmp_path / "model"))
    assert list(again.predict(rows)) == list(before)


def test_a_target_without_a_word_is_refused_unless_it_says_nothing():
    task = fitted()
    assert not task.collate([Labelled([], None)]).present.any()
    with pytest.raises(DataError, match="got 1 tags or entities and no word"):
        task.collate([Labelled(["O"], None)])


def test_a_conll_file_has_no_names_so_a_bundle_gives_it_its_own(tmp_path):
    table = sentences(40)
    spec_ = {
        "inputs": {"said": {"type": "test-spoken", "column": "text"}},
        "outputs": {"slots": {"type": "tag", "column": "y"}},
        "dim": 8,
        "training": {"epochs": 1},
    }
    model = pm.fit(spec_, {"text": table["words"], "y": table["y"]}, cache=False)
    file = tmp_path / "more.conll"
    pm.write_table({"words": table["words"], "tags": table["y"]}, file)
    assert model.evaluate(file)["slots"] == model.evaluate({"text": table["words"], "y": table["y"]})["slots"]
    assert list(model.predict(file)) == list(model.predict({"text": table["words"]}))
