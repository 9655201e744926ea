"""The verdict: each rule on numbers made for it, and what it says in words."""

import shlex

import pytest

from polymodal.diagnose.verdict import Judge, verdict
from polymodal.diagnose.words import short

ZERO = {"value": 0.0, "interval": [-0.03, 0.03], "noise": True}


def sure(value, half=0.03):
    """A difference and a symmetric interval."""
    return {"value": value, "interval": [value - half, value + half], "noise": abs(value) <= half}


def one(alone=0.5, ceiling=None, contribution=0.0, permuted=0.0, shapley=None, full=0.9, **more):
    """An input of a task whose chance is .5; every difference has an interval of +-.03."""
    ceiling = alone if ceiling is None else ceiling
    given, gain = contribution if isinstance(contribution, dict) else sure(contribution), alone - 0.5
    contribution = given["value"]
    return {
        "present": 1.0,
        "broken": 0.0,
        "alone": {"score": alone, "interval": [alone - 0.03, alone + 0.03]},
        "without": full - contribution,
        "ceiling": {"score": ceiling, "by": "alone" if ceiling == alone else "linear"},
        "gain": sure(gain),
        "potential": sure(ceiling - 0.5),
        "headroom": sure(ceiling - alone) if ceiling > alone else {"value": 0.0, "interval": [0.0, 0.0], "noise": True},
        "contribution": given,
        "shapley": sure((gain + contribution) / 2 if shapley is None else shapley),
        "overlap": sure(gain - contribution),
        "others": sure(full - alone),
        "permuted": {"score": full - permuted, **sure(permuted), "loss": permuted},
        **more,
    }


def task_of(full=0.9, pairs=(), **inputs):
    return {
        "metric": "accuracy",
        "rows": 200,
        "score": full,
        "interval": [full - 0.03, full + 0.03],
        "chance": 0.5,
        "lift": sure(full - 0.5),
        "inputs": inputs,
        "pairs": list(pairs),
    }


def pair(a, b, interaction):
    seen = sure(interaction)
    kind = "independent" if seen["noise"] else "synergy" if interaction > 0 else "redundancy"
    return {
        "inputs": [a, b],
        "interaction": interaction,
        "interval": seen["interval"],
        "noise": seen["noise"],
        "kind": kind,
    }


def kinds(task, learning=None):
    return {entry["input"]: entry["kind"] for entry in verdict({"y": task}, learning)["verdict"]}


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("fine", one(0.8, contribution=0.2, permuted=0.3)),
        ("fine", one(0.5, contribution=0.3)),
        ("fine", one(0.5, permuted=0.3)),
        ("fine", one(0.6, contribution=0.08)),
        ("unused", one(0.51, 0.52, 0.01, -0.01)),
        ("unused", one(0.9, 0.9, 0.2, present=0.0)),
        ("under-trained", one(0.6, 0.8)),
        ("under-trained", one(0.5, 0.8, contribution=0.1)),
        ("fine", one(0.5, 0.8, contribution=0.25)),
        ("harmful", one(0.5, contribution=-0.2)),
        ("harmful", one(0.7, contribution=0.0, permuted=-0.2)),
        ("harmful", one(0.7, 0.95, contribution=-0.2)),
        ("redundant", one(0.85, contribution=0.0, permuted=0.2)),
        ("redundant", one(0.85, 0.9, contribution=0.0)),
        ("fine", one(0.85, contribution=0.04)),
        ("fine", one(0.6, contribution=0.02)),
        ("redundant", one(0.8, contribution=0.02)),
        ("redundant", one(0.85, contribution={"value": 0.015, "interval": [0.005, 0.025], "noise": False})),
        ("unused", one(0.47, 0.525)),
        ("fine", one(0.85, contribution=0.0, full=0.6)),
        ("noisy", one(0.55, 0.58, contribution=0.02, shapley=0.0)),
        ("noisy", one(0.8, contribution=0.2, broken=0.3)),
        ("harmful", one(0.5, contribution=-0.2, broken=0.3)),
    ],
)
def test_the_first_rule_that_holds_names_the_kind(kind, given):
    assert kinds(task_of(x=given, other=one(0.9, contribution=0.4))) == {"x": kind, "other": "fine"}


def test_a_difference_within_noise_is_called_that():
    """The same values with wide intervals: nothing can be said of any of them."""
    wide = {key: sure(0.1, 0.2) for key in ("gain", "potential", "headroom", "contribution", "shapley", "overlap")}
    wide |= {"others": sure(0.0, 0.2), "permuted": {"loss": 0.1, "score": 0.5, **sure(0.1, 0.2)}}
    task = task_of(0.6, x=one(0.6, 0.7) | wide)
    task["lift"] = sure(0.1, 0.2)
    found = verdict({"y": task})
    assert found["verdict"][0]["kind"] == "unused"
    assert found["weakest"] is None
    assert "within noise of .50, which needs no input: 200 rows show no signal" in found["summary"]
    assert "(within noise)" in found["verdict"][0]["text"]


