"""What embeds the sides of a row in one space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.nn.align import BIAS, LARGEST
from polymodal.nn.blocks import Named
from polymodal.types import Fused


class MatchHead(nn.Module):
    """Embed each side of a row: Fused -> (B, S + 1, W), float32.

    An input's tokens are averaged and mapped linearly. A side is the sum over those of its inputs that a row has,
    scaled to length 1: an input that knows little can learn to say little. It is NaN where a row has none of them.
    The last row is the learned log scale (the inverse temperature) and bias of the loss, and zeros: they travel with
    the embeddings, so that a loss needs no more.

    Args:
        sides: the inputs of each.
        dim: D, the width of tokens.
        width: W.
        temperature: where the learned one starts.
        biased: whether there is a bias, as the sigmoid loss has. Without one, the temperature stays at or above 0.01.
    """

    def __init__(self, sides: Sequence[Sequence[str]], dim: int, width: int, temperature: float, biased: bool) -> None:
        super().__init__()
        self.sides, self.width = tuple(map(tuple, sides)), width
        self.project = Named({name: nn.Linear(dim, width, bias=False) for side in self.sides for name in side})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(BIAS)) if biased else None

    def forward(self, fused: Fused) -> Tensor:
        """Embed the sides; an input that is left out is absent in every row."""
        if self.bias is None and self.training:
            with torch.no_grad():
                self.log_scale.clamp_(max=LARGEST)  # a clamp in the formula would stop the gradient for good
        rows = [self._side(side, fused) for side in self.sides]
        bias = torch.zeros_like(self.log_scale) if self.bias is None else self.bias
        learned = functional.pad(torch.stack([self.log_scale, bias]).float(), (0, self.width - 2))
        return torch.stack([*rows, learned + torch.zeros_like(rows[0])], 1)

    def _side(self, side: Sequence[str], fused: Fused) -> Tensor:
        here = [(name, fused.tokens[name]) for name in side if name in fused.tokens]
        if not here:
            return fused.pooled.new_full((len(fused.pooled), self.width), torch.nan, dtype=torch.float32)
        present = torch.stack([x.present for _, x in here], 1)
        mapped = torch.stack([self.project[name](x.mean()).float() for name, x in here], 1)
        whole = mapped.masked_fill(~present[..., None], 0.0).sum(1)
        return functional.normalize(whole, dim=-1).masked_fill(~present.any(1)[:, None], torch.nan)
