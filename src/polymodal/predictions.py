"""What a model says of a table, row by row."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from polymodal.data.clean import DataReport, merged
from polymodal.spec import Spec


class Predictions(list[dict[str, dict[str, Any]]]):
    """One mapping per row: task name -> prediction with its certainty.

    Attributes:
        absent: per row, the inputs that had nothing usable.
        explanations: per row, if asked for: task name -> what each input, and each piece of it, did to the answer.
        reports: what cleaning did, one report for each chunk of rows; rows are numbered through the whole table.
    """

    def __init__(self) -> None:
        super().__init__()
        self.absent: list[list[str]] = []
        self.explanations: list[dict[str, Any]] = []
        self.reports: list[DataReport] = []

    @property
    def quarantined(self) -> list[str]:
        """Every broken cell, in words."""
        return [str(cell) for report in self.reports for cell in report.quarantined]

    @property
    def warnings(self) -> list[str]:
        """One line for everything a user should look at: broken cells, repairs, missing columns."""
        return merged(self.reports).warnings() if self.reports else []

    def to_columns(self) -> dict[str, list[Any]]:
        """Flat columns for a file: ``label``, ``label.probability``, ``label.probabilities.food``, ..., ``absent``.

        Lists of mappings, as of entities, are JSON; so are explanations, where there are any, in ``explanation``.
        """
        columns: dict[str, list[Any]] = {}
        for number, row in enumerate(self):
            flat: dict[str, Any] = {}
            for task, answer in row.items():
                for key, value in _flatten(task, answer):
                    label = key if key == task else _free(key, flat.keys() | row.keys())
                    flat[label] = value
            for key in [*columns, *(key for key in flat if key not in columns)]:
                columns.setdefault(key, [None] * number).append(flat.get(key))
        columns = {key: _listed(cells) for key, cells in columns.items()}
        columns |= {_free("absent", columns, "_inputs"): [", ".join(names) for names in self.absent]}
        if self.explanations:
            told = [json.dumps(row, ensure_ascii=False) for row in self.explanations]
            columns |= {_free("explanation", columns, "_inputs"): told}
        return columns


def by_row(spec: Spec, decoded: Mapping[str, Tensor], values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """What the tasks say of each row.

    Args:
        spec: fitted.
        decoded: task name -> raw output of every row, on the CPU.
        values: input name -> what was read in each row, None where absent, for every input that a task is about.
    """
    found = {}
    for n, task in spec.outputs.items():
        answers = task.predict(decoded[n])
        if task.about is not None:
            answers = [task.locate(answer, value) for answer, value in zip(answers, values[task.about], strict=True)]
        found[n] = answers
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def _free(label: str, columns: Container[str], longer: str = "_") -> str:
    """The label, made longer where a column is called so."""
    while label in columns:
        label += longer
    return label


def _listed(cells: list[Any]) -> list[Any]:
    """A column whose lists of mappings are JSON, the empty ones too."""
    lists = (cell for cell in cells if isinstance(cell, list))
    if not any(isinstance(inner, Mapping) for cell in lists for inner in cell):
        return cells
    return [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for cell in cells]


def _flatten(name: str, answer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for place, (key, value) in enumerate(answer.items()):
        label = name if place == 0 else f"{name}.{key}"
        if isinstance(value, Mapping):
            for inner, cell in value.items():
                yield f"{label}.{inner}", cell
        else:
            yield label, value
