"""Space: where the inputs of a model meet, and how rows get there."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polymodal.data.clean import DataReport, merged
from polymodal.data.gather import Progress, silent
from polymodal.data.table import Table
from polymodal.embedding.vectors import Embeddings
from polymodal.errors import DataError, SpecError, suggest
from polymodal.part import Modality


@dataclass(frozen=True, slots=True)
class Space(ABC):
    """A space that the inputs of a model share.

    Attributes:
        parts: input name -> modality, of every input that can be drawn into it.
        width: W, of its vectors.
        digest: names all that a vector depends on besides the row: parts, backbones, weights.
        origin: folder of the bundle or mapping of the modality that it is made of; None for a bundle in memory.
        scale: factor of a cosine that makes it a logit; None where none was learned.
    """

    parts: Mapping[str, Modality]
    width: int
    digest: str
    origin: str | dict[str, Any] | None = None
    scale: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the inputs are made of."""
        return tuple(dict.fromkeys(c for name, part in self.parts.items() for c in part.columns(name)))

    @property
    def slots(self) -> dict[str, str]:
        """Name that a cell may be given under -> its column: the columns, and inputs of one column."""
        found = {column: column for column in self.columns}
        for name, part in self.parts.items():
            if len(part.columns(name)) == 1:
                found.setdefault(name, part.columns(name)[0])
        return found

    def embed(
        self,
        table: Any,
        *,
        inputs: Sequence[str] | None = None,
        width: int | None = None,
        strict: bool = False,
        allow_paths: bool = True,
        progress: Progress = silent,
    ) -> Embeddings:
        """Embed every row; see `embed`.

        Raises:
            DataError: the table cannot be read, no input has a column in it, or, with ``strict``, a cell is broken.
            SpecError: there is no such input, or the width is not within that of the space.
        """
        rows, names, size = Table.read(table), self.check_inputs(inputs), self.check_width(width)
        wanted = {column for name in names for column in self.parts[name].columns(name)}
        if not wanted & set(rows.columns):
            raise DataError(
                f"{rows.source} must have at least one of the columns {sorted(wanted)}, got {list(rows.columns)}."
            )
        vectors, reports = [], list[DataReport]()
        for start in range(0, len(rows), self.step):
            chunk = rows.select(range(start, min(start + self.step, len(rows))))
            some, report = self.chunk(chunk, names, size, allow_paths, start)
            if strict:
                report.refuse_broken()
            vectors.append(some)
            reports.append(report)
            progress("embed", start + len(chunk), len(rows))
        whole = torch.cat(vectors).numpy()
        return Embeddings(whole, ~np.isnan(whole[:, 0]), merged(reports))

    def named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row by columns, of cells by `slots`.

        Raises:
            DataError: it has a name that is none of them, two for one column, or none at all.
        """
        slots, found = self.slots, dict[str, Any]()
        for name, cell in row.items():
            if name not in slots:
                raise DataError(f"a row must have cells of {list(slots)}, got {name!r}.{suggest(name, slots)}")
            if slots[name] in found:
                raise DataError(f"a row must have {slots[name]!r} once, got it under another name too.")
            found[slots[name]] = cell
        if not found:
            raise DataError(f"a row must have one or more of {list(slots)}, got none.")
        return found

    @property
    @abstractmethod
    def step(self) -> int:
        """Rows that are in memory together."""

    @abstractmethod
    def chunk(
        self, table: Table, inputs: Sequence[str], width: int, allow_paths: bool, first: int
    ) -> tuple[Tensor, DataReport]:
        """Vectors (n, width) of rows numbered from ``first`` on, NaN where a row has none of the inputs."""

    def check_inputs(self, inputs: Sequence[str] | None) -> tuple[str, ...]:
        """The names, all if None.

        Raises:
            SpecError: one is unknown, or there is none.
        """
        if inputs is None:
            return tuple(self.parts)
        for name in inputs:
            if name not in self.parts:
                raise SpecError(
                    f"inputs must be of {list(self.parts)}, got {name!r}.{suggest(name, self.parts)}"
                )  # fmt: skip
        if not inputs:
            raise SpecError(f"inputs must name one or more of {list(self.parts)}, got none.")
        return tuple(dict.fromkeys(inputs))

    def check_width(self, width: int | None) -> int:
        """The width, all of it if None.

        Raises:
            SpecError: it is not within that of the space.
        """
        if width is not None and not 2 <= width <= self.width:
            raise SpecError(f"width must be 2 to {self.width} for this model, got {width}.")
        return width or self.width


def digest_of(parts: Mapping[str, Modality], backbones: Mapping[str, str], **more: Any) -> str:
    """Sha256, in hex, of what vectors depend on; where a table holds the cells does not matter."""
    told = {name: part.model_dump(mode="json", exclude={"column", "augmentation"}) for name, part in parts.items()}
    text = json.dumps({"parts": told, "backbones": dict(backbones), **more}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
