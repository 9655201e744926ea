"""Noises natural to words, in ten severities each, for robustness curves. Each word keeps its place and its label."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polymodal.nn.noise import misread, mistype
from polymodal.reading import Corruption
from polymodal.sentence import Sentence


def corruptions() -> dict[str, Corruption]:
    """Noises of sentences, by name. The severities are our own."""

    def each(
        unit: str, levels: tuple[float, ...], change: Callable[[str, float, np.random.Generator], str]
    ) -> Corruption:
        def apply(value: Sentence, share: float, rng: np.random.Generator) -> Sentence:
            words = tuple(changed if (changed := change(w, share, rng)).strip() else w for w in value.words)
            return value if words == value.words else Sentence.of(words)

        return Corruption.each(unit, levels, apply)

    letters = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
    looks = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    words = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return {
        "typos": each("share of letters", letters, mistype),
        "ocr": each("share of characters with a look-alike", looks, misread),
        "lowercase": each("share of words", words, lower),
    }


def lower(word: str, share: float, rng: np.random.Generator) -> str:
    """A word in lower case, with a chance of ``share``."""
    return word.lower() if rng.random() < share else word
