"""Joint self-attention over the tokens of every input: deep fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from polymodal.nn.fuse import FusionModule, blank, blocks
from polymodal.part import Fusion
from polymodal.types import Fused, Masked


class Attention(Fusion):
    """Let every token of every input see every other, and a class token gather the result.

    Costs grow with the square of the number of tokens: prefer `bottleneck` for long inputs.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", eqs. 1-4 (class token, pre-norm layers), over
    the tokens of several inputs with an embedding per input as Kiela et al. 2019 (MMBT). Positions are the encoders'.

    Attributes:
        depth: number of layers.
        heads: attention heads; must divide the model width.
        dropout: share dropped in training from attention and layer outputs.
    """

    deep: ClassVar[bool] = True
    type: Literal["attention"] = "attention"
    depth: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Transformer over all tokens."""
        return AttentionFusion(names, dim, self)


class AttentionFusion(FusionModule):
    """A transformer over a class token and all tokens."""

    def __init__(self, names: Sequence[str], dim: int, part: Attention) -> None:
        super().__init__(names, dim, part.heads)
        self.first = nn.Parameter(torch.randn(dim) * 0.02)
        self.kinds = nn.Parameter(torch.randn(len(names), dim) * 0.02)
        self.blocks = blocks(part.depth, dim, part.heads, part.dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: Mapping[str, Masked]) -> Fused:
        """Attend over all tokens; the class token is the pooled vector."""
        tokens = self.arrange(inputs)
        first = self.first.expand(tokens[0].values.shape[0], 1, -1)
        values = torch.cat([first, *(x.values + kind for x, kind in zip(tokens, self.kinds, strict=True))], 1)
        x = Masked(values, torch.cat([torch.ones_like(tokens[0].mask[:, :1]), *(t.mask for t in tokens)], 1))
        for block in self.blocks:
            x = block(x)
        pooled, *parts = self.norm(x.values).split([1, *(t.mask.shape[1] for t in tokens)], 1)
        seen = [blank(Masked(part, t.mask, t.at)) for part, t in zip(parts, tokens, strict=True)]
        return self.fused(pooled.squeeze(1), seen)
