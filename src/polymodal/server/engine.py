"""Engine: a bundle taken apart into what is done row by row and what is done in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from polymodal.bundle import Bundle
from polymodal.data.clean import Quarantined
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.errors import DataError
from polymodal.types import Masked


@dataclass(slots=True)
class Row:
    """One decoded row.

    Attributes:
        values: input name -> what its modality read; only inputs that have something usable.
        broken: cells that could not be read and count as absent: {"input", "column", "reason"}.
        repairs: input name -> what was mended ("cut after 128 tokens", "colour: unseen category").
        explain: whether to say what each input did to the answer.
    """

    values: dict[str, Any]
    broken: list[dict[str, str]] = field(default_factory=list)
    repairs: dict[str, list[str]] = field(default_factory=dict)
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of one row; everything in it is JSON.

    Attributes:
        prediction: task name -> prediction with its certainty, as in `Predictions`.
        absent: inputs that had nothing usable.
        broken: as in `Row`.
        repairs: as in `Row`.
        explanation: as in `Predictions.explanations`, without parts; None unless asked for.
    """

    prediction: dict[str, dict[str, Any]]
    absent: list[str]
    broken: list[dict[str, str]]
    repairs: dict[str, list[str]]
    explanation: dict[str, Any] | None = None


class Engine:
    """Answers rows as `Bundle.predict` does.

    Attributes:
        bundle: in evaluation mode.
    """

    def __init__(self, bundle: Bundle, *, max_pixels: int, max_seconds: float) -> None:
        self.bundle, self.embedder = bundle, bundle.embedder.without_store()
        self.max_pixels, self.max_seconds = max_pixels, max_seconds

    def read(self, cells: Mapping[str, Any], *, strict: bool = True, explain: bool = False) -> Row:
        """Decode one row. May be called from several threads.

        Args:
            cells: column -> cell; media as bytes. Columns may be left out and cells may be None.
            strict: refuse a broken cell; else it counts as absent and is listed.
            explain: ask for an explanation.

        Raises:
            DataError: a cell is broken and ``strict``.
        """
        row, table = Row({}, explain=explain), Table.read([{"": None, **cells}])
        for name, part in self.bundle.spec.inputs.items():
            source = Source(name, part, table, allow_paths=False)
            reading = source.read(0, next(source.cells(0, 1)))
            if isinstance(reading, Quarantined):
                row.broken.append({"input": name, "column": reading.column, "reason": reading.reason})
            elif reading is not None:
                row.broken += [{"input": name, "column": c, "reason": r} for c, r in reading.broken.items()]
                if reading.repairs:
                    row.repairs[name] = list(reading.repairs)
                if reading.value is not None:
                    row.values[name] = reading.value
        if strict and row.broken:
            first = row.broken[0]
            raise DataError(f"{first['column']}: {first['reason']}")
        return row

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """Answer decoded rows together. Called from one thread at a time."""
        spec, inputs = self.bundle.spec, dict[str, Masked]()
        for name, part in spec.inputs.items():
            x = self.embedder.embed(name, part.collate([row.values.get(name) for row in rows]))
            inputs[name] = self.embedder.summary(name, x) if name in self.embedder.summarised else x
        decoded = self.bundle.model.answer(inputs).decoded
        answers = {n: task.predict(decoded[n]) for n, task in spec.outputs.items()}
        return [
            Answer(
                {n: found[i] for n, found in answers.items()},
                [name for name in spec.inputs if name not in row.values],
                row.broken,
                row.repairs,
            )
            for i, row in enumerate(rows)
        ]

    def warm(self) -> None:
        """Answer a made-up row, so that everything is loaded before the first request."""
        fields = [field for name, part in self.bundle.spec.inputs.items() for field in part.fields(name)]
        self.answer([self.read({field.column: field.example for field in fields}, strict=False)])
