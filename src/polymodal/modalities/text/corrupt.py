"""Noises natural to texts, in ten severities each, for robustness curves. The severities are our own."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from polymodal.nn.noise import misread, mistype
from polymodal.nn.segment import HAN
from polymodal.part import Corruption

Read = Callable[[str], str | None]

_UNIT = re.compile(rf"([{HAN}]|[^\s{HAN}]+)(\s*)")  # word (in Chinese and Japanese a character), gap behind it


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
