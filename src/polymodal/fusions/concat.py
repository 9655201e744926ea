"""Concatenation: each input's vector side by side, then a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polymodal.nn.blocks import AttentionPool
from polymodal.nn.fuse import Joint, VectorFusion
from polymodal.part import Fusion
from polymodal.types import Masked


class Concat(Fusion):
    """Pool each input, concatenate, and let a perceptron find any interaction. The sturdy default.

    Source: Ngiam et al. 2011, "Multimodal Deep Learning", section 3: a shared layer over concatenated
    representations. Ours is trained with labels, normalises each vector, and has a learned vector for an absent input
    where the paper feeds zeros.

    Attributes:
        pool: how an input's tokens become its vector: their mean, or a mean weighted by a learned score.
        dropout: share of hidden units dropped in training.
    """

    type: Literal["concat"] = "concat"
    pool: Literal["mean", "attention"] = "mean"
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Perceptron over the inputs' concatenated vectors."""
        return ConcatFusion(names, dim, self.pool == "attention", self.dropout)


class ConcatFusion(VectorFusion):
    """Concatenates one vector per input."""

    def __init__(self, names: Sequence[str], dim: int, attend: bool, dropout: float) -> None:
        super().__init__(names, dim)
        self.pools = nn.ModuleList(AttentionPool(dim) for _ in names) if attend else None
        self.joint = Joint(len(names), dim, dropout)

    def vectors(self, tokens: Sequence[Masked]) -> Tensor:
        """One vector per input, zeros where absent. (B, M, D)."""
        if self.pools is None:
            return super().vectors(tokens)
        return torch.stack([pool(x) for pool, x in zip(self.pools, tokens, strict=True)], 1)

    def join(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, None]:
        """Concatenate (B, M, D), map to (B, D)."""
        return self.joint(vectors, present), None
