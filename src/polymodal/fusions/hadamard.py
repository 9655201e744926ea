"""Element-wise product of the inputs' projections."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polymodal.nn.fuse import PerInput, VectorFusion
from polymodal.part import Fusion


class Hadamard(Fusion):
    """Project each input's vector, multiply element by element, project back: all inputs must agree on a feature.

    With many inputs a product of numbers below one fades: prefer `tensor` or `attention` from five on.

    Source: Kim et al. 2017, "Hadamard Product for Low-rank Bilinear Pooling" (MLB), eq. 3 with the biases of section
    3.1 and the tanh of section 3.2. Ours takes any number of inputs, where an absent one is the factor 1,
    and starts with factors near tanh(1), so that a present input shifts the product before it can flip its sign.

    Attributes:
        rank: length of the projections; the model width where not given.
    """

    type: Literal["hadamard"] = "hadamard"
    rank: int | None = Field(None, ge=1)

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Product of the inputs' projections."""
        return HadamardFusion(names, dim, self.rank or dim)


class HadamardFusion(VectorFusion):
    """Multiplies one projected vector per input."""

    def __init__(self, names: Sequence[str], dim: int, rank: int) -> None:
        super().__init__(names, dim)
        self.factors, self.project = PerInput(len(names), dim, rank), nn.Linear(rank, dim)
        nn.init.normal_(self.factors.bias, 1.0, 0.1)  # pyright: ignore[reportArgumentType]

    def join(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, None]:
        """Multiply (B, M, D) over the present inputs, map to (B, D)."""
        factors = self.factors(vectors).tanh().masked_fill(~present[..., None], 1.0)
        return self.project(functools.reduce(torch.mul, factors.unbind(1))), None
