"""A small image encoder that is trained from scratch, for who has no pretrained one."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from polymodal.nn.blocks import Positions
from polymodal.nn.efficientnet import GridPool, cell_centres
from polymodal.types import Masked

_CHANNELS = (32, 64, 96, 128)


class SmallImageEncoder(nn.Module):
    """Collated images (B, 1, 3, size, size) uint8 -> (B, grid * grid, dim), placed at (y, x) in [0, 1].

    Four stages of convolution, group norm and GELU, each halving the image, then the mean of each cell.
    """

    at: Tensor

    def __init__(self, size: int, grid: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in _CHANNELS:
            layers += [nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.GroupNorm(8, out), nn.GELU()]
            layers += [Residual(out)]
            channels, size = out, math.ceil(size / 2)
        self.features = nn.Sequential(*layers)
        self.pool = GridPool(size, grid)
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, dim)
        self.positions = Positions(2, dim)
        self.register_buffer("at", cell_centres(grid), persistent=False)

    def forward(self, x: Masked) -> Masked:
        """Encode images; every row is present."""
        pixels = (x.values[:, 0].float() - 127.0) / 128.0
        values = self.project(self.norm(self.pool(self.features(pixels))))
        at = self.at.expand(values.shape[0], -1, -1)
        return Masked(values + self.positions(at), x.mask.expand(-1, values.shape[1]), at)


class Residual(nn.Module):
    """One more convolution beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return functional.gelu(x + self.norm(self.convolve(x)))
