"""What is recorded of every epoch, and which epoch was the best."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from polymodal.errors import SpecError, suggest
from polymodal.metrics import higher_is_better
from polymodal.spec import Spec
from polymodal.tasks import Regress

SETS = ("coverage", "set_size")
"""Scores of the predicted sets of classes and labels, which say nothing before `VectorTask.calibrate`."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: from 0.
        train_loss: mean over steps of everything that is minimised.
        valid_loss: weighted sum of the tasks' losses on the validation rows; None without such rows.
        terms: every term of the objective, unweighted, mean over steps.
        valid_terms: loss of each task and of each input's own head on the validation rows, by the terms' names.
        gradients: input name -> L2 norm of the gradient of its encoder, before clipping, mean over steps.
        score: the monitored score on the validation rows; None where the loss is monitored, or it is not defined.
    """

    number: int
    train_loss: float
    valid_loss: float | None
    terms: dict[str, float]
    valid_terms: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    score: float | None = None


def best_epoch(history: Sequence[Epoch], monitor: str = "loss") -> Epoch:
    """The first epoch with the best monitored value on validation rows; one without a finite value comes last."""
    sign = -1 if monitor != "loss" and higher_is_better(monitor) else 1

    def badness(epoch: Epoch) -> float:
        value = epoch.valid_loss if monitor == "loss" else epoch.score
        return sign * value if value is not None and math.isfinite(value) else math.inf

    return min(history, key=badness)


def monitored(spec: Spec) -> tuple[str, str] | None:
    """Task and score that ``training.monitor`` names; None for the loss.

    Raises:
        SpecError: there are several tasks and it starts with the name of none.
    """
    monitor, several = spec.training.monitor, len(spec.outputs) > 1
    if monitor == "loss":
        return None
    for n in sorted(spec.outputs, key=len, reverse=True):
        if monitor.startswith(f"{n}."):
            return n, monitor.removeprefix(f"{n}.")
    if several:
        raise SpecError(
            f"training.monitor must be loss or a task and its score, as in {next(iter(spec.outputs))}.NAME, "
            f"got {monitor!r}. The tasks are {list(spec.outputs)}."
        )
    return next(iter(spec.outputs)), monitor


def check_score(spec: Spec, scores: Collection[str]) -> None:
    """Refuse a monitored score that is not among the names that the validation rows gave.

    Raises:
        SpecError: it is not; the message lists those that are.
    """
    watched = monitored(spec)
    if watched is not None and watched[1] in SETS and not isinstance(spec.outputs[watched[0]], Regress):
        raise SpecError(
            f"training.monitor must be loss or a score that changes in training, got {spec.training.monitor!r}: sets "
            "hold everything until they are calibrated, after it. Choose another score."
        )
    if watched is not None and watched[1] not in scores:
        raise SpecError(
            f"training.monitor must be loss or a score that the validation rows allow, got {spec.training.monitor!r}."
            f"{suggest(watched[1], scores)} Known for {watched[0]}: {', '.join(scores)}."
        )
