"""Keys and values of several rows in one cache, in which rows join and leave while answers are made."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROOM = 64
"""Positions that are kept free, at least, when a cache grows."""


def growing_cache() -> Any:
    """An empty cache of transformers that grows by a half at a time, instead of being copied for each token."""
    from transformers.cache_utils import Cache

    return Cache(layer_class_to_replicate=_layer())


@cache
def _layer() -> Any:
    """One layer of the cache: keys and values (B, heads, positions, width) at the front of roomier tensors."""
    from transformers.cache_utils import DynamicLayer

    class Growing(DynamicLayer):
        buffers: tuple[Tensor, Tensor] | None = None

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """Write what is new behind what is there, and return all of it."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start = self.get_seq_length()
            end = start + key_states.shape[2]
            if self.buffers is None or end > self.buffers[0].shape[2]:
                size = end + max(ROOM, end // 2)
                self.buffers = _roomy(self.keys, key_states, size), _roomy(self.values, value_states, size)
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:end] = new
            self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
            return self.keys, self.values

        def put(self, keys: Tensor, values: Tensor) -> None:
            """Hold these instead."""
            self.keys, self.values, self.buffers = keys, values, None

    return Growing


def _roomy(held: Tensor | None, new: Tensor, size: int) -> Tensor:
    """A tensor of ``size`` positions that begins with what was held."""
    buffer = new.new_empty(*new.shape[:2], size, new.shape[3])
    if held is not None and held.numel():
        buffer[:, :, : held.shape[2]] = held
    return buffer


def join(caches: Sequence[Any], reals: Sequence[Tensor]) -> tuple[Any, Tensor]:
    """Put rows of several caches below one another, padded on the left.

    Args:
        caches: made by `growing_cache`, which are used up.
        reals: (B, L) bool of each, which of its positions are real.

    Returns:
        The first cache, which holds all rows now, and which of its positions are real.
    """
    longest = max(real.shape[1] for real in reals)
    for number, layer in enumerate(caches[0].layers):
        mine = [one.layers[number] for one in caches]
        layer.put(*(_padded([getattr(one, part) for one in mine], longest) for part in ("keys", "values")))
    return caches[0], torch.cat([functional.pad(real, (longest - real.shape[1], 0)) for real in reals])


def _padded(parts: Sequence[Tensor], longest: int) -> Tensor:
    return torch.cat([functional.pad(part, (0, 0, longest - part.shape[2], 0)) for part in parts])


def keep(held: Any, real: Tensor, rows: Sequence[int]) -> Tensor:
    """Let other rows leave a cache, in place, and cut off the padding that all rows have.

    Args:
        held: made by `growing_cache`.
        real: (B, L) bool, which of its positions are real.
        rows: that stay, one at least.

    Returns:
        Which positions are real in what is left.
    """
    index = torch.tensor(rows, device=real.device)
    real = real[index]
    start = int(real.long().argmax(1).min())
    for layer in held.layers:
        layer.put(layer.keys[index, :, start:], layer.values[index, :, start:])
    return real[:, start:]
