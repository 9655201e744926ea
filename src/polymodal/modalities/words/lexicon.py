"""Lexicon: the sub-words and the spelling of every word met so far, since a text's words come again and again."""

from __future__ import annotations

import os
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from polymodal.nn.bert import Subwords
from polymodal.nn.spelling import COLUMNS, spell

MOST, LONGEST = 1 << 17, 1 << 24
"""Words, and characters in them, that are kept; beyond that a lexicon starts anew."""

_LOCKS = [threading.Lock()]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _LOCKS.__setitem__(0, threading.Lock()))  # its holder is not forked


@dataclass(slots=True)
class _Known:
    """Words by number: where their sub-words stand in one row of all, and how they are spelt."""

    numbers: dict[str, int] = field(default_factory=dict)
    starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    spelt: np.ndarray = field(default_factory=lambda: np.zeros((0, COLUMNS), np.int16))
    characters: int = 0


class Lexicon:
    """Words -> sub-words and spelling. May be asked by several threads at once.

    A word is tokenised by itself, as it would be behind a space: in that a tokenizer's ``is_pretokenized`` is the same,
    but for byte-level ones, which would take each word for the inside of one. A word of which a tokenizer leaves
    nothing is one unknown sub-word.

    Args:
        tokenizer: None makes one sub-word, numbered 0, of every word.
    """

    def __init__(self, tokenizer: Subwords | None) -> None:
        self.tokenizer, self._known = tokenizer, _Known()
        self._lead = " " if tokenizer is not None and _needs_space(tokenizer) else ""

    def look_up(self, words: Sequence[str], most: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sub-words of words, and their spelling.

        Args:
            words: of any number of sentences, one behind the other.
            most: sub-words of each that are handed out, the first ones; all when not given.

        Returns:
            All their sub-word ids (M,) int64, how many each word has (n,) int64, and the spelling (n, COLUMNS) int16.
        """
        with _LOCKS[0]:
            known = self._with(words)
        order = np.fromiter(map(known.numbers.__getitem__, words), np.int64, len(words))
        counts = known.counts[order] if most is None else known.counts[order].clip(max=most)
        ends = counts.cumsum()
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        return known.ids[np.repeat(known.starts[order], counts) + within], counts, known.spelt[order]

    def _with(self, words: Sequence[str]) -> _Known:
        """What is known once these words are; what was handed out before is never shortened."""
        known = self._known
        new = list({word for word in words if word not in known.numbers})
        if not new:
            return known
        more = sum(map(len, new))
        if len(known.numbers) + len(new) > MOST or known.characters + more > LONGEST:
            known, new = _Known(), list(dict.fromkeys(words))
        composed = [word if word.isascii() else unicodedata.normalize("NFC", word) for word in new]
        made = [[0]] * len(new)
        if self.tokenizer is not None:
            made = self.tokenizer.ids([self._lead + word for word in composed])
        counts = np.fromiter(map(len, made), np.int64, len(made))
        ids = np.fromiter(chain.from_iterable(made), np.int64, int(counts.sum()))
        numbers = known.numbers
        grown = _Known(
            numbers,
            np.concatenate([known.starts, len(known.ids) + counts.cumsum() - counts]),
            np.concatenate([known.counts, counts]),
            np.concatenate([known.ids, ids]),
            np.concatenate([known.spelt, spell(composed)]),
            known.characters + more,
        )
        for number, word in enumerate(new, len(numbers)):
            numbers[word] = number
        self._known = grown
        return grown


def _needs_space(tokenizer: Subwords) -> bool:
    """Whether a word by itself is tokenised otherwise than behind a space, as byte-level tokenizers do."""
    inside, before, alone, led = tokenizer.ids(["b a", "b", "a", " a"])
    return before + alone != inside == before + led
