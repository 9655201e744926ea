"""The linear model: standardised by what is present, blank where absent."""

import torch

from polymodal.nn.linear import Linear


def data(rows=50):
    features = torch.randn(rows, 5) * torch.tensor([1.0, 10, 0, 3, 1]) + 4
    present = torch.rand(rows, 2) < 0.7
    return features, present


def test_standardise_takes_mean_and_deviation_of_present_rows():
    net, (features, present) = Linear([3, 2], 4), data()
    net.standardise(features, present)
    rows = present[:, 0]
    design = net.design(features, present)
    assert design.shape == (50, 7)
    torch.testing.assert_close(design[rows, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(design[rows, :2].std(0, correction=0), torch.full((2,), 3**-0.5), atol=1e-5, rtol=0)
    assert not design[:, 2].any(), "a constant feature says nothing"


def test_absent_inputs_are_blank_and_indicated_whatever_they_hold():
    net, (features, present) = Linear([3, 2], 4), data()
    net.standardise(features, present)
    net.weight.normal_()
    owner = torch.tensor([0, 0, 0, 1, 1])
    junk = features.masked_fill(~present[:, owner], 1e9)
    assert torch.equal(net(junk, present), net(features, present))
    again = Linear([3, 2], 4)
    again.standardise(junk, present)
    torch.testing.assert_close(again.scale, net.scale)
    assert torch.equal(net.design(features, present)[:, 5:], present.float())


def test_nan_where_absent_reaches_nothing():
    net, (features, present) = Linear([3, 2], 4), data()
    junk = features.masked_fill(~present[:, torch.tensor([0, 0, 0, 1, 1])], float("nan"))
    net.standardise(junk, present)
    net.weight.normal_()
    assert net(junk, present).isfinite().all()


def test_an_input_that_is_never_present_is_harmless():
    net, (features, present) = Linear([3, 2], 4), data()
    present[:, 1] = False
    net.standardise(features, present)
    assert net.mean.isfinite().all()
    assert net.scale.isfinite().all()
    assert net.design(features, torch.ones(50, 2, dtype=torch.bool)).isfinite().all()


def test_everything_is_a_buffer_and_answers_are_affine():
    net = Linear([3, 2], 4)
    assert not list(net.parameters())
    assert {"mean", "scale", "weight", "bias"} == set(net.state_dict())
    net.weight.normal_(), net.bias.normal_()
    features, present = torch.randn(3, 5), torch.ones(3, 2, dtype=torch.bool)
    expected = torch.cat([features, torch.ones(3, 2)], 1) @ net.weight + net.bias
    torch.testing.assert_close(net(features, present), expected)
