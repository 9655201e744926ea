"""inspect: what is in each column of a table, what is broken, and the spec a fit would use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polymodal.data.clean import DataReport
from polymodal.data.gather import Progress, Survey, silent
from polymodal.data.guess import guess_columns, infer_spec
from polymodal.data.infer import Guess, infer_inputs
from polymodal.data.loader import read_targets, target_values
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.part import Modality
from polymodal.spec import Spec
from polymodal.task import fitted


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        guesses: column -> what it seems to hold, and why.
        spec: that a fit would use; None without targets.
        report: of reading every cell.
    """

    guesses: dict[str, Guess]
    spec: Spec | None
    report: DataReport

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        columns = {name: {"kind": guess.kind, "reason": guess.reason} for name, guess in self.guesses.items()}
        spec = None if self.spec is None else self.spec.to_yaml()
        return {"columns": columns, "spec": spec, "data": self.report.to_dict()}


def inspect(
    table: Any, target: str | Sequence[str] = (), *, strict: bool = False, progress: Progress = silent
) -> Inspection:
    """Read every cell of a table once and say what is there.

    Args:
        table: anything `Table.read` takes.
        target: column or columns to predict; without them no spec is made, and every column counts as an input.
        strict: raise on the first broken cell.
        progress: told how far it is.

    Raises:
        DataError: the table cannot be read, or a target cannot be learnt.
    """
    table = Table.read(table)
    targets = [target] if isinstance(target, str) else list(target)
    guesses = guess_columns(table)
    spec = infer_spec(table, targets) if targets else None
    parts = spec.inputs if spec else _every_input(guesses)
    report = DataReport(table.source, len(table))
    for name, part in parts.items():
        report.inputs[name] = Survey(Source(name, part, table), progress).run()
        if strict:
            report.refuse_broken()
    if spec is not None:
        tasks = {name: fitted(name, task, target_values(name, spec, table)) for name, task in spec.outputs.items()}
        whole = spec.model_copy(update={"outputs": tasks})
        for name in tasks:
            read_targets(name, whole, table, report)
    named = {column for name, part in parts.items() for column in part.columns(name)}
    report.unused = tuple(column for column in table.columns if column not in named and column not in targets)
    return Inspection(guesses, spec, report)


def _every_input(guesses: dict[str, Guess]) -> dict[str, Modality]:
    """All columns as inputs; none where no column can be used."""
    if all(guess.kind == "ignored" for guess in guesses.values()):
        return {}
    return {name: Modality.parse(part) for name, part in infer_inputs(guesses, []).items()}
