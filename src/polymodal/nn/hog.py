"""Histograms of oriented gradients: the shape of what is in an image, by a formula; nothing is learned."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.nn.backbone import Backbone
from polymodal.nn.efficientnet import GridPool
from polymodal.types import Masked

ORIENTATIONS = 8


class Hog(nn.Module):
    """uint8 RGB (B, 3, size, size) -> histograms (B, 1, 8 * grid * grid): per cell, how much runs in each direction.

    A gradient is shared linearly between the two nearest of 8 directions, which do not tell dark on bright from bright
    on dark. Where the paper normalises blocks of cells, the whole image is brought to length 1, and the
    square root is taken, as for a histogram.

    Source: Dalal and Triggs 2005, "Histograms of oriented gradients for human detection", sections 6.2 to 6.4.
    """

    def __init__(self, size: int, grid: int) -> None:
        super().__init__()
        self.pool = GridPool(size - 2, grid)

    def forward(self, x: Tensor) -> Tensor:
        """Turn pixels into histograms."""
        grey = x.float().mean(1) / 255
        across = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
        down = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
        strength = (across.square() + down.square() + 1e-12).sqrt()
        across = across + 1e-6  # where nothing changes, ONNX would divide 0 by 0
        angle = torch.atan2(down, across) * (ORIENTATIONS / math.pi)
        angle = torch.where(angle < 0, angle + ORIENTATIONS, angle)  # half a turn is the same direction
        parts = []
        for k in range(ORIENTATIONS):
            apart = (angle - k).abs()
            apart = torch.minimum(apart, ORIENTATIONS - apart).abs()
            parts.append(strength * (1 - apart).clamp(min=0))
        cells = self.pool(torch.stack(parts, 1)).flatten(1)  # (B, grid * grid * 8)
        return functional.normalize(cells, dim=1, eps=1e-3).clamp(min=1e-12).sqrt()[:, None]


class HogBackbone(Backbone):
    """Collated uint8 images (B, 1, 3, size, size) -> one token (B, 1, 8 * grid * grid).

    Args:
        size: side in pixels.
        grid: cells along each side.
    """

    def __init__(self, size: int = 64, grid: int = 8) -> None:
        super().__init__()
        self.net, self.width = Hog(size, grid).eval(), ORIENTATIONS * grid * grid
        self.digest = f"hog:{size}:{grid}"

    def tensors(self, x: Masked) -> tuple[Tensor, ...]:
        """Take the pixels (B, 3, size, size) uint8."""
        return (x.values[:, 0],)

    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """One token, real where the image is."""
        return Masked(y, x.mask)


@cache
def hog(size: int, grid: int) -> HogBackbone:
    """Return the backbone, built once per process."""
    return HogBackbone(size, grid)
