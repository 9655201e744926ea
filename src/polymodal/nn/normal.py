"""Multivariate normal distributions by the lower Cholesky factor of their covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

FLOOR = 1e-3
"""Smallest diagonal entry of a factor."""


def unpack_factor(raw: Tensor, k: int) -> Tensor:
    """Free numbers -> lower factors: row by row, the diagonal through softplus plus `FLOOR`.

    Args:
        raw: (..., k (k + 1) / 2).
        k: number of variables.

    Returns:
        (..., k, k) with a positive diagonal.
    """
    row, column = torch.tril_indices(k, k, device=raw.device)
    factor = raw.new_zeros(*raw.shape[:-1], k, k)
    factor[..., row, column] = raw
    diagonal = functional.softplus(factor.diagonal(dim1=-2, dim2=-1)) + FLOOR
    return factor.tril(-1) + torch.diag_embed(diagonal)


def pack_factor(factor: Tensor) -> Tensor:
    """Undo `unpack_factor`: (..., K, K) -> (..., K (K + 1) / 2)."""
    above = (factor.diagonal(dim1=-2, dim2=-1) - FLOOR).clamp(min=1e-7)
    diagonal = above + (-torch.expm1(-above)).log()  # inverse of softplus
    row, column = torch.tril_indices(factor.shape[-1], factor.shape[-1], device=factor.device)
    return (factor.tril(-1) + torch.diag_embed(diagonal))[..., row, column]


def lower_factor(columns: Tensor) -> Tensor:
    """Lower Cholesky factor of A A^T for A (B, K, n >= K), by QR of A^T, which cannot fail. (B, K, K)."""
    upper = torch.linalg.qr(columns.mT)[1]
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return (upper * sign[..., None]).mT


def normal_nll(error: Tensor, factor: Tensor, mask: Tensor) -> Tensor:
    """Negative log density of the known variables, whatever the others are: the marginal normal.

    A row's unknown variables are replaced by independent unit normals at their mean, which cost nothing.

    Args:
        error: (B, K) distance from the mean, 0 where unknown.
        factor: (B, K, K) lower Cholesky factors of the covariances.
        mask: (B, K) bool, True where known.

    Returns:
        (B,) in nats.
    """
    partial = ~mask.all(1)
    if partial.any():
        known = torch.diag_embed(mask[partial].to(factor.dtype))
        unit = torch.diag_embed((~mask[partial]).to(factor.dtype))
        factor = factor.index_put((partial,), lower_factor(torch.cat([known @ factor[partial], unit], -1)))
    z = torch.linalg.solve_triangular(factor, error[..., None], upper=False).squeeze(-1)
    log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(1)
    return z.square().sum(1) / 2 + log_scale + mask.sum(1) * (math.log(2 * math.pi) / 2)
