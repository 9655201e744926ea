"""Variation of encoded features in training."""

from __future__ import annotations

import torch

from polymodal.types import Masked


def vary(x: Masked, noise: float, extrapolate: float) -> Masked:
    """Move every row's features by noise and away from another row.

    A row's context vector c is the mean of its real tokens. All its tokens are moved alike, so that their mean becomes
    c' = c + noise * s * e + extrapolate * (c - c_j), where e is standard normal, s the deviation of each feature of c
    over the rows that have this input, and j another such row, drawn evenly. Of a batch with one such row nothing
    is moved.

    Args:
        x: (B, T, D), any rows absent; they stay as they are, and no row sees them.
        noise: standard deviation of the noise, in units of s.
        extrapolate: factor of the way from the other row.

    Returns:
        (B, T, D), mask and positions kept. Randomness is torch's own, of the device of ``x``.

    Source: DeVries and Taylor 2017, "Dataset Augmentation in Feature Space" (arXiv:1702.05538), section 3, equations 1
    (noise) and 3 (extrapolation). The paper takes one of the two, features of a fixed autoencoder, and for c_j a
    near neighbour of the same class. Ours takes them together, learned features (no gradient passes through s), and any
    row as c_j, since a row may have several labels or none: away from another class the label holds all the more.
    """
    rows = x.present
    count = int(rows.sum())
    if count < 2:
        return x
    context = x.mean()[rows].float()
    change = torch.zeros_like(context)
    if noise:
        deviation = context.detach().std(0, correction=0)
        change = change + noise * deviation * torch.randn_like(context)
    if extrapolate:
        step = torch.randint(1, count, (count,), device=context.device)
        other = (torch.arange(count, device=context.device) + step) % count
        change = change + extrapolate * (context - context[other])
    moved = x.values.new_zeros(len(x), 1, x.values.shape[-1])
    moved[rows, 0] = change.to(moved.dtype)
    return Masked((x.values + moved).masked_fill(~x.mask[..., None], 0.0), x.mask, x.at)
