"""Voting: late fusion. Each input decides alone, and the decisions are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from polymodal.nn.fuse import FusionModule, means, presence, present_mean, present_softmax
from polymodal.part import Fusion
from polymodal.types import Fused, Masked


class Vote(Fusion):
    """Average the predictions of one head per input, weighted by what each proved to be worth on validation data.

    Inputs are never seen together: evidence adds up, but an interaction of inputs cannot be learned. The model mixes
    the heads' predictions by `Fused.weights`; the module here only knows the weights.

    Source: Kittler et al. 1998, "On Combining Classifiers", the sum rule over the classifiers' posteriors.
    Ours weighs the classifiers and renormalises over those whose input is present.
    """

    late: ClassVar[bool] = True
    type: Literal["vote"] = "vote"

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Weights over inputs; equal until `VoteFusion.set_weights`."""
        return VoteFusion(names, dim)


class VoteFusion(FusionModule):
    """Tokens as they came, the mean of the present inputs, and each input's weight."""

    log_weights: Tensor

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__(names, dim)
        self.register_buffer("log_weights", torch.zeros(len(names)))

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Weigh the inputs from now on.

        Args:
            weights: (M,) in the order of `names`, not negative, at least one above zero; scaled to sum to 1. An input
                of weight zero is heard only where no other is present.

        Raises:
            ValueError: the weights are not such.
        """
        weights = weights.detach().to(self.log_weights)
        if weights.shape != self.log_weights.shape or not bool(weights.isfinite().all() and (weights >= 0).all()):
            raise ValueError(f"weights must be {len(self.names)} numbers, none negative, got {weights.tolist()}.")
        if not bool(weights.sum() > 0):
            raise ValueError(f"weights must not all be zero, got {weights.tolist()}.")
        # The floor is finite, so that an input of weight zero still answers where it is alone.
        logs = (weights / weights.sum()).clamp(min=1e-9).log()
        self.log_weights.copy_(torch.stack([logs[self.names.index(name)] for name in self.order]))

    def forward(self, inputs: Mapping[str, Masked]) -> Fused:
        """Pass tokens on, with the weights (B, M) of the present inputs."""
        tokens = self.arrange(inputs)
        present = presence(tokens)
        weights = present_softmax(self.log_weights.expand_as(present), present)
        return self.fused(present_mean(means(tokens), present), tokens, weights)
