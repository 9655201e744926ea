"""Variation of encoded features: its size and direction, its masks, and that only training sees it."""

import pytest
import torch

import toys
from polymodal.model import Model
from polymodal.nn.manifold import vary
from polymodal.types import Masked

DIM = 6


def close(x, y, tolerance=1e-5):
    torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def tokens(rows=8, length=3, absent=(2, 5)):
    """One to three real tokens at places; some rows absent."""
    torch.manual_seed(0)
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1))
    mask[list(absent)] = False
    return Masked(torch.randn(rows, length, DIM), mask, torch.rand(rows, length, 2))


def varied(x, noise=0.0, extrapolate=0.0, seed=1):
    torch.manual_seed(seed)
    return vary(x, noise, extrapolate)


both = pytest.mark.parametrize("options", [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])


@both
def test_the_same_seed_gives_the_same_features_and_another_one_others(options):
    x = tokens()
    assert varied(x, *options).values.equal(varied(x, *options).values)
    assert not varied(x, *options).values.equal(varied(x, *options, seed=2).values)


@both
def test_masks_and_positions_stay_and_absent_rows_are_neither_moved_nor_seen(options):
    x = tokens()
    y = varied(x, *options)
    assert y.mask is x.mask
    assert y.at is x.at
    assert (y.values[~x.mask] == 0).all()
    assert ((y.mean() - x.mean())[x.present] != 0).all()
    assert (y.mean()[~x.present] == 0).all()
    for junk in (float("nan"), 1e9):
        dirty = Masked(x.values.masked_fill(~x.mask[..., None], junk), x.mask, x.at)
        assert varied(dirty, *options).values.equal(y.values)
    close(varied(x[x.present], *options).values, y.values[x.present])


@both
def test_all_tokens_of_a_row_move_alike_and_padding_changes_nothing(options):
    x = tokens()
    y = varied(x, *options)
    change = (y.values - x.values).masked_fill(~x.mask[..., None], 0.0)
    close(change, ((y.mean() - x.mean())[:, None] * x.mask[..., None]))
    wide = Masked(torch.cat([x.values, torch.ones(8, 2, DIM)], 1), torch.cat([x.mask, x.mask[:, :2] & False], 1))
    close(varied(wide, *options).values[:, :3], y.values)


def test_noise_is_normal_in_units_of_each_features_deviation():
    torch.manual_seed(0)
    scale = torch.tensor([0.01, 1.0, 100.0, 1.0, 1.0, 0.0])
    x = Masked(torch.randn(4000, 1, DIM) * scale + 7, torch.ones(4000, 1, dtype=torch.bool))
    moved = (varied(x, noise=0.3).values - x.values)[:, 0]
    deviation = x.values[:, 0].std(0, correction=0)
    close(moved[:, :5].std(0) / deviation[:5], torch.full((5,), 0.3), 2e-2)
    assert (moved[:, :5].mean(0).abs() / deviation[:5] < 0.02).all()
    assert (moved[:, 5] == 0).all()  # a constant feature stays constant
    unit = moved[:, 1] / deviation[1] / 0.3
    assert abs(unit.abs().lt(1).float().mean().item() - 0.6827) < 0.02


def test_extrapolation_leads_away_from_another_row():
    x = tokens()
    before, after = x.mean(), varied(x, extrapolate=0.5).mean()
    rows = x.present.nonzero()[:, 0].tolist()
    partners = []
    for i in rows:
        other = before[i] - (after[i] - before[i]) / 0.5  # c' = c + 0.5 (c - c_j), solved for c_j
        (j,) = [j for j in rows if torch.allclose(other, before[j], atol=1e-4)]
        assert j != i
        partners.append(j)
    drawn = torch.stack([varied(x, extrapolate=1.0, seed=s).mean()[0] for s in range(300)])
    each = [(2 * before[0] - drawn - before[j]).abs().amax(1).lt(1e-4).sum().item() for j in rows[1:]]
    assert sum(each) == 300
    assert min(each) > 30  # evenly: 60 each


def test_both_together_are_their_sum_and_each_counts():
    x = tokens()
    base = x.mean()[x.present]
    torch.manual_seed(1)
    noise = torch.randn_like(base)
    step = torch.randint(1, len(base), (len(base),))
    other = base[(torch.arange(len(base)) + step) % len(base)]
    want = base + 0.2 * base.std(0, correction=0) * noise + 0.7 * (base - other)
    close(varied(x, 0.2, 0.7).mean()[x.present], want)


@pytest.mark.parametrize("absent", [range(8), range(1, 8)])
def test_a_row_without_company_is_not_moved(absent):
    x = tokens(absent=absent)
    assert varied(x, 0.5, 0.5) is x


def test_gradients_pass_through_the_features_but_not_their_deviation():
    x = tokens()
    leaf = x.values.clone().requires_grad_()
    varied(Masked(leaf, x.mask), noise=5.0).values.sum().backward()
    assert leaf.grad is not None
    close(leaf.grad, x.mask[..., None].expand_as(leaf).float())


def rows(count=6):
    torch.manual_seed(0)
    return {n: Masked(torch.randn(count, 2, 2), torch.ones(count, 2, dtype=torch.bool)) for n in "ab"}


def build(fusion=None, **manifold):
    torch.manual_seed(0)
    settings = {"training": {"manifold": manifold or None}}
    return Model(toys.spec(**settings, **({} if fusion is None else {"fusion": fusion})))


@pytest.mark.parametrize("option", [{"noise": 0.5}, {"extrapolate": 0.5}])
@pytest.mark.parametrize("fusion", [None, "vote"])
def test_the_model_varies_features_in_training_only(option, fusion):
    plain, net, inputs = build(fusion), build(fusion, **option), rows()
    assert toys.same(plain, net)
    want = plain.train()(inputs)
    assert want.decoded["y"].equal(plain(inputs).decoded["y"])
    torch.manual_seed(3)
    got = net.train()(inputs)
    for name in "ab":
        torch.testing.assert_close(got.encoded[name].mask, want.encoded[name].mask)
        assert not torch.allclose(got.encoded[name].values, want.encoded[name].values)
        assert not torch.allclose(got.single["y"][name], want.single["y"][name])
    assert not torch.allclose(got.decoded["y"], want.decoded["y"])
    torch.manual_seed(3)
    assert net(inputs).decoded["y"].equal(got.decoded["y"])
    state = torch.get_rng_state()
    assert net.eval()(inputs).decoded["y"].equal(plain.eval()(inputs).decoded["y"])
    assert torch.get_rng_state().equal(state)
