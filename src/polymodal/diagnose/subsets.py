"""The model on subsets of its inputs: what each input adds, and what two of them do together.

A subset is answered once, by hiding all other inputs. Shapley values, interactions and contributions are sums of the
scores of subsets with fixed weights, so they hold for any metric and, weighed alike, for every resample of the rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polymodal.data.gather import Progress, silent
from polymodal.data.loader import Prepared
from polymodal.diagnose.scores import Scorer, difference, number, scored
from polymodal.evaluate import answers
from polymodal.model import Model

Array = NDArray[Any]
Subset = frozenset[int]

EXACT = 8
"""Most inputs of which every subset is answered."""

PERMUTATIONS = 4
"""Permutations that are sampled per input where there are more."""


@dataclass(frozen=True)
class Game:
    """Inputs as the players of a cooperative game, whose value is the model's score on a subset of them.

    Attributes:
        names: of the M inputs.
        weights: input's number -> subset -> its weight in the input's Shapley value.
        pair_weights: two inputs' numbers -> subset -> its weight in their interaction.
        sampled: whether these come from sampled permutations instead of all of them.
    """

    names: tuple[str, ...]
    weights: Mapping[int, Mapping[Subset, float]]
    pair_weights: Mapping[tuple[int, int], Mapping[Subset, float]]
    sampled: bool

    @cached_property
    def subsets(self) -> list[Subset]:
        """Every subset that must be answered, the small ones first."""
        everyone = range(len(self.names))
        found = {frozenset(everyone), frozenset[int]()}
        found |= {frozenset({i}) for i in everyone} | {frozenset(everyone) - {i} for i in everyone}
        for weights in (*self.weights.values(), *self.pair_weights.values()):
            found |= weights.keys()
        return sorted(found, key=lambda subset: (len(subset), sorted(subset)))

    @classmethod
    def exact(cls, names: Iterable[str]) -> Game:
        """Weigh every subset.

        Source: Shapley 1953, equation 12; Grabisch and Roubens 1999, equation 4, for two players.
        """
        names = tuple(names)
        m = len(names)
        weights: dict[int, dict[Subset, float]] = {i: defaultdict(float) for i in range(m)}
        pairs: dict[tuple[int, int], dict[Subset, float]] = {p: defaultdict(float) for p in combinations(range(m), 2)}
        for size in range(m):
            for chosen in combinations(range(m), size):
                before = frozenset(chosen)
                for i in set(range(m)) - before:
                    _step(weights[i], before, i, factorial(size) * factorial(m - size - 1) / factorial(m))
                for pair in combinations(sorted(set(range(m)) - before), 2):
                    _square(pairs[pair], before, pair, factorial(size) * factorial(m - size - 2) / factorial(m - 1))
        return cls(names, weights, pairs, False)

    @classmethod
    def sample(cls, names: Iterable[str], seed: int) -> Game:
        """Weigh the subsets that random orders of the inputs run through; unbiased.

        Two inputs next to each other in a random order have before them a set that the interaction weighs as it should
        be weighed, so the same orders serve the pairs; a pair that is never met has no interaction.

        Source: Castro, Gomez and Tejada 2009, section 3 (ApproShapley). Pairs by neighbours in the order are ours.
        """
        names = tuple(names)
        rng, m = np.random.default_rng(seed), len(names)
        weights: dict[int, dict[Subset, float]] = {i: defaultdict(float) for i in range(m)}
        met: dict[tuple[int, int], list[Subset]] = defaultdict(list)
        orders = [rng.permutation(m).tolist() for _ in range(PERMUTATIONS * m)]
        for order in orders:
            for place, i in enumerate(order):
                _step(weights[i], frozenset(order[:place]), i, 1 / len(orders))
                if place + 1 < m:
                    first, second = sorted((i, order[place + 1]))
                    met[first, second].append(frozenset(order[:place]))
        pairs: dict[tuple[int, int], dict[Subset, float]] = {pair: defaultdict(float) for pair in sorted(met)}
        for pair, places in met.items():
            for before in places:
                _square(pairs[pair], before, pair, 1 / len(places))
        return cls(names, weights, pairs, True)

    @classmethod
    def of(cls, names: Iterable[str], seed: int) -> Game:
        """Weigh every subset where that is affordable, else sampled ones."""
        names = tuple(names)
        return cls.exact(names) if len(names) <= EXACT else cls.sample(names, seed)


def _step(weights: dict[Subset, float], before: Subset, i: int, weight: float) -> None:
    """Add what player i adds to those before."""
    weights[before | {i}] += weight
    weights[before] -= weight


def _square(weights: dict[Subset, float], before: Subset, pair: tuple[int, int], weight: float) -> None:
    """Add by how much two players add more together than each does."""
    i, j = pair
    weights[before | {i, j}] += weight
    weights[before | {i}] -= weight
    weights[before | {j}] -= weight
    weights[before] += weight


@dataclass(frozen=True)
class Played:
    """A game whose subsets have scores.

    Attributes:
        game: which subsets there are and how they are weighed.
        samples: subset -> sample (1 + R,) of the metric.
        sign: 1 where more of the metric is better, else -1.
    """

    game: Game
    samples: Mapping[Subset, Array]
    sign: float

    @property
    def full(self) -> Array:
        """With every input."""
        return self.samples[frozenset(range(len(self.game.names)))]

    @property
    def empty(self) -> Array:
        """With every input hidden, or what stands for that."""
        return self.samples[frozenset()]

    def alone(self, i: int) -> Array:
        """With every other input hidden."""
        return self.samples[frozenset({i})]

    def contribution(self, i: int) -> Array:
        """How much worse the score is without input i."""
        return self.sign * (self.full - self.samples[frozenset(range(len(self.game.names))) - {i}])

    def shapley(self, i: int) -> Array:
        """The share of input i in the way from the empty subset to the full one; over all inputs they sum to it."""
        return self._sum(self.game.weights[i])

    def pairs(self) -> list[dict[str, Any]]:
        """Interaction of two inputs: above 0 they do more together than apart, below 0 they carry the same."""
        found = []
        for (i, j), weights in self.game.pair_weights.items():
            seen = difference(self._sum(weights))
            value = seen.pop("value")
            together = "synergy" if (value or 0.0) > 0 else "redundancy"
            kind = "independent" if seen["noise"] else together
            inputs = [self.game.names[i], self.game.names[j]]
            found.append({"inputs": inputs, "interaction": value, **seen, "kind": kind})
        return found

    def content(self) -> dict[str, Any]:
        """All subsets and pairs, as JSON."""
        names = self.game.names
        subsets = [{"inputs": [names[i] for i in sorted(s)], **scored(self.samples[s])} for s in self.game.subsets]
        return {
            **scored(self.full),
            "chance": number(self.empty[0]),
            "sampled": self.game.sampled,
            "subsets": subsets,
            "pairs": self.pairs(),
        }

    def _sum(self, weights: Mapping[Subset, float]) -> Array:
        return self.sign * sum((weight * self.samples[s] for s, weight in weights.items()), np.zeros_like(self.full))


@torch.no_grad()
def play(
    model: Model,
    prepared: Prepared,
    device: torch.device,
    game: Game,
    scorers: Mapping[str, Scorer],
    progress: Progress = silent,
) -> dict[str, Played]:
    """Answer every row once per subset, and score each task.

    Args:
        model: in evaluation mode.
        prepared: rows with features.
        device: of the model.
        game: whose subsets are wanted.
        scorers: task name -> what scores its outputs.
        progress: told how many subsets are answered.

    Returns:
        Task name -> the game with its scores. Outputs are scored and dropped subset by subset.
    """
    samples: dict[str, dict[Subset, Array]] = {n: {} for n in scorers}
    for done, subset in enumerate(game.subsets, 1):
        hidden = [name for i, name in enumerate(game.names) if i not in subset]
        seen = answers(model, prepared, device, hidden)
        for n, scorer in scorers.items():
            samples[n][subset] = scorer(seen.outputs[n])
        progress("subsets", done, len(game.subsets))
    return {n: Played(game, found, scorers[n].sign) for n, found in samples.items()}
