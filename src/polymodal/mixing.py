"""What training does to a batch: rows mixed with others, inputs hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polymodal.types import Batch


@dataclass(frozen=True, slots=True)
class Mixing:
    """Which rows of a batch are mixed, and how much of each row is its own.

    Attributes:
        partner: (B,) long, the other row of each row.
        share: (B,) float in 0..1, the row's own share; the partner has the rest.
    """

    partner: Tensor
    share: Tensor

    def __post_init__(self) -> None:
        """Reject partners without shares."""
        if self.partner.ndim != 1 or self.partner.shape != self.share.shape:
            raise ValueError(
                f"partner and share must both be of shape (B,), "
                f"got {tuple(self.partner.shape)} and {tuple(self.share.shape)}."
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Mix the rows of (B, D)."""
        share = self.share[:, None].to(x.dtype)
        return share * x + (1 - share) * x[self.partner]


def hide(batch: Batch, drop: Tensor) -> Batch:
    """Hide inputs of rows, but never the last one of a row: such a row keeps everything.

    Args:
        batch: B rows of M inputs.
        drop: (M, B) bool, what to hide.

    Source: ModDrop, Neverova et al. 2015 (arXiv:1501.00102), section 3.3; the exception is ours.
    """
    present = torch.stack([x.present for x in batch.inputs.values()])
    drop = drop.to(present.device) & present
    drop = drop & (present & ~drop).any(0)
    inputs = {name: x.without(gone) for gone, (name, x) in zip(drop, batch.inputs.items(), strict=True)}
    return Batch(inputs, batch.targets)
