"""The stretches of a sound, for explanations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from polymodal.reading import Pieces

SECONDS = 0.25
"""Length of a stretch of a short sound."""

MOST = 24
"""Stretches of a sound at most: those of a longer one are longer."""


def pieces(wave: Tensor, sample_rate: int) -> Pieces:
    """Stretches of equal length of a waveform (n,).

    A stretch that is taken out is cut out, so that it counts nothing. Silence in its place would be content.
    """
    count = min(MOST, max(1, round(len(wave) / (SECONDS * sample_rate))), len(wave))
    cuts = np.linspace(0, len(wave), count + 1).round().astype(int).tolist()
    spans = list(pairwise(cuts))

    def keep(kept: np.ndarray) -> Tensor | None:
        some = [wave[start:end] for (start, end), stays in zip(spans, kept, strict=True) if stays]
        return torch.cat(some) if some else None

    def show(values: Sequence[float]) -> list[dict[str, float]]:
        """``start`` and ``end`` in seconds of the cleaned sound, and the value."""
        return [
            {"start": start / sample_rate, "end": end / sample_rate, "value": value}
            for (start, end), value in zip(spans, values, strict=True)
        ]

    return Pieces(count, keep, show)
