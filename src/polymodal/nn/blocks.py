"""Layers shared by several parts. Plain arguments in, Masked or tensors out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.types import Masked


class Named(nn.Module):
    """Modules by any name, also ones that `torch.nn.ModuleDict` refuses ("type", "a.b")."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(modules)
        for name, module in modules.items():
            self.add_module(self._key(name), module)

    @staticmethod
    def _key(name: str) -> str:
        return "@" + name.replace("%", "%25").replace(".", "%2E")

    def __getitem__(self, name: str) -> Any:
        """Return the module called ``name``."""
        return self._modules[self._key(name)]

    def __iter__(self) -> Iterator[str]:
        """Iterate over names in the order they were given."""
        return iter(self.names)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names and modules in the order they were given."""
        return ((name, self[name]) for name in self.names)


class Positions(nn.Module):
    """Learned linear map of sines and cosines of positions: (B, N, K) -> (B, N, dim).

    Wavelengths run geometrically from half a unit to 512 units, so one layer serves shares of an image,
    seconds and token indices. Starts at zero: positions count only where training finds that they help.

    Source: Vaswani et al. 2017, section 3.5, with a learned map behind it.
    """

    frequencies: Tensor

    def __init__(self, coordinates: int, dim: int, waves: int = 11) -> None:
        super().__init__()
        steps = torch.arange(waves) / (waves - 1)
        self.register_buffer("frequencies", 2 * math.pi * 2.0 * (1 / 1024) ** steps, persistent=False)
        self.project = nn.Linear(2 * waves * coordinates, dim, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, at: Tensor) -> Tensor:
        """Map positions (B, N, K) to (B, N, dim)."""
        angle = (at.unsqueeze(-1) * self.frequencies).flatten(2)
        return self.project(torch.cat([angle.sin(), angle.cos()], -1))


class TokenEncoder(nn.Module):
    """A backbone's tokens (B, T, W) -> (B, T, dim): normalise, drop, project, add positions."""

    def __init__(self, width: int, dim: int, coordinates: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(width, dim)
        self.positions = Positions(coordinates, dim) if coordinates else None

    def forward(self, x: Masked) -> Masked:
        """Encode tokens; mask and positions stay."""
        values = self.project(self.dropout(self.norm(x.values)))
        if self.positions is not None and x.at is not None:
            values = values + self.positions(x.at)
        return Masked(values, x.mask, x.at)


class SummaryEncoder(nn.Module):
    """One fixed vector per sample (B, 1, F) -> one token (B, 1, dim).

    Features are standardised with the training rows' mean and deviation, set once by `adapt`.

    Args:
        width: F.
        dim: D.
        dropout: share of the features, and of the token's, that is dropped in a step.
        normed: bring every token to one length; without it, a token that says little can be short.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, dim: int, dropout: float, normed: bool = True) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.dropout = nn.Dropout(dropout)
        norm = nn.LayerNorm(dim) if normed else nn.Identity()
        self.project = nn.Sequential(nn.Linear(width, dim), nn.GELU(), norm, nn.Dropout(dropout))

    @torch.no_grad()
    def adapt(self, x: Tensor) -> None:
        """Standardise from now on like these vectors (n, F); a constant feature becomes 0."""
        if len(x):
            deviation = x.std(0, correction=0)
            self.mean.copy_(x.mean(0))
            self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0))

    def forward(self, x: Masked) -> Masked:
        """Encode the summaries."""
        return Masked(self.project(self.dropout((x.values - self.mean) * self.scale)), x.mask)


class LockedEncoder(nn.Module):
    """One fixed vector per sample (B, 1, D) -> itself as a token, centred and of length 1; nothing is learned.

    It is centred by the training rows' mean, set once by `adapt`: what all of them share tells none of them apart.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    @torch.no_grad()
    def adapt(self, x: Tensor) -> None:
        """Centre from now on by the mean of these vectors (n, D)."""
        if len(x):
            self.mean.copy_(x.mean(0))

    def forward(self, x: Masked) -> Masked:
        """Centre the summaries and scale them."""
        return Masked(functional.normalize(x.values - self.mean, dim=-1), x.mask)


class Attention(nn.Module):
    """Multi-head attention of queries (B, T, D) on masked keys (B, S, D).

    A row without any real key gets zeros, not NaN.
    """

    def __init__(self, dim: int, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, queries: Tensor, context: Masked) -> Tensor:
        """Attend from queries (B, T, D) to the context's real positions. (B, T, D)."""
        parts = [self.query(queries), *self.key_value(context.values).chunk(2, -1)]
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)
        present = context.present
        mask = context.mask | ~present[:, None]  # an all-masked row would be NaN: let it look, then blank it
        drop = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :], dropout_p=drop)
        return self.out(y.transpose(1, 2).flatten(2)) * present[:, None, None]


class Block(nn.Module):
    """Pre-norm transformer block over masked tokens (B, T, D), which attend to ``context`` or to themselves."""

    def __init__(self, dim: int, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attend = Attention(dim, heads, dropout)
        self.drop = nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Masked, context: Masked | None = None) -> Masked:
        """Update x's tokens; masked positions are kept as zeros."""
        clean = x.values.masked_fill(~x.mask[..., None], 0.0)
        normed = self.norm1(clean)
        seen = Masked(normed, x.mask) if context is None else context
        hidden = clean + self.drop(self.attend(normed, seen))
        hidden = hidden + self.drop(self.mlp(self.norm2(hidden)))
        return Masked(hidden.masked_fill(~x.mask[..., None], 0.0), x.mask, x.at)


class AttentionPool(nn.Module):
    """Softmax-weighted mean of masked tokens by a learned score: (B, T, D) -> (B, D); zeros for absent rows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Masked) -> Tensor:
        """Pool (B, T, D) to (B, D)."""
        clean = x.values.masked_fill(~x.mask[..., None], 0.0)
        score = self.score(clean).squeeze(-1).masked_fill(~x.mask, -1e9)
        return ((score.softmax(-1) * x.mask)[..., None] * clean).sum(1)
