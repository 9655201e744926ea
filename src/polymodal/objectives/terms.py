"""What a step minimises, term by term, and the same measured on whole tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from polymodal.data.loader import Prepared
from polymodal.mixing import Mixing
from polymodal.model import Model
from polymodal.ranks import Ranks
from polymodal.spec import Spec
from polymodal.task import Task, VectorTask
from polymodal.types import Batch, Masked, Outputs

EVALUATION_BATCH = 256

OWN_HEADS = ("auxiliary", "gradient_blending", "mmpareto")
"""Kinds of balance that minimise the losses of the inputs' own heads, too."""


class Answer(NamedTuple):
    """Something that a model says about a task: all inputs together, or one input's own head."""

    label: str
    task: str
    input: str | None
    output: Tensor
    target: Masked


def answers(spec: Spec, outputs: Outputs, batch: Batch) -> Iterator[Answer]:
    """Every answer of a model beside its target. Targets of rows that lack an input are unknown to its own head."""
    for n in spec.outputs:
        target = batch.targets[n]
        yield Answer(n, n, None, outputs.decoded[n], target)
        for name, output in outputs.single[n].items():
            yield Answer(f"{n} from {name}", n, name, output, target.without(~batch.inputs[name].present))


@dataclass(frozen=True, slots=True)
class Term:
    """One part of what is minimised.

    Attributes:
        factor: of the mean in its task's loss, or in the whole where it belongs to no task.
        mean: () loss, a mean over samples.
        count: () how many samples that mean is over.
        task: whose loss it is a part of; None for a term beside the tasks.
        own: whether it is the loss of one input's own head.
    """

    factor: float
    mean: Tensor
    count: Tensor
    task: str | None
    own: bool = False


def terms(
    model: Model, outputs: Outputs, batch: Batch, blend: Mapping[str, float] | None = None, mixing: Mixing | None = None
) -> dict[str, Term]:
    """Every term to minimise, by its label.

    Beside each task stands the loss of each input's own head, where the spec's balance asks for it, on the rows that
    have that input (Wang et al. 2020, arXiv:1905.12681, equation 2).

    Args:
        model: whose outputs these are.
        outputs: of the batch.
        batch: with targets.
        blend: further factors by label, 1 where a label is not named.
        mixing: how the rows of the fused answer were mixed. Own heads are not.
    """
    plan, found = model.spec.training, dict[str, Term]()
    for label, n, name, output, target in answers(model.spec, outputs, batch):
        task, own = model.spec.outputs[n], name is not None
        if own and plan.balance not in OWN_HEADS:
            continue
        factor = task.weight * (plan.auxiliary if own else 1.0) * (blend or {}).get(label, 1.0)
        mean, count = mixed_loss(task, output, target, None if own else mixing)
        found[label] = Term(factor, mean, count, n, own)
    if model.alignment is not None and plan.alignment is not None:
        mean, count = model.alignment(outputs.encoded)
        found["alignment"] = Term(plan.alignment.weight, mean, count, None)
    return found


def mixed_loss(task: Task, output: Tensor, target: Masked, mixing: Mixing | None) -> tuple[Tensor, Tensor]:
    """Mean loss of a task, and how many rows it is over; of mixed rows, on both rows' targets.

    Each of the two counts by its share, and only where its target is known; so all rows must have one share. Answers
    that are no vector per row are never mixed.

    Source: Verma et al. 2019 (arXiv:1806.05236), equation 1; what is left of it where a target is unknown is ours.
    """
    mean, count = task.loss(output, target), target.present.sum()
    if mixing is None or not isinstance(task, VectorTask):
        return mean, count
    other, share = target[mixing.partner], mixing.share[0]
    first, second = share * count, (1 - share) * other.present.sum()
    total = first + second
    return (first * mean + second * task.loss(output, other)) / total.clamp(min=1e-6), total


@dataclass(frozen=True, slots=True)
class Losses:
    """The terms of one step, over all ranks.

    Attributes:
        terms: by label.
        parts: label -> () this rank's part of the term's mean, to differentiate.
        means: label -> the mean over the samples of all ranks.
        tasks: (T,) loss of each task, its weight and its own heads included.
        known: (T,) bool, whether a task has any labelled sample in this step.
    """

    terms: dict[str, Term]
    parts: dict[str, Tensor]
    means: dict[str, float]
    tasks: Tensor
    known: Tensor

    @classmethod
    def of(cls, terms: dict[str, Term], names: Sequence[str], ranks: Ranks) -> Losses:
        """Add up the terms of all ranks; ``names`` are the tasks'."""
        shares = ranks.shares({label: term.count for label, term in terms.items()})
        parts = {label: term.mean * shares[label] for label, term in terms.items()}
        local = [*(part.detach() for part in parts.values()), *(term.count for term in terms.values())]
        whole = ranks.add_up(torch.stack([value.float() for value in local])).tolist()
        means = dict(zip(terms, whole, strict=False))
        tasks = [sum(t.factor * means[label] for label, t in terms.items() if t.task == n) for n in names]
        counts = dict(zip(terms, whole[len(terms) :], strict=True))
        return cls(terms, parts, means, torch.tensor(tasks), torch.tensor([counts[n] > 0 for n in names]))

    def add(self, weights: Mapping[str | None, float], own: bool | None = None) -> Tensor | None:
        """Sum of this rank's parts: those of the tasks that have a weight, times it; None names the terms beside them.

        None where there is no such term.

        Args:
            weights: task name -> factor.
            own: True for own heads alone, False for all but them.
        """
        chosen = [
            term.factor * weights[term.task] * self.parts[label]
            for label, term in self.terms.items()
            if term.factor and term.task in weights and own in (None, term.own)
        ]
        return torch.stack(chosen).sum() if chosen else None

    @property
    def beside(self) -> float:
        """What the terms that belong to no task add."""
        return sum(term.factor * self.means[label] for label, term in self.terms.items() if term.task is None)


@torch.no_grad()
def measure(
    model: Model, prepared: Prepared, device: torch.device, scored: str | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Answer every row.

    Args:
        model: in evaluation mode.
        prepared: labelled rows.
        device: of the model.
        scored: a task whose scores are wanted, too.

    Returns:
        Mean loss by label, of each task and of each input's own head on the rows that have it, 0 without such rows;
        the scores of the task by name.
    """
    parts: dict[str, list[Tensor]] = {}
    outputs, targets = list[Tensor](), list[Masked]()
    for rows in prepared.parts(EVALUATION_BATCH):
        batch = prepared.batch(rows).to(device)
        found = model(batch.inputs, targets=batch.targets)
        for label, n, name, output, target in answers(model.spec, found, batch):
            loss, count = model.spec.outputs[n].loss(output, target).float(), target.present.sum()
            parts.setdefault(label, []).append(torch.stack([loss, count.float()]))
            if n == scored and name is None:
                free = model(batch.inputs).decoded[n] if model.spec.outputs[n].forced else output
                outputs.append(free.cpu())
                targets.append(target.to("cpu"))
    means = {}
    for label, some in parts.items():
        losses, counts = torch.stack(some).cpu().double().unbind(1)
        means[label] = float((losses * counts).sum() / counts.sum().clamp(min=1))
    if scored is None:
        return means, {}
    task = model.spec.outputs[scored]
    return means, task.metrics(task.join(outputs), Masked.join(targets))
