"""Random variation of rows, for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class TabularAugmentation(BaseModel):
    """Variation of training rows.

    Attributes:
        dropout: probability of hiding each present cell; one cell per row always stays.
        noise: standard deviation of Gaussian noise on numbers, in units of the column's scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, le=10)

    def apply(self, value: Mapping[str, Any], rng: np.random.Generator, scales: Mapping[str, float]) -> dict[str, Any]:
        """A varied copy of a row; ``scales`` are those of its numbers."""
        names = list(value)
        stays = rng.random(len(names)) >= self.dropout
        stays[rng.integers(len(names))] |= not stays.any()
        varied = {name: value[name] for name, stay in zip(names, stays, strict=True) if stay}
        if self.noise:
            for name, scale in scales.items():
                if name in varied:
                    varied[name] += self.noise * scale * rng.standard_normal()
        return varied
