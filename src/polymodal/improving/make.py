"""From one model to another with one input improved: teach the input by itself, embed anew, re-fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from polymodal.bundle import Bundle
from polymodal.data.embedding import Embedder
from polymodal.data.gather import Gathering, Progress
from polymodal.data.loader import Prepared
from polymodal.data.source import Source
from polymodal.errors import DataError, SpecError
from polymodal.improving.alone import Alone, Cells, Plan, Taught
from polymodal.improving.refit import Chosen, refit
from polymodal.improving.teacher import augmented, better_teachers, lessons, targets_of, usable
from polymodal.model import Model
from polymodal.sides import Tables


@dataclass(frozen=True, slots=True)
class Made:
    """A model with one input improved.

    Attributes:
        model: in evaluation mode.
        taught: the input by itself.
        embedder: with the input's new backbone.
        chosen: what was chosen on validation rows.
        teachers: tasks that the input had a teacher for.
        sides: ``train``, and ``valid`` if there was one, with the new features.
    """

    model: Model
    taught: Taught
    embedder: Embedder
    chosen: Chosen
    teachers: tuple[str, ...]
    sides: dict[str, Prepared]


class Maker:
    """Makes models with one input improved.

    Args:
        bundle: whose backbones are built on.
        name: of the input.
        plan: how to train it by itself.
        tables: that the rows are of.
        progress: told how far it is.
    """

    def __init__(self, bundle: Bundle, name: str, plan: Plan, tables: Tables, progress: Progress) -> None:
        self.embedder, self.device, self.spec = bundle.embedder, bundle.device, bundle.spec
        self.name, self.plan, self.progress = name, plan, progress
        self.tables = {side: tables.others.get(side, tables.train) for side in ("train", "valid", "test")}

    def make(self, start: Model, train: Prepared, valid: Prepared | None, first: Made | None = None) -> Made:
        """Improve the input in a copy of a model.

        Args:
            start: never changed.
            train: rows to learn from.
            valid: rows to choose on; None if ``first`` has chosen.
            first: made before, on other rows.

        Raises:
            DataError: no row to learn from, or none to choose on, has the input and a target.
        """
        if first is not None:
            teachers, epochs, chosen = first.teachers, first.taught.epochs, first.chosen
        else:
            assert valid is not None
            held = valid.select(usable(valid, self.name).nonzero().flatten())
            teachers = better_teachers(start, held, self.name, self.device) if len(held) else ()
            epochs, chosen = self.plan.epochs, None
        cells = self._cells("train", train, start, teachers)
        held = None if valid is None else self._cells("valid", valid, start, ())
        alone = Alone(start, self.name, self.embedder.backbone(self.name), self.plan, self.device)
        taught = alone.train(cells, held, epochs, self.progress)
        embedder = self._embedder(taught)
        sides = self.embedded(embedder, {"train": train} if valid is None else {"train": train, "valid": valid})
        parts = sides["train"], sides.get("valid")
        model, chosen = refit(start, taught, self.name, *parts, chosen, self.device, self.progress)
        return Made(model, taught, embedder, chosen, teachers, sides)

    def control(self, start: Model, train: Prepared, valid: Prepared) -> Model:
        """The same re-fit of a copy, with the input as it was: what further training alone does."""
        return refit(start, None, self.name, train, valid, None, self.device, self.progress)[0]

    def forget(self, made: Made) -> None:
        """Remove what is kept on disk of a model that nobody will use."""
        if made.taught.adapter is not None:
            made.embedder.forget(self.name)

    def _cells(self, side: str, prepared: Prepared, start: Model, teachers: tuple[str, ...]) -> Cells:
        some = prepared.select(usable(prepared, self.name).nonzero().flatten())
        if not len(some):
            raise DataError(f"{side} rows must have {self.name!r} and a target, got none that does. Add some.")
        soft = lessons(start, some, self.name, self.device) if teachers else {}
        source = Source(self.name, augmented(self.spec.inputs[self.name]), self.tables[side])
        return Cells(source, some.rows, targets_of(some), {n: soft[n] for n in teachers})

    def _embedder(self, taught: Taught) -> Embedder:
        base = self.embedder.backbone(self.name)
        if taught.adapter is None or base is None:
            return self.embedder
        return self.embedder.with_adapted(self.name, taught.adapter.apply(base))

    def embedded(self, embedder: Embedder, sides: dict[str, Prepared]) -> dict[str, Prepared]:
        """The same rows with the new backbone's features."""
        if embedder is self.embedder:
            return sides
        found, done = dict[str, Prepared](), dict[int, dict]()
        for side, prepared in sides.items():
            source, table = Source(self.name, self.spec.inputs[self.name], self.tables[side]), self.tables[side]
            if id(table) not in done:
                rows = Gathering(source, embedder, self.progress).rows()
                done[id(table)] = {**prepared.inputs, self.name: rows}
            live = {n: replace(rows, embedder=embedder) for n, rows in prepared.live.items()}
            found[side] = replace(prepared, inputs=done[id(table)], live=live)
        return found


def divided(
    train: Prepared, valid: Prepared, folds: int, seed: int, groups: Sequence[Any] | None = None
) -> Iterator[tuple[Prepared, Prepared]]:
    """Rows to learn from and to compare on: as they are, then ``folds - 1`` times with other training rows held out.

    Args:
        train: rows to learn from.
        valid: rows to compare on.
        folds: how often.
        seed: of the division.
        groups: what each row of the table belongs to; rows of one group are held out together. None: each by itself.

    Raises:
        SpecError: the number makes no sense, or the validation rows are of another table.
    """
    keys = range(len(train)) if groups is None else [str(groups[row]) for row in train.rows.tolist()]
    group = np.unique(np.array(keys), return_inverse=True)[1]
    count = int(group.max()) + 1
    if not 1 <= folds <= 1 + count:
        raise SpecError(f"folds must be in 1..{1 + count}, got {folds}.")
    if folds > 1 and train.inputs is not valid.inputs:
        raise SpecError(f"folds must be 1 with a table to validate on, got {folds}. Leave out one of both.")
    yield train, valid
    order = np.random.default_rng(seed).permutation(count)
    for held in np.array_split(order, folds - 1) if folds > 1 else ():
        rows, out = train.rows, torch.as_tensor(np.isin(group, held))
        rest = torch.cat([rows[~out], valid.rows]).sort().values
        yield replace(train, rows=rest), replace(train, rows=rows[out])
