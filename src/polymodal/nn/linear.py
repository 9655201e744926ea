"""A linear model on fixed summaries of several inputs, any of which may be absent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """Standardise, blank what is absent, map linearly: (B, F) and presence (B, M) -> (B, size).

    Each input also has an indicator of presence, so that the model can tell an absent input from an average one.
    Everything is a buffer: it is fitted apart, never by the optimiser of the model beside it.

    Attributes:
        widths: F of each input, in order; they sum to F.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    owner: Tensor

    def __init__(self, widths: Sequence[int], size: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        features = sum(widths)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("weight", torch.zeros(features + len(widths), size))
        self.register_buffer("bias", torch.zeros(size))
        owner = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(self.widths))
        self.register_buffer("owner", owner, persistent=False)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Raw outputs of a task. (B, size)."""
        return self.design(features, present) @ self.weight + self.bias

    def design(self, features: Tensor, present: Tensor) -> Tensor:
        """Standardised features, 0 where the input is absent, and the indicators. (B, F + M)."""
        standard = (features - self.mean) * self.scale
        standard = standard.masked_fill(~present[:, self.owner], 0.0)
        return torch.cat([standard, present.to(standard.dtype)], 1)

    @torch.no_grad()
    def standardise(self, features: Tensor, present: Tensor) -> None:
        """Take mean and deviation of every feature from the rows whose input is present; a constant one gets no say.

        Features are also divided by the root of their input's width, so that a wide input does not drown a narrow one.
        """
        here = present[:, self.owner]
        count = here.sum(0).clamp(min=1)
        mean = features.masked_fill(~here, 0.0).sum(0) / count
        variance = (features - mean).square().masked_fill(~here, 0.0).sum(0) / count
        self.mean.copy_(mean)
        deviation = variance.sqrt()
        width = torch.tensor(self.widths, device=deviation.device)[self.owner].sqrt()
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / (deviation.clamp(min=1e-6) * width), 0.0))
