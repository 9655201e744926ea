"""Errors of typists and of optical recognition, for augmentation and for robustness curves."""

from __future__ import annotations

import re

import numpy as np

from polymodal.nn.segment import HAN

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SWAP = 3  # place of the swap among the kinds of typos
_PAIRS = """
0O O0 o0 1l l1 I1 |l !l ij ji 5S S5 s5 8B B8 6b b6 2Z Z2 z2 9g g9 qg ec ce CG GC DO QO ao uv vu yv nri mrn wvv dcl hb
klc tf ft rn x× EF FE PF RK KR TI HN UV VU MN NH ., ,. :; '`
"""
LOOKS = {pair[0]: pair[1:] for pair in _PAIRS.split()}
"""What optical recognition takes a character for."""


def mistype(text: str, share: float, rng: np.random.Generator) -> str:
    """Mistype each letter with a chance of ``share``: left out, doubled, swapped with the next or the key beside it.

    Source: Belinkov and Bisk 2018, "Synthetic and Natural Noise Both Break Neural Machine Translation", section 3.2
        (swap, key); typists also skip and double letters. Keys are those of an English keyboard; a letter that it
        does not have is doubled instead.
    """
    chance, kinds, sides = (rng.random(len(text)) for _ in range(3))
    hit = (chance < share) & np.array([sign.isalpha() for sign in text], bool)
    out, swapped = [], False
    for i, sign in enumerate(text):
        following = text[i + 1 : i + 2]
        if swapped:
            swapped = False  # it already stands before the last one
        elif not hit[i]:
            out.append(sign)
        else:
            kind = int(4 * kinds[i])
            out.append(("", 2 * sign, _neighbour(sign, sides[i]), following + sign)[kind])
            swapped = kind == _SWAP
    return "".join(out)


def _neighbour(sign: str, side: float) -> str:
    """A key beside a letter's: the left one if ``side`` is below 0.5, unless there is none."""
    row = next((row for row in _KEYS if sign.lower() in row), None)
    if row is None:
        return sign * 2
    at = row.index(sign.lower())
    near = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    other = near[int(side * len(near))]
    return other.upper() if sign.isupper() else other


def misread(text: str, share: float, rng: np.random.Generator) -> str:
    """Take each character that looks like another for it with a chance of ``share``, as optical recognition does."""
    hit = rng.random(len(text)) < share
    return "".join(LOOKS.get(sign, sign) if wrong else sign for sign, wrong in zip(text, hit, strict=True))


def misspell(word: str, rng: np.random.Generator) -> str:
    """A word with one letter left out, doubled, replaced or swapped; the same word if it has no two letters."""
    letters = [i for i, sign in enumerate(word) if sign.isalpha() and not re.match(f"[{HAN}]", sign)]
    if len(letters) < 2:
        return word
    i, kind = letters[rng.integers(len(letters) - 1)], rng.integers(4)
    if kind == 0:
        return word[:i] + word[i + 1 :]
    if kind == 1:
        return word[: i + 1] + word[i:]
    if kind == 2:
        other = word[letters[rng.integers(len(letters))]]
        return word[:i] + other + word[i + 1 :]
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
