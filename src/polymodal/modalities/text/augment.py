"""Variation of training texts: missing, swapped and misspelt words."""

from __future__ import annotations

import re
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from polymodal.nn.noise import misspell
from polymodal.nn.segment import HAN

_UNIT = re.compile(rf"([{HAN}]|[^\s{HAN}]+)(\s*)")


class TextAugmentation(BaseModel):
    """How often a word is changed. In Chinese and Japanese a character counts as a word, and is never misspelt.

    Source: Wei and Zou 2019, "EDA", section 2 (deletion and swap; here with neighbours only); Belinkov and Bisk 2018,
    "Synthetic and Natural Noise Both Break Neural Machine Translation", section 3.2 (letters).

    Attributes:
        drop: chance that a word is left out. At least one word stays.
        swap: chance that a word changes places with the next one.
        typo: chance that a letter of a word is left out, doubled, replaced or swapped with the next one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop: float = Field(default=0.1, ge=0, lt=1)
    swap: float = Field(default=0.05, ge=0, le=1)
    typo: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if not (self.drop or self.swap or self.typo):
            raise ValueError("augmentation must change something, got drop, swap and typo 0. Leave it out instead.")
        return self

    def apply(self, text: str, rng: np.random.Generator) -> str:
        """A varied copy of a text."""
        units = [list(match) for match in _UNIT.findall(text)]  # word, gap behind it
        if not units:
            return text
        kept = rng.random(len(units)) >= self.drop
        kept[rng.integers(len(units))] |= not kept.any()
        units = [unit for unit, keep in zip(units, kept, strict=True) if keep]
        swaps = rng.random(len(units)) < self.swap
        for i in np.flatnonzero(swaps[:-1]):
            units[i][0], units[i + 1][0] = units[i + 1][0], units[i][0]
        for i in np.flatnonzero(rng.random(len(units)) < self.typo):
            units[i][0] = misspell(units[i][0], rng)
        return "".join(word + gap for word, gap in units).strip()
