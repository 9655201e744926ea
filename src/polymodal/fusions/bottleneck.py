"""Attention bottlenecks: inputs exchange what matters through a few shared tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from polymodal.nn.fuse import FusionModule, blocks, presence, present_mean
from polymodal.part import Fusion
from polymodal.types import Fused, Masked


class Bottleneck(Fusion):
    """Give each input its own transformer, and let them talk through a few shared tokens only.

    Costs grow with the sum, not the square of the sum, over inputs.

    Source: Nagrani et al. 2021, "Attention Bottlenecks for Multimodal Fusion" (MBT), section 3.2.3:
    [z_i; f_i] = Transformer([z_i; f]; theta_i), then f = mean over i of f_i, layer by layer. Ours averages over the
    inputs present in a row, exchanges from the first layer on, and pools the mean class token where the paper
    averages logits.

    Attributes:
        bottlenecks: number of shared tokens.
        depth: layers per input; the first only writes to the bottlenecks, so there are at least two.
        heads: attention heads; must divide the model width.
        dropout: share dropped in training from attention and layer outputs.
    """

    deep: ClassVar[bool] = True
    type: Literal["bottleneck"] = "bottleneck"
    bottlenecks: int = Field(default=4, ge=1)
    depth: int = Field(default=2, ge=2)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """A transformer per input, joined by bottleneck tokens."""
        return BottleneckFusion(names, dim, self)


class BottleneckFusion(FusionModule):
    """Per input a class token, its tokens and the bottlenecks go through its own layers."""

    def __init__(self, names: Sequence[str], dim: int, part: Bottleneck) -> None:
        super().__init__(names, dim, part.heads)
        self.shared = nn.Parameter(torch.randn(part.bottlenecks, dim) * 0.02)
        self.firsts = nn.Parameter(torch.randn(len(names), dim) * 0.02)
        count = len(names)
        self.layers = nn.ModuleList(blocks(count, dim, part.heads, part.dropout) for _ in range(part.depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: Mapping[str, Masked]) -> Fused:
        """Run the layers side by side with an exchange after each; pool the class tokens of present inputs."""
        tokens = self.arrange(inputs)
        present, batch = presence(tokens), tokens[0].values.shape[0]
        shared = self.shared.expand(batch, -1, -1)
        always = torch.ones_like(present[:, :1])
        own = [torch.cat([f.expand(batch, 1, -1), x.values], 1) for f, x in zip(self.firsts, tokens, strict=True)]
        masks = [torch.cat([always, x.mask, always.expand(-1, shared.shape[1])], 1) for x in tokens]
        for layer in self.layers:
            copies = []
            for i, block in enumerate(cast(nn.ModuleList, layer)):
                y = block(Masked(torch.cat([own[i], shared], 1), masks[i])).values
                own[i], copy = y.split([own[i].shape[1], shared.shape[1]], 1)
                copies.append(copy)
            shared = self.exchange(copies, present)
        pooled = present_mean(torch.stack([x[:, 0] for x in own], 1), present)
        seen = [Masked(y[:, 1:], x.mask, x.at) for x, y in zip(tokens, own, strict=True)]
        return self.fused(self.norm(pooled), seen)

    def exchange(self, copies: Sequence[Tensor], present: Tensor) -> Tensor:
        """Average the present inputs' copies (B, bottlenecks, D) of the shared tokens."""
        mean = present_mean(torch.stack([copy.flatten(1) for copy in copies], 1), present)
        return mean.unflatten(1, (-1, self.dim))
