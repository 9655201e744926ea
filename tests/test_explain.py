"""Explanations: Shapley values of games with known answers, and pieces that are known to decide."""

import io
import math
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import polymodal as pm
import tiny
import toys
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.errors import SpecError
from polymodal.explain import explain
from polymodal.explain.questions import questions, scores
from polymodal.explain.shapley import shapley
from polymodal.modalities.audio import Audio
from polymodal.modalities.image import Image
from polymodal.modalities.text import Text
from polymodal.nn.pieces import MOST
from polymodal.task import Task
from polymodal.tasks.classify import Classify
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress

CPU = torch.device("cpu")


def told(bundle, columns, **how):
    table = Table.read(columns)
    prepared = prepare(bundle.spec, table, bundle.embedder.without_store(), targets=False)
    return explain(bundle.model, prepared, table, bundle.embedder.without_store(), CPU, **how)


def by_orders(value, names):
    """Shapley values by their definition: the mean over all orders."""
    orders = list(permutations(names))
    total = dict.fromkeys(names, 0.0)
    for order in orders:
        for i, name in enumerate(order):
            total[name] += float(value(frozenset(order[: i + 1])) - value(frozenset(order[:i]))) / len(orders)
    return total


def test_shapley_values_are_the_mean_over_all_orders():
    generator, names, known = torch.Generator().manual_seed(0), ["a", "b", "c", "d"], {}

    def value(seen):
        return known.setdefault(seen, torch.rand(2, 3, generator=generator).double())

    found, sampled = shapley(value, names)
    wanted = by_orders(lambda seen: value(seen)[1, 2], names)
    assert not sampled
    assert {name: float(x[1, 2]) for name, x in found.items()} == pytest.approx(wanted)
    assert torch.allclose(sum(found.values()), value(frozenset(names)) - value(frozenset()))


def test_in_an_additive_game_each_gets_its_own_term_and_in_a_joint_one_they_share():
    worth = {"a": 3.0, "b": -1.0, "c": 0.0}

    def value(seen):
        return torch.tensor(5.0 + sum(worth[name] for name in seen) + 6.0 * ({"a", "c"} <= seen)).double()

    found, _ = shapley(value, list(worth))
    assert {name: float(x) for name, x in found.items()} == pytest.approx({"a": 6.0, "b": -1.0, "c": 3.0})


def test_many_players_are_sampled_and_still_sum_exactly():
    names = [f"n{i}" for i in range(10)]
    worth = {name: float(i) for i, name in enumerate(names)}
    asked = []

    def value(seen):
        asked.append(seen)
        return torch.tensor(sum(worth[name] for name in seen) + 4.0 * ({"n1", "n2"} <= seen)).double()

    found, sampled = shapley(value, names, seed=3)
    assert sampled
    assert len(asked) < 2**10
    assert len(asked) == len(set(asked))
    assert float(sum(found.values())) == pytest.approx(sum(worth.values()) + 4)
    assert float(found["n1"]) == pytest.approx(3.0)  # exact here: orders come with their reverse
    assert float(found["n7"]) == pytest.approx(7.0)
    again, _ = shapley(value, names, seed=3)
    assert all(torch.equal(found[name], again[name]) for name in names)


def test_scores_are_log_odds_of_the_printed_probability_and_numbers_in_their_unit():
    task = Classify(classes=("a", "b", "c"), temperature=1.7)
    output = torch.tensor([[1.0, -2.0, 0.5], [60.0, -60.0, 0.0], [3.0, 3.0, 3.0]])
    p = task.probabilities(output)
    assert torch.allclose(scores(task, output)[[0, 2]], (p / (1 - p)).log()[[0, 2]])
    sure = scores(task, output)[1]
    assert sure.tolist() == pytest.approx([60 / 1.7, -120 / 1.7, -60 / 1.7])
    assert torch.allclose(scores(task, output + 9.0), scores(task, output))  # logits may stand anywhere
    assert [(q.key, q.units) for q in questions(task, "y", output[:1])] == [("y", ["logit of 'a'"])]
    tags = Multilabel(labels=("x", "y"), temperature=2.0)
    asked = questions(tags, "t", torch.tensor([[-1.0, 4.0]]))
    assert (asked[0].units, asked[0].chosen.tolist()) == (["logit of 'y'"], [1])
    assert scores(tags, torch.tensor([[-1.0, 4.0]])).tolist() == [[-0.5, 2.0]]
    several = Regress(targets=("p", "q"), objective="squared").fit([{"p": 1, "q": 2}, {"p": 3, "q": 1}])
    asked = questions(several, "s", torch.zeros(1, 2))
    assert [(q.key, q.units) for q in asked] == [("s/p", ["unit of 'p'"]), ("s/q", ["unit of 'q'"])]
    assert scores(several, torch.zeros(1, 2)).tolist() == [[2.0, 1.5]]
    assert scores.dispatch(Task)(task, output) is None
    assert questions.dispatch(Task)(task, "y", output) == []


