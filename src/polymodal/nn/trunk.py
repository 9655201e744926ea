"""Trunk: a thawed backbone while it is trained as a part of a model, in pieces if memory is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polymodal.nn.adapt import ALPHA, Adapter, Method, Thawed, depths
from polymodal.nn.backbone import Backbone
from polymodal.types import Masked


class Trunk(nn.Module):
    """Collated values -> tokens (B, T, W), with gradients for what is thawed.

    Everything but dropout stays in evaluation mode.

    Args:
        base: never changed.
        method: what is thawed, see `Thawed`; embedding tables are not.
        rank: of LoRA's changes.
        seed: of their first values.
        dropout: of the backbone's dropout layers in training, if it has any.

    Attributes:
        size: rows that are computed together where gradients are wanted; 0 for all.
        in_half: whether it computes in bfloat16.
    """

    def __init__(self, base: Backbone, method: Method, rank: int, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        thawed = Thawed(base, method, rank, ALPHA, seed, tables=False)
        self.backbone, self.thawed = thawed.backbone, thawed
        self.size, self.in_half = 0, False
        self.drops = [module for module in self.backbone.modules() if isinstance(module, nn.Dropout)]
        for module in self.drops:
            module.p = dropout

    def train(self, mode: bool = True) -> Trunk:
        """Let dropout drop, or not; nothing else changes."""
        self.training = mode
        for module in self.drops:
            module.train(mode)
        return self

    @property
    def learned(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.backbone.parameters() if p.requires_grad]

    def factors(self, decay: float) -> dict[nn.Parameter, float]:
        """Factor of the learning rate of each trained parameter, ``decay`` to the power of the blocks above it.

        Source: Howard and Ruder 2018, "ULMFiT" (arXiv:1801.06146), section 3.2; as in Clark et al. 2020, "ELECTRA"
        (arXiv:2003.10555), appendix B, for fine-tuning transformers.
        """
        below = depths(self.backbone.net)
        return {p: decay ** below.get(p, 0) for p in self.learned}

    def adapter(self) -> Adapter:
        """What has been trained so far, as a copy on the CPU."""
        return self.thawed.adapter()

    def forward(self, x: Masked) -> Masked:
        """Tokens of collated values. Every row must be present.

        With a ``size``, rows go through the backbone in pieces that keep nothing for the gradient, and again when it is
        known: what comes after takes all rows together, and its gradient is cached.

        Source: Gao et al. 2021 (arXiv:2101.06983), section 3, with the cache between backbone and encoder.
        """
        if not self.size or len(x) <= self.size or not torch.is_grad_enabled():
            return self._run(x)
        starts = range(0, len(x), self.size)
        return Masked.join([self._replayed(x[slice(start, start + self.size)]) for start in starts])

    def _run(self, x: Masked) -> Masked:
        if not self.in_half:
            return self.backbone(x)
        with torch.autocast(x.mask.device.type, torch.bfloat16):
            y = self.backbone(x)
        return Masked(y.values.float(), y.mask, y.at)

    def _replayed(self, x: Masked) -> Masked:
        kept = list[Masked]()

        def run() -> Tensor:
            y = self._run(x)
            kept[:] = [Masked(y.values.detach(), y.mask, y.at)]
            return y.values

        values = _Replayed.apply(run, x.mask.device, *self.learned)
        return Masked(values, kept[0].mask, kept[0].at)  # pyright: ignore[reportArgumentType]


class _Replayed(torch.autograd.Function):
    """Runs a function without a graph, and once more with one, with the same random draws, when a gradient comes."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Tensor], device: torch.device, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.device, ctx.parameters = run, device, parameters
        ctx.state = _random_state(device)
        return run()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        now = _random_state(ctx.device)
        _set_random_state(ctx.device, ctx.state)
        try:
            with torch.enable_grad():
                values = ctx.run()
            found = torch.autograd.grad(values, ctx.parameters, gradients[0], allow_unused=True)
        finally:
            _set_random_state(ctx.device, now)
        return None, None, *found


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """State of torch's generators on the CPU and, if it is another device, there."""
    there = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), there


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)
