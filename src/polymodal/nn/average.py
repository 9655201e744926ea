"""The state of a model in training: what of it is kept, and its running average."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from polymodal.nn.trunk import Trunk

M = TypeVar("M", bound=nn.Module)


def kept(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without what of its thawed backbones is never trained."""
    fixed = _fixed(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in fixed}


def take(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Go on from what `kept` gave."""
    whole, fixed = model.state_dict(), _fixed(model)
    model.load_state_dict({**{name: whole[name] for name in fixed}, **state})


def average_of(model: M) -> M:
    """A copy in evaluation mode that shares what of the thawed backbones is never trained."""
    tensors, fixed = model.state_dict(keep_vars=True), _fixed(model)
    return copy.deepcopy(model, {id(tensors[name]): tensors[name] for name in fixed}).eval()


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the model, which has made its ``step``-th step."""
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    mine, theirs = zip(*((a, b) for a, b in pairs if a is not b), strict=True)
    get_ema_multi_avg_fn(decay)(list(mine), list(theirs), step)
    for a, b in zip(average.buffers(), model.buffers(), strict=True):
        if a is not b:
            a.copy_(b)  # running statistics are averages already


def _fixed(model: nn.Module) -> set[str]:
    """Names of the tensors of thawed backbones that are never trained."""
    found = set[str]()
    for place, trunk in model.named_modules():
        if isinstance(trunk, Trunk):
            learned = {name for name, p in trunk.named_parameters() if p.requires_grad}
            found |= {f"{place}.{name}" for name in trunk.state_dict() if name not in learned}
    return found
