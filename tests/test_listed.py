import numpy as np
import pytest

from polymodal.data.listed import aligned, are_tags, are_words, as_list, as_texts, numbered, spanned, tagged

WORDS = [["EU", "rejects"], ["German", "call", "."], None, ["x"]]
TAGS = [["B-org", "O"], ["B-misc", "O", "O"], None, ["O"]]


@pytest.mark.parametrize("cell", [["a", "b"], ("a", "b"), np.array(["a", "b"]), '["a", "b"]'])
def test_lists_in_any_form(cell):
    assert as_list(cell) == ["a", "b"]
    assert as_texts(cell) == ["a", "b"]


@pytest.mark.parametrize("cell", ["a b", "[a]", '{"a": 1}', 3, None, {"a": 1}, np.zeros((2, 2)), "[" * 100_000])
def test_what_is_no_list(cell):
    assert as_list(cell) is None


def test_words_and_tags():
    assert are_words(WORDS[:2])
    assert are_words([["a"]] * 20 + [["b", None]])
    assert not are_words([["a"], ["b", None]])
    assert not are_words([["a"], ["b", " "]])
    assert not are_words([[], []])
    assert not are_words([[["a"]]])
    assert are_tags(TAGS[:2])
    assert are_tags([["S-x", "U-a b", "O", "L-y", "B"]])
    assert not are_tags([["NN", "O"]])


def test_one_tag_for_each_word():
    assert aligned(WORDS, TAGS)
    assert not aligned(WORDS, [row and row[:1] for row in TAGS])
    assert not aligned([["a"], ["b"]], [["O"], ["O"]]), "a label each is no tag each"
    columns = {"kinds": [["N", "N"], ["N", "N", "N"], None, ["N"]], "words": WORDS, "x": [1, 2, 3, 4]}
    assert tagged(TAGS, columns) == "words"
    assert tagged(TAGS, {"x": [1, 2, 3, 4]}) is None
    assert tagged([1, 2, 3, 4], columns) is None
    assert tagged(['["O", "O"]', '["O", "O", "O"]', None, '["O"]'], columns) == "words"


def test_numbers_for_words():
    assert numbered([[1, 0], [2, 0, 0], None, [0]], {"words": WORDS}) == "words"
    assert numbered([[1], [2], [3], [4]], {"words": WORDS}) is None
    assert numbered(TAGS, {"words": WORDS}) is None


def test_stretches_of_a_text():
    texts = ["EU rejects", "a German call", None, "x"]
    spans = [[{"start": 0, "end": 2, "type": "org"}], [{"start": 2, "end": 8, "label": "misc"}], None, []]
    assert spanned(spans, {"short": ["EU", "a", None, "x"], "text": texts, "n": [1, 2, 3, 4]}) == "text"
    assert spanned(spans, {"short": ["EU", "a", None, "x"]}) is None
    assert spanned([[{"start": 0, "end": 2}]], {"text": texts[:1]}) is None
    assert spanned([[{"start": True, "end": 2, "type": "x"}]], {"text": texts[:1]}) is None
    assert spanned([[], []], {"text": texts[:2]}) is None


def test_a_few_broken_rows_do_not_hide_what_a_column_holds():
    texts = ["EU rejects"] * 20
    spans = [[{"start": 0, "end": 2, "type": "org"}]] * 19
    assert spanned([*spans, [{"start": 0, "end": 99, "type": "org"}]], {"text": texts}) == "text"
    assert spanned([*spans, [{"start": "0", "end": 2}]], {"text": texts}) == "text"
    assert spanned([*spans[:9], *[[{"start": 0, "end": 99, "type": "org"}]] * 11], {"text": texts}) is None
