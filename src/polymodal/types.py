"""The values that flow through a model: Masked, Batch, Fused, Outputs.

Shape letters, used in every file:
    B batch   N padded length   T tokens   D model width   W backbone width   K classes, targets or coordinates
    C channels   H W image height and width   F features
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Masked:
    """Padded values, and which of them are real.

    One mask serves padding, missing cells, missing modalities, modality dropout, ablation and
    unlabelled targets alike: a sample without this modality is a row with no True in it.

    Attributes:
        values: (B, N, ...), any dtype. Content where ``mask`` is False is ignored.
        mask: (B, N) bool, True where real.
        at: (B, N, K) float, where or when each position is (seconds, pixels as a share of the image,
            metres, word index), or None where positions mean nothing.
    """

    values: Tensor
    mask: Tensor
    at: Tensor | None = None

    def __post_init__(self) -> None:
        """Reject a mask or positions that do not fit the values."""
        if self.mask.dtype != torch.bool or self.mask.shape != self.values.shape[:2]:
            raise ValueError(
                f"mask must be bool of shape {tuple(self.values.shape[:2])}, "
                f"got {self.mask.dtype} of shape {tuple(self.mask.shape)}."
            )
        if self.at is not None and self.at.shape[:2] != self.mask.shape:
            raise ValueError(f"at must start with shape {tuple(self.mask.shape)}, got {tuple(self.at.shape)}.")

    @property
    def present(self) -> Tensor:
        """Rows that have anything real. (B,) bool."""
        return self.mask.any(1)

    def __len__(self) -> int:
        """Return B."""
        return len(self.mask)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Rows by (B,) bool mask, by index or by slice."""
        return type(self)(self.values[rows], self.mask[rows], None if self.at is None else self.at[rows])

    def without(self, rows: Tensor) -> Self:
        """Mark ``rows`` (B,) bool as absent; the content stays behind the mask."""
        return type(self)(self.values, self.mask & ~rows[:, None], self.at)

    def mean(self) -> Tensor:
        """Mean of (B, N, D) over real positions; zeros for absent rows. (B, D)."""
        real = self.mask.unsqueeze(-1)
        total = self.values.masked_fill(~real, 0.0).sum(1)
        return total / real.sum(1).clamp(min=1).to(total.dtype)

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to ``device``."""
        at = None if self.at is None else self.at.to(device)
        return type(self)(self.values.to(device), self.mask.to(device), at)

    def spread(self, rows: Tensor) -> Self:
        """Put these rows back among absent ones: undoes ``x[rows]`` for ``rows`` (B,) bool. (B, N, ...)."""
        if bool(rows.all()):
            return self
        values = self.values.new_zeros(len(rows), *self.values.shape[1:])
        mask = self.mask.new_zeros(len(rows), self.mask.shape[1])
        values[rows], mask[rows] = self.values, self.mask
        if self.at is None:
            return type(self)(values, mask)
        at = self.at.new_zeros(len(rows), *self.at.shape[1:])
        at[rows] = self.at
        return type(self)(values, mask, at)

    def filled(self) -> Self:
        """One real position of zeros in each absent row, for what must see no absent row."""
        gone = ~self.present[:, None]
        first = torch.arange(self.mask.shape[1], device=self.mask.device) == 0
        values = self.values.masked_fill(gone.reshape(-1, *[1] * (self.values.ndim - 1)), 0)
        at = None if self.at is None else self.at.masked_fill(gone[..., None], 0.0)
        return type(self)(values, self.mask | (gone & first), at)

    def split(self) -> list[Masked]:
        """One Masked per row, each (1, n, ...), cut after its last real position (n >= 1)."""
        rows = []
        for i in range(len(self)):
            real = self.mask[i].nonzero()
            n = max(1, int(real[-1]) + 1 if len(real) else 1)
            at = None if self.at is None else self.at[i : i + 1, :n]
            rows.append(Masked(self.values[i : i + 1, :n], self.mask[i : i + 1, :n], at))
        return rows

    @classmethod
    def join(cls, rows: Sequence[Masked], places: Tensor | None = None) -> Self:
        """Stack batches along B, padding N to the longest. Undoes `split`.

        Args:
            rows: batches.
            places: (B,) which row of the result each row becomes; in their order when not given.
        """
        longest, size, first = max(row.mask.shape[1] for row in rows), sum(len(row) for row in rows), rows[0]
        placed = next((row.at for row in rows if row.at is not None), None)  # absent rows may come without positions
        if placed is None and places is None and all(row.mask.shape[1] == longest for row in rows):
            return cls(torch.cat([row.values for row in rows]), torch.cat([row.mask for row in rows]))
        values = first.values.new_zeros(size, longest, *first.values.shape[2:])
        mask = first.mask.new_zeros(size, longest)
        at = None if placed is None else placed.new_zeros(size, longest, placed.shape[2])
        start = 0
        for row in rows:
            mine = slice(start, start + len(row))
            block = (mine if places is None else places[mine], slice(0, row.mask.shape[1]))
            values[block], mask[block] = row.values, row.mask
            if at is not None and row.at is not None:
                at[block] = row.at
            start += len(row)
        return cls(values, mask, at)

    @classmethod
    def pad(cls, rows: Sequence[Tensor | None], like: Tensor, at: Sequence[Tensor | None] | None = None) -> Self:
        """Collate sequences of different length.

        Args:
            rows: one (n, ...) tensor per sample, all real; None (or n = 0) for an absent sample.
            like: any (..., *trailing) tensor that gives dtype and trailing shape if every row is absent:
                its own shape is the trailing shape.
            at: one (n, K) tensor per present row.

        Returns:
            (B, longest, ...), at least one position long.
        """
        sizes = [0 if row is None else len(row) for row in rows]
        longest = max([1, *sizes])
        values = like.new_zeros(len(rows), longest, *like.shape)
        mask = torch.arange(longest) < torch.tensor(sizes).view(-1, 1)
        where = None
        if at is not None:
            coordinates = next((a.shape[1] for a in at if a is not None), 1)
            where = torch.zeros(len(rows), longest, coordinates)
        for i, row in enumerate(rows):
            if row is not None and len(row):
                values[i, : len(row)] = row
                if where is not None and at is not None and (place := at[i]) is not None:
                    where[i, : len(row)] = place
        return cls(values, mask, where)


@dataclass(frozen=True, slots=True)
class Batch:
    """Collated samples: what a model takes, and what it should answer.

    Attributes:
        inputs: input name -> (B, N, ...): a backbone's tokens, or collated values where there is none.
        targets: task name -> (B, K); mask False where unlabelled. Empty at prediction.
    """

    inputs: dict[str, Masked]
    targets: dict[str, Masked] = field(default_factory=dict)

    def without(self, *names: str) -> Batch:
        """Take whole inputs away from every row."""
        inputs = dict(self.inputs)
        for name in names:
            inputs[name] = inputs[name].without(torch.ones_like(inputs[name].present))
        return Batch(inputs, self.targets)

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor to ``device``."""
        inputs = {name: x.to(device) for name, x in self.inputs.items()}
        return Batch(inputs, {name: y.to(device) for name, y in self.targets.items()})

    def __len__(self) -> int:
        """Return B."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, slots=True)
class Fused:
    """What every fusion returns, whatever it is inside.

    Attributes:
        pooled: (B, D), one vector per sample.
        tokens: input name -> (B, T, D), each input's tokens after they have seen the others, positions kept.
        weights: (B, M) how much each input, in the fusion's order of names, counted for each sample
            (absent: 0, rows sum to 1), from fusions that weigh; else None.
        given: input name -> as it came to the model, for heads that read an input word for word.
    """

    pooled: Tensor
    tokens: dict[str, Masked]
    weights: Tensor | None = None
    given: Mapping[str, Masked] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Every stage's result for one batch.

    Attributes:
        encoded: input name -> (B, T, D).
        fused: the fusion's result.
        decoded: task name -> raw output of its head.
        single: task name -> input name -> raw output of that input's auxiliary head.
    """

    encoded: dict[str, Masked]
    fused: Fused
    decoded: dict[str, Any]
    single: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def tracing() -> bool:
    """Whether this thread traces a graph, where nothing can depend on data and ONNX must know every operation."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
