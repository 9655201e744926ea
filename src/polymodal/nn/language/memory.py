"""Memory: what a language model has read before, so that a common beginning of prompts is read once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polymodal.nn.language.cache import growing_cache

REMEMBERED = 2048
"""Positions that are remembered, of all prompts together."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A prompt (L, W), and the keys and values (1, heads, L, width) of it in each layer."""

    prompt: Tensor
    layers: list[tuple[Tensor, Tensor]]


class Memory:
    """Keys and values of the newest prompts: one that begins as they do (same system text, same picture) is read on.

    Of one language model, whose weights stay as they are.

    Source: Gim et al. 2024, "Prompt Cache" (arXiv:2311.04934), section 2, for beginnings only; the one that was used
    longest ago is forgotten, as in Zheng et al. 2024, "SGLang" (arXiv:2312.07104), section 3.

    Args:
        most: positions that are held, of all prompts together; 0 remembers nothing.
    """

    def __init__(self, most: int = REMEMBERED) -> None:
        self.most = most
        self._known: list[_Known] = []  # the last one was used last
        self._lock = threading.Lock()  # several threads may talk with one model

    def recall(self, prompt: Tensor) -> tuple[int, Any]:
        """A new cache that begins with what is known of a prompt (L, W), and how many positions that are, below L."""
        cache = growing_cache()
        with self._lock:
            shared = [_shared(one.prompt, prompt) for one in self._known]
            count = min(max(shared, default=0), len(prompt) - 1)
            if count < 1:
                return 0, cache
            known = self._known.pop(max(range(len(shared)), key=shared.__getitem__))
            self._known.append(known)
        for number, (keys, values) in enumerate(known.layers):
            cache.update(keys[:, :, :count], values[:, :, :count], number)
        return count, cache

    def keep(self, prompt: Tensor, cache: Any) -> None:
        """Remember a prompt (L, W) that a cache of `recall` has been led through, unless it is too long."""
        size = len(prompt)
        if size > self.most:
            return
        layers = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        with self._lock:
            self._known = [one for one in self._known if _shared(one.prompt, prompt) < len(one.prompt)]
            while sum(len(one.prompt) for one in self._known) + size > self.most:
                self._known.pop(0)
            self._known.append(_Known(prompt.clone(), layers))


def _shared(one: Tensor, other: Tensor) -> int:
    """Positions at the beginning that are equal."""
    size = min(len(one), len(other))
    same = (one[:size] == other[:size]).all(1)
    return int(same.long().cumprod(0).sum())
