"""Projectors: an input's tokens (B, T, dim) -> soft tokens (B, S, W) of a language model."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.types import Masked

Kind = Literal["linear", "mlp", "resampler", "shuffle"]


class Projector(nn.Module):
    """Tokens to soft tokens, as long as a language model's own embeddings are.

    - ``linear``, ``mlp``: one soft token for each token, by one layer or by two (Liu et al. 2023, arXiv:2304.08485,
      section 4.1; Liu et al. 2023, arXiv:2310.03744, section 3.2).
    - ``resampler``: ``count`` learned queries ask the tokens (Alayrac et al. 2022, "Flamingo", arXiv:2204.14198,
      section 3.1; one layer, whose keys are the tokens alone).
    - ``shuffle``: ``count`` x ``count`` neighbours of an image become one, or as many that follow one another where
      positions have no two coordinates (Shi et al. 2016, arXiv:1609.05158, section 3.2, the other way round; what is
      missing at the edge is zero).

    Args:
        kind: of the above.
        dim: D.
        width: W.
        count: see the kinds; `linear` and `mlp` have none.
        norm: mean length of a language model's embeddings, which soft tokens have at first.
    """

    def __init__(self, kind: Kind, dim: int, width: int, count: int, norm: float) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.count = count
        taken = dim * count * count if kind == "shuffle" else dim
        if kind == "resampler":
            self.queries = nn.Parameter(torch.randn(count, dim))
            self.ask = nn.MultiheadAttention(dim, next(n for n in (8, 4, 2, 1) if dim % n == 0), batch_first=True)
        self.enter = nn.LayerNorm(dim)
        layers = [nn.Linear(taken, width)]
        if kind != "linear":
            layers = [nn.Linear(taken, width), nn.GELU(), nn.Linear(width, width)]
        last = nn.LayerNorm(width)
        nn.init.constant_(last.weight, norm / math.sqrt(width))
        self.net = nn.Sequential(*layers, last)

    def forward(self, x: Masked) -> Masked:
        """Project; rows that are absent stay so."""
        x = Masked(self.enter(x.values), x.mask, x.at)
        if self.kind == "resampler":
            x = self._resampled(x)
        elif self.kind == "shuffle":
            x = self._shuffled(x)
        return Masked(self.net(x.values), x.mask)

    def _resampled(self, x: Masked) -> Masked:
        rows = x.present
        queries = self.queries.expand(len(x), -1, -1)
        seen = x.mask | ~rows[:, None]  # attention to nothing would be NaN
        found, _ = self.ask(queries, x.values, x.values, key_padding_mask=~seen, need_weights=False)
        return Masked(queries + found, rows[:, None].expand(-1, self.count))

    def _shuffled(self, x: Masked) -> Masked:
        """Neighbours side by side: (B, S, D * count * count)."""
        values = x.values.masked_fill(~x.mask[..., None], 0.0)
        height, width = _grid(x)
        if height * width != values.shape[1]:
            height, width = 1, values.shape[1]
        down, right = (self.count if height > 1 else 1), (self.count if height > 1 else self.count * self.count)
        pad = (0, -width % right, 0, -height % down)
        grid = functional.pad(values.transpose(1, 2).unflatten(2, (height, width)), pad)
        real = functional.pad(x.mask.unflatten(1, (height, width)), pad)
        blocks = _blocks(grid, down, right)
        mask = _blocks(real[:, None].float(), down, right).amax(1) > 0
        return Masked(blocks.flatten(2).transpose(1, 2), mask.flatten(1))


def _blocks(grid: Tensor, down: int, right: int) -> Tensor:
    """(B, C, H, W) -> (B, C * down * right, H / down, W / right)."""
    parts = grid.unflatten(3, (-1, right)).unflatten(2, (-1, down))  # (B, C, H / down, down, W / right, right)
    return parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def _grid(x: Masked) -> tuple[int, int]:
    """Rows and columns of tokens whose positions are (y, x), in this order; one row for all others."""
    if x.at is None or x.at.shape[2] != 2 or not len(x):
        return 1, x.mask.shape[1]
    first = x.at[int(x.present.float().argmax())]
    rows = len(first[:, 0].unique())
    return rows, x.mask.shape[1] // rows
