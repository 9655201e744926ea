import copy

import peft
import pytest
import torch
from torch import nn

from polymodal.nn.lowrank import LowRankLinear, add_low_rank, merge_low_rank


class Net(nn.Module):
    def __init__(self, blocks=2):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6)) for _ in range(blocks))
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def test_a_change_starts_as_nothing_and_touches_the_blocks_only(net):
    x = torch.randn(4, 6)
    before = net(x)
    changes = add_low_rank(net, 2, 4.0, seed=0)
    assert sorted(changes) == ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"]
    assert torch.equal(net(x), before)
    assert isinstance(net.out, nn.Linear)
    assert sum(p.requires_grad for p in net.parameters()) == 2 * len(changes)


def test_a_step_changes_what_peft_changes(net):
    theirs = peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=r"blocks\.\d\.[02]", lora_dropout=0.0), copy.deepcopy(net)
    )
    changes = add_low_rank(net, 2, 4.0, seed=0)
    for name, change in changes.items():
        layer = theirs.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(change.down.data)
        layer.lora_B["default"].weight.data.copy_(change.up.data.normal_())
        layer.lora_B["default"].weight.data.copy_(change.up.data)
    x = torch.randn(5, 6)
    ours, other = net(x), theirs(x)
    torch.testing.assert_close(ours, other)
    ours.square().sum().backward()
    other.square().sum().backward()
    for name, change in changes.items():
        layer = theirs.get_submodule(name)
        torch.testing.assert_close(change.down.grad, layer.lora_A["default"].weight.grad)
        torch.testing.assert_close(change.up.grad, layer.lora_B["default"].weight.grad)


def test_a_rank_above_the_layers_own_is_lowered_and_the_seed_decides():
    layer = nn.Linear(3, 5)
    one, two, three = (LowRankLinear(layer, 8, 16.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.down.shape == (3, 3)
    assert one.scale == 2.0
    assert torch.equal(one.down, two.down)
    assert not torch.equal(one.down, three.down)


def test_what_enters_decides_the_type():
    layer = nn.Linear(4, 4).to(torch.bfloat16).requires_grad_(False)
    change = LowRankLinear(layer, 2, 4.0, torch.Generator())
    y = change(torch.randn(2, 4, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert change.down.dtype == torch.float32


def test_merged_layers_do_the_same_and_leave_the_shared_ones_alone(net):
    before = {n: p.clone() for n, p in net.named_parameters()}
    bases = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    for change in add_low_rank(net, 2, 4.0, seed=0).values():
        change.up.data.normal_()
    x = torch.randn(5, 6)
    expected = net(x)
    merge_low_rank(net)
    torch.testing.assert_close(net(x), expected)
    assert not any(p.requires_grad for p in net.parameters())
    assert [n for n, m in net.named_modules() if isinstance(m, nn.Linear)] == list(bases)
    for n, p in before.items():
        assert torch.equal(bases[n.rpartition(".")[0]].get_parameter(n.rpartition(".")[2]), p)
