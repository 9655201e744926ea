"""Multivariate normal distributions by the lower Cholesky factor of their covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from polymodal.types import tracing

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
    starts = [i * (i + 1) // 2 for i in range(k)]
    rows = [functional.pad(raw[..., s : s + i + 1], (0, k - i - 1)) for i, s in enumerate(starts)]
    lower = torch.stack(rows, -2)
    return torch.where(_on_diagonal(k, raw.device), _softplus(lower) + FLOOR, lower)


def pack_factor(factor: Tensor) -> Tensor:
    """Undo `unpack_factor`: (..., K, K) -> (..., K (K + 1) / 2)."""
    k = int(factor.shape[-1])
    on = _on_diagonal(k, factor.device)
    above = (torch.where(on, factor, 1.0) - FLOOR).clamp(min=1e-7)
    raw = torch.where(on, above + _rise(above).log(), factor)  # the inverse of softplus
    return torch.cat([raw[..., i, : i + 1] for i in range(k)], -1)


def diagonal(x: Tensor) -> Tensor:
    """What lies on the diagonals of matrices: (..., K, K) -> (..., K)."""
    return torch.stack([x[..., i, i] for i in range(int(x.shape[-1]))], -1)


def on_diagonal(x: Tensor) -> Tensor:
    """Diagonal matrices: (..., K) -> (..., K, K)."""
    return torch.where(_on_diagonal(int(x.shape[-1]), x.device), x[..., None], 0.0)


def lower_factor(columns: Tensor) -> Tensor:
    """Lower Cholesky factor of A A^T for A (B, K, n >= K), by QR of A^T, which cannot fail. (B, K, K)."""
    if tracing():
        return _orthogonalise(columns)
    upper = torch.linalg.qr(columns.mT)[1]
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return (upper * sign[..., None]).mT


def _orthogonalise(columns: Tensor) -> Tensor:
    """What `lower_factor` gives, by modified Gram-Schmidt, since ONNX has no QR."""
    basis, rows = list[Tensor](), list[Tensor]()
    for i in range(int(columns.shape[-2])):
        rest, row = columns[..., i, :], list[Tensor]()
        for unit in basis:
            row.append((rest * unit).sum(-1))
            rest = rest - row[-1][..., None] * unit
        length = rest.square().sum(-1).sqrt()
        basis.append(rest / length.clamp(min=1e-30)[..., None])
        rows.append(functional.pad(torch.stack([*row, length], -1), (0, int(columns.shape[-2]) - i - 1)))
    return torch.stack(rows, -2)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    if tracing():  # ONNX Runtime has it in single precision only
        return x.clamp(min=0) + (1 + (-x.abs()).exp()).log()
    return functional.softplus(x)


def _rise(x: Tensor) -> Tensor:
    """1 - exp(-x), exact also near 0."""
    if tracing():  # ONNX has no expm1
        return (x / 2).tanh() * (1 + (-x).exp())
    return -torch.expm1(-x)


def _on_diagonal(k: int, device: torch.device) -> Tensor:
    """Which entries of a (k, k) matrix lie on its diagonal."""
    return torch.eye(k, dtype=torch.bool, device=device)


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
