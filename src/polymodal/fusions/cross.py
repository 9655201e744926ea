"""Pairwise cross-attention: each input looks at each other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn

from polymodal.nn.blocks import Block
from polymodal.nn.fuse import FusionModule, Joint, blocks, means, presence
from polymodal.part import Fusion
from polymodal.types import Fused, Masked


class Cross(Fusion):
    """Translate each input into each other by directed cross-attention, then join what each has learned.

    M inputs need M (M - 1) stacks of layers: prefer `attention` or `bottleneck` from five inputs on.

    Source: Tsai et al. 2019, "Multimodal Transformer for Unaligned Multimodal Language Sequences" (MulT), section 3,
    eq. 1, CM(a <- b) = softmax(Q_a K_b^T / sqrt(d)) V_b: directed stacks which always read the source's low-level
    tokens, concatenated per target, then self-attention. Ours maps the concatenation back to the model width before
    self-attention, pools the mean token and not the last one, and leaves convolutions and positions to the encoders.
    A stack without a real source passes on the target alone.

    Attributes:
        depth: layers in each directed stack.
        heads: attention heads; must divide the model width.
        dropout: share dropped in training from attention and layer outputs.
    """

    deep: ClassVar[bool] = True
    type: Literal["cross"] = "cross"
    depth: int = Field(default=1, ge=1)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Cross-attention for every ordered pair of inputs."""
        return CrossFusion(names, dim, self)


class Look(nn.Module):
    """One target's side: a stack of layers for each source, their junction, and self-attention."""

    def __init__(self, sources: int, dim: int, part: Cross) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(blocks(part.depth, dim, part.heads, part.dropout) for _ in range(sources))
        self.merge = nn.Linear(sources * dim, dim) if sources else nn.Identity()
        self.block = Block(dim, part.heads, part.dropout)

    def forward(self, target: Masked, sources: Sequence[Masked]) -> Masked:
        """Update the target's tokens from normalised sources."""
        streams = []
        for stack, source in zip(self.stacks, sources, strict=True):
            x = target
            for block in cast(nn.ModuleList, stack):
                x = block(x, source)
            streams.append(x.values)
        merged = self.merge(torch.cat(streams or [target.values], -1))
        return self.block(Masked(merged, target.mask, target.at))


class CrossFusion(FusionModule):
    """Directed cross-attention between all pairs of inputs."""

    def __init__(self, names: Sequence[str], dim: int, part: Cross) -> None:
        super().__init__(names, dim, part.heads)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in names)
        self.looks = nn.ModuleList(Look(len(names) - 1, dim, part) for _ in names)
        self.joint = Joint(len(names), dim, part.dropout)

    def forward(self, inputs: Mapping[str, Masked]) -> Fused:
        """Let each input see the others, and join the inputs' mean tokens."""
        tokens = self.arrange(inputs)
        normed = [Masked(norm(x.values), x.mask) for norm, x in zip(self.norms, tokens, strict=True)]
        seen = [look(tokens[i], normed[:i] + normed[i + 1 :]) for i, look in enumerate(self.looks)]
        return self.fused(self.joint(means(seen), presence(seen)), seen)
