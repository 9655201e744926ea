"""Low-rank changes and thawed layers: identity at the start, exact when merged, never in the cached network."""

import copy

import pytest
import torch
from torch import nn

from polymodal.errors import BundleError, SpecError
from polymodal.nn.adapt import DEPTH, METHODS, Adapter, LowRank, Thawed, adapted, blocks, frozen_copy, upper
from polymodal.nn.backbone import Backbone
from polymodal.nn.optimise import AdamW
from polymodal.nn.weights import PACKAGED
from polymodal.types import Masked


class Convolutional(Backbone):
    """Images (B, 1, 3, 8, 8) -> four tokens: plain, grouped and pointwise convolutions, norms, a linear end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        stem = nn.Conv2d(3, 4, 3, padding=1)
        body = [
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 6, 1),
            nn.Conv2d(6, 6, 3, 2, 1),
        ]
        end = [nn.AdaptiveAvgPool2d(2), nn.Flatten(2)]
        self.net = nn.Sequential(
            stem, nn.Sequential(*body, nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)), *end, nn.Linear(4, 4)
        )
        self.width, self.digest = 6, "convolutional"
        self.requires_grad_(False).eval()

    def tensors(self, x):
        return (x.values[:, 0],)

    def tokens(self, y, x):
        return Masked(y.transpose(1, 2), x.mask.expand(-1, 4))


def images(count=5):
    values = torch.randn(count, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Masked(values, torch.ones(count, 1, dtype=torch.bool))


def trained(base, method, steps=3, **more):
    """A few steps towards an arbitrary goal."""
    thawed = Thawed(base, method, **more)
    optimizer = AdamW([{"params": thawed.parameters, "weight_decay": 0.0}])
    for _ in range(steps):
        optimizer.zero_grad()
        (thawed.backbone(images()).values - 1).square().mean().backward()
        optimizer.step(0.1)
    return thawed


@pytest.fixture
def base():
    return Convolutional()


@pytest.mark.parametrize("method", METHODS)
def test_starts_as_the_identity(base, method):
    assert torch.equal(Thawed(base, method).backbone(images()).values, base(images()).values)


@pytest.mark.parametrize("method", METHODS)
def test_merges_exactly_and_leaves_the_cached_network(base, method):
    before = copy.deepcopy(base.state_dict())
    thawed = trained(base, method)
    merged = thawed.adapter().apply(base)
    assert torch.allclose(merged(images()).values, thawed.backbone(images()).values, atol=1e-6)
    assert not torch.allclose(merged(images()).values, base(images()).values, atol=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert not any(p.requires_grad for p in (*merged.parameters(), *base.parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_keeps_its_statistics(base, method):
    merged = trained(base, method).adapter().apply(base)
    for name, tensor in base.state_dict().items():
        if "running" in name or "tracked" in name:
            assert torch.equal(merged.state_dict()[name], tensor)


def test_lora_changes_what_mixes_channels_in_the_upper_half(base):
    assert trained(base, "lora").adapter().layers == ["1.3", "1.4", "4"]  # of 6 blocks the last 3, and what follows
    assert DEPTH["lora"] == 0.5


def test_last_changes_every_weight_in_the_last_quarter(base):
    assert trained(base, "last").adapter().layers == ["1.4", "1.5", "4"]
    names = set(trained(base, "all").adapter().tensors)
    assert names == {name for name, _ in base.net.named_parameters()}


def test_no_gradient_is_computed_below_the_first_changed_layer(base):
    thawed = Thawed(base, "last")
    seen = []
    thawed.backbone.net[1][3].register_forward_hook(lambda module, x, y: seen.append(y.requires_grad))
    assert thawed.backbone(images()).values.requires_grad
    assert seen == [False]


def test_low_rank_has_the_rank_and_the_scale(base):
    thawed = trained(base, "lora", rank=2, alpha=6.0)
    merged = thawed.adapter().apply(base)
    for name in ("1.3", "1.4", "4"):
        change = merged.net.get_submodule(name).weight - base.net.get_submodule(name).weight
        assert torch.linalg.matrix_rank(change.flatten(1), atol=1e-6) in (1, 2)
    one = LowRank(torch.zeros(3, 5), 2, 6.0, torch.Generator())
    with torch.no_grad():
        one.up.fill_(1.0)
    assert torch.allclose(one(torch.zeros(3, 5)), 3.0 * one.down.sum(0).expand(3, 5))  # alpha / rank = 3
    assert LowRank(torch.zeros(3, 5), 8, 8.0, torch.Generator()).down.shape == (3, 5)


def test_the_seed_draws_the_first_values(base):
    def down(seed):
        return Thawed(base, "lora", seed=seed).adapter().tensors["4.down"]

    assert torch.equal(down(1), down(1))
    assert not torch.equal(down(1), down(2))


def test_agrees_with_peft():
    peft = pytest.importorskip("peft", reason="the reference implementation is not installed")
    base = Convolutional()
    thawed = trained(base, "lora", rank=2, alpha=5.0)
    config = peft.LoraConfig(r=2, lora_alpha=5.0, target_modules=["1.3", "1.4", "4"])
    theirs = peft.get_peft_model(copy.deepcopy(base.net), config)
    tensors, net = thawed.adapter().tensors, theirs.base_model.model
    with torch.no_grad():
        for name in ("1.3", "1.4", "4"):
            layer = net.get_submodule(name)
            for part, ours in ((layer.lora_A, "down"), (layer.lora_B, "up")):
                part["default"].weight.copy_(tensors[f"{name}.{ours}"].view_as(part["default"].weight))
    x = images().values[:, 0]
    assert torch.allclose(theirs.eval()(x), thawed.backbone.net(x), atol=1e-5)


def test_the_digest_names_base_and_changes(base):
    one, other = trained(base, "last").adapter(), trained(base, "last", steps=4).adapter()
    assert one.digest("x") == trained(base, "last").adapter().digest("x")
    assert len({one.digest("x"), one.digest("y"), other.digest("x"), trained(base, "lora").adapter().digest("x")}) == 4
    assert one.apply(base).digest == one.digest(base.digest)


def test_changes_stack_in_order(base):
    first = trained(base, "lora").adapter()
    second = trained(first.apply(base), "last").adapter()
    both = adapted(base, (first, second))
    assert torch.equal(both(images()).values, second.apply(first.apply(base))(images()).values)
    assert both.digest == second.digest(first.digest(base.digest))
    assert adapted(base, ()) is base


def test_a_graph_of_the_unchanged_weights_is_left_behind(base):
    base.graph = b"onnx"
    assert frozen_copy(base).graph is None
    assert base.graph == b"onnx"


def test_a_change_of_another_backbone_is_refused(base):
    adapter = trained(base, "last").adapter()
    wrong = {"no.such.weight": torch.zeros(1)}, {"4.weight": torch.zeros(1, 4)}, {"4.weight": torch.zeros(9)}
    for tensors in wrong:
        with pytest.raises(BundleError, match="adapter must be of this backbone"):
            Adapter("last", 0, 0.0, tensors).apply(base)
    with pytest.raises(BundleError, match="adapter must be of this backbone"):
        Adapter("lora", 2, 2.0, adapter.tensors).apply(base)
    with pytest.raises(BundleError, match=r"method must be one of .* got 'dora'"):
        Adapter("dora", 0, 0.0, {})  # pyright: ignore[reportArgumentType]
    with pytest.raises(BundleError, match="rank and alpha must be above 0"):
        Adapter("lora", 0, 1.0, {})


def test_a_network_without_such_layers_is_refused(base):
    base.net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    with pytest.raises(SpecError, match="must have layers that lora can change, got none"):
        Thawed(base, "lora")


def test_a_net_that_is_one_layer():
    base = Convolutional()
    base.net = nn.Linear(8, 8).requires_grad_(False)
    thawed = Thawed(base, "lora")
    with torch.no_grad():
        thawed.parameters[1].fill_(0.1)
    x = torch.randn(2, 8)
    assert torch.allclose(thawed.adapter().apply(base).net(x), thawed.backbone.net(x))
    assert not torch.allclose(base.net(x), thawed.backbone.net(x))


def test_blocks_are_the_longest_list():
    net = nn.Module()
    net.stem, net.few = nn.Linear(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    net.many = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    net.norm = nn.LayerNorm(2)
    assert blocks(net) == list(net.many)
    assert upper(net, 0.5) == ["many.2", "many.3", "norm"]
    assert upper(net, 0.01) == ["many.3", "norm"]
    assert upper(net, 1.0) == ["stem", "few.0", "few.1", "many.0", "many.1", "many.2", "many.3", "norm"]


@pytest.mark.skipif(PACKAGED["efficientnet-lite0"].locate() is None, reason="the backbone is not installed")
def test_the_packaged_image_network():
    from polymodal.nn.efficientnet import efficientnet_lite0

    base = efficientnet_lite0(64, 1)
    x = Masked(torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8), torch.ones(2, 1, dtype=torch.bool))
    thawed = Thawed(base, "lora")
    layers = thawed.adapter().layers
    assert layers[0] == "0._blocks.8._expand_conv"  # 16 blocks
    assert layers[-1] == "0._conv_head"
    assert not any("depthwise" in name for name in layers)
    with torch.no_grad():
        for p in thawed.parameters:
            p.add_(0.01)
    assert torch.allclose(thawed.adapter().apply(base)(x).values, thawed.backbone(x).values, atol=1e-5)
    assert [name for name in Thawed(base, "last").adapter().layers if "_blocks.11" in name] == []


@pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the backbone is not installed")
def test_the_packaged_text_network():
    from polymodal.nn.bert import BertBackbone

    layers = Thawed(BertBackbone(), "lora").adapter().layers
    assert layers[0] == "layers.3.query_key_value"
    assert len(layers) == 3 * 4
