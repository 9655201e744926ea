"""The columns of a row, for explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polymodal.reading import Pieces


def pieces(row: Mapping[str, Any]) -> Pieces:
    """Present cells {column: value}. One that is taken out is missing."""
    names = list(row)

    def keep(kept: np.ndarray) -> dict[str, Any] | None:
        return {name: row[name] for name, stays in zip(names, kept, strict=True) if stays} or None

    def show(values: Sequence[float]) -> dict[str, float]:
        """Value by column."""
        return dict(zip(names, values, strict=True))

    return Pieces(len(names), keep, show)
