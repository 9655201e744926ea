"""From a table to batches: fetch, clean, collate, embed once, and hand out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from polymodal.data import conll
from polymodal.data.clean import DataReport, TargetReport
from polymodal.data.embedding import Embedder
from polymodal.data.gather import Gathering, Progress, silent
from polymodal.data.rows import LaterRows, OpenRows, Rows
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.errors import DataError
from polymodal.part import Reading
from polymodal.spec import Spec
from polymodal.task import Labelled, Task
from polymodal.types import Batch, Masked
from polymodal.values import is_missing

TOGETHER = 32
"""Rows that go through a backbone together where no gradient is wanted."""


@dataclass(frozen=True, slots=True)
class LiveRows:
    """Rows read, varied and embedded anew in every epoch, for training with augmentation."""

    source: Source
    embedder: Embedder
    seed: int

    def batch(self, indices: Tensor, epoch: int) -> Masked:
        """Gather rows (B,) as they are in this epoch; the same seed, epoch and row give the same variation."""
        values: list[Any | None] = []
        cells = self.source.some(indices.numpy())
        for row, cell in zip(indices.tolist(), cells, strict=True):
            reading = self.source.read(row, cell)
            value = reading.value if isinstance(reading, Reading) else None
            rng = np.random.default_rng((self.seed, epoch, row))
            values.append(None if value is None else self.source.modality.augment(value, rng))
        name = self.source.name
        tokens = self.embedder.embed(name, self.source.modality.collate(values))
        return self.embedder.summary(name, tokens) if name in self.embedder.summarised else tokens


@dataclass(frozen=True, slots=True)
class Prepared:
    """A table ready for a model.

    Attributes:
        inputs: input name -> its rows.
        targets: task name -> (rows, K); empty at prediction.
        report: of the whole table that was prepared.
        digests: input name -> (rows, 16) uint8 of the content and (rows,) bool where absent.
        rows: (n,) which of its rows these are.
        live: inputs that vary from epoch to epoch in training.
        values: input name -> what was read in each row of the whole table, where that was kept (see `prepare`).
    """

    inputs: Mapping[str, Rows]
    targets: Mapping[str, Masked]
    report: DataReport
    digests: Mapping[str, tuple[np.ndarray, np.ndarray]]
    rows: Tensor
    live: Mapping[str, LiveRows] = field(default_factory=dict)
    values: Mapping[str, Sequence[Any | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.rows)

    def select(self, rows: np.ndarray | Tensor) -> Self:
        """Only some of these rows, without copying."""
        return replace(self, rows=self.rows[torch.as_tensor(rows)])

    def labelled(self) -> Self:
        """Only rows with a target for at least one task."""
        known = torch.stack([target.present[self.rows] for target in self.targets.values()]).any(0)
        return replace(self, rows=self.rows[known])

    @property
    def lengths(self) -> Tensor | None:
        """(n,) real positions of each row in what goes through a backbone in training; None where nothing does."""
        found = [kept.lengths[self.rows] for kept in self.inputs.values() if isinstance(kept, OpenRows)]
        return torch.stack(found).sum(0) if found else None

    def parts(self, size: int) -> list[Tensor]:
        """All rows, ``size`` at a time; fewer, and of like length, where they go through a backbone in training."""
        lengths = self.lengths
        order = torch.arange(len(self)) if lengths is None else lengths.argsort(stable=True)
        return list(order.split(size if lengths is None else min(size, TOGETHER)))

    def batch(self, rows: Tensor, epoch: int | None = None) -> Batch:
        """Gather a batch; with the number of a training epoch, varied where augmentation is on."""
        rows = self.rows[rows]
        inputs = {
            name: self.live[name].batch(rows, epoch) if epoch is not None and name in self.live else kept.batch(rows)
            for name, kept in self.inputs.items()
        }
        return Batch(inputs, {n: target[rows] for n, target in self.targets.items()})


def embedded(sides: Mapping[str, Prepared], embedder: Embedder, progress: Progress = silent) -> dict[str, Prepared]:
    """The same rows, with tokens where there were collated values for backbones in training.

    They are computed when they are first asked for.

    Args:
        sides: rows by any name; those of one table are computed once.
        embedder: with the trained backbones.
        progress: told how far it is.
    """
    tables, found = dict[int, Mapping[str, Rows]](), dict[str, Prepared]()
    for side, part in sides.items():
        if id(part.inputs) not in tables:
            tables[id(part.inputs)] = {
                name: _later(rows.source, embedder, progress) if isinstance(rows, OpenRows) else rows
                for name, rows in part.inputs.items()
            }
        live = {name: replace(rows, embedder=embedder) for name, rows in part.live.items()}
        found[side] = replace(part, inputs=tables[id(part.inputs)], live=live)
    return found


def _later(source: Source, embedder: Embedder, progress: Progress) -> LaterRows:
    return LaterRows(lambda: Gathering(source, embedder, progress).rows())


def prepare(
    spec: Spec,
    table: Table,
    embedder: Embedder,
    *,
    targets: bool = True,
    strict: bool = False,
    allow_paths: bool = True,
    first: int = 0,
    progress: Progress = silent,
) -> Prepared:
    """Clean, collate and embed a whole table with a fitted spec.

    Tokens of frozen backbones come from the embedder's feature store where they are in it, and go there. Messages
    number the rows from ``first`` on. Without targets and without a store, as at prediction, what was read of inputs
    that a task is about is kept.

    Raises:
        DataError: with ``strict``, a cell is broken; or no input has a column; or a target is unusable.
    """
    report = DataReport(table.source, len(table))
    sources = {name: Source(name, part, table, allow_paths, first) for name, part in spec.inputs.items()}
    if all(len(source.missing_columns) == len(source.modality.columns(name)) for name, source in sources.items()):
        wanted = sorted({c for name, part in spec.inputs.items() for c in part.columns(name)})
        raise DataError(f"{table.source} must have at least one of the columns {wanted}, got {list(table.columns)}.")
    inputs, digests, values, predicts = {}, {}, {}, not targets and embedder.store is None
    for name, source in sources.items():
        gathered = Gathering(source, embedder, progress, keep=predicts and name in spec.about)
        inputs[name] = gathered.rows()
        digests[name] = (gathered.digests, gathered.absent)
        report.inputs[name] = gathered.report
        if gathered.keep:
            values[name] = gathered.values
        if strict:
            report.refuse_broken()
    labels = {n: read_targets(n, spec, table, report) for n in spec.outputs} if targets else {}
    if strict:
        report.refuse_broken()
    named = {c for name, part in (*spec.inputs.items(), *spec.outputs.items()) for c in part.columns(name)}
    report.unused = tuple(column for column in table.columns if column not in named)
    live = {name: LiveRows(s, embedder, spec.seed) for name, s in sources.items() if s.modality.augments}
    return Prepared(inputs, labels, report, digests, torch.arange(len(table)), live, values)


def named_as(spec: Spec, table: Table) -> Table:
    """A CoNLL file's words and tags under the names that a spec has for them, where it has one of each.

    Such a file names no columns; other tables stay as they are.
    """
    if not table.source.lower().endswith(conll.ENDINGS):
        return table
    words = [c for name, part in spec.inputs.items() if part.worded for c in part.columns(name)]
    tags = [c for name, task in spec.outputs.items() if task.about is not None for c in task.columns(name)]
    pairs = [(conll.WORDS, words), (conll.TAGS, tags)]
    return table.renamed({old: new[0] for old, new in pairs if len(new) == 1 and new[0] not in table.columns})


def target_values(name: str, spec: Spec, table: Table) -> list[Any]:
    """A task's raw targets, as `Task.collate` takes them.

    Raises:
        DataError: the table has no such column.
    """
    task = spec.outputs[name]
    columns = task.columns(name)
    for column in columns:
        table.column(column)
    if not columns:
        return list(range(len(table)))
    lists = [list(table.column(column)) for column in columns]
    cells = (
        lists[0] if len(columns) == 1 else [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    )
    if task.about is None:
        return cells
    values = Source(task.about, spec.inputs[task.about], table)
    pairs = zip(cells, values, strict=True)
    return [None if is_missing(cell) else Labelled(cell, value) for cell, value in pairs]


def read_targets(name: str, spec: Spec, table: Table, report: DataReport) -> Masked:
    """Collate a fitted task's targets and put them in the report.

    A target that the task does not know (a class that no training row has) counts as unlabelled, and is reported.

    Raises:
        DataError: the table has no such column, or no target at all is one of this task.
    """
    task, values, refused = spec.outputs[name], target_values(name, spec, table), list[str]()
    try:
        target = task.collate(values)
    except DataError:
        values = [_known(task, row, value, refused) for row, value in enumerate(values)]
        target = task.collate(values)
    labelled = int(target.present.sum())
    if refused and not labelled:
        raise DataError(f"{table.source}: target {name!r}: {refused[0]}")
    seen = TargetReport(name, task.kind, labelled, len(table) - labelled, task.balance(target))
    seen.refused, seen.reason = len(refused), refused[0] if refused else ""
    report.targets[name] = seen
    return target


def _known(task: Task, row: int, value: Any, refused: list[str]) -> Any | None:
    """The value if the task takes it, else None and a line about it."""
    try:
        task.collate([value])
    except DataError as error:
        refused.append(f"row {row}: {error}")
        return None
    return value
