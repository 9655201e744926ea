"""Schemes of tags: how the tags of words stand for spans, and the other way round.

A tag is "O" outside of every span, else a prefix and the span's type: "B-person". The prefixes say where in its span a
word stands: B begin, I inside, E end (or L last), S single (or U unit).

Source: Ramshaw and Marcus 1995 (IOB1); Tjong Kim Sang and Veenstra 1999 (IOB2); Ratinov and Roth 2009 (BILOU, the same
as IOBES under other letters).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from polymodal.errors import DataError
from polymodal.sentence import Sentence

OUTSIDE = "O"

PREFIXES = {"IOB1": "BI", "IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU"}
"""Scheme -> letters for the words of a span. IOB1 marks a begin only where the span before has the same type."""

SCHEMES = tuple(PREFIXES)

_COMMON = {"L": "E", "U": "S"}
_LETTERS = {"BILOU": {"E": "L", "S": "U"}}


class Span(NamedTuple):
    """A run of words of one type: words first..stop-1."""

    type: str
    first: int
    stop: int


def parts(tag: Any) -> tuple[str, str]:
    """Prefix and type of a tag; ("O", "") outside. A span without a type, as in "B", has the type "_".

    Raises:
        DataError: it is no tag.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, _, kind = tag.partition("-") if isinstance(tag, str) else ("", "", "")
    if prefix not in tuple("BIESLU"):
        raise DataError(
            f"tag must be 'O' or a prefix among B, I, E, S, L, U and a type, as 'B-person', got {tag!r}. Mend the tag."
        )
    return prefix, kind or "_"


def spans(row: Sequence[str], strict: str | None = None) -> list[Span]:
    """The spans that a row of tags stands for, in whichever scheme.

    Tags that break their scheme still stand for spans: one opens at a word whose tag says so, and at one whose tag
    cannot go on with what stands before it (I-x after O, or after another type); it ends where the next tag cannot go
    on with it. That is how conlleval and seqeval's default mode read, and how `tag` reads targets: no span is lost.

    Args:
        row: one tag per word.
        strict: one of `SCHEMES`: leave out each span whose tags are not what it writes for the span, as seqeval's mode
            "strict" does.

    Raises:
        DataError: it holds something that is no tag, or none of the ``strict`` scheme.
    """
    found, before = list[Span](), (OUTSIDE, "")
    for i, tag in enumerate(row):
        prefix, kind = parts(tag)
        if strict is not None and prefix != OUTSIDE and prefix not in PREFIXES[strict]:
            raise DataError(f"tag must be 'O' or have a prefix of {strict}, got {tag!r}. Keep to one scheme.")
        prefix = _COMMON.get(prefix, prefix)
        if prefix != OUTSIDE:
            if prefix in "BS" or kind != before[1] or before[0] in "ES":
                found.append(Span(kind, i, i + 1))
            else:
                found[-1] = found[-1]._replace(stop=i + 1)
        before = prefix, kind
    if strict is None:
        return found
    written = tags(found, len(row), strict)
    return [span for span in found if list(row[span.first : span.stop]) == written[span.first : span.stop]]


def tags(found: Iterable[Span], length: int, scheme: str) -> list[str]:
    """One tag per word for some spans.

    Raises:
        DataError: two spans overlap, or one is empty or outside of the words.
    """
    row, end, last = [OUTSIDE] * length, 0, ""
    letters = _LETTERS.get(scheme, {})
    for span in sorted(found, key=lambda span: span.first):
        if not end <= span.first < span.stop <= length:
            raise DataError(f"span must lie within {length} words and behind the one before, got {span}. Mend it.")
        size = span.stop - span.first
        if len(PREFIXES[scheme]) == 2:
            marked = scheme == "IOB2" or (last == span.type and end == span.first)
            prefixes = ["B" if marked else "I", *["I"] * (size - 1)]
        else:
            prefixes = ["S"] if size == 1 else ["B", *["I"] * (size - 2), "E"]
        row[span.first : span.stop] = [f"{letters.get(prefix, prefix)}-{span.type}" for prefix in prefixes]
        end, last = span.stop, span.type
    return row


def names(types: Iterable[str], scheme: str) -> list[str]:
    """Every tag that a scheme has for some types: "O", then those of each type. IOB2: 1 + 2n, IOBES: 1 + 4n."""
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in PREFIXES[scheme])]


def may_follow(before: str, after: str, scheme: str) -> bool:
    """Whether one tag may stand behind another; "O" before the first and behind the last tag stands for the edge."""
    (prefix, kind), (following, other) = parts(before), parts(after)
    inside = kind == other and prefix in tuple("BI")
    if scheme == "IOB1":
        return inside or following != "B"
    if following in tuple("IEL"):
        return inside
    return scheme == "IOB2" or prefix not in tuple("BI")


def by_characters(entities: Iterable[Any], sentence: Sentence) -> list[Span]:
    """Spans of words for entities that are given by their characters.

    Blanks at an entity's ends do no harm. An entity in the part of the text that has no words, since the sentence was
    cut, is left out.

    Args:
        entities: each {"start", "end", "type" or "label"} or [start, end, type]; offsets into the text, the end behind
            the last character.
        sentence: that they are in.

    Raises:
        DataError: an entity is none, lies outside of the text or between its words, cuts a word, or overlaps another.
    """
    ends = [sentence.end(word) for word in range(len(sentence))]
    found = list[Span]()
    for entity in entities:
        start, end, kind = _entity(entity, len(sentence.text))
        told = f"{kind!r} at {start}..{end} ({sentence.text[start:end]!r:.60})"
        first, stop = bisect_right(ends, start), bisect_right(sentence.starts, end - 1)
        if first == len(ends) and sentence.text[start:end].strip():
            continue
        if first >= stop:
            raise DataError(f"entity must hold a word, got {told}. Mend its offsets.")
        if sentence.starts[first] < start or ends[stop - 1] > end:
            word = sentence.words[first if sentence.starts[first] < start else stop - 1]
            raise DataError(f"entity must not cut a word, got {told}, which cuts {word!r}. Mend its offsets.")
        found.append(Span(kind, first, stop))
    found.sort(key=lambda span: span.first)
    for one, other in pairwise(found):
        if other.first < one.stop:
            raise DataError(
                f"entities must not overlap, got {one.type!r} at words {one.first}..{one.stop - 1} and "
                f"{other.type!r} at words {other.first}..{other.stop - 1}. Leave one out."
            )
    return found


def _entity(entity: Any, length: int) -> tuple[int, int, str]:
    """Start, end and type of an entity as it was given."""
    if isinstance(entity, Mapping):
        found = entity.get("start"), entity.get("end"), entity.get("type", entity.get("label"))
    else:
        found = tuple(entity) if isinstance(entity, list | tuple) and len(entity) == 3 else (None, None, None)
    start, end, kind = found
    if type(start) is int and type(end) is int and isinstance(kind, str) and kind and 0 <= start < end <= length:
        return start, end, kind
    raise DataError(
        f"entity must have a start and a behind-the-end offset within {length} characters and a type, "
        f"as {{'start': 0, 'end': 5, 'type': 'person'}}, got {entity!r}. Mend it."
    )
