"""What embeds the sides of a row in one space."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.nn.align import BIAS, LARGEST
from polymodal.nn.blocks import Named
from polymodal.types import Fused

BESIDE = 0.3
"""Length of what a layer beside a locked input adds to its 1 at the start, about."""


class Scale(nn.Module):
    """Multiply by a learned positive number, 1 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.log_factor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, W)."""
        return x * self.log_factor.exp()


class MatchHead(nn.Module):
    """Embed each side of a row: Fused -> (B, S + 1, W), float32.

    An input's tokens are averaged and mapped linearly; a locked input's, which have width W, are kept as they are, or
    scaled by a learned positive number where the side has other inputs. A side is the sum over those of its inputs
    that a row has, scaled to length 1: an input that knows little can learn to say little. It is NaN where a row has
    none of them. The last row is the learned log scale (the inverse temperature) and bias of the loss, and zeros: they
    travel with the embeddings, so that a loss needs no more.

    Args:
        sides: the inputs of each.
        dim: D, the width of tokens.
        width: W.
        temperature: where the learned one starts.
        biased: whether there is a bias, as the sigmoid loss has. Without one, the temperature stays at or above 0.01.
        locked: inputs that no learned layer maps. Those beside them start small, as corrections.
    """

    def __init__(
        self,
        sides: Sequence[Sequence[str]],
        dim: int,
        width: int,
        temperature: float,
        biased: bool,
        locked: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.sides, self.width = tuple(map(tuple, sides)), width
        self.project = Named({name: self._map(name, side, dim, locked) for side in self.sides for name in side})
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

    def _map(self, name: str, side: Sequence[str], dim: int, locked: Collection[str]) -> nn.Module:
        if name in locked:
            return Scale() if len(side) > 1 else nn.Identity()
        layer = nn.Linear(dim, self.width, bias=False)
        if any(other in locked for other in side):
            nn.init.normal_(layer.weight, std=BESIDE / dim)
        return layer

    def _side(self, side: Sequence[str], fused: Fused) -> Tensor:
        here = [(name, fused.tokens[name]) for name in side if name in fused.tokens]
        if not here:
            return fused.pooled.new_full((len(fused.pooled), self.width), torch.nan, dtype=torch.float32)
        present = torch.stack([x.present for _, x in here], 1)
        mapped = torch.stack([self.project[name](x.mean()).float() for name, x in here], 1)
        whole = mapped.masked_fill(~present[..., None], 0.0).sum(1)
        return functional.normalize(whole, dim=-1).masked_fill(~present.any(1)[:, None], torch.nan)