def test_what_is_credible_depends_on_how_many_are_looked_at_and_on_what_matters():
    few = Judge(task_of(a=one(0.9, contribution=0.4)))
    many = Judge(task_of(**{f"x{i}": one() for i in range(8)}))
    assert few.credible({"value": 0.042, "interval": [0.007, 0.077]}) == 1
    assert many.credible({"value": 0.042, "interval": [0.007, 0.077]}) == 0
    assert few.credible({"value": -0.042, "interval": [-0.077, -0.007]}) == -1
    assert few.credible({"value": 0.005, "interval": [0.004, 0.006]}) == 0, "less than 2 % of .4 does not matter"
    assert few.credible({"value": 0.009, "interval": [0.008, 0.010]}) == 1
    assert few.credible({"value": 0.05, "interval": [0.001, 0.2]}) == 0, "short of its interval's half width"
    assert few.credible(None) == few.credible({"value": None, "interval": None}) == 0


def test_redundant_names_its_partner():
    task = task_of(
        a=one(0.85), b=one(0.85), c=one(0.6, contribution=0.1), pairs=[pair("a", "b", -0.3), pair("a", "c", -0.1)]
    )
    entries = {entry["input"]: entry for entry in verdict({"y": task})["verdict"]}
    assert entries["a"]["text"] == (
        "a: redundant. Alone .85, contribution .00 (within noise): b carries the same (interaction -.30)."
    )
    assert entries["a"]["try"] is None
    assert entries["c"]["kind"] == "fine"


def test_inputs_that_only_work_together_are_fine_and_the_summary_says_so():
    task = task_of(a=one(contribution=0.4), b=one(contribution=0.4), pairs=[pair("a", "b", 0.4)])
    found = verdict({"y": task})
    assert kinds(task) == {"a": "fine", "b": "fine"}
    assert found["summary"].endswith("Of its inputs, a and b only work together.")
    assert "Together with b it does more than alone (interaction .40)" in found["verdict"][0]["text"]


def test_half_of_a_synergy_that_another_input_backs_up_is_redundant():
    """b and its copy c, either of which works with a: what c adds is nothing, but it says much with a."""
    inputs = {"a": one(contribution=0.4), "b": one(shapley=0.2), "c": one(shapley=0.2)}
    task = task_of(**inputs, pairs=[pair("a", "b", 0.2), pair("a", "c", 0.2), pair("b", "c", -0.2)])
    assert kinds(task) == {"a": "fine", "b": "redundant", "c": "redundant"}


def test_the_weakest_has_most_to_gain_and_can_be_repaired():
    task = task_of(a=one(0.6, 0.8), b=one(0.5, 0.85), c=one(0.5, contribution=-0.2), d=one(0.9, contribution=0.2))
    found = verdict({"y": task})
    tries = {entry["input"]: entry["try"] for entry in found["verdict"]}
    assert found["weakest"] == "b"
    assert tries == {
        "a": "polymodal improve model/ train.csv --input a",
        "b": "polymodal improve model/ train.csv --input b",
        "c": None,
        "d": None,
    }
    assert verdict({"y": task_of(d=one(0.9, contribution=0.2))})["weakest"] is None


def test_tasks_of_different_scales_are_compared_by_their_own():
    """.3 of a possible .4 in accuracy is more than 20 of a possible 500 in another unit."""
    big = one(0.5, 0.8)
    for key in ("gain", "potential", "headroom", "contribution", "shapley", "overlap", "others"):
        big[key] = sure(100.0 if key in ("potential", "headroom") else 0.0)
    large = task_of(x=big) | {"lift": sure(500.0), "metric": "mae"}
    found = verdict({"small": task_of(y=one(0.5, 0.8)), "large": large})
    assert found["weakest"] == "y"
    assert [entry["text"].split(":")[0] for entry in found["verdict"]] == ["small, y", "large, x"]
    assert "small: accuracy" in found["summary"]


def test_words_hold_the_numbers():
    learning = {"y": {"x": {"gradient_share": 0.08, "speed": 3, "fall": 0.1, "use": "under"}}}
    task = task_of(x=one(0.6, 0.8), z=one(0.5, contribution=-0.2), other=one(0.9, contribution=0.2))
    x, z, other = (entry["text"] for entry in verdict({"y": task}, learning)["verdict"])
    assert x == (
        "x: under-trained. Alone .60, its features could give .80 (linear), contribution .00 (within noise). "
        "It had only 8 % of the gradient."
    )
    assert z.startswith("z: harmful. The score is .90 with it and 1.10 without it.")
    assert other == "other: fine. Alone .90, contribution .20."
    gone = verdict({"y": task_of(x=one(present=0.0))})["verdict"][0]["text"]
    assert gone == "x: unused. It is absent from every row."


def test_scores_are_short():
    assert [short(x) for x in (0.444, -0.01, 1.0, 0.999, 0.0, -0.001, 12.345, 1234.5, None, -0.5, 9.5)] == [
        ".44", "-.01", "1.00", "1.00", ".00", ".00", "12.3", "1.23e+03", "unknown", "-.50", "9.50",
    ]  # fmt: skip


def test_broken_cells_do_not_take_the_help_of_the_others_away():
    said = {
        n: verdict({"y": task_of(a=one(0.8, contribution=n, broken=0.3))})["verdict"][0]["text"] for n in (0.0, 0.2)
    }
    assert said[0.2].endswith("30 % of its cells could not be read. It helps where it can be read.")
    assert said[0.0].endswith("It carries something, but nothing to rely on.")


def test_the_command_can_be_pasted_into_a_shell():
    (entry,) = verdict({"y": task_of(**{"a b; ls": one(0.6, 0.8)})})["verdict"]
    assert shlex.split(entry["try"])[-2:] == ["--input", "a b; ls"]
