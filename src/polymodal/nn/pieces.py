"""The words of a text, for explanations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from polymodal.nn.segment import Cjk, split_words
from polymodal.reading import Pieces

MOST = 48
"""Pieces of a text at most: the words of a longer one are taken in runs of like length."""


def pieces(text: str, cjk: Cjk) -> Pieces | None:
    """Words of a text, each with the signs and spaces up to the next one; None for a text without any.

    Args:
        text: cleaned.
        cjk: how Chinese and Japanese are parted.
    """
    words = [(end - len(word), end) for word, end in split_words(text, cjk) if word[0].isalnum()]
    if not words:
        return None
    runs = np.array_split(np.arange(len(words)), min(MOST, len(words)))
    ends = [(words[run[0]][0], words[run[-1]][1]) for run in runs]
    cuts = [0, *(start for start, _ in ends[1:]), len(text)]
    parts = [text[start:end] for start, end in pairwise(cuts)]

    def keep(kept: np.ndarray) -> str | None:
        if kept.all():
            return text
        return "".join(part for part, stays in zip(parts, kept, strict=True) if stays).strip() or None

    def show(values: Sequence[float]) -> list[dict[str, Any]]:
        """``part``, where it starts and ends in the cleaned text, in characters, and its value."""
        return [
            {"part": text[start:end], "start": start, "end": end, "value": value}
            for (start, end), value in zip(ends, values, strict=True)
        ]

    return Pieces(len(ends), keep, show)