class Sum(torch.nn.Module):
    """A model whose logit is the sum over the present inputs of the first number of each."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def answer(self, inputs):
        terms = [(x.values[:, :, 0] * x.mask).sum(1) for x in inputs.values()]
        total = torch.stack(terms).sum(0) + 0.25
        return type("Outputs", (), {"decoded": {"y": torch.stack([torch.zeros_like(total), total], 1)}})


def test_an_additive_model_gives_each_input_its_own_term_and_an_absent_one_none():
    spec = toys.spec(["a", "b", "c"])
    rows = {"a": [[2.0, 0.0], [-1.0, 0.0]], "b": [[0.5, 0.0], None], "c": [[-1.0, 9.0], [-3.0, 9.0]], "y": [1, 0]}
    table = Table.read(rows)
    embedder = pm.data.embedding.Embedder(spec, CPU)
    prepared = prepare(spec, table, embedder, targets=False)
    one, two = (row["y"] for row in explain(Sum(spec), prepared, table, embedder, CPU))
    assert one["inputs"] == pytest.approx({"a": 2.0, "b": 0.5, "c": -1.0})
    assert (one["unit"], one["base"], one["value"]) == ("logit of '1'", pytest.approx(0.25), pytest.approx(1.75))
    assert two["inputs"] == pytest.approx({"a": 1.0, "c": 3.0})  # of the class that is predicted: 0
    assert (two["unit"], two["base"]) == ("logit of '0'", pytest.approx(-0.25))
    assert one["parts"] == {}  # vectors have no pieces
    assert "sampled" not in one


@pytest.fixture(scope="module")
def bundle():
    outputs = {"label": "classify", "price": "regress", "tags": "multilabel"}
    return tiny.fitted("text", "image", "audio", "table", outputs=outputs)


def test_inputs_sum_to_the_answer_that_predict_gives_minus_the_answer_with_nothing(bundle):
    columns = {name: cells[:4] for name, cells in tiny.columns(40, media=True).items()}
    columns["image"][1] = columns["text"][2] = None
    rows = told(bundle, columns, parts=False)
    answers = bundle.predict(columns)
    nothing = bundle.predict([{"text": None, "image": None, "audio": None, "x": None, "colour": None}])
    assert len(rows) == 4
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        for task in ("label", "price", "tags"):
            one = row[task]
            assert one["base"] + sum(one["inputs"].values()) == pytest.approx(one["value"], abs=1e-6)
            gone = {1: "image", 2: "text"}.get(number)
            assert set(one["inputs"]) == {"text", "image", "audio", "table"} - {gone}
            assert "parts" not in one
        p = answer["label"]["probability"]
        assert row["label"]["unit"] == f"logit of {answer['label']['class']!r}"
        assert row["label"]["value"] == pytest.approx(math.log(p / (1 - p)), abs=1e-5)
        assert row["price"]["value"] == pytest.approx(answer["price"]["value"], abs=1e-5)
        assert row["price"]["base"] == pytest.approx(nothing[0]["price"]["value"], abs=1e-5)


def test_parts_have_the_shape_of_their_kind_and_are_differences_of_answers(bundle):
    columns = {name: cells[:1] for name, cells in tiny.columns(40, media=True).items()}
    parts = told(bundle, columns)[0]["price"]["parts"]
    assert [part["part"] for part in parts["text"]] == columns["text"][0].split()
    assert [columns["text"][0][part["start"] : part["end"]] for part in parts["text"]] == columns["text"][0].split()
    assert np.array(parts["image"]["grid"]).shape == (4, 4)
    assert parts["audio"] == [{"start": 0.0, "end": 0.25, "value": parts["audio"][0]["value"]}]
    assert set(parts["table"]) == {"x", "colour"}
    whole = bundle.predict(columns)[0]["price"]["value"]
    less = bundle.predict(columns | {"colour": [None]})[0]["price"]["value"]
    assert parts["table"]["colour"] == pytest.approx(whole - less, abs=1e-5)
    shorter = " ".join(columns["text"][0].split()[1:])
    less = bundle.predict(columns | {"text": [shorter]})[0]["price"]["value"]
    assert parts["text"][0]["value"] == pytest.approx(whole - less, abs=1e-5)
    less = bundle.predict(columns | {"audio": [None]})[0]["price"]["value"]  # its only stretch
    assert parts["audio"][0]["value"] == pytest.approx(whole - less, abs=1e-5)


def test_the_one_word_that_decides_is_on_top():
    rng, columns = np.random.default_rng(0), {"text": [], "label": []}
    for i in range(80):
        words = list(rng.choice(["tree", "house", "road", "river", "cloud"], 4))
        words.insert(int(rng.integers(5)), "apple" if i % 2 else "stone")
        columns["text"].append(" ".join(words))
        columns["label"].append("food" if i % 2 else "other")
    fast = {"epochs": 12, "batch_size": 16}
    model = pm.fit(tiny.spec("text", training=fast), columns, cache=False)
    row = told(model, {"text": ["tree road apple river"]})[0]["label"]
    assert row["unit"] == "logit of 'food'"
    best = max(row["parts"]["text"], key=lambda part: part["value"])
    assert (best["part"], best["value"] > 0.5) == ("apple", True)


def test_the_one_corner_that_decides_is_on_top():
    rng, columns = np.random.default_rng(1), {"image": [], "label": []}

    def picture(bright):
        pixels = rng.integers(0, 80, (32, 32, 3))
        pixels[:8, 24:] += 170 * bright
        sink = io.BytesIO()
        Pillow.fromarray(pixels.astype(np.uint8)).save(sink, "PNG")
        return sink.getvalue()

    for i in range(40):
        columns["image"].append(picture(i % 2))
        columns["label"].append("bright" if i % 2 else "dark")
    model = pm.fit(tiny.spec("image", training={"epochs": 8, "batch_size": 16}), columns, cache=False)
    row = told(model, {"image": [picture(1)]})[0]["label"]
    assert row["unit"] == "logit of 'bright'"
    assert np.array(row["parts"]["image"]["grid"]).argmax() == 3  # first row, last cell


def test_pieces_give_the_value_back_and_take_exactly_one_away():
    text = "A flower, blue; (and) more."
    words = Text(backbone="none").pieces(text)
    assert [part["part"] for part in words.show([0.0] * words.count)] == ["A", "flower", "blue", "and", "more"]
    assert words.keep(np.ones(5, bool)) == text
    assert words.keep(np.array([1, 0, 1, 1, 1], bool)) == "A blue; (and) more."
    assert words.keep(np.zeros(5, bool)) is None
    assert Text(backbone="none").pieces("?!") is None
    long = Text(backbone="none").pieces(" ".join(f"w{i}" for i in range(500)))
    assert long.count == MOST
    assert sum(len(part["part"].split()) for part in long.show([0.0] * MOST)) == 500
    assert Text(backbone="none", cjk="characters").pieces("红苹果").count == 3
    image = torch.arange(3 * 16 * 16).reshape(3, 16, 16).remainder(251).to(torch.uint8)
    cells = Image(backbone="none", size=32, grid=2).pieces(image)
    assert torch.equal(cells.keep(np.ones(16, bool)), image)
    without = cells.keep(np.arange(16) != 6)  # second row, third cell
    changed = (without != image).any(0)
    assert changed[4:8, 8:12].float().mean() > 0.9
    changed[4:8, 8:12] = False
    assert not changed.any()
    wave = torch.arange(24_000).float()
    stretches = Audio(backbone="none").pieces(wave)
    assert stretches.count == 6
    assert stretches.show([0.0] * 6)[1] == {"start": 0.25, "end": 0.5, "value": 0.0}
    assert torch.equal(stretches.keep(np.ones(6, bool)), wave)
    assert torch.equal(stretches.keep(np.array([1, 0, 1, 1, 1, 1], bool)), torch.cat([wave[:4000], wave[8000:]]))
    assert stretches.keep(np.zeros(6, bool)) is None
    assert Audio(backbone="none").pieces(torch.zeros(16_000 * 30)).count == 24


def test_without_captum_it_says_what_to_install(monkeypatch, bundle):
    columns = {name: cells[:1] for name, cells in tiny.columns(40, media=True).items()}
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(SpecError, match=r"pip install 'polymodal\[diagnose\]'"):
        told(bundle, columns)
    assert told(bundle, columns, parts=False)[0]["label"]["inputs"]


def test_a_backbone_is_asked_again():
    """Pieces go through the frozen backbone and its summary, as prediction does."""
    columns = {name: cells for name, cells in tiny.columns(24).items() if name in ("text", "label")}
    spec = tiny.spec("text") | {"inputs": {"text": {"type": "text", "backbone": "minilm"}}}
    model = pm.fit(spec, columns, cache=False)
    assert model.spec.summarised == ("text",)
    text = columns["text"][0]
    row = told(model, {"text": [text]})[0]["label"]
    less = told(model, {"text": [text.split(" ", 1)[1]]}, parts=False)[0]["label"]
    if less["unit"] == row["unit"]:
        assert row["parts"]["text"][0]["value"] == pytest.approx(row["value"] - less["value"], abs=1e-4)
    assert row["value"] - row["base"] == pytest.approx(row["inputs"]["text"])
