"""Rows of one input, handed out by number: of any length, read anew, or made when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polymodal.data.source import Source
from polymodal.part import Reading
from polymodal.types import Masked


class Rows(Protocol):
    """Collated or embedded samples of one input, by row number."""

    def batch(self, indices: Tensor) -> Masked:
        """Gather some rows (B,) int64 into (B, N, ...)."""
        ...


class FlatRows:
    """Rows of any length, held one behind the other.

    Attributes:
        lengths: (n,) positions of each row.
    """

    def __init__(self, parts: Sequence[Masked]) -> None:
        ends = [(x.mask * torch.arange(1, x.mask.shape[1] + 1)).amax(1) for x in parts]
        used = [torch.arange(x.mask.shape[1]) < end[:, None] for x, end in zip(parts, ends, strict=True)]
        pairs = list(zip(parts, used, strict=True))
        self.lengths = torch.cat(ends)
        self._starts = self.lengths.cumsum(0) - self.lengths
        self._values, self._mask = torch.cat([x.values[u] for x, u in pairs]), torch.cat([x.mask[u] for x, u in pairs])
        placed = next((x.at for x in parts if x.at is not None), None)  # absent rows may come without positions
        self._at = None
        if placed is not None:
            blank = [(placed.new_zeros(*x.mask.shape, placed.shape[2]) if x.at is None else x.at) for x in parts]
            self._at = torch.cat([at[u] for at, u in zip(blank, used, strict=True)])

    def batch(self, indices: Tensor) -> Masked:
        """Gather rows, padded to the longest of them."""
        lengths = self.lengths[indices]
        position = torch.arange(max(1, int(lengths.max())))
        real = position < lengths[:, None]
        place = (self._starts[indices][:, None] + position)[real]

        def spread(flat: Tensor) -> Tensor:
            whole = flat.new_zeros(*real.shape, *flat.shape[1:])
            whole[real] = flat[place]
            return whole

        return Masked(spread(self._values), spread(self._mask), None if self._at is None else spread(self._at))


@dataclass(frozen=True, slots=True)
class OpenRows:
    """Collated rows of an input whose backbone is trained with the model: held in memory, or read anew each time.

    Attributes:
        source: of the cells.
        lengths: (n,) real positions of each row.
        held: the rows, unless they are too many.
    """

    source: Source
    lengths: Tensor
    held: FlatRows | None

    def batch(self, indices: Tensor) -> Masked:
        """Gather some rows (B,) into (B, N, ...)."""
        if self.held is not None:
            return self.held.batch(indices)
        pairs = zip(indices.tolist(), self.source.some(indices.numpy()), strict=True)
        readings = [self.source.read(row, cell) for row, cell in pairs]
        return self.source.modality.collate([r.value if isinstance(r, Reading) else None for r in readings])


@dataclass(slots=True)
class LaterRows:
    """Rows that are made when they are first asked for."""

    make: Callable[[], Rows]
    made: Rows | None = None

    def batch(self, indices: Tensor) -> Masked:
        """Gather some rows."""
        if self.made is None:
            self.made = self.make()
        return self.made.batch(indices)
