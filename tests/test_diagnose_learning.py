"""How each input learned, from histories with a known answer."""

import pytest

from polymodal.diagnose.learning import gradient_shares, learning, speed, use


def epoch(image=1.0, text=1.0, gradients=(1.0, 9.0)):
    terms = {"y": 0.5, "y from image": image, "y from text": text}
    return {"number": 0, "valid_terms": terms, "gradients": dict(zip(("image", "text"), gradients, strict=True))}


def test_a_fast_and_a_slow_input():
    """Text has fallen in its first epoch, image falls evenly for five; text took 9/10 of the gradient, worth half."""
    history = [epoch(1.0 - 0.2 * i, 0.1) for i in range(5)]
    found = learning(history, {"y": {"image": 0.4, "text": 0.4}})["y"]
    assert found["text"] == {"gradient_share": 0.9, "speed": 1, "fall": pytest.approx(0.9), "use": "even"}
    assert found["image"]["gradient_share"] == 0.1
    assert found["image"]["speed"] == 5
    assert found["image"]["fall"] == pytest.approx(0.8)
    assert found["image"]["use"] == "under"


def test_a_greedy_input_is_over_used():
    found = learning([epoch()], {"y": {"image": 0.6, "text": 0.2}})["y"]
    assert (found["image"]["use"], found["text"]["use"]) == ("under", "over")


def test_old_histories_say_nothing():
    old = [{"number": 0, "train_loss": 1.0, "valid_loss": 1.0, "terms": {}}]
    assert learning(old, {"y": {"a": 1.0}}) is None
    assert learning([], {"y": {"a": 1.0}}) is None


def test_half_a_history_says_half():
    only_losses = learning([{"valid_terms": {"y from a": 2.0}}, {"valid_terms": {"y from a": 1.0}}], {"y": {"a": 1.0}})
    assert only_losses["y"]["a"] == {"gradient_share": None, "speed": 2, "fall": 1.0, "use": "unknown"}
    only_gradients = learning([{"gradients": {"a": 1.0, "b": 3.0}}], {"y": {"a": 1.0, "b": 3.0}})
    assert only_gradients["y"]["b"] == {"gradient_share": 0.75, "speed": None, "fall": None, "use": "even"}


def test_where_nothing_is_worth_anything_alone_use_is_unknown():
    found = learning([epoch()], {"y": {"image": -0.1, "text": 0.0}})["y"]
    assert found["image"]["use"] == found["text"]["use"] == "unknown"


def test_speed_counts_from_the_first_epoch_and_needs_a_fall():
    assert speed([0.5, 0.2, 0.1, 0.0], 1.0) == 3
    assert speed([1.0, 0.999, 1.2], 1.0) is None
    assert speed([], 1.0) is None


def test_broken_gradients_do_not_count():
    assert gradient_shares([{"gradients": {"a": float("nan"), "b": 1.0}}], ["a", "b"]) == {"a": 0.0, "b": 1.0}
    assert gradient_shares([{}], ["a"]) == {}


def test_use_is_even_between_half_and_twice():
    worths = {"a": 0.5, "b": 0.5}
    assert [use({"a": x, "b": 1 - x}, worths, "a") for x in (0.2, 0.26, 0.5, 0.9)] == ["under", "even", "even", "even"]
