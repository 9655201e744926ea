"""Product of experts: each input says what it believes and how sure it is, and the beliefs are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polymodal.nn.fuse import PerInput, VectorFusion, present_softmax
from polymodal.part import Fusion


class Experts(Fusion):
    """Weigh the inputs' beliefs by their certainty, feature by feature, with a prior that knows nothing.

    Each input gives a Gaussian over the fused features, the prior N(0, I) one more, and the fused vector is the mean
    of their product. An absent input leaves the product; without any input the prior is left, and the vector is zero.
    An input's certainty depends on that input alone: no other input can take it back, as in `gated`.

    Source: Hinton 2002, "Training Products of Experts by Minimizing Contrastive Divergence", equation 1, for Gaussian
    experts as Wu and Goodman 2018 (MVAE, arXiv:1802.05335), section 2.2: mean = sum of mean_m * precision_m / sum of
    precision_m, with the prior expert among them. The paper samples from the product and trains with an evidence lower
    bound; ours takes the mean and trains with labels. `Fused.weights` is each input's share of what the inputs
    add to the precision, the mean over features; the prior's share is left out.
    """

    type: Literal["experts"] = "experts"

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Product of one Gaussian per input and the prior."""
        return ExpertsFusion(names, dim)


class ExpertsFusion(VectorFusion):
    """Multiplies one Gaussian per input, and the prior."""

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__(names, dim)
        self.expert, self.log_variance = PerInput(len(names), dim, dim), PerInput(len(names), dim, dim)

    def join(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Take the mean (B, D) of the product of the present inputs' Gaussians, with their shares (B, M)."""
        log_precision, here = -self.log_variance(vectors), present[..., None]
        prior = torch.zeros_like(log_precision[:, :1])  # the log precision of N(0, I)
        # Precisions over their sum are the softmax of their logarithms, which cannot overflow.
        shares = present_softmax(
            torch.cat([prior, log_precision], 1), torch.cat([torch.ones_like(here[:, :1]), here], 1)
        )
        return (shares[:, 1:] * self.expert(vectors)).sum(1), present_softmax(log_precision, here).mean(-1)
