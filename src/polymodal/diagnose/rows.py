"""Rows: what each labelled row of one task got as an answer, how far off that is, and which rows belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from polymodal.data.loader import Prepared, target_values
from polymodal.data.table import Table
from polymodal.diagnose.losses import losses, reciprocal_ranks, span_counts
from polymodal.evaluate import Answers
from polymodal.spec import Spec
from polymodal.task import Labelled, Task
from polymodal.tasks.classify import Classify, label_text
from polymodal.tasks.match import Match
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.tasks.tag import Tag
from polymodal.types import Masked

QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
APART = 1.0
"""Standard deviations that two numbers of equal content must be apart to contradict each other."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One task's labelled rows.

    Attributes:
        name: of the task.
        task: fitted.
        place: (n,) where each row is among those that were answered.
        rows: (n,) its number in the table.
        output: (n, ...) the model's raw answers.
        target: (n, K).
        given: the n targets as they stand in the table.
    """

    name: str
    task: Task
    place: np.ndarray
    rows: np.ndarray
    output: Tensor
    target: Masked
    given: Sequence[Any]

    @classmethod
    def of(cls, name: str, spec: Spec, answers: Answers, prepared: Prepared, table: Table) -> Self:
        """Take the labelled rows out of a whole table's answers."""
        labelled = answers.targets[name].present
        place = labelled.nonzero().flatten().numpy()
        rows = prepared.rows.numpy()[place]
        if spec.outputs[name].columns(name):
            found = target_values(name, spec, table.select(rows))
            given = [cell.label if isinstance(cell, Labelled) else cell for cell in found]
        else:
            given = rows.tolist()
        return cls(
            name,
            spec.outputs[name],
            place,
            rows,
            answers.outputs[name][labelled],
            answers.targets[name][labelled],
            given,
        )

    def __len__(self) -> int:
        """Return how many rows are labelled."""
        return len(self.rows)

    def losses(self) -> np.ndarray:
        """What each row costs, as `polymodal.diagnose.losses.losses` says. (n,), NaN where it cannot be judged."""
        return losses(self.task, self.output, self.target)

    def truth(self, i: int) -> Any:
        """The target of one row as the table gives it, fit for JSON."""
        return plain(self.given[i])

    def predicted(self, i: int) -> Any:
        """The answer of one row, without its certainty, fit for JSON."""
        answer = self.task.predict(self.output[i : i + 1])[0]
        return plain(answer["tags"] if isinstance(self.task, Tag) else next(iter(answer.values())))


