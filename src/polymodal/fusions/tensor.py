"""Low-rank tensor fusion: every product of features of different inputs, at a price linear in their number."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polymodal.nn.fuse import PerInput, VectorFusion
from polymodal.part import Fusion


class TensorProduct(Fusion):
    """A linear map of the outer product of all [vector; 1], whose weight tensor has low rank.

    The constant 1 keeps every input's own features and every product of fewer inputs among the terms.

    Source: Liu et al. 2018, "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors" (LMF), section 3.2:
    h = sum over r of the element-wise product over inputs of W_m^(r) [z_m; 1]. An absent input is [0; 1]: it leaves a
    learned constant in each product. The weight of the 1 starts near 1, so that products of many inputs do not fade.

    Attributes:
        rank: number of rank-one terms of the weight tensor.
    """

    type: Literal["tensor"] = "tensor"
    rank: int = Field(default=4, ge=1)

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Low-rank map of the inputs' outer product."""
        return TensorFusion(names, dim, self.rank)


class TensorFusion(VectorFusion):
    """Sum over ranks of the product over inputs; the bias is the weight of the appended 1."""

    def __init__(self, names: Sequence[str], dim: int, rank: int) -> None:
        super().__init__(names, dim)
        self.factors = PerInput(len(names), dim, rank * dim)
        nn.init.normal_(self.factors.bias, 1.0, 0.1)  # pyright: ignore[reportArgumentType]

    def join(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, None]:
        """Contract (B, M, D) with the low-rank tensor to (B, D). Absent vectors are zeros: only the 1 is left."""
        factors = self.factors(vectors).unflatten(-1, (-1, self.dim))
        return functools.reduce(torch.mul, factors.unbind(1)).sum(1), None
