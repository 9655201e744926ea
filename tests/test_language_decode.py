"""What a language model says, row by row: to a batch, and without a cache."""

import pytest
import torch

from polymodal.errors import DataError
from polymodal.nn.language.decode import Decoding, Row, say
from polymodal.nn.language.loading import load_language
from polymodal.types import Masked
from talker import GREEDY, SAMPLED, batch, prompts, sliding_language, tiny_language


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return load_language(tiny_language(tmp_path_factory.mktemp("talker")))


@pytest.fixture(scope="module", params=["full", "sliding"])
def either(request, language, tmp_path_factory):
    return language if request.param == "full" else load_language(sliding_language(tmp_path_factory.mktemp("sliding")))


def uncached(language, prompt, tokens):
    """Greedy answer, every token read anew."""
    values, ids = prompt[None], []
    with torch.no_grad():
        while len(ids) < tokens:
            token = int(language.net(inputs_embeds=values).logits[0, -1].argmax())
            if token in language.vocabulary.ends:
                break
            ids.append(token)
            values = torch.cat([values, language.embed(torch.tensor([[token]]))], 1)
    return tuple(ids)


def test_a_row_answers_as_alone_and_as_without_a_cache(either):
    rows = prompts(either, 9, 3, 6)
    together = say(either, batch(rows), GREEDY)
    for row, one in zip(rows, together, strict=True):
        assert one.ids == say(either, batch([row]), GREEDY)[0].ids == uncached(either, row, 12)


def test_padding_between_is_not_seen(language):
    (row,) = prompts(language, 4)
    spread = Masked(torch.full((1, 9, language.width), 7.0), torch.zeros(1, 9, dtype=torch.bool))
    places = torch.tensor([1, 3, 4, 8])
    spread.values[0, places], spread.mask[0, places] = row, True
    assert say(language, spread, GREEDY)[0].ids == say(language, batch([row]), GREEDY)[0].ids


def test_greedy_equals_transformers(language):
    (row,) = prompts(language, 6)
    found = say(language, batch([row]), GREEDY)[0]
    expected = language.net.generate(
        inputs_embeds=row[None], max_new_tokens=12, do_sample=False, pad_token_id=language.vocabulary.pad
    )[0].tolist()
    assert list(found.ids) == [token for token in expected if token not in language.vocabulary.ends]


def test_score_is_the_log_probability(language):
    (row,) = prompts(language, 6)
    found = say(language, batch([row]), GREEDY)[0]
    ids = torch.tensor([*found.ids, *([language.vocabulary.end] if found.reason == "stop" else [])])
    values = torch.cat([row, language.embed(ids)])[None]
    logs = language.net(inputs_embeds=values).logits[0, len(row) - 1 : -1].log_softmax(-1)
    assert found.score == pytest.approx(float(logs.gather(1, ids[:, None]).sum().detach()), abs=1e-3)


def test_sampling_follows_its_seed(language):
    rows = prompts(language, 5, 5)
    first, again = (say(language, batch(rows), SAMPLED) for _ in range(2))
    assert first == again
    assert first[0].ids == say(language, batch(rows[:1]), SAMPLED)[0].ids
    other = Decoding(tokens=12, temperature=0.9, top_k=20, top_p=0.9, seed=8)
    assert [one.ids for one in first] != [one.ids for one in say(language, batch(rows), other)]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_sampling_among_one_is_greedy(language, narrow):
    x = batch(prompts(language, 5))
    assert (
        say(language, x, Decoding(tokens=8, temperature=2.0, **narrow))[0].ids == say(language, x, Decoding(8))[0].ids
    )


def test_beams_find_the_best_of_all(language):
    """With as many beams as matter, the best of all answers of at most two tokens is found."""
    (row,) = prompts(language, 5)
    end, words = language.vocabulary.end, len(language.vocabulary._tokenizer)
    with torch.no_grad():
        first = language.net(inputs_embeds=row[None]).logits[0, -1].log_softmax(-1)
        values = torch.cat([row.expand(words, -1, -1), language.embed(torch.arange(words))[:, None]], 1)
        second = language.net(inputs_embeds=values).logits[:, -1].log_softmax(-1)
    total = (first[:, None] + second) / 2
    total[end] = -torch.inf
    best = max((float(first[end]), (end,)), (float(total.max()), divmod(int(total.argmax()), words)))
    found = say(language, batch([row]), Decoding(tokens=2, beams=32))[0]
    assert found.ids == tuple(token for token in best[1] if token != end)
    counted = len(found.ids) + (found.reason == "stop")
    assert found.score / counted == pytest.approx(best[0], abs=1e-4)


def test_stop_texts_end_an_answer_also_across_tokens(language):
    (row,) = prompts(language, 6)
    whole = say(language, batch([row]), GREEDY)[0].text
    stop = whole[2:5]
    found = say(language, batch([row]), Decoding(tokens=12, stop=(stop,)))[0]
    assert (found.text, found.reason) == (whole[: whole.find(stop)], "stop")
    assert len(found.ids) < 12


def test_what_does_not_fit_is_refused(language):
    with pytest.raises(DataError, match=r"context of 256, got 260"):
        say(language, batch(prompts(language, 260)), GREEDY)
    for wrong in ({"top_k": 3}, {"temperature": 1.0, "beams": 2}, {"stop": ("",)}, {"tokens": 0}):
        with pytest.raises(ValueError, match=r"top_k|beams|stop|tokens"):
            Decoding(**wrong)


@pytest.mark.parametrize("temperature", [1e-320, 1e-30])
def test_next_to_no_temperature_takes_the_likeliest(language, temperature):
    rows = batch(prompts(language, 5, 9))
    greedy = [one.ids for one in say(language, rows, GREEDY)]
    assert [one.ids for one in say(language, rows, Decoding(tokens=12, temperature=temperature))] == greedy


def test_any_seed_of_64_bits_is_one_of_its_own():
    drawn = [Row.of(seed).generator.initial_seed() for seed in (0, 1, 1 << 32, (1 << 32) + 1, (1 << 64) - 1)]
    assert len(set(drawn)) == len(drawn)
    assert Row.of(1).generator.initial_seed() == drawn[1]
    with pytest.raises(ValueError, match="seed"):
        Decoding(temperature=1, seed=1 << 64)
