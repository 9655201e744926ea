"""Scores of texts equal the reference implementations, on rows of many lengths and kinds.

Golden numbers, all on `ROWS`. For the first three, texts went through `metrics.words` and were joined by spaces:
- ``cider``: pycocoevalcap 1.2, ``Cider().compute_score(references, said)``;
- ``rouge_l``: pycocoevalcap 1.2, ``compute_score(references, said)`` of its scorer of ROUGE-L;
- ``bleu``: sacrebleu 2.6.0, ``corpus_bleu(said, references, smooth_method="none", tokenize="none")``, by 100; the same
  within 1e-8 by pycocoevalcap 1.2, ``Bleu(4).compute_score(references, said)``;
- ``exact_match`` and ``token_f1``: ``compute_exact`` and ``compute_f1`` of SQuAD's evaluate-v2.0.py, the best over the
  references.
"""

import itertools
import math
import random
import time

import numpy as np
import pytest

from polymodal import metrics

ROWS = [
    (
        "A man is riding a horse on the beach.",
        [
            "A man rides a horse along the beach.",
            "A man is riding a horse on a sandy beach",
            "Someone on horseback by the sea.",
        ],
    ),
    ("two dogs play with a red ball in the park", ["Two dogs play with a red ball in the park."]),
    ("a cat", ["A cat sits on the mat.", "the cat"]),
    ("The the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
    (
        "A woman isn't holding an umbrella; it's raining!",
        ["The woman isn't carrying her umbrella in the rain.", "It's raining."],
    ),
    ("", ["An empty street at night.", "A street"]),
    (
        "a well-known U.S. airport with 3 planes and 1,000.50 people",
        ["The well-known U.S. airport, 3 planes, 1,000.50 people."],
    ),
    (
        "people people walking down down a street street",
        ["people walking down a street", "a street with people walking down"],
    ),
    (
        "A very long description of a kitchen with a stove and a sink and a window and a table and four chairs in it.",
        [
            "A kitchen with a stove.",
            "A kitchen with a table and four chairs.",
            "The kitchen has a window, a sink and a stove.",
            "Kitchen",
            "A kitchen with a stove and a sink.",
        ],
    ),
    ("Café by the sea", ["café by the sea", "A café near the sea"]),
    ("nothing alike here", ["completely different words spoken"]),
    ("A cat sits on the mat 🐱", ["a cat sits on a mat 🐱", "🐱 on a mat"]),
    ("horse", ["A horse stands in a field", "brown horse"]),
]
SAID, REFERENCES = [said for said, _ in ROWS], [references for _, references in ROWS]
GOLDEN = {
    "cider": [
        3.2385173813722283, 10.0, 2.0169448876050984, 0.16251972005582993, 1.895749508739345, 0.0, 3.68187834267782,
        3.4058066436151173, 0.08510903672164097, 6.073703144928828, 0.0, 3.46458921964147, 1.1051399751882762,
    ],
    "rouge_l": [
        0.8341880341880341, 1.0, 0.6288659793814433, 0.3333333333333333, 0.6192893401015228, 0.0, 0.7936802973977695,
        0.8026315789473684, 0.5495495495495495, 1.0, 0.0, 0.8571428571428571, 0.6288659793814433,
    ],
    "token_f1": [
        0.923076923076923, 1.0, 1.0, 0, 0.5, 0, 0.8750000000000001, 0.7272727272727273, 0.5, 1.0, 0, 1.0,
        0.6666666666666666,
    ],
    "exact_match": [0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0],
}  # fmt: skip
EACH = [metrics.cider, metrics.rouge_l, metrics.token_f1, metrics.exact_match, metrics.vqa_accuracy]


def drawn(n, seed=0):
    """Rows of 15 words with five references, common and rare words."""
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(2000)]
    weights = [1 / (i + 1) for i in range(2000)]

    def text():
        return " ".join(rng.choices(vocabulary, weights, k=15))

    return [text() for _ in range(n)], [[text() for _ in range(5)] for _ in range(n)]


@pytest.mark.parametrize("name", GOLDEN)
def test_rows_equal_the_reference(name):
    np.testing.assert_allclose(metrics.per_row(SAID, REFERENCES)[name], GOLDEN[name], rtol=1e-12, atol=1e-12)


