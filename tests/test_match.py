"""match: what is near and far, the losses' known values, every setting, and a space that is learned."""

import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, ndcg_score
from torch.nn import functional

import polymodal as pm
import toys
from polymodal.data.loader import target_values
from polymodal.data.table import Table
from polymodal.errors import DataError, SpecError
from polymodal.model import Model
from polymodal.nn.align import infonce, sigmoid_loss
from polymodal.tasks import Match
from polymodal.tracing import answerer
from polymodal.types import Fused, Masked

DIM = 8
NAMES = ("image", "text", "voice")


def close(x, y, tolerance=1e-5):
    torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance, equal_nan=True)


def match(*sides, **settings) -> Match:
    return Match.model_validate({"sides": sides or NAMES, **settings})


def raw(*sides, scale=0.0, bias=0.0) -> torch.Tensor:
    """A raw output of embeddings (B, W), with the learned numbers behind them."""
    embedded = [functional.normalize(torch.as_tensor(side, dtype=torch.float32), dim=-1) for side in sides]
    learned = torch.zeros_like(embedded[0])
    learned[:, 0], learned[:, 1] = scale, bias
    return torch.stack([*embedded, learned], 1)


def noise(rows=6, sides=3, seed=0, width=DIM, **learned) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return raw(*torch.randn(sides, rows, width, generator=generator), **learned)


def hidden(output, *places) -> torch.Tensor:
    """Sides taken from rows: (row, side), None for all."""
    output = output.clone()
    for row, side in places:
        output[slice(None) if row is None else row, side] = torch.nan
    return output


def rows(*ids) -> Masked:
    return match().collate(ids)


