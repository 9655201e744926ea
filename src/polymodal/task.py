"""Task: a kind of output, from raw targets to predictions and scores."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from polymodal.errors import DataError
from polymodal.part import Modality, Part
from polymodal.types import Fused, Masked


class Labelled(NamedTuple):
    """A raw target of a task that is `about` an input, beside what that input's modality read in the row, or None."""

    label: Any
    value: Any


class Task(Part):
    """One kind of output: its target, head, loss, prediction and metrics.

    Attributes:
        column: the table's target column; the task's own name when not given.
        weight: factor of this task's loss in the sum over tasks.
    """

    forced: ClassVar[bool] = False
    """True where the head must know the target to tell what it costs, and makes an answer of its own without it."""

    foretells: ClassVar[bool] = True
    """False where a target column is no answer, so that it may be an input as well."""

    column: str | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def unfused(self) -> bool:
        """Whether the head takes the inputs' tokens as they are encoded, before they have seen one another."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """Inputs whose single tokens the head takes, where there are several."""
        return ()

    @property
    def about(self) -> str | None:
        """The input whose tokens are answered for, one by one; None for a task that answers for the whole row."""
        return None

    @property
    def fixed(self) -> tuple[str, ...]:
        """The inputs that reach the model as their pretrained summaries are, through no learned layer."""
        return ()

    def unfit(self, dim: int, summaries: Mapping[str, int], finetuned: Collection[str]) -> list[str]:
        """Why the task cannot stand in a spec, a line each; none if it can.

        Args:
            dim: of the model.
            summaries: width of each `fixed` input that reaches the model as its summary.
            finetuned: inputs whose backbones are trained.
        """
        return []

    def columns(self, name: str) -> tuple[str, ...]:
        """The table's columns that a task called ``name`` learns; none for a task that learns from the inputs alone."""
        return (self.column or name,)

    def within(self, inputs: Mapping[str, Modality], alone: bool = True) -> Self:
        """A copy that knows which inputs it stands beside. A spec calls this once for each of its tasks.

        Args:
            inputs: of the spec.
            alone: whether it is the only task.

        Raises:
            ValueError: they are not what the task needs.
        """
        return self

    def asks(self, name: str) -> bool:
        """Whether an input by itself can answer, by a head of its own."""
        return True

    @abstractmethod
    def fit(self, values: Sequence[Any | None]) -> Self:
        """A copy that knows its classes or scale. ``values`` as for `collate`."""

    @abstractmethod
    def collate(self, values: Sequence[Any | None]) -> Masked:
        """Raw targets -> (B, K). None is unlabelled and is left out of loss and metrics.

        Args:
            values: cells; {column: cell} for a task of several columns; row numbers for a task of none; `Labelled`
                for a task that is about an input.

        Raises:
            DataError: a value is no target of this task.
        """

    @abstractmethod
    def head(self, dim: int) -> nn.Module:
        """A module from `Fused` to this task's raw output, a tensor that starts with B."""

    def combine(self, output: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """The raw output of all inputs together with those of their own heads, for a task without `VectorTask.mix`."""
        return output

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Raw outputs of several batches as one; a task whose outputs differ in length pads them."""
        return torch.cat(list(outputs))

    @abstractmethod
    def loss(self, output: Tensor, target: Masked) -> Tensor:
        """Mean loss over labelled samples; 0 (with a gradient path) if there are none. Scalar."""

    @abstractmethod
    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        """One JSON-able mapping per sample, with certainty."""

    def locate(self, answer: dict[str, Any], value: Any | None) -> dict[str, Any]:
        """The answer for a row, once it is known what was read of the input that it is `about`; None where absent."""
        return answer

    @abstractmethod
    def metrics(self, output: Tensor, target: Masked) -> dict[str, float]:
        """The field's scores over labelled samples. The first is the task's headline score."""

    def headline(self, output: Tensor, target: Masked) -> Callable[[np.ndarray], float] | None:
        """The headline score of any choice of rows by their numbers, for resampling; None where it has none.

        Override it where a score of many rows can be put together from what is computed once.
        """
        name = next(iter(self.metrics(output, target)), None)
        if name is None:
            return None

        def score(rows: np.ndarray) -> float:
            chosen = torch.as_tensor(rows)
            return self.metrics(output[chosen], target[chosen]).get(name, math.nan)

        return score

    def balance(self, target: Masked) -> dict[str, int]:
        """How many labelled samples each class has; empty where a task has no classes."""
        return {}

    def details(self, output: Tensor, target: Masked) -> dict[str, Any]:
        """JSON-able tables for the report (a confusion matrix, scores per class); empty where a task has none."""
        return {}


def fitted(name: str, task: Task, values: Sequence[Any | None]) -> Task:
    """A task called ``name``, fitted.

    Raises:
        DataError: its targets cannot be learned; the message names it.
    """
    try:
        return task.fit(values)
    except DataError as error:
        raise DataError(f"target {name!r}: {error}") from None


class VectorTask(Task):
    """A task whose raw output is one vector (B, size) per sample, so that a linear model can solve it too."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of the raw output of one sample."""

    def head(self, dim: int) -> nn.Module:
        """Linear map of the pooled vector."""
        return PooledHead(dim, self.size)

    @abstractmethod
    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """The raw output whose prediction is the weighted mean of several predictions.

        Args:
            outputs: M raw outputs (B, size).
            weights: (M,) or (B, M), not negative, summing to 1 over M.

        Returns:
            (B, size), such that `predict`, `loss` and `metrics` take it like a head's own output.
        """

    @abstractmethod
    def calibrate(self, output: Tensor, target: Masked) -> Self:
        """A copy whose certainty is fitted to held-out outputs (a temperature, a scale)."""

    @property
    def certainty(self) -> float:
        """The one factor that `calibrate` fitted (a temperature, a spread); 1 before, and for tasks without one."""
        return 1.0

    def settle(self, output: Tensor, factor: Tensor) -> Tensor:
        """The raw output (B, size) with a `certainty` built in, for `mix`, which knows of none. Override with it."""
        return output


class PooledHead(nn.Module):
    """A linear map of a fusion's pooled vector: Fused -> (B, size)."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, size)

    def forward(self, fused: Fused) -> Tensor:
        """Map pooled (B, dim) to (B, size)."""
        return self.project(fused.pooled)
