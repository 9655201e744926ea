"""The words of a sentence, for explanations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from polymodal.reading import Pieces
from polymodal.sentence import Sentence

MOST = 48
"""Pieces of a sentence at most: the words of a longer one are taken in runs of like length."""


def pieces(value: Sentence) -> Pieces:
    """Words of a sentence. Those that are kept stay where they stood in the text."""
    count = min(MOST, len(value))
    cuts = [round(i * len(value) / count) for i in range(count + 1)]
    runs = list(pairwise(cuts))

    def keep(kept: np.ndarray) -> Sentence | None:
        if kept.all():
            return value
        left = [i for (first, stop), stays in zip(runs, kept, strict=True) if stays for i in range(first, stop)]
        if not left:
            return None
        return Sentence(value.text, tuple(value.words[i] for i in left), tuple(value.starts[i] for i in left))

    def show(values: Sequence[float]) -> list[dict[str, Any]]:
        """``part``, where it starts and ends in the text, in characters, and its value."""
        ends = [(value.starts[first], value.end(stop - 1)) for first, stop in runs]
        return [
            {"part": value.text[start:end], "start": start, "end": end, "value": worth}
            for (start, end), worth in zip(ends, values, strict=True)
        ]

    return Pieces(count, keep, show)
