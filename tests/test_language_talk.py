"""Answers to prompts that come and go, made together."""

import itertools

import pytest

from polymodal.errors import DataError, SpecError
from polymodal.nn.language.decode import Decoding, say
from polymodal.nn.language.loading import load_language
from polymodal.nn.language.talk import Talk, stream
from talker import GREEDY, SAMPLED, batch, prompts, sliding_language, tiny_language


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return load_language(tiny_language(tmp_path_factory.mktemp("talker")))


@pytest.fixture(scope="module", params=["full", "sliding"])
def either(request, language, tmp_path_factory):
    return language if request.param == "full" else load_language(sliding_language(tmp_path_factory.mktemp("sliding")))


def answers(talk, plan):
    """Run a talk: `plan` says before which step each prompt comes. Texts, reasons and counts by ticket."""
    found = {}
    for step in itertools.count():
        for prompt, how in plan.get(step, []):
            found[talk.start(prompt, how)] = ["", None, 0]
        pieces = talk.step()
        for piece in pieces:
            one = found[piece.ticket]
            assert one[1] is None, "an answer that has ended says no more"
            found[piece.ticket] = [one[0] + piece.text, piece.reason, piece.tokens]
        if not pieces and step >= max(plan):
            return found


@pytest.mark.parametrize("most", [1, 2, 8])
def test_talk_equals_say_of_each_alone(either, most):
    rows = prompts(either, 9, 3, 6, 14, 2)
    hows = [Decoding(tokens=5), SAMPLED, GREEDY, Decoding(tokens=3), Decoding(tokens=9, temperature=1.5, seed=2)]
    asked = list(zip(rows, hows, strict=True))
    found = answers(Talk(either, most), {0: asked[:2], 2: asked[2:4], 4: asked[4:]})
    assert len(found) == 5
    for (row, how), one in zip(asked, found.values(), strict=True):
        alone = say(either, batch([row]), how)[0]
        assert one == [alone.text, alone.reason, len(alone.ids)]


def test_no_piece_shows_the_beginning_of_a_stop(language):
    (row,) = prompts(language, 6)
    whole = say(language, batch([row]), GREEDY)[0].text
    how = Decoding(tokens=12, stop=(whole[2:5], whole[3] + "never"))
    alone = say(language, batch([row]), how)[0].text
    shown = list(stream(language, row, how))
    assert "".join(shown) == alone
    assert "".join(stream(language, row, GREEDY)) == whole
    assert "".join(stream(language, row, Decoding(tokens=12, stop=("\x00never",)))) == whole


def test_an_answer_is_given_up(language):
    talk, rows = Talk(language, 2), prompts(language, 8, 3, 5)
    first, second, third = (talk.start(row, GREEDY) for row in rows)
    assert {piece.ticket for piece in talk.step()} == {first, second}
    talk.drop(first)
    talk.drop(99)
    assert {piece.ticket for piece in talk.step()} == {second, third}
    talk.drop(second)
    assert len(talk) == 1
    talk.drop(third)
    assert (len(talk), talk.step()) == (0, [])


def test_a_cache_holds_no_more_padding_than_it_must(language):
    talk, rows = Talk(language), prompts(language, 40, 3)
    long, _ = (talk.start(row, GREEDY) for row in rows)
    talk.step()
    assert talk._batch.real.shape == (2, 40)
    talk.drop(long)
    assert talk._batch.real.shape == (1, 3)
    assert talk._batch.cache.layers[0].keys.shape[2] == 3


def test_beams_are_not_streamed(language):
    with pytest.raises(SpecError, match="beams must be 1"):
        Talk(language).start(prompts(language, 3)[0], Decoding(beams=2))
    with pytest.raises(DataError, match="context of 256"):
        next(stream(language, prompts(language, 260)[0], GREEDY))