def plain(value: Any) -> Any:
    """A cell as JSON: texts, finite numbers, booleans, lists and mappings of them; anything else as text."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(cell) for key, cell in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [plain(cell) for cell in value]
    return str(value)


@dataclass(frozen=True, slots=True)
class RowScores:
    """A score that each row has by itself, so that the mean over any rows is a score of those rows.

    Attributes:
        metric: its name.
        higher_is_better: its sense.
        values: (n,).
    """

    metric: str
    higher_is_better: bool
    values: np.ndarray

    def gap(self, rows: np.ndarray) -> float:
        """How much worse some rows (n,) bool are than the others."""
        gap = float(self.values[~rows].mean() - self.values[rows].mean())
        return gap if self.higher_is_better else -gap


@singledispatch
def row_scores(task: Task, answered: Answered) -> RowScores:
    """How well each row is answered: whether it is right, how far off a number is, and the loss for other tasks."""
    return RowScores("loss", False, answered.losses())


@row_scores.register
def _(task: Classify, answered: Answered) -> RowScores:
    right = task.answers(answered.output) == answered.target.values[:, 0].cpu()
    return RowScores("accuracy", True, right.double().numpy())


@row_scores.register
def _(task: Multilabel, answered: Answered) -> RowScores:
    right = (task.answers(answered.output) == (answered.target.values.cpu() > 0.5)).all(1)
    return RowScores("exact_match", True, right.double().numpy())


@row_scores.register
def _(task: Regress, answered: Answered) -> RowScores:
    error = (task.answers(answered.output) - task.truth(answered.target)).abs().numpy()
    if task.count == 1:
        return RowScores("mae", False, error[:, 0])
    return RowScores("mae in standard deviations", False, np.nanmean(error / np.array(task.scale), 1))


@row_scores.register
def _(task: Tag, answered: Answered) -> RowScores:
    hit, found, there = span_counts(task, answered.output, answered.target).T
    f1 = np.divide(2 * hit, found + there, out=np.ones(len(hit)), where=found + there > 0)
    return RowScores("row_f1", True, f1)  # a row without entities is right if none is found


@row_scores.register
def _(task: Match, answered: Answered) -> RowScores:
    ranks = reciprocal_ranks(task, answered.output, answered.target)
    return RowScores("reciprocal_rank", True, np.nan_to_num(ranks))


@singledispatch
def classes(task: Task, answered: Answered) -> dict[str, np.ndarray]:
    """Rows by what their target says: in words -> (n,) bool. None for tasks that are not known here."""
    return {}


@classes.register
def _(task: Classify, answered: Answered) -> dict[str, np.ndarray]:
    index = answered.target.values[:, 0].cpu().numpy()
    return {f"{answered.name} is {label_text(label)}": index == k for k, label in enumerate(task.classes)}


@classes.register
def _(task: Multilabel, answered: Answered) -> dict[str, np.ndarray]:
    holds = answered.target.values.cpu().numpy() > 0.5
    found = {f"{answered.name} has {label}": holds[:, k] for k, label in enumerate(task.labels)}
    found[f"{answered.name} has no label"] = np.logical_not(holds.any(1))
    return found


@classes.register
def _(task: Regress, answered: Answered) -> dict[str, np.ndarray]:
    truth, found = task.truth(answered.target).numpy(), {}
    for k, column in enumerate(task.columns(answered.name)):
        found |= quarters(column, truth[:, k])
    return found


@classes.register
def _(task: Tag, answered: Answered) -> dict[str, np.ndarray]:
    held = _types(task, answered.target) > 0
    found = {f"{answered.name} has {kind}": held[:, k] for k, kind in enumerate(task.types)}
    found[f"{answered.name} has no entity"] = np.logical_not(held.any(1))
    return found


def _types(task: Tag, target: Masked) -> np.ndarray:
    """How many words of each type the rows have. (n, types)."""
    tags = np.where(target.mask.cpu().numpy(), target.values.cpu().numpy(), 0)
    per_type = (len(task.tags) - 1) // len(task.types)
    kinds = (tags[..., None] - 1) // per_type == np.arange(len(task.types))
    return (kinds & (tags > 0)[..., None]).sum(1)


def quarters(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Rows by the quartiles of (n,) values, NaN where missing: in words -> (n,) bool. Equal values stay together."""
    known = ~np.isnan(values)
    if not known.any():
        return {}
    edges = np.quantile(values[known], (0.25, 0.5, 0.75))
    bins = np.where(known, np.searchsorted(edges, values, side="left"), -1)
    found = {}
    for i, words in enumerate(QUARTERS):
        if (bins == i).any():
            low, high = values[bins == i].min(), values[bins == i].max()
            found[f"{name} in {low:.4g} to {high:.4g} ({words})"] = bins == i
    return found


@singledispatch
def comparable(task: Task, target: Masked) -> tuple[Tensor, float]:
    """What says whether two labels contradict each other: they do if any two numbers differ by more than a tolerance.

    Returns:
        (n, C), NaN where nothing is known, and the tolerance. By default a number for each different target, and 0.
    """
    codes = target.values.cpu().flatten(1).unique(dim=0, return_inverse=True)[1]
    return codes[:, None].double(), 0.0


@comparable.register
def _(task: Regress, target: Masked) -> tuple[Tensor, float]:
    return target.values.cpu().double().masked_fill(~target.mask.cpu(), torch.nan), APART


@comparable.register
def _(task: Tag, target: Masked) -> tuple[Tensor, float]:
    """How many words of each type: nearly the same sentence may well be longer by a word."""
    return torch.from_numpy(_types(task, target)).double(), 0.0


@comparable.register
def _(task: Match, target: Masked) -> tuple[Tensor, float]:
    """Nothing: rows that belong to themselves alone contradict no other."""
    return torch.full((len(target), 1), torch.nan, dtype=torch.double), 0.0


def contradict(one: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """Whether labels (m, C) contradict labels (m, C), as `comparable` gives them, pair by pair. (m,) bool."""
    return ((one - other).abs() > tolerance).any(1)
