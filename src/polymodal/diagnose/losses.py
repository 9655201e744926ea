"""What each row by itself costs, and what an answer is worth that needs no input, for every kind of task."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polymodal.metrics import right
from polymodal.task import Task
from polymodal.tasks.match import Match
from polymodal.tasks.match.retrieval import Direction, directions
from polymodal.tasks.tag import Tag
from polymodal.tasks.tag.scores import Seen
from polymodal.types import Masked

CHANCE = 64
"""Length of random embeddings."""

STEADY = 2000
"""Rows that are drawn in all for the score of chance."""


@singledispatch
def losses(task: Task, output: Tensor, target: Masked) -> np.ndarray:
    """The task's own loss of each row, in its unit (nats for classes).

    Args:
        task: fitted.
        output: (n, ...) raw answers.
        target: of n labelled rows.

    Returns:
        (n,); NaN where a row cannot be judged.
    """
    with torch.inference_mode():
        return np.array([float(task.loss(output[i : i + 1], target[i : i + 1])) for i in range(len(output))])


@losses.register
def _(task: Match, output: Tensor, target: Masked) -> np.ndarray:
    """1 - reciprocal rank: a match is right or wrong only among the other rows."""
    return 1 - reciprocal_ranks(task, output, target)


def searches(task: Match, output: Tensor, target: Masked) -> list[Direction]:
    """Every side's rows looked for by every other's."""
    return directions({name: task.embed(output, [name]) for name in task.names}, target)


def reciprocal_ranks(task: Match, output: Tensor, target: Masked) -> np.ndarray:
    """1 / the rank of the first right item, mean over the directions that a row is a query in; NaN where none. (n,)."""
    found = [1 / search.ranking.rank for search in searches(task, output, target)]
    total, known = np.nansum([np.zeros(len(output)), *found], 0), sum(~np.isnan(one) for one in found)
    return np.divide(total, known, out=np.full(len(output), np.nan), where=np.asarray(known) > 0)


def span_counts(task: Tag, output: Tensor, target: Masked) -> np.ndarray:
    """Spans of each labelled row that are found and right, that are found, and that are there. (n, 3)."""
    seen = Seen.of(output, target, task.types, task.tags)
    true, found = seen.spans()
    rows = (found.row[right(true, found)], found.row, true.row)
    return np.stack([np.bincount(row, minlength=len(seen.real)) for row in rows], 1)


@singledispatch
def chances(task: Task, target: Masked) -> list[Tensor]:
    """Raw answers (B, ...) drawn without any input, for tasks that ask for several inputs at once; none for others."""
    return []


@chances.register
def _(task: Match, target: Masked) -> list[Tensor]:
    """Random embeddings, which find what chance finds; of few rows so often that their mean is steady."""
    dice, shape = torch.Generator().manual_seed(0), (len(target), len(task.groups) + 1, CHANCE)
    draws = range(max(1, STEADY // max(1, len(target))))
    return [functional.normalize(torch.randn(shape, generator=dice), dim=-1) for _ in draws]
