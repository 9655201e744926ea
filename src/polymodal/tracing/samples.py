"""Made-up rows, as a model takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.model import Model
from polymodal.nn.blocks import LockedEncoder, SummaryEncoder
from polymodal.part import Modality
from polymodal.types import Masked

MADE = 8
"""Made-up rows of an input without an example, and random positions of one with tokens."""

FAULTS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
"""What a module raises for values that it was not made for, or when it cannot be traced."""


class Samples:
    """Made-up rows as a model takes them, from the spec alone: no backbone runs.

    An input without a backbone gives the examples of its fields and what its corruptions make of them; tokens and
    summaries are random.

    Attributes:
        pools: input name -> rows, each present.
        vary: inputs whose axis of positions may have another length.
    """

    def __init__(self, model: Model) -> None:
        self.pools, self.vary, self.names = dict[str, Masked](), set[str](), model.names
        self._dice = torch.Generator().manual_seed(0)
        for name, part in model.spec.inputs.items():
            encoder, backbone = model.encoders[name], part.backbone()
            if isinstance(encoder, SummaryEncoder | LockedEncoder) and name in model.summarised:
                self.pools[name] = self._summaries(encoder)
            elif backbone is not None:
                self.pools[name] = _placed(encoder, self._random(MADE, torch.zeros(backbone.width)))
            else:
                pool = part.collate(_values(part))
                pool = pool[pool.present]
                self.pools[name] = pool if len(pool) else _placed(encoder, self._random(3, part.collate([None])))
            longer = self.pools[name].mask.shape[1] + 1
            if name not in model.summarised and _takes(encoder, _stretched(self.pools[name], longer)):
                self.vary.add(name)
        self.placed = {name for name in self.names if self._depends(model, name)}

    def draw(self, rows: int, stretch: float = 1.0, absent: float = 0.0) -> dict[str, Masked]:
        """Draw rows of every input.

        Args:
            rows: B.
            stretch: lengths as a multiple of the examples', at least one position.
            absent: share of cells that are absent.
        """
        found = {}
        for name, pool in self.pools.items():
            x = pool[torch.randint(len(pool), (rows,), generator=self._dice)]
            if name in self.vary:
                x = _stretched(x, max(1, round(stretch * x.mask.shape[1])))
                sizes = torch.randint(1, x.mask.shape[1] + 1, (rows, 1), generator=self._dice)
                x = Masked(x.values, x.mask & (torch.arange(x.mask.shape[1]) < sizes), x.at)
            at = x.at if name in self.placed else None
            gone = torch.rand(rows, generator=self._dice) < absent
            found[name] = Masked(x.values, x.mask, at).without(gone)
        return found

    def _summaries(self, encoder: SummaryEncoder | LockedEncoder) -> Masked:
        """Summaries distributed like those of the training rows."""
        noise = torch.randn(MADE, len(encoder.mean), generator=self._dice)
        spread = torch.where(encoder.scale > 0, noise / encoder.scale.clamp(min=1e-30), 0.0)
        return Masked((encoder.mean + spread)[:, None], torch.ones(MADE, 1, dtype=torch.bool))

    def _random(self, positions: int, like: Tensor | Masked) -> Masked:
        """Rows of numbers of no meaning, in the form of some values; zeros where they are no fractions."""
        trailing = like.values[0, 0] if isinstance(like, Masked) else like
        shape = (MADE, positions, *trailing.shape)
        real = trailing.is_floating_point()
        values = torch.randn(shape, generator=self._dice) if real else torch.zeros(shape, dtype=trailing.dtype)
        return Masked(values, torch.ones(MADE, positions, dtype=torch.bool))

    def _depends(self, model: Model, name: str) -> bool:
        """Whether an answer depends on where an input's positions are."""
        x = self.pools[name]
        if x.at is None:
            return False
        moved = Masked(x.values, x.mask, x.at + 0.37 * torch.rand(x.at.shape, generator=self._dice))
        here, there = (model.answer({name: given}).decoded for given in (x, moved))
        return any(not torch.equal(here[n], there[n]) for n in here)


def _values(part: Modality) -> list[Any]:
    """Values of a part: the examples of its fields, and what its corruptions make of the first."""
    fields, dice = part.fields("x"), np.random.default_rng(0)
    values = []
    for i in range(max([1, *(min(MADE, len(field.levels)) for field in fields)])):
        cells = {
            field.column: field.levels[i % len(field.levels)] if field.levels else field.example for field in fields
        }
        content = cells if part.spans else fields[0].example
        if any(cell is not None for cell in cells.values()):
            values.append(part.read(content).value)
    if values:
        noises = part.corruptions.values()
        values += [noise.apply(values[:1], noise.levels[len(noise.levels) // 2], dice)[0] for noise in noises]
    return values


def _placed(encoder: nn.Module, x: Masked) -> Masked:
    """The same rows with positions of as many coordinates as an encoder takes; without any where it takes none."""
    for coordinates in range(1, 5):
        at = torch.linspace(0, 1, x.mask.shape[1])[:, None].expand(*x.mask.shape, coordinates).contiguous()
        if _takes(encoder, placed := Masked(x.values, x.mask, at)):
            return placed
    return x


def _takes(encoder: nn.Module, x: Masked) -> bool:
    try:
        with torch.no_grad():
            encoder(x)
    except FAULTS:
        return False
    return True


def _stretched(x: Masked, length: int) -> Masked:
    """The same rows cut, or said again and again, to so many positions."""
    order = torch.arange(length) % x.mask.shape[1]
    return Masked(x.values[:, order], x.mask[:, order], None if x.at is None else x.at[:, order])
