"""Weighted sum: one learned weight per input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polymodal.nn.fuse import VectorFusion, normalise, present_softmax
from polymodal.part import Fusion


class Weighted(Fusion):
    """Add up the present inputs' vectors with learned weights, which say what each input is worth.

    Linear in the normalised vectors, as `pool`: no interaction of inputs.

    Source: Peters et al. 2018, "Deep contextualized word representations", eq. 1: softmax-normalised scalar weights
    over layer-normalised vectors. Ours weighs inputs, not layers, renormalises over the present ones in each row,
    and has no common factor, which the head has already.
    """

    type: Literal["weighted"] = "weighted"

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Weighted sum of the inputs' vectors."""
        return WeightedFusion(names, dim)


class WeightedFusion(VectorFusion):
    """Weighted mean of one normalised vector per input."""

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__(names, dim)
        self.scores = nn.Parameter(torch.zeros(len(names)))

    def join(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh (B, M, D) to (B, D), with the weights (B, M)."""
        weights = present_softmax(self.scores.expand_as(present), present)
        return (weights[..., None] * normalise(vectors)).sum(1), weights
