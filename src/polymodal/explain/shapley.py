"""Shapley values of a game whose players are the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

EXACT = 8
"""Inputs up to which every subset is asked; of more inputs, random orders."""

ORDERS = 32
"""Random orders of many inputs; every second one is the reverse of the one before it."""


def shapley(
    value: Callable[[frozenset[str]], Tensor], names: Sequence[str], seed: int = 0
) -> tuple[dict[str, Tensor], bool]:
    """Shapley value of each player: its mean contribution over all orders in which the players may come.

    Args:
        value: from a set of players to what they get, a tensor of any shape.
        names: the players.
        seed: of the orders, where they are sampled.

    Returns:
        Player -> its value, in the shape of ``value``; and whether orders were sampled.
    """
    known: dict[frozenset[str], Tensor] = {}

    def worth(seen: frozenset[str]) -> Tensor:
        if seen not in known:
            known[seen] = value(seen)
        return known[seen]

    total = {name: torch.zeros_like(worth(frozenset())) for name in names}
    if len(names) > EXACT:
        for order in _orders(names, seed):
            for i, name in enumerate(order):
                total[name] += (worth(frozenset(order[: i + 1])) - worth(frozenset(order[:i]))) / ORDERS
        return total, True
    for name in names:
        others = [other for other in names if other != name]
        for size in range(len(names)):
            share = 1 / (len(names) * math.comb(len(others), size))
            for some in map(frozenset, combinations(others, size)):
                total[name] += share * (worth(some | {name}) - worth(some))
    return total, False


def _orders(names: Sequence[str], seed: int) -> Iterator[list[str]]:
    """Random orders, each followed by its reverse."""
    rng, players = np.random.default_rng(seed), np.array(names, object)
    for _ in range(ORDERS // 2):
        order = rng.permutation(players).tolist()
        yield order
        yield order[::-1]
