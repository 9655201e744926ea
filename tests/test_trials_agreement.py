"""Two answers agree where their numbers and labels do, and a tie is no disagreement."""

import math

import pytest

from polymodal.trials.agreement import Difference, Reference

P = {"a": 0.6, "b": 0.3, "c": 0.1}


def classified(label, p):
    return {"kind": {"class": label, "probability": max(p.values()), "probabilities": p}}


def test_the_same_answer_does_not_differ():
    reference = Reference([classified("a", P)], 1e-3)
    assert reference.compare(0, classified("a", dict(P))) == Difference()
    assert len(reference) == 1


@pytest.mark.parametrize(("moved", "fits"), [(0.0005, True), (0.002, False)])
def test_probabilities_differ_by_what_they_moved(moved, fits):
    reference = Reference([classified("a", P)], 1e-3)
    found = reference.compare(0, classified("a", P | {"b": 0.3 + moved, "c": 0.1 - moved}))
    assert math.isclose(found.number, moved)
    assert reference.agrees(found) == fits


@pytest.mark.parametrize(
    ("first", "second", "wrong", "ties"), [(0.4504, 0.4496, 0, 1), (0.48, 0.42, 1, 0), (0.4496, 0.4504, 1, 0)]
)
def test_another_class_is_a_tie_only_where_the_two_best_were_within_the_tolerance(first, second, wrong, ties):
    before = {"a": first, "b": second, "c": 0.1}
    reference = Reference([classified("a", before)], 1e-3)
    other = "c" if first < second else "b"  # c was never close, whatever a and b do
    found = reference.compare(0, classified(other, before))
    assert (found.labels, found.ties) == (wrong, ties)


def test_a_label_in_a_list_is_a_tie_where_its_probability_moved_to_the_other_side():
    expected = {"tags": {"labels": ["x", "y"], "probabilities": {"x": 0.9, "y": 0.5001, "z": 0.1}}}
    reference = Reference([expected], 1e-3)
    crossed = {"tags": {"labels": ["x"], "probabilities": {"x": 0.9, "y": 0.4999, "z": 0.1}}}
    lied = {"tags": {"labels": ["x", "y", "z"], "probabilities": dict(expected["tags"]["probabilities"])}}
    assert reference.compare(0, crossed).ties == 1
    assert reference.agrees(reference.compare(0, crossed))
    assert reference.compare(0, lied) == Difference(0.0, 1, 0)


def test_numbers_differ_in_shares_of_the_largest_of_their_target():
    rows = [
        {"v": {"value": {"cm": 0.0, "kg": 10.0}, "low": {"cm": -1.0, "kg": 5.0}}},
        {"v": {"value": {"cm": 2000.0, "kg": 20.0}, "low": {"cm": 1000.0, "kg": 15.0}}},
    ]
    reference = Reference(rows, 1e-3)
    got = {"v": {"value": {"cm": 1.0, "kg": 10.0}, "low": {"cm": -1.0, "kg": 5.0}}}
    assert math.isclose(reference.compare(0, got).number, 1 / 2000)
    got["v"]["low"]["kg"] = 4.0
    assert math.isclose(reference.compare(0, got).number, 1 / 20)


def test_quantiles_have_the_scale_of_their_target():
    rows = [{"v": {"value": 100.0, "quantiles": {"0.1": 0.001, "0.9": 100.0}}}]
    got = {"v": {"value": 100.0, "quantiles": {"0.1": 0.002, "0.9": 100.0}}}
    assert math.isclose(Reference(rows, 1e-3).compare(0, got).number, 0.001 / 100)  # not of the .001 that doubled


@pytest.mark.parametrize(
    "got",
    [
        {},
        {"kind": {"class": "a", "probability": 0.6}},
        {"kind": "a"},
        "a",
        classified("a", {"a": 0.6, "b": 0.4}),
        classified("a", P | {"a": math.nan}),
    ],
)
def test_what_is_lacking_or_no_number_differs_infinitely(got):
    assert Reference([classified("a", P)], 1e-3).compare(0, got).number == math.inf


def test_labels_of_any_type_are_compared_as_texts():
    reference = Reference([{"n": {"class": 3, "probability": 0.9, "probabilities": {"3": 0.9, "4": 0.1}}}], 1e-3)
    found = reference.compare(0, {"n": {"class": 4, "probability": 0.9, "probabilities": {"3": 0.9, "4": 0.1}}})
    assert found.labels == 1
