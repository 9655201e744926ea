"""How fast runtimes are beside one another, on contents of several lengths."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from polymodal.nn.provider import Runtime
from polymodal.types import Masked

LENGTHS = (0.5, 1, 2, 4)
"""Of the example whose length varies, as shares of it."""

REPEATS = 3
HOPELESS = 2.0
"""Times of the fastest beyond which a runtime is not repeated."""

Run = Callable[[Masked], Masked]
Clock = Callable[[], float]
CLOCKS: tuple[Clock, ...] = (time.perf_counter, time.process_time)
"""What passes, and what this process works: other processes lengthen only the former, several threads the latter."""


def stretched(x: Masked) -> list[Masked]:
    """The same sample (1, N, ...) at half its length, its own, and two and four times that, by repetition.

    What runs at one length again and again shows a runtime at its best: contents differ in length.
    """
    size = x.mask.shape[1]
    places = [torch.arange(max(1, int(size * share))) % size for share in LENGTHS]
    return [Masked(x.values[:, i], x.mask[:, i], None if x.at is None else x.at[:, i]) for i in places]


def race(runs: Mapping[Runtime, Run], some: Sequence[Masked], clocks: Sequence[Clock] = CLOCKS) -> dict[Runtime, float]:
    """Milliseconds a row: the best of a few rounds, in which the runtimes take turns, so that all meet the same load.

    A first round, which may compile for the shapes, does not count. What is far behind runs once.

    Args:
        runs: runtime -> what runs it.
        some: batches to run in turn.
        clocks: in seconds; of several, the one that says least.
    """
    best = dict.fromkeys(runs, math.inf)
    for run in runs.values():
        _all(run, some)
    for _ in range(REPEATS):
        for runtime, run in runs.items():
            if best[runtime] == math.inf or best[runtime] < HOPELESS * min(best.values()):
                starts = [clock() for clock in clocks]
                _all(run, some)
                best[runtime] = min(best[runtime], *(clock() - t for clock, t in zip(clocks, starts, strict=True)))
    return {runtime: seconds / sum(map(len, some)) * 1e3 for runtime, seconds in best.items()}


def _all(run: Run, some: Sequence[Masked]) -> None:
    for x in some:
        run(x)
