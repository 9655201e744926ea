"""What was read of a prompt is read once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from polymodal.nn.language.decode import say
from polymodal.nn.language.loading import load_language
from polymodal.nn.language.memory import Memory
from polymodal.nn.language.talk import Talk, stream
from talker import GREEDY, batch, prompts, sliding_language, tiny_language


@pytest.fixture(scope="module", params=[tiny_language, sliding_language])
def language(request, tmp_path_factory):
    return load_language(request.param(tmp_path_factory.mktemp("talker")))


@pytest.fixture
def read(language, monkeypatch):
    """Positions that each step reads of each row."""
    counts, step = [], type(language).step

    def counted(self, values, *others):
        counts.append(values.shape[1])
        return step(self, values, *others)

    monkeypatch.setattr(type(language), "step", counted)
    return counts


def alike(language):
    """Prompts that begin alike: the second one parts from the first after 6, the third goes on behind it."""
    begin, one, other, more = prompts(language, 6, 3, 5, 4)
    return [torch.cat(parts) for parts in ((begin, one), (begin, other), (begin, one, more))]


def test_answers_are_the_same_as_without_memory(language, read):
    asked, memory = alike(language), Memory()
    alone = [say(language, batch([row]), GREEDY)[0].text for row in asked]
    read.clear()
    for row, text in zip(asked, alone, strict=True):
        assert "".join(stream(language, row, GREEDY, memory)) == text
    assert [count for count in read if count > 1] == [9, 5, 4]
    read.clear()
    assert "".join(stream(language, asked[0], GREEDY, memory)) == alone[0]
    assert set(read) == {1}, "all but the last position was known"


def test_answers_made_together_remember_one_another(language):
    asked = alike(language)
    alone = [say(language, batch([row]), GREEDY)[0].text for row in asked]
    talk = Talk(language)
    tickets, texts, known = [talk.start(row, GREEDY) for row in asked], dict.fromkeys(range(9), ""), {}
    while len(talk):
        for piece in talk.step():
            texts[piece.ticket] += piece.text
            known[piece.ticket] = piece.known
    assert [texts[ticket] for ticket in tickets] == alone
    assert [known[ticket] for ticket in tickets] == [0, 6, 9]


def test_what_was_not_used_for_longest_is_forgotten(language):
    rows, memory = prompts(language, 10, 10, 10, 40), Memory(25)
    for row in rows[:2]:
        list(stream(language, row, GREEDY, memory))
    assert [memory.recall(row)[0] for row in (rows[1], rows[0])] == [9, 9]
    for row in rows[2:]:
        list(stream(language, row, GREEDY, memory))
    assert [memory.recall(row)[0] for row in rows] == [9, 0, 9, 0], "the longest one does not fit at all"


def test_nothing_is_remembered_without_room(language):
    (row,), memory = prompts(language, 10), Memory(0)
    list(stream(language, row, GREEDY, memory))
    assert memory.recall(row)[0] == 0


def test_a_prompt_that_goes_on_takes_the_place_of_its_beginning(language):
    short, _, longer = alike(language)
    memory = Memory(len(longer))
    for row in (short, longer):
        list(stream(language, row, GREEDY, memory))
    assert [memory.recall(row)[0] for row in (short, longer)] == [8, 12]


def test_several_threads_remember_in_one_place(language):
    asked, memory = [*alike(language), *prompts(language, 7, 12)], Memory(20)
    alone = [say(language, batch([row]), GREEDY)[0].text for row in asked]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: "".join(stream(language, row, GREEDY, memory)), asked * 8))
    assert found == alone * 8
