import pytest
import torch

from polymodal.nn.project import Projector
from polymodal.types import Masked

KINDS = {"linear": 0, "mlp": 0, "resampler": 3, "shuffle": 2}


def grid(rows=3, height=4, width=4, dim=8, seed=0):
    torch.manual_seed(seed)
    at = torch.cartesian_prod(torch.arange(height) / height, torch.arange(width) / width)
    real = torch.ones(rows, height * width, dtype=torch.bool)
    return Masked(torch.randn(rows, height * width, dim), real, at.expand(rows, -1, -1))


def projector(kind, dim=8, width=12, norm=0.5):
    torch.manual_seed(1)
    return Projector(kind, dim, width, KINDS[kind], norm).eval()


@pytest.mark.parametrize(("kind", "count"), [("linear", 16), ("mlp", 16), ("resampler", 3), ("shuffle", 4)])
def test_a_projector_gives_so_many_soft_tokens_as_long_as_words(kind, count):
    y = projector(kind)(grid())
    assert y.values.shape == (3, count, 12)
    assert y.mask.all()
    torch.testing.assert_close(y.values.norm(dim=2).mean(), torch.tensor(0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_absent_rows_stay_absent_and_disturb_nobody(kind):
    net, x = projector(kind), grid()
    gone = x.without(torch.tensor([False, True, False]))
    y, whole = net(gone), net(x)
    assert y.present.tolist() == [True, False, True]
    assert y.values.isfinite().all()
    torch.testing.assert_close(y.values[[0, 2]], whole.values[[0, 2]])
    assert not net(x.without(torch.ones(3, dtype=torch.bool))).present.any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_behind_the_mask_is_not_read(kind):
    net, x = projector(kind), grid()
    mask = x.mask.clone()
    mask[:, 12:] = False
    dirty = Masked(x.values.masked_fill(~mask[..., None], 9.0), mask, x.at)
    clean, got = net(Masked(x.values, mask, x.at)), net(dirty)
    assert torch.equal(clean.mask, got.mask)
    torch.testing.assert_close(clean.values[clean.mask], got.values[got.mask])


def test_shuffle_joins_neighbours_of_an_image_also_where_they_do_not_come_out_even():
    net = Projector("shuffle", 1, 12, 2, 1.0).eval()
    seen = []
    net.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net.enter = torch.nn.Identity()
    x = grid(1, 3, 3, 1)
    net(Masked(torch.arange(1.0, 10.0).view(1, 9, 1), x.mask, x.at))
    assert seen[0][0].tolist() == [[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]


def test_shuffle_joins_what_follows_one_another_where_there_is_no_grid():
    net = projector("shuffle")
    x = grid(2)
    y = net(Masked(x.values[:, :10], x.mask[:, :10]))
    assert y.mask.shape == (2, 3)
    mask = x.mask[:, :10].clone()
    mask[0, 4:] = False
    assert net(Masked(x.values[:, :10], mask)).mask.tolist() == [[True, False, False], [True, True, True]]


def test_the_resampler_listens_to_every_token():
    net, x = projector("resampler"), grid(1).values.requires_grad_()
    net(Masked(x, torch.ones(1, 16, dtype=torch.bool))).values.square().sum().backward()
    assert (x.grad.abs().sum(2) > 0).all()
