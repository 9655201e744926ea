"""Part: a frozen, serialisable choice in a spec. Modality, Fusion and Task are its three kinds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from polymodal.errors import suggest
from polymodal.nn.backbone import Backbone
from polymodal.reading import Corruption, Pieces, Reading
from polymodal.reading import Field as FormField
from polymodal.types import Fused, Masked


class Part(BaseModel, ABC):
    """A named choice with parameters. Subclasses set ``type: Literal["name"] = "name"`` and are known by it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    known: ClassVar[dict[str, type[Part]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give each kind (a direct subclass of Part) a table of its own."""
        super().__init_subclass__(**kwargs)
        if Part in cls.__bases__:
            cls.known = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Enter the part in its kind's table under its ``type``."""
        if "type" in cls.model_fields:
            cls.known[cls.model_fields["type"].default] = cls

    @property
    def kind(self) -> str:
        """The name that a spec calls this part by."""
        return type(self).model_fields["type"].default

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Accept a part, its name, or a mapping with a ``type``.

        Raises:
            ValueError: the type is unknown; the message offers the nearest name.
        """
        if isinstance(value, cls):
            return value
        kind = cls.__name__.lower()
        if not isinstance(value, str | Mapping):
            raise ValueError(f"{kind} must be a type's name or a mapping with a type, got {value!r}.")
        value = {"type": value} if isinstance(value, str) else dict(value)
        name = value.get("type")
        if not isinstance(name, str) or name not in cls.known:
            raise ValueError(f"{kind} type must be one of {sorted(cls.known)}, got {name!r}.{suggest(name, cls.known)}")
        return cls.known[name].model_validate(value)  # pyright: ignore[reportReturnType]


class Modality(Part):
    """One kind of input: how its raw cells become tensors, and tensors become tokens.

    Attributes:
        column: the table's column; the input's own name when not given.
        media: True if a cell is a path, URL, data URL or bytes, which reaches `read` as bytes; False if
            a cell reaches `read` as it stands in the table.
        spans: True if a cell is made of several columns and reaches `read` as {column: value or None}.
        worded: True if a value is a `Sentence`, and each token stands for one of its words, in order.
    """

    media: ClassVar[bool] = False
    spans: ClassVar[bool] = False
    worded: ClassVar[bool] = False
    column: str | None = None

    def columns(self, name: str) -> tuple[str, ...]:
        """The table's columns that an input called ``name`` is made of."""
        return (self.column or name,)

    def fields(self, name: str) -> tuple[FormField, ...]:
        """What an input called ``name`` takes, column by column, with examples that the fitted part reads."""
        return tuple(FormField(column, self.kind) for column in self.columns(name))

    @abstractmethod
    def read(self, content: Any) -> Reading:
        """Decode and clean one present cell.

        Args:
            content: bytes for media; {column: value or None} where the modality ``spans`` columns; else the
                cell's value.

        Returns:
            The value; a value of None means that nothing usable was left, and the cell counts as absent.

        Raises:
            DataError: the content is broken. The caller adds row, column and path.
        """

    def fit(self, values: Iterable[Any | None]) -> Self:
        """A copy that has learned what it needs (a vocabulary, a scale) from the training values.

        Args:
            values: decoded on demand, in order, None where absent. May be iterated more than once.
                A part that needs no data must not iterate: that would decode every file.
        """
        return self

    @property
    def augments(self) -> bool:
        """Whether `augment` changes anything, so that tokens cannot be computed once and kept."""
        return False

    def augment(self, value: Any, rng: np.random.Generator) -> Any:
        """A varied copy of a present value, for training only."""
        return value

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """Noises natural to this kind of input, by name; none where it names none. Taken from the fitted part."""
        return {}

    def pieces(self, value: Any) -> Pieces | None:
        """How a present value comes apart, for explanations; None where it does not."""
        return None

    @abstractmethod
    def collate(self, values: Sequence[Any | None]) -> Masked:
        """Values -> (B, N, ...). None becomes a row with nothing real in it."""

    def files(self) -> dict[str, bytes]:
        """Files by name that `collate` works with, for who does without this library: a tokenizer. Mostly none."""
        return {}

    def backbone(self) -> Backbone | None:
        """The pretrained network from collated values to tokens (B, T, W), or None to train from scratch."""
        return None

    @abstractmethod
    def encoder(self, dim: int) -> nn.Module:
        """A trainable module from the backbone's tokens (or collated values, without one) to (B, T, dim).

        It never sees an absent row: every row it gets has at least one real position.
        """

    @abstractmethod
    def summary(self, x: Masked) -> Tensor:
        """A fixed (B, F) vector per sample, from what the encoder takes: for linear models and for vector fusions.

        F must not depend on the batch. Absent rows may hold anything: the caller masks them.
        """


class Fusion(Part):
    """How the tokens of several inputs become one vector per sample."""

    late: ClassVar[bool] = False
    """True where each input is decided by its own head and the fusion only weighs the answers."""

    deep: ClassVar[bool] = False
    """True where tokens of different inputs meet; any other fusion gets one token per backbone, its summary."""

    @abstractmethod
    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """A module from {name: Masked (B, T, dim)} to `Fused`.

        Any subset of inputs may be absent in any row, also all of them; names may come in any order, and
        a name may be left out, which means the same as absent in every row.
        """


class Labelled(NamedTuple):
    """A raw target of a task that is `about` an input, beside what that input's modality read in the same row."""

    label: Any
    value: Any


class Task(Part):
    """One kind of output: its target, head, loss, prediction and metrics.

    Attributes:
        column: the table's target column; the task's own name when not given.
        weight: factor of this task's loss in the sum over tasks.
    """

    unfused: ClassVar[bool] = False
    """True where the head takes the inputs' tokens as they are encoded, before they have seen one another."""

    column: str | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def about(self) -> str | None:
        """The input whose tokens are answered for, one by one; None for a task that answers for the whole row."""
        return None

    def columns(self, name: str) -> tuple[str, ...]:
        """The table's columns that a task called ``name`` learns; none for a task that learns from the inputs alone."""
        return (self.column or name,)

    def within(self, inputs: Mapping[str, Modality]) -> Self:
        """A copy that knows which inputs it stands beside. A spec calls this once for each of its tasks.

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
