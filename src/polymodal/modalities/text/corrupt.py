"""Noises natural to texts, in ten severities each, for robustness curves. The severities are our own."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from polymodal.modalities.text.words import HAN
from polymodal.part import Corruption

Read = Callable[[str], str | None]

_UNIT = re.compile(rf"([{HAN}]|[^\s{HAN}]+)(\s*)")  # word (in Chinese and Japanese a character), gap behind it
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SWAP = 3  # place of the swap among the kinds of typos
_PAIRS = """
0O O0 o0 1l l1 I1 |l !l ij ji 5S S5 s5 8B B8 6b b6 2Z Z2 z2 9g g9 qg ec ce CG GC DO QO ao uv vu yv nri mrn wvv dcl hb
klc tf ft rn x× EF FE PF RK KR TI HN UV VU MN NH ., ,. :; '`
"""
LOOKS = {pair[0]: pair[1:] for pair in _PAIRS.split()}
"""What optical recognition takes a character for."""


def corruptions(read: Read) -> dict[str, Corruption]:
    """Noises of texts, by name. A changed text passes through ``read``, so that it is as a cell with it would be."""

    def each(
        unit: str, levels: tuple[float, ...], change: Callable[[str, float, np.random.Generator], str]
    ) -> Corruption:
        def apply(text: str, share: float, rng: np.random.Generator) -> str | None:
            changed = change(text, share, rng)
            return text if changed == text else read(changed)

        return Corruption.each(unit, levels, apply)

    letters = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
    looks = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    words = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return {
        "typos": each("share of letters", letters, mistype),
        "ocr": each("share of characters with a look-alike", looks, misread),
        "dropped": each("share of words", words, drop),
        "shuffled": each("share of words", words, shuffle),
    }


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


def drop(text: str, share: float, rng: np.random.Generator) -> str:
    """Leave out a share of the words."""
    units = _UNIT.findall(text)
    order = rng.permutation(len(units))
    kept = np.sort(order[round(share * len(units)) :]).tolist()
    return "".join(units[i][0] + units[i][1] for i in kept).strip()


def shuffle(text: str, share: float, rng: np.random.Generator) -> str:
    """Let a share of the words, two at least, change places at random; the gaps stay."""
    units = _UNIT.findall(text)
    order = rng.permutation(len(units))[: round(share * len(units))]
    words = [word for word, _ in units]
    for i, j in zip(order.tolist(), np.roll(order, 1).tolist(), strict=True):
        words[i] = units[j][0]
    return "".join(word + gap for word, (_, gap) in zip(words, units, strict=True)).strip()
