"""Several columns of a table as one modality: numbers, categories, booleans and dates. Each column is a token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import DataError, SpecError
from polymodal.modalities.table.augment import TabularAugmentation
from polymodal.modalities.table.corrupt import corruptions
from polymodal.modalities.table.pieces import pieces
from polymodal.modalities.table.scale import Scale, scaled
from polymodal.nn.numeric import DATE, RESERVED, ColumnEncoder, LinearNumbers, PeriodicNumbers, PiecewiseNumbers, whole
from polymodal.part import Corruption, Modality, Pieces, Reading
from polymodal.reading import Field as FormField
from polymodal.types import Masked
from polymodal.values import parse_boolean, parse_category, parse_date, parse_number

SHOWN = 64  # levels per column with a summary feature of their own
Names = tuple[Annotated[str, Field(min_length=1)], ...]


class Tabular(Modality):
    """Columns of numbers, categories, booleans and dates; a missing cell is masked, never filled in.

    Source: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data" (a token per column,
    section 3.3); Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning".

    Attributes:
        numbers: columns of numbers, robustly scaled: (x - median) / interquartile range.
        categories: columns of names. Levels come from training; rare and unseen ones are kept apart and reported.
        booleans: columns of yes/no, true/false, 1/0.
        dates: columns of ISO 8601 dates or dates with times, taken as written, whatever their zone.
        number_embedding: "piecewise" (quantile bins: steep where data is dense, indifferent to outliers and units),
            "periodic" (learned frequencies: for numbers whose fine differences matter) or "linear".
        rare: a category seen less often in training than this shares one embedding with all such categories.
        max_categories: most levels per column; the least frequent beyond them count as rare.
        clip: scaled numbers are limited to this many scales either side of the median.
        augmentation: variation of training rows, or None.
        seen: fitted: columns that held anything in training; the others stay masked. None before fitting.
        scales: fitted: scale of each number and of each date's year.
        levels: fitted: categories of each column, most frequent first.
        rares: fitted: categories that training saw too rarely to be levels.
    """

    spans: ClassVar[bool] = True
    type: Literal["table"] = "table"
    numbers: Names = ()
    categories: Names = ()
    booleans: Names = ()
    dates: Names = ()
    number_embedding: Literal["linear", "periodic", "piecewise"] = "piecewise"
    rare: int = Field(default=2, ge=1)
    max_categories: int = Field(default=1000, ge=1, le=1_000_000)
    clip: float = Field(default=8.0, gt=0, le=1000)
    augmentation: TabularAugmentation | None = None
    seen: tuple[str, ...] | None = None
    scales: dict[str, Scale] = Field(default_factory=dict)
    levels: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    rares: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse columns named twice or not at all, and settings without effect."""
        order, fields = self.order, type(self).model_fields
        if self.column:
            raise ValueError("column must not be set: name columns in numbers, categories, booleans or dates.")
        if not order:
            raise ValueError("numbers, categories, booleans or dates must name at least one column.")
        if twice := sorted(name for name, n in Counter(order).items() if n > 1):
            raise ValueError(f"each column must be named once, got {twice} more than once.")
        needs = {"number_embedding": self.numbers, "clip": self.numbers + self.dates}
        for option, names in (needs | dict.fromkeys(("rare", "max_categories"), self.categories)).items():
            if not names and getattr(self, option) != fields[option].default:
                raise ValueError(f"{option} has no effect on columns {list(order)}. Leave it out.")
        if self.augmentation and not (self.augmentation.dropout or (self.augmentation.noise and self.numbers)):
            raise ValueError("augmentation must have dropout, or noise and numbers. Leave it out otherwise.")
        return self

    @property
    def order(self) -> tuple[str, ...]:
        """Every column, in the order of the tokens."""
        return self.numbers + self.categories + self.booleans + self.dates

    def columns(self, name: str) -> tuple[str, ...]:
        """Every column of this input."""
        return self.order

    def fields(self, name: str) -> tuple[FormField, ...]:
        """A field per column; the examples are the training rows' medians and most frequent categories."""
        numbers = [(n, "number", round(self.scales[n].center, 4) if n in self.scales else 0, ()) for n in self.numbers]
        levels = {n: self.levels.get(n, ()) for n in self.categories}
        categories = [(n, "category", next(iter(known), "a"), known) for n, known in levels.items()]
        booleans = [(n, "boolean", True, ()) for n in self.booleans]
        dates = [(n, "date", "2024-05-17", ()) for n in self.dates]
        return tuple(FormField(*field) for field in (*numbers, *categories, *booleans, *dates))

    @cached_property
    def _parsers(self) -> list[tuple[str, Callable[[Any], Any]]]:
        kinds = (
            (self.numbers, parse_number),
            (self.categories, parse_category),
            (self.booleans, parse_boolean),
            (self.dates, _parse_date),
        )
        return [(name, parse) for names, parse in kinds for name in names]

    @cached_property
    def _ids(self) -> dict[str, dict[str, int]]:
        ids = {name: dict.fromkeys(rare, 1) for name, rare in self.rares.items()}
        for name, levels in self.levels.items():
            ids[name] = ids.get(name, {}) | {level: i + RESERVED for i, level in enumerate(levels)}
        return ids

    def read(self, content: Any) -> Reading:
        """Parse a row's cells {column: cell}.

        Returns:
            {column: float, str, bool or date features} of the cells that hold something, or None if none does. A broken
            cell is left out and told in ``broken``. A fitted part also tells in ``repairs``
            "colour: unseen category", "colour: rare category" and "price: absent in training".

        Raises:
            DataError: the content is no mapping.
        """
        if not isinstance(content, Mapping):
            raise DataError(f"table cells must be a mapping from column to value, got {type(content).__name__}.")
        value: dict[str, Any] = {}
        broken: dict[str, str] = {}
        for name, parse in self._parsers:
            try:
                cell = parse(content.get(name))
            except ValueError as error:
                broken[name] = str(error)
                continue
            if cell is not None:
                value[name] = cell
        repairs = () if self.seen is None else tuple(self._strangers(value))
        return Reading(value or None, repairs, broken=broken)

    def _strangers(self, value: Mapping[str, Any]) -> list[str]:
        """What training did not show, or hardly."""
        news = [f"{name}: absent in training" for name in value if name not in (self.seen or ())]
        for name, ids in self._ids.items():
            if name in value and (found := ids.get(value[name], 0)) < RESERVED:
                news.append(f"{name}: {('unseen', 'rare')[found]} category")
        return news

    def fit(self, values: Iterable[Any | None]) -> Self:
        """Learn scales, bins and levels. Each value is read once."""
        cells: dict[str, list[Any]] = {name: [] for name in self.numbers + self.dates}
        counts: dict[str, Counter[Any]] = {name: Counter() for name in self.categories + self.booleans}
        for value in values:
            for name, cell in (value or {}).items():
                if name in cells:
                    cells[name].append(cell if type(cell) is float else cell[0])
                else:
                    counts[name][cell] += 1
        levels, rares = {}, {}
        for name in self.categories:
            if counts[name]:
                ranked = sorted(counts[name].items(), key=lambda item: (-item[1], item[0]))
                kept = sum(n >= self.rare for _, n in ranked[: self.max_categories])
                names = tuple(level for level, _ in ranked)
                levels[name], rares[name] = names[:kept], names[kept:]
        state = {name: getattr(self, name) for name in type(self).model_fields}
        state["scales"] = {name: Scale.of(x, self.clip) for name, x in cells.items() if x}
        state |= {"levels": levels, "rares": {name: rare for name, rare in rares.items() if rare}}
        state["seen"] = tuple(name for name in self.order if cells.get(name) or counts.get(name))
        return type(self)(**state)  # not a copy, which would keep the old lookup tables

    @property
    def augments(self) -> bool:
        """Whether augmentation is on."""
        return self.augmentation is not None

    def augment(self, value: Any, rng: np.random.Generator) -> Any:
        """Hide cells and shake numbers."""
        return value if self.augmentation is None else self.augmentation.apply(value, rng, self._spreads)

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """Missing and swapped cells; noise and outliers of numbers."""
        return corruptions({name: (self.scales[name].center, spread) for name, spread in self._spreads.items()})

    @property
    def _spreads(self) -> dict[str, float]:
        """Scale of each number that has one."""
        return {name: self.scales[name].scale for name in self.numbers if name in self.scales}

    def pieces(self, value: Any) -> Pieces | None:
        """Its present columns."""
        return pieces(value)

    def collate(self, values: Sequence[Any | None]) -> Masked:
        """Rows -> (B, N, P) float32, columns in `order`; P is 7 if there are dates, else 1.

        Numbers are scaled, categories are ids (0 unseen, 1 rare, then levels), booleans 0 or 1, dates 7 features.
        A column that held nothing in training stays masked.

        Raises:
            SpecError: the part is not fitted.
        """
        if self.seen is None:
            raise SpecError("a table input must be fitted before it is collated, got one without scales. Fit it first.")
        rows: list[dict[str, Any]] = [value or {} for value in values]
        nan, blank = math.nan, (math.nan,) * DATE
        x = np.full((len(rows), len(self.order), DATE if self.dates else 1), nan)
        for i, name in enumerate(self.order):
            if name in self.dates:
                x[:, i] = np.array([row.get(name, blank) for row in rows]).reshape(len(rows), DATE)
            elif name in self.categories:
                ids = self._ids.get(name, {})
                x[:, i, 0] = [ids.get(row[name], 0) if name in row else nan for row in rows]
            else:
                x[:, i, 0] = [row.get(name, nan) for row in rows]
            if name in self.scales:
                x[:, i, 0] = scaled(x[:, i, 0], self.scales[name].center, self.scales[name].scale, self.clip)
        mask = ~np.isnan(x[:, :, 0]) & np.array([name in self.seen for name in self.order])
        return Masked(torch.from_numpy(np.nan_to_num(x).astype(np.float32)), torch.from_numpy(mask))

    def encoder(self, dim: int) -> nn.Module:
        """A token per column."""
        edges = [self.scales[name].edges if name in self.scales else (0.0, 1.0) for name in self.numbers]
        numbers: nn.Module = PiecewiseNumbers(edges, dim)
        if self.number_embedding != "piecewise":
            kinds = {"linear": LinearNumbers, "periodic": PeriodicNumbers}
            numbers = kinds[self.number_embedding](len(self.numbers), dim)
        levels = [len(self.levels.get(name, ())) for name in self.categories]
        return ColumnEncoder(numbers, len(self.numbers), levels, len(self.booleans), len(self.dates), dim)

    def summary(self, x: Masked) -> Tensor:
        """Every cell as plain features, 0 where missing, and an indicator of presence per column.

        Returns:
            (B, F): scaled numbers; categories one-hot (unseen; rare or beyond the 64th level; levels); booleans +-1;
            dates' 7 features; presence.
        """
        values, mask = whole(x, len(self.order))
        n, c, b = len(self.numbers), len(self.categories), len(self.booleans)
        parts = [values[:, :n, 0]]
        for i, name in enumerate(self.categories, n):
            shown = RESERVED + min(len(self.levels.get(name, ())), SHOWN)
            ids = values[:, i, 0].long()
            one_hot = functional.one_hot(torch.where(ids < shown, ids, 1), shown)
            parts.append(one_hot * mask[:, i, None])
        parts.append((2 * values[:, n + c : n + c + b, 0] - 1) * mask[:, n + c : n + c + b])
        parts += [values[:, n + c + b :].flatten(1), mask]
        return torch.cat([part.float() for part in parts], 1)


def _parse_date(cell: Any) -> tuple[float, ...] | None:
    """Year with its fraction; sine and cosine of season, weekday and time of day (0, 0 where there is no time)."""
    day = parse_date(cell)
    if day is None:
        return None
    season, week, clock = (day.timetuple().tm_yday - 1) / 365.25, day.weekday() / 7, 0.0
    if timed := isinstance(day, datetime):
        clock = (day.hour + day.minute / 60) / 24
    turns = [f(2 * math.pi * turn) for turn in (season, week, clock) for f in (math.sin, math.cos)]
    return (day.year + season, *turns[:4], *(turns[4:] if timed else (0.0, 0.0)))
