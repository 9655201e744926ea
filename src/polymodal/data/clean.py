"""What cleaning did: per column what is present, absent, repaired and quarantined, and what is odd about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polymodal.errors import DataError

LISTED = 20
"""How many single rows a report lists of each kind; counts are always complete."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A cell that could not be read and counts as absent.

    Attributes:
        row: of the table, from 0.
        column: of the table, or the input made of several columns.
        origin: path or another name of the content.
        reason: what is wrong with it.
    """

    row: int
    column: str
    origin: str
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        return f"row {self.row}, column {self.column!r} ({self.origin}): {self.reason}"


@dataclass(slots=True)
class Range:
    """Smallest, largest and mean of a fact about cells, gathered in one pass."""

    low: float = float("inf")
    high: float = float("-inf")
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Take one value into account."""
        self.low, self.high = min(self.low, value), max(self.high, value)
        self.total, self.count = self.total + value, self.count + 1

    def join(self, other: Range) -> None:
        """Take another pass into account."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total, self.count = self.total + other.total, self.count + other.count

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return {"min": self.low, "mean": self.total / max(1, self.count), "max": self.high}


@dataclass(slots=True)
class InputReport:
    """What one input's cells turned out to be.

    Attributes:
        name: of the input.
        kind: its modality's type.
        present: cells with usable content.
        absent: cells that were empty, plus all quarantined ones.
        repairs: what was mended -> in how many cells.
        quarantined: broken cells, all of them.
        facts: name of a fact (width, seconds, words) -> its range.
        duplicates: present cells whose content another row has too.
        missing_column: the table has no such column at all.
    """

    name: str
    kind: str
    present: int = 0
    absent: int = 0
    repairs: Counter[str] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)
    facts: dict[str, Range] = field(default_factory=dict)
    duplicates: int = 0
    missing_column: bool = False

    def note(self, repairs: tuple[str, ...] | list[str], facts: Mapping[str, float]) -> None:
        """Count what reading one cell reported."""
        if repairs:
            self.repairs.update(repairs)
        for fact, value in facts.items():
            self.facts.setdefault(fact, Range()).add(value)

    def count(self, digests: np.ndarray, absent: np.ndarray) -> None:
        """Count presence and duplicates.

        Args:
            digests: (rows, 16) uint8, of each present cell's content.
            absent: (rows,) bool.
        """
        self.absent, self.present = int(absent.sum()), int((~absent).sum())
        if self.present:
            rows = np.ascontiguousarray(digests[~absent]).view("V16").ravel()
            _, counts = np.unique(rows, return_counts=True)
            self.duplicates = int(counts[counts > 1].sum() - (counts > 1).sum())

    def to_dict(self) -> dict[str, Any]:
        """As JSON; at most `LISTED` quarantined rows are listed, the count is of all."""
        return {
            "kind": self.kind,
            "present": self.present,
            "absent": self.absent,
            "repaired": dict(self.repairs.most_common()),
            "quarantined": len(self.quarantined),
            "quarantined_rows": [
                {"row": q.row, "column": q.column, "origin": q.origin, "reason": q.reason}
                for q in self.quarantined[:LISTED]
            ],
            "ranges": {fact: seen.to_dict() for fact, seen in self.facts.items()},
            "duplicates": self.duplicates,
            "missing_column": self.missing_column,
        }


@dataclass(slots=True)
class TargetReport:
    """What one task's targets are: labelled rows and, for classes, how many of each.

    Attributes:
        name: of the task.
        kind: its type.
        labelled: rows with a target.
        unlabelled: rows without, the refused ones too.
        balance: class -> rows.
        refused: rows whose target the task does not know, which count as unlabelled.
        reason: why the first of them was refused.
    """

    name: str
    kind: str
    labelled: int
    unlabelled: int
    balance: dict[str, int]
    refused: int = 0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": self.kind, "labelled": self.labelled, "unlabelled": self.unlabelled, "balance": self.balance,
            "refused": self.refused, "reason": self.reason,
        }  # fmt: skip


@dataclass(slots=True)
class DataReport:
    """What a table holds and what cleaning did to it.

    Attributes:
        source: of the table.
        rows: how many.
        inputs: input name -> its report.
        targets: task name -> its report.
        leaks: identical content on two sides of a split, in words.
        unused: columns that the spec does not name.
    """

    source: str
    rows: int
    inputs: dict[str, InputReport] = field(default_factory=dict)
    targets: dict[str, TargetReport] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    unused: tuple[str, ...] = ()

    @property
    def quarantined(self) -> list[Quarantined]:
        """Every broken cell of every input."""
        return [cell for report in self.inputs.values() for cell in report.quarantined]

    def refuse_broken(self) -> None:
        """Raise on the first broken cell, for ``--strict``.

        Raises:
            DataError: there is one.
        """
        for name, target in self.targets.items():
            if target.refused:
                raise DataError(f"{self.source}: target {name!r}: {target.reason}")
        if self.quarantined:
            more = len(self.quarantined) - 1
            rest = f" (and {more} more)" if more else ""
            first = str(self.quarantined[0]).rstrip(".")
            raise DataError(f"{self.source}: {first}{rest}. Mend it, or leave --strict out to count it as absent.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "source": self.source,
            "rows": self.rows,
            "inputs": {name: report.to_dict() for name, report in self.inputs.items()},
            "targets": {name: report.to_dict() for name, report in self.targets.items()},
            "leaks": self.leaks,
            "unused_columns": list(self.unused),
        }

    def warnings(self) -> list[str]:
        """One line for everything a user should look at."""
        lines = []
        for name, report in self.inputs.items():
            if report.missing_column:
                lines.append(f"{name}: the table has no such column: absent in every row")
            elif not report.present:
                lines.append(f"{name}: nothing present in {self.rows} rows")
            if report.quarantined:
                lines.append(f"{name}: {len(report.quarantined)} broken, first: {report.quarantined[0]}")
            lines += [f"{name}: {count} x {what}" for what, count in report.repairs.most_common()]
        for name, target in self.targets.items():
            if target.refused:
                lines.append(f"{name}: {target.refused} targets count as unlabelled, first: {target.reason}")
        return lines + self.leaks


def merged(reports: Sequence[DataReport]) -> DataReport:
    """One report of a table that was cleaned in parts; duplicates count within each part."""
    whole = DataReport(reports[0].source, sum(report.rows for report in reports), unused=reports[0].unused)
    for name, first in reports[0].inputs.items():
        one = whole.inputs[name] = InputReport(name, first.kind, missing_column=first.missing_column)
        for part in (report.inputs[name] for report in reports):
            one.present, one.absent = one.present + part.present, one.absent + part.absent
            one.duplicates += part.duplicates
            one.repairs.update(part.repairs)
            one.quarantined += part.quarantined
            for fact, seen in part.facts.items():
                one.facts.setdefault(fact, Range()).join(seen)
    return whole
