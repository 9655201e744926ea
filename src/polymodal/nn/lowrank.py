"""Low-rank changes of linear layers beside their frozen weights (LoRA), for networks that are too large to copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class LowRankLinear(nn.Module):
    """A frozen linear layer plus a change of low rank: (..., in) -> (..., out). Starts as the layer alone.

    Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685), equation 3; drawn as in `polymodal.nn.adapt.LowRank`, but the
    change is applied to what enters, so that no gradient of the whole weight is ever computed.

    Args:
        base: the layer, shared with whoever else uses it; `nn.Linear`, or GPT-2's ``Conv1D``.
        rank: of the change.
        alpha: its scale, times 1 / rank.
        generator: of the first values.
    """

    def __init__(self, base: Any, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        entering, leaving = base.weight.shape if _turned(base) else base.weight.shape[::-1]
        rank, bound = min(rank, entering, leaving), 1 / math.sqrt(entering)
        down = torch.rand(rank, entering, generator=generator) * 2 * bound - bound
        self.down, self.up = nn.Parameter(down), nn.Parameter(torch.zeros(leaving, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Apply layer and change; the change is computed in the type of what enters."""
        change = functional.linear(functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        return self.base(x) + self.scale * change

    def merged(self) -> nn.Module:
        """A layer of its own, frozen, that does the same in one product."""
        layer = copy.deepcopy(self.base).requires_grad_(False)
        change = (self.scale * (self.up.float() @ self.down.float())).to(layer.weight.dtype)
        layer.weight.data += (change.T if _turned(layer) else change).detach()
        return layer


def add_low_rank(net: nn.Module, rank: int, alpha: float, seed: int) -> dict[str, LowRankLinear]:
    """Put a change beside each linear layer of a network's blocks, in place; by the layers' names.

    Layers outside the longest list of blocks (an output layer that is tied to the embeddings) stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    chains = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    start, _ = max(chains, key=lambda pair: len(pair[1]), default=("", None))
    found = dict[str, LowRankLinear]()
    for name, layer in list(_linear(net, start)):
        parent, _, own = name.rpartition(".")
        found[name] = LowRankLinear(layer, rank, alpha, generator)
        setattr(net.get_submodule(parent), own, found[name])
    return found


def merge_low_rank(net: nn.Module) -> None:
    """Put a merged layer in the place of each layer with a change, in place."""
    for name, layer in [(name, m) for name, m in net.named_modules() if isinstance(m, LowRankLinear)]:
        parent, _, own = name.rpartition(".")
        setattr(net.get_submodule(parent), own, layer.merged())


def _turned(layer: nn.Module) -> bool:
    """Whether a layer is GPT-2's kind of linear one, whose weight is (in, out)."""
    return type(layer).__name__ == "Conv1D"


def _linear(net: nn.Module, start: str) -> Iterator[tuple[str, nn.Module]]:
    for name, module in net.named_modules():
        if (isinstance(module, nn.Linear) or _turned(module)) and name.startswith(f"{start}." if start else ""):
            yield name, module