def tokens(names=NAMES, count=5, seed=0):
    """Each input's tokens, one to three of them real."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(3) < torch.randint(1, 4, (count, 1), generator=generator)
    return {name: Masked(torch.randn(count, 3, DIM, generator=generator), mask) for name in names}


def fused(encoded, count=5) -> Fused:
    return Fused(torch.zeros(count, DIM), encoded)


def without(x, *gone):
    taken = torch.zeros(len(x), dtype=torch.bool)
    taken[list(gone)] = True
    return x.without(taken)


# Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sides": ["image"]}, "sides must be two or more"),
        ({"sides": ["image", ["text", "image"]]}, "'image' twice"),
        ({"sides": [["a", "b"], "a+b"]}, "different names"),
        ({"sides": ["image", []]}, "at least 1 item"),
        ({"sides": ["image", "text"], "compose": True}, "compose must have three sides"),
        ({"matryoshka": [4]}, "width must be given"),
        ({"width": 8, "matryoshka": [8]}, "stay below width 8"),
        ({"width": 8, "matryoshka": [4, 2]}, "must rise"),
        ({"width": 8, "matryoshka": [4, 4]}, "must rise"),
        ({"width": 1}, "greater than or equal to 2"),
        ({"loss": "sigmoid", "hard_negatives": 1}, "hard_negatives has no effect"),
        ({"temperature": 0.001}, "at least 0.01"),
        ({"loss": "triplet"}, "'infonce' or 'sigmoid'"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Match.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sides": ["a", "imge"]}, "outputs: y: sides must name inputs .* got 'imge'"),
        ({"sides": ["a", "B"]}, "got 'B'"),
        ({"compose": True}, "compose must have three sides"),
        ({"sides": ["a", "b"], "matryoshka": [2]}, "outputs.y: width must be given"),
        ({"side": ["a", "b"]}, "no such setting. Did you mean 'sides'"),
    ],
)
def test_a_spec_refuses_what_its_inputs_do_not_have(settings, said):
    with pytest.raises(SpecError, match=said):
        toys.spec(outputs={"y": {"type": "match", **settings}})


def test_a_spec_offers_the_nearest_input():
    with pytest.raises(SpecError, match="Did you mean 'image'"):
        toys.spec(("image", "text"), {"y": {"type": "match", "sides": ["imge", "text"]}})
    with pytest.raises(SpecError, match="two or more, got \\['a'\\]"):
        toys.spec(("a",), {"y": "match"})


def test_sides_are_all_inputs_unless_given():
    spec = toys.spec("abc", {"y": "match", "z": {"type": "match", "sides": ["a", ["b", "c"]]}})
    every, grouped = spec.outputs["y"], spec.outputs["z"]
    assert isinstance(every, Match)
    assert isinstance(grouped, Match)
    assert every.names == ("a", "b", "c")
    assert grouped.names == ("a", "b+c")
    assert type(spec).parse(json.loads(spec.model_dump_json())) == spec
    with pytest.raises(SpecError, match="must know its sides"):
        Match().head(DIM)


def test_a_python_spec_and_a_written_one_are_the_same():
    task = Match(loss="sigmoid", sides=("a", ("b", "c")))
    assert json.loads(task.model_dump_json())["loss"] == "sigmoid"
    assert Match.parse(json.loads(task.model_dump_json())) == task


# Targets


def test_rows_are_their_own_without_a_column_and_need_no_column():
    task = match("a", "b")
    assert task.columns("y") == ()
    spec = toys.spec(outputs={"y": "match"})
    found = target_values("y", spec, Table.read({"a": [[1.0, 2]] * 3, "b": [[1.0, 2]] * 3}))
    assert task.fit(found).collate(found).values.flatten().tolist() == [0, 1, 2]


def test_equal_cells_of_a_column_belong_together_in_every_table():
    task = match(column="id")
    assert task.columns("y") == ("id",)
    one = task.collate(["x", 1, None, "", float("nan"), "y", np.float32(1.0)])
    assert one.mask.flatten().tolist() == [True, True, False, False, False, True, True]
    assert one.values[1] == one.values[6]
    assert len({*one.values[one.present].flatten().tolist()}) == 3
    again = task.collate(["y", "1", " x "])
    assert again.values.flatten().tolist() == one.values[[5, 1, 0]].flatten().tolist()
    assert (one.values >= 0).all()
    with pytest.raises(DataError, match="target: a category is expected, got list"):
        task.collate([["x"]])


@pytest.mark.parametrize("values", [[], [3], [None, None], ["x", "x "]])
def test_there_must_be_two_rows_to_tell_apart(values):
    with pytest.raises(DataError, match="two or more different rows"):
        match(column="id").fit(values)


# The head


def test_embeddings_are_of_length_one_and_nan_where_absent():
    task = match(width=6, temperature=0.5)
    encoded = tokens()
    encoded["image"], encoded["text"] = without(encoded["image"], 1, 2), without(encoded["text"], 1)
    output = task.head(DIM)(fused(encoded))
    assert output.shape == (5, 4, 6)
    assert output.dtype == torch.float32
    gone = torch.zeros(5, 3, dtype=torch.bool)
    gone[1, :2] = gone[2, 0] = True
    assert torch.equal(output[:, :3].isnan().any(-1), gone)
    assert torch.equal(output[:, :3].isnan().all(-1), gone)
    close(output[:, :3].norm(dim=-1)[~gone], torch.ones(12))
    close(output[:, 3], torch.tensor([[math.log(2), 0, 0, 0, 0, 0]]).expand(5, -1))


def test_the_width_is_the_models_unless_given():
    assert match().head(DIM)(fused(tokens())).shape[-1] == DIM
    assert match(width=5).head(DIM)(fused(tokens())).shape[-1] == 5


def test_an_input_that_is_left_out_is_absent_in_every_row():
    head, encoded = match().head(DIM), tokens()
    gone = without(encoded["voice"], *range(5))
    close(head(fused({**encoded, "voice": gone})), head(fused({n: encoded[n] for n in ("image", "text")})))
    assert head(fused({}))[:, :3].isnan().all()


def test_a_group_is_the_sum_of_what_a_row_has_of_it():
    torch.manual_seed(0)
    head, encoded = match("image", ["text", "voice"]).head(DIM), tokens()
    encoded["text"], encoded["voice"] = without(encoded["text"], 0, 2), without(encoded["voice"], 1, 2)
    output = head(fused(encoded))
    text, voice = (head.project[n](encoded[n].mean()) for n in ("text", "voice"))
    close(output[0, 1], functional.normalize(voice[0], dim=-1))
    close(output[1, 1], functional.normalize(text[1], dim=-1))
    assert output[2, 1].isnan().all()
    close(output[3, 1], functional.normalize(text[3] + voice[3], dim=-1))


def test_the_temperature_stays_at_its_least_value_and_can_leave_it():
    head = match(temperature=0.01).head(DIM).train()
    head.log_scale.data.fill_(9.0)
    output = head(fused(tokens()))
    assert output[0, -1, 0].item() == pytest.approx(math.log(100))
    output[:, -1, 0].sum().backward()
    assert head.log_scale.grad == 5
    assert head.bias is None
    biased = match(loss="sigmoid", temperature=0.001).head(DIM).train()
    assert biased(fused(tokens()))[0, -1, :2].tolist() == pytest.approx([math.log(1000), -10])


def test_gradients_reach_what_is_there_and_nothing_else():
    head, encoded = match().head(DIM), tokens()
    encoded["voice"] = without(encoded["voice"], *range(5))
    task, output = match(), head(fused(encoded))
    output.retain_grad()
    task.loss(output, rows(*range(5))).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert not output.grad[:, 2].any()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    assert gradients["log_scale"] is not None
    assert gradients["log_scale"] != 0
    assert all(g is None or g.isfinite().all() for g in gradients.values())


# The loss


def test_the_loss_is_the_published_one_and_the_mean_over_pairs():
    output, target = noise(scale=2.0, bias=-3.0), rows(*range(6))
    sides, log_scale, bias = output[:, :3].unbind(1), torch.tensor(2.0), torch.tensor(-3.0)
    pairs = list(itertools.combinations(sides, 2))
    close(match().loss(output, target), torch.stack([infonce(a, b, log_scale) for a, b in pairs]).mean())
    want = torch.stack([sigmoid_loss(a, b, log_scale, bias) for a, b in pairs]).mean()
    close(match(loss="sigmoid").loss(output, target), want)


def test_the_loss_of_known_cases():
    eye, same = torch.eye(4), torch.ones(4, 4)
    task, target = match("a", "b"), rows(*range(4))
    close(task.loss(raw(same, same), target), torch.tensor(4.0).log())
    close(task.loss(raw(eye, eye, scale=math.log(100)), target), torch.tensor(0.0))
    close(task.loss(raw(eye, eye.roll(1, 0), scale=math.log(100)), target), torch.tensor(100.0))


def test_rows_that_belong_together_are_right_for_each_other():
    eye, task = torch.eye(4), match("a", "b", column="id")
    output = raw(eye[[0, 0, 1, 1]], eye[[0, 0, 1, 1]], scale=math.log(100))
    apart, together = rows(0, 1, 2, 3), rows(7, 7, 9, 9)
    close(task.loss(output, apart), torch.tensor(2.0).log())  # copies cannot be told apart
    close(task.loss(output, together), torch.tensor(0.0))
    crossed = raw(eye, eye[[1, 0, 2, 3]], scale=math.log(100))
    close(task.loss(crossed, rows(7, 7, 8, 9)), torch.tensor(3.0).log() / 4)  # one of two right partners is not near
    assert task.loss(crossed, rows(7, 7, 7, 7)) == 0  # nothing is wrong


@pytest.mark.parametrize(("kind", "least"), [("infonce", 2), ("sigmoid", 1)])
def test_too_few_rows_cost_nothing_and_leave_a_way_for_gradients(kind, least):
    task = match("a", "b", loss=kind)
    for count, usable in itertools.product((0, 1, 3), (0, 1)):
        usable = min(count, usable)
        output = hidden(noise(count, 2), *((i, 1) for i in range(usable, count))).requires_grad_()
        loss = task.loss(output, rows(*range(count)))
        assert (loss > 0) == (usable >= least)
        loss.backward()
        assert output.grad is not None
        assert output.grad.isfinite().all()


def test_unlabelled_and_lone_sides_have_no_say():
    task, output = match(column="id"), hidden(noise(8), (1, 0), (2, 0), (2, 1), (3, 2))
    target = task.collate(["a", "b", "c", "d", None, "e", None, "a"])
    wild = output.clone()
    wild[[4, 6]] = torch.nan
    known = target.present
    close(task.loss(wild, target), task.loss(output[known], target[known]))
    assert task.metrics(wild, target) == task.metrics(output[known], target[known])
    lone = [match("x", "y", column="id").loss(output[:, [i, j, 3]], target) for i, j in ((0, 1), (0, 2), (1, 2))]
    close(match(column="id").loss(output, target), torch.stack(lone).mean())


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_hardness_widths_and_composition_change_the_loss(kind):
    output, target = noise(scale=1.0), rows(*range(6))
    plain = match(loss=kind).loss(output, target)
    short = match(loss=kind, width=DIM, matryoshka=(2, 4)).loss(output, target)
    cut = [raw(*output[:, :3, :n].unbind(1), scale=1.0) for n in (2, 4)]
    close(short, plain + sum(match(loss=kind).loss(part, target) for part in cut))
    others = functional.normalize(output[:, [1, 2]].sum(1), dim=-1)
    wholes = [functional.normalize(output[:, [i for i in range(3) if i != s]].sum(1), dim=-1) for s in range(3)]
    two = match("x", "y", loss=kind)
    extra = [two.loss(raw(whole, output[:, s], scale=1.0), target) for s, whole in enumerate(wholes)]
    close(wholes[0], others)
    close(match(loss=kind, compose=True).loss(output, target), (3 * plain + sum(extra)) / 6)
    if kind == "infonce":
        assert match(hard_negatives=1.0).loss(output, target) > plain


def test_composition_needs_rows_with_two_other_sides():
    output, target = hidden(noise(), (None, 2)), rows(*range(6))
    close(match(compose=True).loss(output, target), match().loss(output, target))


def test_half_precision_outputs_are_compared_in_full():
    output, target = noise(scale=4.0), rows(*range(6))
    with torch.autocast("cpu", torch.bfloat16):
        inside = match().loss(output, target)
    assert inside.dtype == torch.float32
    close(inside, match().loss(output, target), 0)


# What is made of embeddings


def test_embed_composes_cuts_and_leaves_gaps():
    task, output = match(), hidden(noise(3), (0, 1), (1, None or 0), (1, 1), (1, 2))
    whole = task.embed(output)
    close(whole[0], functional.normalize(output[0, 0] + output[0, 2], dim=-1))
    assert whole[1].isnan().all()
    close(task.embed(output, ["text"])[2], output[2, 1])
    short = task.embed(output, ["image", "text"], 4)
    parts = functional.normalize(output[2, :2, :4], dim=-1)
    close(short[2], functional.normalize(parts.sum(0), dim=-1))
    close(task.embed(output, ["text", "image"], 4), short)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"sides": ["txt"]}, "Did you mean 'text'"), ({"sides": []}, "at least one"), ({"width": 9}, "from 2 to 8, got 9"),
     ({"width": 1}, "from 2 to 8")],
)  # fmt: skip
def test_embed_refuses_what_is_not_there(asked, said):
    with pytest.raises(SpecError, match=said):
        match().embed(noise(), **asked)


def test_labels_share_probability_by_their_scaled_cosine():
    task, eye = match(), torch.eye(3)
    labels = torch.cat([eye, torch.full((1, 3), torch.nan)])
    query = torch.stack([eye[1], functional.normalize(torch.tensor([1.0, 1, 0]), dim=-1), torch.full((3,), torch.nan)])
    p = task.scores(query, labels, torch.tensor(2.0).log())
    e = math.exp(2)
    close(p[0], torch.tensor([1, e, 1, 0]) / (2 + e))
    close(p[1, 0], p[1, 1])
    assert p[2].isnan().all()
    assert (task.scores(query, labels, torch.tensor(9.0))[0] <= p[0]).tolist() == [True, False, True, True]


def test_predict_gives_cosines_of_what_a_row_has():
    task, output = match(), hidden(noise(3), (1, 2), (2, 0), (2, 1))
    answers = task.predict(output)
    assert json.loads(json.dumps(answers, allow_nan=False)) == answers
    assert list(answers[0]["pairs"]) == ["image-text", "image-voice", "text-voice"]
    assert answers[0]["pairs"]["text-voice"] == pytest.approx(float(output[0, 1] @ output[0, 2]), abs=1e-6)
    assert answers[0]["similarity"] == pytest.approx(np.mean(list(answers[0]["pairs"].values())))
    assert list(answers[1]["pairs"]) == ["image-text"]
    assert answers[2] == {"similarity": None, "pairs": {}}


# Scores


def test_scores_are_the_means_of_both_ways_as_scikit_learn_has_them():
    task = match("image", "text", column="id")
    output, ids = noise(12, 2), [f"{i % 5}" for i in range(12)]
    target, kinds = task.collate(ids), np.array(ids)
    similar = (output[:, 0] @ output[:, 1].T).double().numpy()
    want = []
    for table in (similar, similar.T):
        right = (kinds[:, None] == kinds).astype(int)
        ranks = np.array([1 + (row[~r] > row[r].max()).sum() for row, r in zip(table, right.astype(bool), strict=True)])
        precision = np.mean([average_precision_score(r, row) for row, r in zip(table, right, strict=True)])
        recalls = [(ranks <= k).mean() for k in (1, 5, 10)]
        want.append([*recalls, np.median(ranks), precision, ndcg_score(right, table)])
    scores = task.metrics(output, target)
    assert list(scores) == ["recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "map", "ndcg"]
    assert list(scores.values()) == pytest.approx(np.mean(want, 0))
    tables = task.details(output, target)["directions"]
    assert [(t["query"], t["gallery"], t["queries"], t["items"]) for t in tables] == [
        ("image", "text", 12, 12), ("text", "image", 12, 12),
    ]  # fmt: skip
    assert [t["map"] for t in tables] == pytest.approx([w[4] for w in want])


def test_rows_without_a_side_are_neither_query_nor_item():
    task, output, target = match("image", "text"), noise(6, 2), rows(*range(6))
    gone = hidden(output, (0, 1), (5, 0))
    tables = task.details(gone, target)["directions"]
    assert [(t["queries"], t["items"]) for t in tables] == [(4, 5), (4, 5)]
    alone = raw(output[:, 0], output[:, 1])
    assert task.metrics(hidden(alone, (5, 0), (5, 1)), target) == task.metrics(alone[:5], target[torch.arange(5)])


@pytest.mark.parametrize("gone", [[(None, 0)], [(None, 1)], [(None, 0), (None, 1)]])
def test_scores_that_mean_nothing_are_left_out(gone):
    task, target = match("image", "text"), rows(*range(6))
    output = hidden(noise(6, 2), *gone)
    assert task.metrics(output, target) == {}
    assert task.headline(output, target) is None
    assert task.details(output, target)["directions"] == []
    assert task.metrics(noise(6, 2), rows(*[3] * 6)) == {}
    assert task.metrics(output[:0], target[torch.arange(0)]) == {}
    one = hidden(noise(6, 2), *((i, 1) for i in range(5)))
    found = task.details(one, target)["directions"]
    assert [(table["query"], table["queries"], table["items"]) for table in found] == [("text", 1, 6)]


def test_three_sides_of_which_one_is_gone_are_scored_by_the_others():
    task, target = match(), rows(*range(6))
    output = noise()
    two = match("image", "text").metrics(output[:, [0, 1, 3]], target)
    assert task.metrics(hidden(output, (None, 2)), target) == two


def test_details_tell_composed_queries_and_widths():
    task, target = match(width=DIM, matryoshka=(4,)), rows(*range(6))
    output = hidden(noise(), (0, 2))
    tables = task.details(output, target)
    json.dumps(tables, allow_nan=False)
    assert len(tables["directions"]) == 6
    assert [(t["query"], t["gallery"], t["queries"]) for t in tables["composed"]] == [
        ("text+voice", "image", 6), ("image+voice", "text", 6), ("image+text", "voice", 5),
    ]  # fmt: skip
    assert [t["width"] for t in tables["widths"]] == [4, 8]
    assert tables["widths"][1] == {"width": 8, **task.metrics(output, target)}
    assert tables["widths"][0] != {"width": 4, **task.metrics(output, target)}
    assert set(match("image", "text").details(output[:, [0, 1, 3]], target)) == {"directions"}


def test_the_headline_resamples_queries_over_the_whole_gallery(monkeypatch):
    task, output, target = match(), hidden(noise(20, seed=3), (4, 1)), rows(*range(20))
    score = task.headline(output, target)
    assert score is not None
    monkeypatch.setattr("polymodal.metrics.ranked", None)  # nothing is ranked again
    every = np.arange(20)
    monkeypatch.undo()
    assert score(every) == pytest.approx(task.metrics(output, target)["recall_at_1"])
    ranks = np.stack([d.ranking.rank for d in task._directions(output, target)])
    some = np.array([0, 0, 3, 7])
    assert score(some) == pytest.approx((ranks[:, some] <= 1).mean())
    assert score(np.array([4])) == pytest.approx(np.mean([(r[4] <= 1) for r in ranks if not np.isnan(r[4])]))


# In a model


def pairs(count=64, seed=0, absent=0.0):
    """Two views of one hidden vector, linear ones, and some cells absent."""
    generator = torch.Generator().manual_seed(seed)
    secret = torch.randn(count, 2, generator=generator)
    turns = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1))
    gone = torch.rand(3, count, 1, generator=generator) < absent
    inputs = {name: Masked((secret @ turn)[:, None], ~g) for name, turn, g in zip("abc", turns, gone, strict=True)}
    ids = torch.arange(count)[:, None]
    return toys.prepared(inputs, {"y": Masked(ids, torch.ones_like(ids, dtype=torch.bool))})


@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_a_model_of_nothing_but_a_match_sees_its_inputs_before_they_meet(fusion):
    spec = toys.spec("abc", {"y": {"type": "match", "sides": ["a", ["b", "c"]], "width": 6}}, fusion=fusion)
    torch.manual_seed(0)
    model, batch = Model(spec).eval(), pairs(absent=0.2).batch(torch.arange(64))
    assert model.single["y"].names == ()
    output = model.answer(batch.inputs).decoded["y"]
    assert output.shape == (64, 3, 6)
    fewer = model.answer({n: batch.inputs[n] for n in "bc"}).decoded["y"]
    close(fewer[:, 1], output[:, 1])
    assert fewer[:, 0].isnan().all()
    model.spec.outputs["y"].loss(output, batch.targets["y"])


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "sigmoid", "width": 8, "matryoshka": [4], "sides": ["a", ["b", "c"]]}]
)
def test_a_graph_embeds_as_the_model(settings, tmp_path):
    torch.manual_seed(0)
    model = Model(toys.spec("abc", {"y": {"type": "match", **settings}})).eval()
    run = answerer(model, tmp_path)
    for absent in (0.0, 0.4, 1.0):
        inputs = pairs(5, absent=absent).batch(torch.arange(5)).inputs
        close(run(inputs)["y"], model.answer(inputs).decoded["y"], 1e-4)
    close(run({"b": inputs["b"]})["y"], model.answer({"b": inputs["b"]}).decoded["y"], 1e-4)


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
HALVES = {"left": np.s_[:, :12], "right": np.s_[:, 12:], "top": np.s_[:12]}


def flags(copies, first=0):
    """Noisy images, one half of each coloured, and what is to be seen in words; nine kinds."""
    table = {"image": [], "text": []}
    for i, (colour, half) in enumerate([*itertools.product(COLOURS, HALVES)] * copies):
        rng = np.random.default_rng(first + i)
        pixels = rng.integers(80, 130, (24, 24, 3))
        pixels[HALVES[half]] = COLOURS[colour] + rng.integers(-15, 15, pixels[HALVES[half]].shape)
        sink = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "PNG")
        table["image"].append(sink.getvalue())
        table["text"].append(f"{colour} at the {half}")
    return {**table, "kind": table["text"]}


def test_images_and_texts_are_brought_together_and_found_again(tmp_path):
    spec = {
        "inputs": {
            "text": {"type": "text", "backbone": "none", "min_count": 1},
            "image": {"type": "image", "backbone": "none", "size": 32},
        },
        "outputs": {"match": {"type": "match", "column": "kind", "width": 16, "matryoshka": [8]}},
        "dim": 32,
        "training": {"epochs": 16, "batch_size": 24, "learning_rate": 0.01, "modality_dropout": 0.0, "refit": 0},
    }
    model = pm.fit(spec, flags(9), cache=False)
    held = flags(2, first=1000)
    report = model.evaluate(held).to_dict()["tasks"]["match"]
    assert report["headline"] == "recall_at_1"
    assert report["scores"]["recall_at_1"] == 1
    assert report["without"] == {"text": {}, "image": {}}
    assert report["interval"] == {"recall_at_1": [1, 1]}
    again = pm.load(model.save(tmp_path / "model"))
    answers = again.predict({**held, "text": [*held["text"][:9], *[None] * 9]})
    assert [row["match"]["similarity"] is None for row in answers] == [False] * 9 + [True] * 9
