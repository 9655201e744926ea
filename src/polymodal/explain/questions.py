"""What to explain of an answer: numbers that mean something when they are added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from polymodal.task import Task
from polymodal.tasks.classify import Classify, label_text
from polymodal.tasks.generate import Generate
from polymodal.tasks.match import Match
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.tasks.tag import Tag
from polymodal.tasks.tag.decode import marginals
from polymodal.types import Masked

SHOWN = 60
"""Characters of an answer that its unit shows."""


@singledispatch
def scores(task: Task, output: Tensor) -> Tensor | None:
    """What an explanation adds up to: (B, S) float64 on the CPU, S possible answers; None for tasks not known here.

    Log-odds of the calibrated probability of each class or label; numbers in the targets' own units; how many words of
    each type are expected, where words are tagged; the mean cosine of the sides that are there, 0 without two of them;
    the log-probability of an answer that is given, in nats.
    """
    return None


@scores.register
def _(task: Classify, output: Tensor) -> Tensor:
    logits = output.detach().cpu().double() / task.temperature
    log_p = logits.log_softmax(1)
    best = logits.argmax(1, keepdim=True)
    log_rest = torch.log1p(-log_p.exp().scatter(1, best, 0.0))
    others = log_p.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True)  # 1 - p would be 0 for a sure class
    return log_p - log_rest.scatter(1, best, others)


@scores.register
def _(task: Multilabel, output: Tensor) -> Tensor:
    return output.detach().cpu().double() / task.temperature


@scores.register
def _(task: Regress, output: Tensor) -> Tensor:
    return task.answers(output)


@scores.register
def _(task: Tag, output: Tensor) -> Tensor:
    p = marginals(output)[:, :, 1:].sum(1)
    return p.reshape(len(p), len(task.types), -1).sum(2)


@scores.register
def _(task: Match, output: Tensor) -> Tensor:
    return torch.tensor([[row["similarity"] or 0.0] for row in task.predict(output)], dtype=torch.double)


@scores.register
def _(task: Generate, output: Tensor) -> Tensor | None:
    return -output.detach().cpu().double()[:, None] if output.ndim == 1 else None


@dataclass(frozen=True, slots=True)
class Question:
    """One number per row that is to be explained.

    Attributes:
        key: name of the task, with the target behind a slash where it has several.
        task: name of the task.
        chosen: (B,) which of the task's scores.
        units: what the number is, per row.
        wanted: the answers that it is about, as targets of the task, where what others would be is not asked.
    """

    key: str
    task: str
    chosen: Tensor
    units: Sequence[str]
    wanted: Masked | None = None

    def row(self, i: int) -> Question:
        """The same for one row."""
        wanted = None if self.wanted is None else self.wanted[i : i + 1]
        return Question(self.key, self.task, self.chosen[i : i + 1], self.units[i : i + 1], wanted)


@singledispatch
def questions(task: Task, name: str, output: Tensor) -> list[Question]:
    """What to explain of a task's answers.

    The predicted class, the most probable label, each number, the words of the type that most are expected of, the
    similarity of what is matched, what is said.

    Args:
        task: fitted.
        name: of the task.
        output: (B, ...) its raw answers to the rows, with everything they have.
    """
    return []


@questions.register
def _(task: Classify, name: str, output: Tensor) -> list[Question]:
    best = task.answers(output)
    return [Question(name, name, best, [f"logit of {label_text(task.classes[k])!r}" for k in best.tolist()])]


@questions.register
def _(task: Multilabel, name: str, output: Tensor) -> list[Question]:
    best = task.probabilities(output).argmax(1)
    return [Question(name, name, best, [f"logit of {task.labels[k]!r}" for k in best.tolist()])]


@questions.register
def _(task: Regress, name: str, output: Tensor) -> list[Question]:
    columns, every = task.columns(name), torch.ones(len(output), dtype=torch.long)
    keys = [f"{name}/{column}" for column in columns] if len(columns) > 1 else [name]
    units = [[f"unit of {column!r}"] * len(output) for column in columns]
    return [Question(key, name, every * k, units[k]) for k, key in enumerate(keys)]


@questions.register
def _(task: Tag, name: str, output: Tensor) -> list[Question]:
    most = scores(task, output)
    assert most is not None
    best = most.argmax(1)
    return [Question(name, name, best, [f"expected words of {task.types[k]!r}" for k in best.tolist()])]


@questions.register
def _(task: Match, name: str, output: Tensor) -> list[Question]:
    return [Question(name, name, torch.zeros(len(output), dtype=torch.long), ["cosine"] * len(output))]


@questions.register
def _(task: Generate, name: str, output: Tensor) -> list[Question]:
    said = [answer["text"] for answer in task.predict(output)]
    units = [f"log-probability of {text[:SHOWN]!r} in nats" for text in said]
    first = torch.zeros(len(output), dtype=torch.long)
    return [Question(name, name, first, units, task.wanted(output))]
