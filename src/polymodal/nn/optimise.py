"""AdamW and L-BFGS without ``torch.optim.Optimizer``, which imports torch's compiler (1.7 CPU-s) at its first step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

NOISE = 1e-7
"""Relative error of a float32 loss: smaller changes mean nothing."""


class AdamW:
    """Adam with decoupled weight decay, on torch's own fused kernel.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2.

    Args:
        groups: mappings with ``params``, their ``weight_decay`` and the ``factor`` of their rate, 1 if not given.
        betas: decay of the running means of gradients and of their squares.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.groups, self.betas = groups, betas
        self.state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter that has a gradient, at a learning rate times its group's factor."""
        for group in self.groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            first, second, steps = (list(part) for part in zip(*(self._moments(p) for p in params), strict=True))
            adamw(
                params, [p.grad for p in params], first, second, [], steps, fused=True, foreach=False, amsgrad=False,
                beta1=self.betas[0], beta2=self.betas[1], lr=rate * group.get("factor", 1.0),
                weight_decay=group["weight_decay"], eps=1e-8, maximize=False,
            )  # fmt: skip

    def _moments(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if p not in self.state:
            self.state[p] = torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=p.device)
        return self.state[p]

    def tensors(self) -> dict[str, Tensor]:
        """The state, to keep and to `load`."""
        order = [p for group in self.groups for p in group["params"]]
        return {f"{i}/{k}": t for i, p in enumerate(order) if p in self.state for k, t in enumerate(self.state[p])}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a kept state."""
        self.state = {}
        for i, p in enumerate(p for group in self.groups for p in group["params"]):
            if f"{i}/0" in tensors:
                first, second, steps = (tensors[f"{i}/{k}"].to(p.device) for k in range(3))
                self.state[p] = first, second, steps


def schedule(step: int, steps: int, warm_up: float) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to 0."""
    rise = round(steps * warm_up)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def decay_groups(model: nn.Module, decay: float, factors: Mapping[Tensor, float] | None = None) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay, vectors (biases, norms) do not.

    Args:
        model: whose parameters are trained where they require a gradient.
        decay: of matrices.
        factors: parameter -> factor of its learning rate; 1 where it is not named.
    """
    parameters, factors = [p for p in model.parameters() if p.requires_grad], factors or {}
    found = []
    for factor in [1.0, *sorted({*factors.values()} - {1.0})]:
        some = [p for p in parameters if factors.get(p, 1.0) == factor]
        for params, own in (([p for p in some if p.ndim > 1], decay), ([p for p in some if p.ndim <= 1], 0.0)):
            found.append({"params": params, "weight_decay": own, "factor": factor})
    return found


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, memory: int = 10) -> Tensor:
    """Minimise a smooth function by L-BFGS with backtracking.

    Source: Nocedal and Wright 2006, algorithms 7.4 (two loops) and 3.1 (backtracking).

    Args:
        loss: from a vector like ``start`` to a scalar.
        start: (n,) where to begin.
        steps: at most this many.
        memory: steps whose curvature is remembered.

    Returns:
        (n,) the best point found.
    """
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory)
    x, (value, slope) = start, _evaluate(loss, start)
    for _ in range(steps):
        if float(slope.abs().max()) < 1e-7:
            break
        way = _direction(slope, pairs)
        stride = 1.0 if pairs else min(1.0, 1.0 / float(slope.abs().sum()))
        fall = float(slope @ way)
        for _ in range(20):
            step = stride * way
            new_value, new_slope = _evaluate(loss, x + step)
            if new_value <= value + 1e-4 * stride * fall + NOISE * abs(value):
                break
            stride /= 2
        else:
            break
        bend = new_slope - slope
        if float(bend @ step) > 1e-10:
            pairs.append((step, bend))
        settled = abs(value - new_value) <= NOISE * max(abs(value), NOISE)
        x, value, slope = x + step, new_value, new_slope
        if settled:
            break
    return x


def _evaluate(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, Tensor]:
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = loss(point)
        (slope,) = torch.autograd.grad(value, point)
    return value.item(), slope


def _direction(slope: Tensor, pairs: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient."""
    way, shares = -slope, []
    for step, bend in reversed(pairs):
        share = (step @ way) / (step @ bend)
        shares.append(share)
        way = way - share * bend
    if pairs:
        step, bend = pairs[-1]
        way = way * ((step @ bend) / (bend @ bend))
    for (step, bend), share in zip(pairs, reversed(shares), strict=True):
        way = way + (share - (bend @ way) / (step @ bend)) * step
    return way
