"""Scores of generated texts by runs of one to four words: BLEU and CIDEr, and the words that texts are compared by.

R references belong to a row, and R may differ from row to row. A row without any has no score and counts nowhere. An
empty text is one of no words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polymodal.metrics.base import Array

Gram = tuple[str, ...]
"""Words in a row."""

ORDERS = 4
"""Runs of one word up to this many are compared."""

SIGMA = 6.0
"""Words of difference in length at which CIDEr-D's penalty is exp(-1/2)."""

HAN = (
    r"\u3005-\u3007\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\uff66-\uff9f\U00020000-\U0003347f"
)
"""Characters of Chinese and Japanese, which is written without spaces."""

_MARKS = (
    r"!\"'(),\-.:;?\[\]`{}\u00a1\u00ab\u00b7\u00bb\u00bf\u055a-\u055f\u0589\u05be\u05c3\u060c\u061b\u061f\u066b-\u066d"
    r"\u06d4\u0964\u0965\u2010-\u205e\u3001-\u3003\u3008-\u3011\u3014-\u301f\u30a0\u30fb\uff01\uff02\uff07-\uff09"
    r"\uff0c-\uff0e\uff1a\uff1b\uff1f\uff3b\uff3d\uff5b\uff5d\uff5f-\uff65"
)
_SIGNS = (
    r"#$%&*+/<=>@\\^|~\u00a2-\u00a9\u00ac\u00ae-\u00b1\u00b4\u00b6\u00b8\u00d7\u00f7\u20a0-\u20cf\u2100-\u2bff\u3004"
    r"\u3012\u3013\u3020\u3030-\u303f\U0001f000-\U0001faff"
)
_SKIN = r"\ufe0e\ufe0f\U0001f3fb-\U0001f3ff"
_LETTER = rf"[^\s{_MARKS}{_SIGNS}{HAN}\ufe0e\ufe0f]"  # \w would leave out the vowel signs of Indic scripts
_WORD = re.compile(
    rf"n't(?!{_LETTER})|'(?:s|m|d|re|ve|ll)(?!{_LETTER})|{_LETTER}+?(?=n't(?!{_LETTER}))"
    rf"|\d+(?:[.,:/]\d+)+|(?:[a-z]\.){{2,}}|{_LETTER}+(?:[-/]{_LETTER}+)*"
    rf"|[{HAN}]|[{_SIGNS}](?:[{_SKIN}]|\u200d[{_SIGNS}])*"
)


def words(text: str) -> list[str]:
    """Words of a text as captions are compared by: lower case, clitics apart (``is n't``), no punctuation.

    Numbers (``1,000.50``), initials (``u.s.``) and words with hyphens stay whole; a symbol is a word of its own, and so
    is an emoji with its modifiers and a character of Chinese or Japanese.

    Near the Stanford tokeniser of the caption evaluation code, not equal to it: that one keeps brackets as words
    (``-lrb-``), web addresses and words with an apostrophe (``o'clock``) whole and the full stop of ``mr.``, divides
    ``cannot``, and divides no Chinese or Japanese.
    """
    return _WORD.findall(text.lower().replace("’", "'"))


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU of one to four words, 0..1, without smoothing: 0 where no run of four words is right.

    Hits are clipped to the reference that has most of them. The length that is compared is, per row, that of the
    reference nearest in length, the shorter of two.

    Source: Papineni et al. 2002, section 2.3.

    Args:
        said: (N,) texts.
        references: (N,) sequences of R texts.

    Returns:
        The score; NaN where no row has references.
    """
    hits, made, length, wanted = np.zeros(ORDERS), np.zeros(ORDERS), 0, 0
    for text, right in _with_references(said, references):
        most: Counter[Gram] = Counter()
        for reference in right:
            most |= Counter(_grams(reference))
        for gram, count in Counter(_grams(text)).items():
            hits[len(gram) - 1] += min(count, most[gram])
            made[len(gram) - 1] += count
        length += len(text)
        wanted += min((abs(len(reference) - len(text)), len(reference)) for reference in right)[1]
    if not any(references):
        return math.nan
    return math.exp(min(0.0, 1 - wanted / length) + np.log(hits / made).mean()) if hits.all() else 0.0


def cider(said: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """CIDEr-D of each row: likeness to the references, by runs of words, the more the rarer they are. 0..10.

    The variant of the caption evaluation code, where it goes by the name of CIDEr. Against CIDEr of the paper's
    equation 2: a run counts no oftener than in the reference, lengths that differ are penalised, and words are not
    stemmed. Against CIDEr-D of its equation 4: runs are counted, not divided by their number, before they are clipped.

    A run's weight is log(N / rows whose references have it), so all references are one fixed collection: the rows'
    scores may be drawn again. With a single row each weight is log 1, and the score is 0 whatever is said.

    Source: Vedantam et al. 2015, equations 1, 3 and 4; Chen et al. 2015 (the code of the COCO captions).

    Args:
        said: (N,) texts.
        references: (N,) sequences of R texts.

    Returns:
        (N,), NaN for a row without references. The corpus score is the mean.
    """
    rows = list(_with_references(said, references))
    seen = Counter(gram for _, right in rows for gram in {g for reference in right for g in _grams(reference)})
    most = math.log(max(1, len(rows)))
    weights = {gram: most - math.log(count) for gram, count in seen.items()}
    scores = np.full(len(said), np.nan)
    scores[[bool(right) for right in references]] = [
        _consensus(_weighted(text, weights, most), [_weighted(reference, weights, most) for reference in right])
        for text, right in rows
    ]
    return scores


class _Weighted(NamedTuple):
    """Runs of a text by their weights, the length of that vector for each order (4,), and how many words it has."""

    values: dict[Gram, float]
    norms: list[float]
    length: int


def _weighted(text: list[str], weights: Mapping[Gram, float], unseen: float) -> _Weighted:
    """Weigh the runs of a text."""
    values = {gram: count * weights.get(gram, unseen) for gram, count in Counter(_grams(text)).items()}
    squares = [0.0] * ORDERS
    for gram, value in values.items():
        squares[len(gram) - 1] += value**2
    return _Weighted(values, [math.sqrt(square) for square in squares], len(text))


def _consensus(said: _Weighted, references: list[_Weighted]) -> float:
    """Mean likeness to the references."""
    return sum(_likeness(said, right) for right in references) / len(references)


def _likeness(said: _Weighted, right: _Weighted) -> float:
    """Clipped cosine of two texts' weighted runs, mean over the orders, times ten and the penalty of length."""
    products = [0.0] * ORDERS
    for gram, value in said.values.items():
        if other := right.values.get(gram):
            products[len(gram) - 1] += min(value, other) * other
    cosines = [p / (a * b) for p, a, b in zip(products, said.norms, right.norms, strict=True) if p]
    return 10 * sum(cosines) / ORDERS * math.exp(-((said.length - right.length) ** 2) / (2 * SIGMA**2))


def _grams(text: list[str]) -> Iterable[Gram]:
    """Every run of one to four words of a text."""
    return (gram for n in range(ORDERS) for gram in zip(*(text[i:] for i in range(n + 1)), strict=False))


def _with_references(
    said: Sequence[str], references: Sequence[Sequence[str]]
) -> Iterable[tuple[list[str], list[list[str]]]]:
    """Words of each text and of its references, without the rows that have none."""
    return ((words(text), [words(r) for r in right]) for text, right in zip(said, references, strict=True) if right)
