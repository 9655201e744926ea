"""What each input could give: its own head, a linear model on its features, and the best that needs no input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from polymodal.data.loader import Prepared
from polymodal.diagnose.scores import Scorer
from polymodal.evaluate import answers
from polymodal.model import ALL, Model
from polymodal.nn.optimise import minimise
from polymodal.task import VectorTask
from polymodal.types import Batch, Masked

Array = NDArray[Any]

STEPS = 50


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Samples (1 + R,) of a metric for one input; None where there is no such model.

    Attributes:
        own_head: of the input's own head.
        linear: of the linear model that sees this input alone.
    """

    own_head: Array | None
    linear: Array | None


@torch.no_grad()
def ceilings(
    model: Model, prepared: Prepared, device: torch.device, scorers: Mapping[str, Scorer]
) -> dict[str, dict[str, Ceiling]]:
    """Score the heads and linear models that see one input only. All rows count, also those that lack the input.

    Returns:
        Task name -> input name -> its ceilings.
    """
    found: dict[str, dict[str, Ceiling]] = {n: {} for n in scorers}
    linear = model.baselines()
    for name in model.names:
        label = name if len(model.names) > 1 else ALL
        own = answers(model, prepared, device, decode=lambda batch, name=name: _own(model, batch, name)).outputs
        flat = answers(model, prepared, device, decode=linear[label]).outputs if label in linear else {}
        for n, scorer in scorers.items():
            found[n][name] = Ceiling(*(scorer(seen[n]) if n in seen else None for seen in (own, flat)))
    return found


def _own(model: Model, batch: Batch, name: str) -> dict[str, Tensor]:
    single = model(batch.inputs).single
    return {n: heads[name] for n, heads in single.items() if name in heads}


def constant(task: VectorTask, target: Masked) -> Tensor:
    """The one answer for all rows that fits these rows best: the frequencies of the classes, the mean.

    Args:
        task: whose loss decides.
        target: of B rows.

    Returns:
        (B, size) raw outputs, all alike.
    """
    known = target[target.present]

    def loss(x: Tensor) -> Tensor:
        return task.loss(x.expand(len(known), -1), known)

    return minimise(loss, torch.zeros(task.size), STEPS).expand(len(target), -1)
