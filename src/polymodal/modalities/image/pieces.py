"""The regions of an image, for explanations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polymodal.reading import Pieces

GRID = 4
"""Rows and columns of regions: more cost more, and a smaller patch changes less."""


def pieces(image: Tensor) -> Pieces:
    """A grid of `GRID` x `GRID` regions of an image (3, size, size) uint8.

    A region that is taken out is filled with the image's mean colour.
    """
    size = image.shape[-1]
    cell = torch.arange(size) * GRID // size
    region = cell[:, None] * GRID + cell  # (size, size)
    mean = image.double().mean((1, 2)).round().to(image.dtype)[:, None, None]

    def keep(kept: np.ndarray) -> Tensor:
        return torch.where(torch.from_numpy(kept)[region], image, mean)

    def show(values: Sequence[float]) -> dict[str, list[list[float]]]:
        """``grid``: rows from top to bottom, cells from left to right."""
        return {"grid": [list(values[i : i + GRID]) for i in range(0, GRID * GRID, GRID)]}

    return Pieces(GRID * GRID, keep, show)