def test_bleu_equals_the_reference():
    assert metrics.bleu(SAID, REFERENCES) == pytest.approx(0.50708200095350975, rel=1e-12)


def test_bleu_of_short_texts_equals_the_reference():
    """22 words where 24 were wanted, so that the penalty counts."""
    rows = [ROWS[i] for i in (0, 1, 2, 5, 12)]
    found = metrics.bleu([said for said, _ in rows], [references for _, references in rows])
    assert found == pytest.approx(0.832986847342262, rel=1e-12)


def test_scores_are_the_means_of_the_rows_and_bleu_in_order():
    found = metrics.text_scores(SAID, REFERENCES)
    assert list(found) == ["cider", "rouge_l", "bleu", "token_f1", "exact_match"]
    assert found["cider"] == pytest.approx(2.7023044508112033)  # Cider().compute_score gives it too
    assert found["bleu"] == metrics.bleu(SAID, REFERENCES)
    for name, values in metrics.per_row(SAID, REFERENCES).items():
        assert found[name] == pytest.approx(values.mean())


def test_rows_can_be_drawn_again():
    values = metrics.per_row(SAID, REFERENCES)["cider"]
    low, high = metrics.bootstrap(lambda rows: float(values[rows].mean()), len(values))
    assert low < values.mean() < high


def test_the_order_of_rows_and_references_does_not_matter():
    order = np.random.default_rng(0).permutation(len(ROWS))
    turned = metrics.per_row([SAID[i] for i in order], [REFERENCES[i][::-1] for i in order])
    for name, values in metrics.per_row(SAID, REFERENCES).items():
        np.testing.assert_allclose(turned[name], values[order], rtol=1e-12)
    mixed = metrics.bleu([SAID[i] for i in order], [REFERENCES[i][::-1] for i in order])
    assert mixed == pytest.approx(metrics.bleu(SAID, REFERENCES))


def test_rouge_l_finds_the_longest_common_subsequence():
    """Against every subsequence, by its known answer on short rows."""
    rng = random.Random(0)
    for _ in range(200):
        one, other = (rng.choices("xyz", k=rng.randint(1, 7)) for _ in range(2))
        both = ({s for n in range(8) for s in itertools.combinations(text, n)} for text in (one, other))
        longest = max(map(len, set.intersection(*both)))
        p, r = longest / len(one), longest / len(other)
        expected = 2.44 * p * r / (r + 1.44 * p) if longest else 0.0
        assert metrics.rouge_l([" ".join(one)], [[" ".join(other)]])[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "A man isn't riding the well-known U.S. horse, it's 3.5 ft tall (really)!",
            "a man is n't riding the well-known u.s. horse it 's 3.5 ft tall really",
        ),
        (
            "The dogs' toys cost $1,000.50 & 50% off; and/or at 10:30 a.m. — I can’t “see”…",
            "the dogs toys cost $ 1,000.50 & 50 % off and/or at 10:30 a.m. i ca n't see",
        ),
        ("हिन्दी में 한국어 문장", "हिन्दी में 한국어 문장"),
        (" ?!\n", ""),
    ],
)
def test_words_are_those_of_captions(text, words):
    """As the Stanford tokeniser of pycocoevalcap 1.2 gives them, with brackets left out."""
    assert " ".join(metrics.words(text)) == words


def test_chinese_and_japanese_go_by_characters():
    assert metrics.words("一只cat坐在、垫子。カー") == ["一", "只", "cat", "坐", "在", "垫", "子", "カ", "ー"]
    said, references = ["一只猫", "狗在跑"], [["两只猫。"], ["狗在跑！"]]
    assert metrics.token_f1(said, references).tolist() == pytest.approx([2 / 3, 1])
    assert metrics.exact_match(said, references).tolist() == [0, 1]
    assert metrics.rouge_l(said, references).tolist() == pytest.approx([2 / 3, 1])
    found = metrics.cider(said, references)
    assert found[1] == pytest.approx(7.5)  # runs of four do not occur
    assert 0 < found[0] < found[1]


