"""Schemes of tags: there and back, told apart, read as seqeval reads them; entities by characters."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import scheme as reference
from seqeval.metrics.sequence_labeling import get_entities

from polymodal import schemes
from polymodal.errors import DataError
from polymodal.schemes import SCHEMES, Span
from polymodal.sentence import Sentence

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@st.composite
def rows(draw):
    """Spans that do not overlap, some of them side by side, and a length."""
    found, end = [], 0
    for _ in range(draw(st.integers(0, 5))):
        first = end + draw(st.integers(0, 2))
        end = first + draw(st.integers(1, 4))
        found.append(Span(draw(st.sampled_from(["per", "loc", "x-y"])), first, end))
    return found, end + draw(st.integers(0, 2))


@given(st.lists(rows(), max_size=4), st.sampled_from(SCHEMES))
@settings(deadline=None, max_examples=150, derandomize=True, database=None)
def test_spans_survive_every_scheme(cases, scheme):
    written = [schemes.tags(found, length, scheme) for found, length in cases]
    for strict in (None, scheme):
        assert [schemes.spans(row, strict) for row in written] == [found for found, _ in cases]


def tagged(letters):
    return ["O" if x == "O" else f"{x[0]}-{x[1]}" for x in letters.split()]


def test_end_letters_without_begins_are_read_right():
    """IOE1 and IOE2."""
    for row, found in (("Ip Ep Ep O Il", [(0, 2), (2, 3), (4, 5)]), ("Ip Ep Ip Ip O", [(0, 2), (2, 4)])):
        assert [(span.first, span.stop) for span in schemes.spans(tagged(row))] == found


def test_schemes_may_be_mixed_unless_one_is_asked_for():
    row = tagged("Sp Bl Ll Ip Ul")
    assert [(span.first, span.stop) for span in schemes.spans(row)] == [(0, 1), (1, 3), (3, 4), (4, 5)]
    with pytest.raises(DataError, match="prefix of IOB2"):
        schemes.spans(["S-x"], "IOB2")


PREFIXES = {"IOB1": "OBI", "IOB2": "OBI", "IOBES": "OBIES", "BILOU": "OBILU"}


def everything(scheme, length=3):
    """All rows of tags of two types."""
    letters = [x if x == "O" else f"{x}-{kind}" for x in PREFIXES[scheme] for kind in ("p" if x == "O" else "pl")]
    return (list(row) for row in itertools.product(letters, repeat=length))


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES"])
def test_broken_tags_are_read_as_seqeval_reads_them_by_default(scheme):
    for row in everything(scheme, 4 if scheme != "IOBES" else 3):
        assert [(s.type, s.first, s.stop - 1) for s in schemes.spans(row)] == get_entities(row)


@pytest.mark.parametrize("scheme", ["IOB2", "IOBES", "BILOU"])
def test_broken_tags_are_left_out_as_seqeval_does_in_strict_mode(scheme):
    for row in everything(scheme):
        theirs = reference.Tokens(row, getattr(reference, scheme)).entities
        ours = [(s.type, s.first, s.stop) for s in schemes.spans(row, scheme)]
        assert ours == [(e.tag, e.start, e.end) for e in theirs]
    assert schemes.spans(["O", "I-p", "O"]) == [Span("p", 1, 2)]
    assert schemes.spans(["O", "I-p", "O"], "IOB2") == []


@every_scheme
def test_what_may_follow_is_what_a_scheme_writes(scheme):
    for row in everything(scheme):
        padded = ["O", *row, "O"]
        legal = all(schemes.may_follow(a, b, scheme) for a, b in itertools.pairwise(padded))
        assert legal == (schemes.tags(schemes.spans(row), len(row), scheme) == row)


def test_names_are_all_tags_of_the_types():
    assert schemes.names(["a", "b"], "IOB2") == ["O", "B-a", "I-a", "B-b", "I-b"]
    assert schemes.names(["a"], "IOBES") == ["O", "B-a", "I-a", "E-a", "S-a"]


@pytest.mark.parametrize("tag", ["", "X-per", "b-per", "per", 3, None, "-per", "o", "BI-per"])
def test_a_broken_tag_is_named(tag):
    with pytest.raises(DataError, match="tag must be 'O' or a prefix") as error:
        schemes.spans([tag])
    assert repr(tag) in str(error.value)


def test_types_may_hold_hyphens_or_be_missing():
    assert schemes.spans(["B-a-b", "I-a-b", "B", "I"]) == [Span("a-b", 0, 2), Span("_", 2, 4)]


@pytest.mark.parametrize("found", [[Span("p", 0, 2), Span("p", 1, 3)], [Span("p", 2, 5)], [Span("p", 1, 1)]])
def test_spans_that_overlap_or_lie_outside_are_not_written(found):
    with pytest.raises(DataError, match="span must lie within 3 words"):
        schemes.tags(found, 3, "IOB2")


TEXT = Sentence("Ann Lee  saw São Paulo.", ("Ann", "Lee", "saw", "São", "Paulo", "."), (0, 4, 9, 13, 17, 22))


def test_entities_by_characters_become_spans_of_words():
    entities = [{"start": 13, "end": 22, "label": "city"}, [0, 8, "name"], {"start": 9, "end": 12, "type": "verb"}]
    assert schemes.by_characters(entities, TEXT) == [Span("name", 0, 2), Span("verb", 2, 3), Span("city", 3, 5)]
    assert schemes.by_characters([], TEXT) == []


@given(rows())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_characters_lead_back_to_the_words(case):
    found, length = case
    sentence = Sentence.of([f"w{'o' * (i % 3)}" for i in range(length)])
    entities = [
        {"start": sentence.starts[s.first], "end": sentence.end(s.stop - 1), "type": s.type} for s in reversed(found)
    ]
    assert schemes.by_characters(entities, sentence) == found


@pytest.mark.parametrize(
    ("entity", "told"),
    [
        ([0, 2, "name"], "cuts 'Ann'"),
        ([1, 7, "name"], "cuts 'Ann'"),
        ([13, 20, "city"], "cuts 'Paulo'"),
        ([7, 9, "gap"], "must hold a word"),
        ([0, 99, "name"], "within 23 characters"),
        ([-1, 3, "name"], "within 23 characters"),
        ([3, 3, "name"], "got"),
        ([0, 3, ""], "and a type"),
        ([0, 3, None], "and a type"),
        ([True, 3, "name"], "and a type"),
        ({"start": 0, "type": "name"}, "and a type"),
        ("B-name", "and a type"),
        ([0, 3], "and a type"),
    ],
)
def test_entities_that_do_not_fit_are_named(entity, told):
    with pytest.raises(DataError, match="entity must") as error:
        schemes.by_characters([entity], TEXT)
    assert told in str(error.value)


def test_entities_must_not_overlap():
    with pytest.raises(DataError, match=r"must not overlap, got 'a' at words 0\.\.1 and 'b' at words 1\.\.2"):
        schemes.by_characters([[4, 12, "b"], [0, 7, "a"]], TEXT)


def test_entities_behind_the_kept_words_are_left_out():
    cut = Sentence(TEXT.text, TEXT.words[:2], TEXT.starts[:2])
    assert schemes.by_characters([[0, 3, "name"], [13, 22, "city"]], cut) == [Span("name", 0, 1)]
