"""Shared layers: padding counts nothing, absent rows are finite, attention is attention."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from polymodal.nn.blocks import Attention, AttentionPool, Block, Named, Positions, TokenEncoder
from polymodal.types import Masked

D = 16


def tokens(rows=4, length=5, seed=0):
    """Row 1 is absent; the others have at least one token anywhere."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, length, generator=generator) < 0.6
    mask[torch.arange(rows), torch.arange(rows) % length] = True
    mask[1] = False
    return Masked(torch.randn(rows, length, D, generator=generator), mask, torch.rand(rows, length, 2))


def padded(x: Masked, more=3):
    junk = torch.full((len(x), more, D), 1e6)
    at = None if x.at is None else torch.cat([x.at, torch.full((len(x), more, x.at.shape[2]), 7.0)], 1)
    return Masked(torch.cat([x.values, junk], 1), functional.pad(x.mask, (0, more)), at)


def stirred(net):
    net.eval()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def test_attention_equals_torch():
    ours, theirs = Attention(D, 4).eval(), nn.MultiheadAttention(D, 4, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = tokens()
    x = x[x.present]
    queries = torch.randn(len(x), 3, D)
    expected, _ = theirs(queries, x.values, x.values, key_padding_mask=~x.mask)
    torch.testing.assert_close(ours(queries, x), expected, atol=1e-6, rtol=1e-5)


def test_block_equals_torchs_pre_norm_layer():
    ours = Block(D, 4).eval()
    theirs = nn.TransformerEncoderLayer(D, 4, 4 * D, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([ours.attend.query.weight, ours.attend.key_value.weight]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([ours.attend.query.bias, ours.attend.key_value.bias]))
        theirs.self_attn.out_proj.load_state_dict(ours.attend.out.state_dict())
        theirs.norm1.load_state_dict(ours.norm1.state_dict())
        theirs.norm2.load_state_dict(ours.norm2.state_dict())
        theirs.linear1.load_state_dict(ours.mlp[0].state_dict())
        theirs.linear2.load_state_dict(ours.mlp[2].state_dict())
    x = torch.randn(3, 5, D)
    ours_y = ours(Masked(x, torch.ones(3, 5, dtype=torch.bool))).values
    torch.testing.assert_close(ours_y, theirs(x), atol=1e-5, rtol=1e-5)


def test_attention_gives_zeros_and_finite_gradients_without_any_key():
    net, x = Attention(D), tokens()
    queries = torch.randn(4, 2, D, requires_grad=True)
    y = net(queries, x)
    assert not y[1].any()
    y.sum().backward()
    assert queries.grad is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (queries, *net.parameters()))


def test_attention_sees_no_masked_key():
    net, x = Attention(D).eval(), tokens()
    queries = torch.randn(4, 2, D)
    torch.testing.assert_close(net(queries, padded(x)), net(queries, x))


def test_attention_drops_in_training_only():
    net, x = Attention(D, dropout=0.5), tokens()
    queries = torch.randn(4, 2, D)
    assert not torch.equal(net.train()(queries, x), net.train()(queries, x))
    assert torch.equal(net.eval()(queries, x), net.eval()(queries, x))


def test_block_ignores_padding_and_keeps_zeros_mask_and_positions():
    net, x = stirred(Block(D, dropout=0.3)), tokens()
    y, wide = net(x), net(padded(x))
    torch.testing.assert_close(wide.values[:, :5], y.values)
    assert not y.values[~y.mask].any()
    assert not wide.values[:, 5:].any()
    assert torch.equal(y.mask, x.mask)
    assert y.at is x.at


def test_block_looks_at_its_context():
    net, x, context = stirred(Block(D)), tokens(), tokens(seed=1)
    other = Masked(-context.values, context.mask)
    assert not torch.allclose(net(x, context).values, net(x, other).values)
    torch.testing.assert_close(net(x, padded(context)).values, net(x, context).values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_block_never_reads_what_lies_behind_the_mask(bad):
    net, x = stirred(Block(D)), tokens()
    junk = Masked(x.values.masked_fill(~x.mask[..., None], bad), x.mask)
    assert torch.equal(net(junk).values, net(x).values)


def test_attention_pool_is_a_weighted_mean():
    net, x = stirred(AttentionPool(D)), tokens()
    pooled = net(x)
    assert not pooled[1].any()
    for i in (0, 2, 3):
        real = x.values[i][x.mask[i]]
        weights = net.score(real).squeeze(-1).softmax(0)
        torch.testing.assert_close(pooled[i], weights @ real)
    torch.testing.assert_close(net(padded(x)), pooled)


def test_positions_start_at_zero_and_tell_places_apart():
    net, at = Positions(2, D), torch.rand(3, 4, 2)
    assert not net(at).any()
    net = stirred(net)
    assert net(at).shape == (3, 4, D)
    assert not torch.allclose(net(at), net(at + 0.1))
    torch.testing.assert_close(1 / (net.frequencies / (2 * torch.pi)), 0.5 * 1024 ** (torch.arange(11) / 10))


def test_token_encoder_keeps_the_mask_and_places_tokens():
    net, x = stirred(TokenEncoder(D, 8, coordinates=2)), tokens()
    y = net(x)
    assert y.values.shape == (4, 5, 8)
    assert torch.equal(y.mask, x.mask)
    assert x.at is not None
    assert not torch.allclose(net(Masked(x.values, x.mask, x.at + 0.3)).values, y.values)
    assert not torch.equal(net.train()(x).values, net.train()(x).values)


@pytest.mark.parametrize("name", ["type", "a.b", "keys", "forward", "a%2Eb", "", "names", "training", "ключ", "a/b"])
def test_named_takes_any_name(name):
    net = Named({name: nn.Linear(1, 2), "other": nn.Linear(1, 3)})
    assert net[name].out_features == 2
    assert list(net) == [name, "other"] == [n for n, _ in net.items()]
    again = Named({name: nn.Linear(1, 2), "other": nn.Linear(1, 3)})
    again.load_state_dict(net.state_dict())
    assert torch.equal(again[name].weight, net[name].weight)
    assert len(list(net.parameters())) == 4


def test_names_that_look_alike_stay_apart():
    names = ["a.b", "a%2Eb", "a%b", "a%25b"]
    net = Named({name: nn.Linear(1, i + 1) for i, name in enumerate(names)})
    assert [net[name].out_features for name in names] == [1, 2, 3, 4]