def test_an_emoji_with_its_modifiers_is_a_word():
    assert metrics.words("cat🐱🐱 ❤️ 👩🏽\u200d🚀") == ["cat", "🐱", "🐱", "❤️", "👩🏽\u200d🚀"]
    assert metrics.text_scores(["🐱"], [["🐱"]])["token_f1"] == 1


def test_an_empty_text_is_like_another_alone():
    """As in the code of the captions and in SQuAD's for no answer; CIDEr has nothing to compare."""
    said, references = ["", "a cat", "", "."], [["a cat"], [""], ["", "a cat"], ["!"]]
    found = metrics.per_row(said, references)
    assert found["rouge_l"].tolist() == found["token_f1"].tolist() == found["exact_match"].tolist() == [0, 0, 1, 1]
    assert found["cider"].tolist() == [0, 0, 0, 0]
    assert metrics.bleu(said, references) == 0


def test_one_row_alone_has_no_rare_words():
    """Cider().compute_score of pycocoevalcap 1.2 gives 0 too: the logarithm of one row."""
    found = metrics.text_scores(SAID[1:2], REFERENCES[1:2])
    assert found == {"cider": 0, "rouge_l": 1, "bleu": pytest.approx(1), "token_f1": 1, "exact_match": 1}


def test_bleu_without_four_right_words_in_a_row_is_zero():
    assert metrics.bleu(["a cat sat"], [["a cat sat"]]) == 0
    assert metrics.bleu(["a cat sat down", "b"], [["a cat sat down"], ["c"]]) > 0


def test_no_rows_have_no_score():
    assert all(len(score([], [])) == 0 for score in EACH)
    assert all(math.isnan(value) for value in metrics.text_scores([], []).values())
    assert metrics.defined(metrics.text_scores(["a cat"], [[]])) == {}


def test_a_row_without_references_counts_nowhere():
    said, references = [*SAID, "a cat"], [*REFERENCES, []]
    assert metrics.text_scores(said, references) == metrics.text_scores(SAID, REFERENCES)
    for score in EACH:
        assert np.isnan(score(said, references)).tolist() == [False] * len(SAID) + [True]


@pytest.mark.parametrize("score", [*EACH, metrics.bleu])
def test_texts_and_references_must_be_as_many(score):
    with pytest.raises(ValueError, match="zip"):
        score(["a cat", "a dog"], [["a cat"]])


def thirds(agree, people):
    """The published formula, one person left out at a time."""
    said = [True] * agree + [False] * (people - agree)
    return np.mean([min(1, (agree - mine) / 3) for mine in said])


@pytest.mark.parametrize("people", [4, 5, 10, 11])
def test_vqa_accuracy_is_the_mean_over_those_left_out(people):
    answers = [["red"] * agree + ["blue"] * (people - agree) for agree in range(people + 1)]
    expected = [thirds(agree, people) for agree in range(people + 1)]
    np.testing.assert_allclose(metrics.vqa_accuracy(["Red."] * (people + 1), answers), expected)


def test_vqa_accuracy_of_ten_is_the_known_one():
    answers = [["red"] * agree + ["blue"] * (10 - agree) for agree in range(6)]
    assert metrics.vqa_accuracy(["red"] * 6, answers).tolist() == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])


@pytest.mark.parametrize("people", [1, 2, 3])
def test_vqa_accuracy_of_few_is_their_share(people):
    answers = [["red"] * agree + ["blue"] * (people - agree) for agree in range(people + 1)]
    assert metrics.vqa_accuracy(["red"] * len(answers), answers).tolist() == pytest.approx(
        [agree / people for agree in range(people + 1)]
    )


@pytest.mark.parametrize(("said", "answer"), [("Two", "2"), ("none", "0"), ("The dog.", "dog"), ("dont", "don't")])
def test_vqa_answers_may_be_written_differently(said, answer):
    assert metrics.vqa_accuracy([said, answer], [[answer], [said]]).tolist() == [1, 1]


def test_a_thousand_rows_are_fast():
    """The bounds are several times what one core needs."""
    said, references = drawn(1000)
    for score, seconds in [(metrics.cider, 4), (metrics.rouge_l, 1), (metrics.bleu, 2), (metrics.token_f1, 1)]:
        start = time.process_time()
        score(said, references)
        assert time.process_time() - start < seconds
