"""Scores of generated texts against references: N rows, R references for each, and R may differ from row to row.

A row without any reference has no score: NaN, and left out of every mean.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from polymodal.metrics.base import Array, mean
from polymodal.metrics.ngrams import HAN, bleu, cider, words

BETA = 1.2
"""How much more recall counts than precision in ROUGE-L."""

AGREED = 3
"""People who must have given an answer to a question about an image for it to be right."""

ORDER = ("cider", "rouge_l", "bleu", "token_f1", "exact_match")
"""Names of `text_scores`."""

_UNHEARD = str.maketrans("", "", string.punctuation + "、。〈〉《》「」『』【】！（），．：；？")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_HAN = re.compile(f"[{HAN}]")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBERS)}


def exact_match(said: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """Whether each text (N,) is one of its references, but for case, punctuation, articles and spaces. (N,) 0 or 1.

    Punctuation is that of ASCII, as in the evaluation script of SQuAD, and that of Chinese and Japanese beside.

    Source: Rajpurkar et al. 2016, section 6.1.
    """
    return _best(lambda one, other: float(_plain(one) == _plain(other)), said, references)


def token_f1(said: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """F1 of the words of each text (N,), compared as in `exact_match`, by its nearest reference. (N,) 0..1.

    A character of Chinese or Japanese is a word. Two texts without words are alike: 1, as in the script of SQuAD 2.0.

    Source: Rajpurkar et al. 2016, section 6.1; for Chinese and Japanese Lewis et al. 2020 (MLQA).
    """

    def f1(one: str, other: str) -> float:
        a, b = (_HAN.sub(r" \g<0> ", _plain(text)).split() for text in (one, other))
        return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b)) if a or b else 1.0

    return _best(f1, said, references)


def rouge_l(said: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """F of the longest common subsequence of words, recall counting 1.2 times as much as precision. (N,) 0..1.

    As in the caption evaluation code, the best precision and the best recall may be those of different references,
    and a text without words counts as one empty word: it is like another such text, and like no other.

    Source: Lin 2004, equations 2 to 4; Chen et al. 2015 (the code of the COCO captions).

    Args:
        said: (N,) texts.
        references: (N,) sequences of R texts.

    Returns:
        (N,), NaN for a row without references.
    """
    scores = np.full(len(said), np.nan)
    for row, (text, right) in enumerate(zip(said, references, strict=True)):
        if right:
            one, others = words(text) or [""], [words(reference) or [""] for reference in right]
            common = [_common(one, other) for other in others]
            precision = max(common) / len(one)
            recall = max(length / len(other) for length, other in zip(common, others, strict=True))
            whole = recall + BETA**2 * precision
            scores[row] = (1 + BETA**2) * precision * recall / whole if whole else 0.0
    return scores


def vqa_accuracy(said: Sequence[str], answers: Sequence[Sequence[str]]) -> Array:
    """Accuracy of each answer (N,) to a question about an image, by what R people answered. (N,) 0..1.

    An answer that at least three gave is right, one that fewer gave by a third for each: the mean of that over all
    choices of R - 1 people, ten people being asked as a rule. Where fewer than four were, it is the share of them who
    gave the answer, which is also what the formula makes of four.

    Answers are compared as in `exact_match`, and with numbers up to ten (``two``) as digits. The evaluation code has a
    list of rules instead. The formula is the same, but here ``yes!`` is also ``yes``, ``100%`` is ``100``, ``its`` is
    ``it's``, and ``black/white`` is not ``black white``.

    Source: Antol et al. 2015, section 3; Goyal et al. 2017; the mean over choices is that of their evaluation code.
    """
    scores = np.full(len(said), np.nan)
    for row, (text, given) in enumerate(zip(said, answers, strict=True)):
        if given:
            people, mine = len(given), _digits(text)
            agree = sum(_digits(answer) == mine for answer in given)
            left_out = agree * min(1.0, (agree - 1) / AGREED) + (people - agree) * min(1.0, agree / AGREED)
            scores[row] = (left_out if people > AGREED else agree) / people
    return scores


def per_row(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Array]:
    """The scores that each row has of its own, (N,) each: ``cider``, ``rouge_l``, ``token_f1``, ``exact_match``.

    Rows may be drawn again from them, as by `bootstrap`: the weights in CIDEr are those of all references as given.
    """
    return {score.__name__: score(said, references) for score in (cider, rouge_l, token_f1, exact_match)}


def text_scores(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means of `per_row`, and BLEU of all rows together; NaN without rows.

    Args:
        said: (N,) texts.
        references: (N,) sequences of R texts.

    Returns:
        ``cider`` (0..10), ``rouge_l``, ``bleu``, ``token_f1`` and ``exact_match`` (0..1), in this order.
    """
    means = {name: mean(values) for name, values in per_row(said, references).items()}
    return {name: means[name] if name in means else bleu(said, references) for name in ORDER}


def _best(score: Callable[[str, str], float], said: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """Score of each text by the reference that it is nearest to. (N,)."""
    pairs = zip(said, references, strict=True)
    return np.array([max((score(text, one) for one in right), default=math.nan) for text, right in pairs], float)


def _plain(text: str) -> str:
    """Lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_UNHEARD)).split())


def _digits(answer: str) -> str:
    """An answer in plain form, with numbers up to ten as digits."""
    return " ".join(_DIGITS.get(word, word) for word in _plain(answer).split())


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, all of its table's row in the bits of one number.

    Source: Hyyrö 2004, "Bit-Parallel LCS-length Computation Revisited", figure 2.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        hit = row & places.get(word, 0)
        row = (row + hit | row - hit) & full
    return len(one) - row.bit_count()
