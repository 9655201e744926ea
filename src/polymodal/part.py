"""Part: a frozen, serialisable choice in a spec. Modality and Fusion are two of its three kinds; Task is in `task`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from polymodal.errors import BundleError, SpecError, suggest
from polymodal.nn.backbone import Backbone
from polymodal.reading import Corruption, Pieces, Reading
from polymodal.reading import Field as FormField
from polymodal.types import Masked


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
        verbatim: True if collated values (B, N) are token ids of a language model, which reads them word for word.
    """

    media: ClassVar[bool] = False
    spans: ClassVar[bool] = False
    worded: ClassVar[bool] = False
    verbatim: ClassVar[bool] = False
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

    def length(self, value: Any) -> int:
        """How long a present value is, in any unit: values of like length are embedded together."""
        return len(value) if hasattr(value, "__len__") else 0

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


def is_pretrained(part: Modality) -> bool:
    """Whether a modality has a backbone. That one is missing here is said where it is used."""
    try:
        return part.backbone() is not None
    except (SpecError, BundleError):
        return True


def summary_width(part: Modality) -> int:
    """F, the width of a modality's `summary`, found without data."""
    backbone = part.backbone()
    if backbone is None:
        return part.summary(part.collate([None])).shape[1]
    one = torch.ones(1, 1, dtype=torch.bool)
    return part.summary(Masked(torch.zeros(1, 1, backbone.width), one)).shape[1]
