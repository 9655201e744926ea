"""Columns of a table as tokens: number embeddings, names, dates; every column with parameters of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.types import Masked

RESERVED = 2
"""Category ids before a column's levels: 0 unseen, 1 rare."""
DATE = 7
"""Features of a date: year, then sine and cosine of season, weekday and time of day."""


class LinearNumbers(nn.Module):
    """One line through the embedding space per column: (B, n) -> (B, n, dim).

    Source: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data", section 3.3 (the bias is the
    caller's column embedding).
    """

    def __init__(self, columns: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(columns, dim) / 2)

    def forward(self, x: Tensor) -> Tensor:
        """Embed scaled numbers (B, n)."""
        return x.unsqueeze(-1) * self.weight


class PeriodicNumbers(nn.Module):
    """Sines and cosines at learned frequencies, a linear map, ReLU ("PLR"): (B, n) -> (B, n, dim).

    Source: Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", equation 2 with
    frequencies c ~ N(0, sigma), then linear and ReLU, separate for every column.
    """

    def __init__(self, columns: int, dim: int, waves: int = 24, sigma: float = 0.1) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(columns, waves) * sigma)
        self.weight = nn.Parameter(torch.randn(columns, 2 * waves, dim) / math.sqrt(2 * waves))
        self.bias = nn.Parameter(torch.zeros(columns, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Embed scaled numbers (B, n)."""
        angle = 2 * math.pi * x.unsqueeze(-1) * self.frequencies
        waves = torch.cat([angle.sin(), angle.cos()], -1)
        return torch.relu(torch.einsum("bnw,nwd->bnd", waves, self.weight) + self.bias)


class PiecewiseNumbers(nn.Module):
    """How far a number has filled each bin of its column, then a linear map: (B, n) -> (B, n, dim).

    Source: Gorishniy et al. 2022, equation 1 (quantile bins, section 3.2.1) and a linear map ("Q-L"), separate
    for every column. It differs in one point: beyond the first and last bin the code goes on for one bin's width,
    not for ever, so that an outlier cannot outshout the other columns.
    """

    low: Tensor
    width: Tensor
    floor: Tensor
    ceiling: Tensor

    def __init__(self, edges: Sequence[Sequence[float]], dim: int) -> None:
        """Take each column's increasing bin edges, at least two, in the unit of the numbers."""
        super().__init__()
        bins = max((len(e) for e in edges), default=2) - 1
        low, width, floor, ceiling = torch.zeros(4, len(edges), bins, dtype=torch.float64)
        width += 1  # columns with fewer bins are padded with bins held at zero by floor = ceiling = 0
        for i, column in enumerate(edges):
            n = len(column) - 1
            exact = torch.tensor(column, dtype=torch.float64)
            low[i, :n], width[i, :n], ceiling[i, :n] = exact[:-1], exact.diff(), 1.0
            floor[i, 0], ceiling[i, n - 1] = -1.0, 2.0
        for name, value in (("low", low), ("width", width), ("floor", floor), ("ceiling", ceiling)):
            self.register_buffer(name, value.float(), persistent=False)
        used = torch.tensor([len(e) - 1 for e in edges]).view(-1, 1, 1)
        self.weight = nn.Parameter(torch.randn(len(edges), bins, dim) / used.clamp(min=1).sqrt())

    def encode(self, x: Tensor) -> Tensor:
        """Fill of every bin, (B, n) -> (B, n, bins): 1 below the number, 0 above it, a share in its own."""
        return ((x.unsqueeze(-1) - self.low) / self.width).clamp(min=self.floor, max=self.ceiling)

    def forward(self, x: Tensor) -> Tensor:
        """Embed scaled numbers (B, n)."""
        return torch.einsum("bnt,ntd->bnd", self.encode(x), self.weight)


class ColumnEncoder(nn.Module):
    """Collated columns (B, N, P) -> one token per column (B, N, dim): its own embedding plus its value's.

    Columns come in the order numbers, categories, booleans, dates. The embeddings of unseen and rare categories start
    at zero: untrained, they say no more than that the column holds something.
    """

    starts: Tensor

    def __init__(
        self, numbers: nn.Module, count: int, levels: Sequence[int], booleans: int, dates: int, dim: int
    ) -> None:
        """Take the number embedding and the shape of the table.

        Args:
            numbers: scaled numbers (B, count) -> (B, count, dim).
            count: columns of numbers.
            levels: levels of each column of categories, without the reserved ids.
            booleans: columns of booleans.
            dates: columns of dates.
            dim: width of a token.
        """
        super().__init__()
        self.numbers, self.count, self.split = numbers, count, count + len(levels) + booleans
        sizes = [RESERVED + n for n in levels] + [2] * booleans
        starts = torch.tensor([0, *sizes]).cumsum(0)
        self.register_buffer("starts", starts[:-1], persistent=False)
        self.names = nn.Parameter(torch.randn(int(starts[-1]), dim) / 2)
        self.dates = nn.Parameter(torch.randn(dates, DATE, dim) / 2)
        self.columns = nn.Parameter(torch.randn(self.split + dates, dim) / 2)
        for start in starts[: len(levels)]:
            self.names.data[start : start + RESERVED] = 0

    def forward(self, x: Masked) -> Masked:
        """Embed every column; masked ones stay masked."""
        values, mask = whole(x, len(self.columns))
        ids = values[:, self.count : self.split, 0].long() + self.starts
        parts = [self.numbers(values[:, : self.count, 0]), functional.embedding(ids, self.names)]
        if len(self.dates):
            parts.append(torch.einsum("bnp,npd->bnd", values[:, self.split :], self.dates))
        return Masked(torch.cat(parts, 1) + self.columns, mask)


def whole(x: Masked, columns: int) -> tuple[Tensor, Tensor]:
    """Values (B, columns, P), zeros behind the mask, and their mask (B, columns).

    Masked columns at the end may have been cut off, as `Masked.split` does, or padded on.
    """
    values = x.values.masked_fill(~x.mask.unsqueeze(-1), 0.0)
    return functional.pad(values, (0, 0, 0, columns))[:, :columns], functional.pad(x.mask, (0, columns))[:, :columns]
