"""Multivariate normals by their Cholesky factor."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from polymodal.nn.normal import FLOOR, lower_factor, normal_nll, pack_factor, unpack_factor


@pytest.mark.parametrize("k", [1, 3])
def test_pack_undoes_unpack(k):
    raw = torch.randn(5, 2, k * (k + 1) // 2, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 4
    factor = unpack_factor(raw, k)
    assert (factor.diagonal(dim1=-2, dim2=-1) >= FLOOR).all()
    assert torch.equal(factor, factor.tril())
    torch.testing.assert_close(pack_factor(factor), raw)


def test_lower_factor_is_the_cholesky_factor_also_where_squaring_fails():
    a = torch.randn(6, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    torch.testing.assert_close(lower_factor(a), torch.linalg.cholesky(a @ a.mT))
    hard = torch.tensor([[[1e3, 0.0], [1e3, 1e-3]]])  # in float32 its square is singular
    torch.testing.assert_close(lower_factor(hard), hard, rtol=1e-3, atol=1e-3)
    assert torch.linalg.cholesky_ex(hard @ hard.mT)[1].any()


def test_unknown_variables_leave_the_marginal():
    factor = unpack_factor(torch.randn(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double), 3)
    error, mask = torch.tensor([[0.5, 0.0, -1.0]]).double(), torch.tensor([[True, False, True]])
    covariance = (factor @ factor.mT)[0][[0, 2]][:, [0, 2]]
    expected = -MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(error[0, [0, 2]])
    torch.testing.assert_close(normal_nll(error, factor, mask)[0], expected)
