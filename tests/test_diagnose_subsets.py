"""Shapley values and interactions: axioms, known games, and the model's own answers to subsets."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

import toys
from polymodal.diagnose import subsets as module
from polymodal.diagnose.scores import Scorer
from polymodal.diagnose.subsets import Game, Played, play
from polymodal.evaluate import answers
from polymodal.model import Model

CPU = torch.device("cpu")


def played(value, names="abc", game=None, sign=1.0):
    """A game whose subsets have the given values; subsets are strings of names."""
    game = Game.exact(names) if game is None else game
    samples = {s: np.array([value("".join(names[i] for i in sorted(s)))], float) for s in game.subsets}
    return Played(game, samples, sign)


def random_game(m, seed=0, game=None):
    names = "abcdefghijkl"[:m]
    rng = np.random.default_rng(seed)
    values = {s: v for s, v in zip(_subsets(names), rng.normal(size=2**m), strict=True)}
    return names, values, played(values.__getitem__, names, game)


def _subsets(names):
    return ["".join(s) for size in range(len(names) + 1) for s in combinations(names, size)]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 8])
def test_shapley_values_sum_to_full_minus_empty(m):
    _, _, game = random_game(m)
    total = sum(game.shapley(i)[0] for i in range(m))
    assert total == pytest.approx(game.full[0] - game.empty[0])
    assert len(game.game.subsets) == 2**m


def test_shapley_values_are_the_mean_over_all_orders():
    """The definition of Shapley 1953: the mean of what a player adds, over all orders in which they may come."""
    names, values, game = random_game(4)
    for i, name in enumerate(names):
        added = []
        for order in permutations(names):
            before = "".join(sorted(order[: order.index(name)]))
            added.append(values["".join(sorted(before + name))] - values[before])
        assert game.shapley(i)[0] == pytest.approx(np.mean(added))


def test_symmetric_inputs_get_equal_values_and_a_null_input_gets_nothing():
    game = played(lambda s: len(set(s) & {"a", "b"}) ** 2)
    assert game.shapley(0)[0] == pytest.approx(game.shapley(1)[0]) == pytest.approx(2.0)
    assert game.shapley(2)[0] == pytest.approx(0.0)
    assert [pair["interaction"] for pair in game.pairs()] == pytest.approx([2.0, 0.0, 0.0])


def test_shapley_values_of_a_sum_of_games_are_the_sums():
    names, one, first = random_game(3, 0)
    _, two, second = random_game(3, 1)
    both = played(lambda s: one[s] + two[s], names)
    for i in range(3):
        assert both.shapley(i)[0] == pytest.approx(first.shapley(i)[0] + second.shapley(i)[0])


def test_interactions_are_those_of_grabisch_and_roubens():
    """Players a and b merged, the interaction is the Shapley weight of what they do more together than apart."""
    names, v, game = random_game(4)
    for pair in game.pairs():
        a, b = pair["inputs"]
        others = [name for name in names if name not in (a, b)]
        total = 0.0
        for size, weight in enumerate((1 / 3, 1 / 6, 1 / 3)):
            for chosen in combinations(others, size):
                at = lambda *more, s=chosen: v["".join(sorted((*s, *more)))]  # noqa: E731
                total += weight * (at(a, b) - at(a) - at(b) + at())
        assert pair["interaction"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("value", "kind", "interaction"),
    [
        (lambda s: float(s == "ab"), "synergy", 1.0),
        (lambda s: float(s != ""), "redundancy", -1.0),
        (lambda s: len(s) / 2, "independent", 0.0),
    ],
)
def test_pairs_are_named(value, kind, interaction):
    game = played(value, "ab")
    samples = {s: np.repeat(x, 5) for s, x in game.samples.items()}
    (pair,) = Played(game.game, samples, 1.0).pairs()
    assert (pair["kind"], pair["interaction"]) == (kind, interaction)
    assert pair["noise"] == (kind == "independent")


def test_where_less_is_better_signs_are_turned():
    """An error of 3 without inputs, 1 with a, 1 with both: a helps, and so its numbers are above 0."""
    game = played(lambda s: 1.0 if "a" in s else 3.0, "ab", sign=-1.0)
    assert game.contribution(0)[0] == game.shapley(0)[0] == pytest.approx(2.0)
    assert game.contribution(1)[0] == game.shapley(1)[0] == pytest.approx(0.0)
    content = game.content()
    assert (content["score"], content["chance"]) == (1.0, 3.0)


def test_sampled_values_sum_up_too_and_come_close_to_the_exact_ones(monkeypatch):
    monkeypatch.setattr(module, "PERMUTATIONS", 200)
    names, _, exact = random_game(5)
    _, _, sampled = random_game(5, game=Game.sample(names, 0))
    assert sampled.game.sampled
    assert sum(sampled.shapley(i)[0] for i in range(5)) == pytest.approx(sampled.full[0] - sampled.empty[0])
    for i in range(5):
        assert sampled.shapley(i)[0] == pytest.approx(exact.shapley(i)[0], abs=0.1)
    for one, other in zip(sampled.pairs(), exact.pairs(), strict=True):
        assert one["inputs"] == other["inputs"]
        assert one["interaction"] == pytest.approx(other["interaction"], abs=0.35)


def test_many_inputs_are_sampled_with_the_seed_and_far_fewer_subsets_answered():
    names = [f"x{i}" for i in range(10)]
    one, again, other = (Game.of(names, seed) for seed in (0, 0, 1))
    assert one.sampled
    assert not Game.of(names[:8], 0).sampled
    assert one.subsets == again.subsets != other.subsets
    assert len(one.subsets) < 2**10
    everyone = frozenset(range(10))
    for i in range(10):
        assert {frozenset({i}), everyone - {i}} <= set(one.subsets)


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(1)
    model = Model(toys.spec(("a", "b"))).eval()
    rows = toys.xor(50, absent=0.2)
    return model, rows, {"y": Scorer(model.spec.outputs["y"], "accuracy", rows.targets["y"], 20, 0)}


def test_every_subset_is_answered_once_by_hiding_the_others(scene, monkeypatch):
    model, rows, scorers = scene
    asked = []
    monkeypatch.setattr(module, "answers", lambda m, p, d, hidden: asked.append(hidden) or answers(m, p, d, hidden))
    seen = play(model, rows, CPU, Game.exact("ab"), scorers)["y"]
    assert asked == [["a", "b"], ["b"], ["a"], []]
    for hidden, sample in zip(asked, seen.samples.values(), strict=True):
        output = answers(model, rows, CPU, hidden).outputs["y"]
        assert sample[0] == pytest.approx(model.spec.outputs["y"].metrics(output, rows.targets["y"])["accuracy"])
    content = seen.content()
    assert [entry["inputs"] for entry in content["subsets"]] == [[], ["a"], ["b"], ["a", "b"]]
    assert content["score"] == content["subsets"][-1]["score"]


@pytest.mark.parametrize(
    "fusion", ["concat", "pool", "weighted", "hadamard", "gated", "attention", "bottleneck", "vote"]
)
def test_any_model_answers_rows_without_any_input(fusion):
    torch.manual_seed(0)
    model = Model(toys.spec(fusion=fusion)).eval()
    rows = toys.xor(20)
    scorers = {"y": Scorer(model.spec.outputs["y"], "nll", rows.targets["y"], 3, 0)}
    assert np.isfinite(play(model, rows, CPU, Game.exact("ab"), scorers)["y"].empty).all()
