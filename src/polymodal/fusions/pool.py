"""Pooling: the mean or the maximum over the present inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polymodal.nn.fuse import VectorFusion, present_mean
from polymodal.part import Fusion


class Pool(Fusion):
    """Average the present inputs' vectors, or take the largest of each feature. Has nothing to learn of its own.

    The mean is linear in the inputs: it adds up evidence and cannot learn that one input changes what another means.

    Source: Havaei et al. 2016, "HeMIS", section 2: moments over whichever modalities are present. Ours keeps the first
    moment only, or the maximum in its place.

    Attributes:
        how: mean or maximum over the inputs' vectors, each the mean of its tokens.
    """

    type: Literal["pool"] = "pool"
    how: Literal["mean", "max"] = "mean"

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Mean or maximum over the inputs' vectors."""
        return PoolFusion(names, dim, self.how == "max")


class PoolFusion(VectorFusion):
    """Mean or maximum of one vector per input."""

    def __init__(self, names: Sequence[str], dim: int, largest: bool) -> None:
        super().__init__(names, dim)
        self.largest = largest

    def join(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, None]:
        """Pool (B, M, D) over the present inputs to (B, D); zeros where there is none."""
        if not self.largest:
            return present_mean(vectors, present), None
        lowest = torch.finfo(vectors.dtype).min
        pooled = vectors.masked_fill(~present[..., None], lowest).amax(1)
        return pooled.masked_fill(~present.any(1, keepdim=True), 0.0), None
