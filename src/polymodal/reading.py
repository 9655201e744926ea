"""What a modality makes of a cell besides tensors: its reading, its noises, its pieces, its field in a form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np


@dataclass(frozen=True, slots=True)
class Reading:
    """One decoded cell.

    Attributes:
        value: the value in memory, as the modality's ``augment`` and ``collate`` take it.
        repairs: what had to be mended, in constant words that can be counted ("truncated file", "clipped").
        facts: numbers worth a range in the data report ({"width": 640.0, "height": 480.0}, {"seconds": 1.2}).
        broken: of a modality that ``spans`` columns, those whose cell could not be read and counts as absent -> why.
    """

    value: Any
    repairs: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Corruption:
    """A noise natural to a kind of input, for robustness curves.

    Attributes:
        unit: of a severity ("pixels", "dB").
        levels: ten severities, mild to harsh.
        apply: from values as `Modality.read` gives them (None: absent), a severity and a generator to a list of as
            many; None where nothing usable is left. Never changes its arguments but the generator.
    """

    unit: str
    levels: tuple[float, ...]
    apply: Callable[[Sequence[Any | None], float, np.random.Generator], list[Any | None]]

    @classmethod
    def each(cls, unit: str, levels: tuple[float, ...], change: Callable[..., Any | None]) -> Self:
        """One that sees each present value by itself: ``change(value, severity, rng)``."""
        return cls(unit, levels, lambda x, *how: [None if value is None else change(value, *how) for value in x])


@dataclass(frozen=True, slots=True)
class Pieces:
    """How a present value comes apart, so that an explanation can ask what each piece is worth.

    Attributes:
        count: how many pieces there are, at least one.
        keep: from (count,) bool to the value with those pieces only; None where nothing usable is left. All of them
            give the value itself.
        show: from one number per piece to JSON that says which piece each belongs to.
    """

    count: int
    keep: Callable[[np.ndarray], Any | None]
    show: Callable[[Sequence[float]], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One column of an input, as a form, a schema or a client needs to know it.

    Attributes:
        column: of the table.
        kind: what a cell of it is; any other kind than these is a modality's own, whose cells are JSON values.
        example: a cell that the fitted part reads; bytes for media, else a JSON value. Made up from what was fitted,
            never a row of the table. None where the modality knows none.
        levels: of a category, most frequent first; other values are taken too, and reported as unseen.
    """

    column: str
    kind: Literal["text", "image", "audio", "number", "category", "boolean", "date"] | str
    example: Any = None
    levels: tuple[str, ...] = ()
