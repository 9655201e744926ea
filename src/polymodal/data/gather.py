"""One pass over an input's cells: fetch, read, collate, embed, keep; chunk by chunk, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polymodal.data.cells import Cell
from polymodal.data.clean import InputReport, Quarantined
from polymodal.data.embedding import Embedder
from polymodal.data.features import FeatureStore
from polymodal.data.rows import FlatRows, OpenRows, Rows
from polymodal.data.shelf import Shelf, StoredRows
from polymodal.data.source import Source
from polymodal.part import Reading
from polymodal.types import Masked

CHUNK = 256
"""Rows whose content is in memory together."""

EMBED = 8
"""Rows that go through a backbone together: more take more memory, and no less time on a CPU."""

HELD = 64 << 20
"""Bytes of summaries up to which they are held in memory."""

OPEN = 256 << 20
"""Bytes of collated values of one input up to which they are held in memory for a model that trains its backbone."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many rows are done and how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class MemoryRows:
    """Rows held as one padded batch."""

    whole: Masked

    def batch(self, indices: Tensor) -> Masked:
        """Gather rows and cut the padding that none of them needs."""
        some = self.whole[indices]
        used = some.mask.any(0).nonzero()
        longest = int(used[-1]) + 1 if len(used) else 1
        at = None if some.at is None else some.at[:, :longest]
        return Masked(some.values[:, :longest], some.mask[:, :longest], at)


@dataclass(frozen=True, slots=True)
class SummaryRows:
    """Rows of which the model takes only the summary."""

    rows: Rows
    embedder: Embedder
    name: str

    def batch(self, indices: Tensor) -> Masked:
        """Gather some rows (B,) into (B, 1, F)."""
        return self.embedder.summary(self.name, self.rows.batch(indices))

    def held(self, count: int) -> Rows:
        """The same rows, computed once and held in memory unless they are too many for that."""
        if not count or count * self.batch(torch.zeros(1, dtype=torch.long)).values.nbytes > HELD:
            return self
        return MemoryRows(Masked.join([self.batch(rows) for rows in torch.arange(count).split(CHUNK)]))


class Survey:
    """A pass over one input's cells that reads them and keeps count.

    Attributes:
        report: complete after `run`.
        digests: (rows, 16) uint8 of each cell's content.
        absent: (rows,) bool, nothing usable there.
        values: what was read, one per row, None where nothing usable is; empty unless it is to be kept.
    """

    def __init__(self, source: Source, progress: Progress = silent, keep: bool = False) -> None:
        self.source, self.progress, self.keep = source, progress, keep
        self.values = list[Any | None]()
        self.report = InputReport(source.name, source.modality.kind, missing_column=bool(source.missing_columns))
        self.digests = np.zeros((len(source), 16), np.uint8)
        self.absent = np.ones(len(source), bool)

    def run(self) -> InputReport:
        """Read every cell and keep nothing of it."""
        for start, cells in self.chunks():
            self.read(start, cells)
        self.report.count(self.digests, self.absent)
        return self.report

    def chunks(self) -> Iterator[tuple[int, list[Cell | Quarantined | None]]]:
        """Fetch the cells, `CHUNK` rows at a time, and note their digests."""
        total = len(self.source)
        for start in range(0, total, CHUNK):
            cells = list(self.source.cells(start, min(start + CHUNK, total)))
            for i, cell in enumerate(cells):
                if isinstance(cell, Cell):
                    self.digests[start + i] = np.frombuffer(cell.digest, np.uint8)
            yield start, cells
            self.progress(f"read {self.source.name}", start + len(cells), total)

    def read(self, start: int, cells: Sequence[Cell | Quarantined | None]) -> list[Any | None]:
        """Decode cells from row ``start`` on and report on them; None where nothing usable is in one."""
        values = []
        for row, cell in enumerate(cells, start):
            reading = self.decode(row, cell)
            if reading is not None:
                self.report.note(reading.repairs, reading.facts)
            values.append(None if reading is None else reading.value)
        if self.keep:
            self.values += values
        return values

    def decode(self, row: int, cell: Cell | Quarantined | None) -> Reading | None:
        """Decode one cell; None, and perhaps a line in the report, where nothing usable is in it."""
        reading = self.source.read(row, cell)
        if isinstance(reading, Quarantined):
            self.report.quarantined.append(reading)
            return None
        for column, reason in reading.broken.items() if reading else ():
            self.report.quarantined.append(self.source.broken(row, column, cell, reason))
        if reading is not None and reading.value is None:
            self.report.note(reading.repairs, reading.facts)
            return None
        self.absent[row] = reading is None
        return reading


class Gathering(Survey):
    """A survey that also collates and embeds what it reads, and hands out the rows.

    What a feature store has need not be read, so that values are kept only without one.
    """

    def __init__(self, source: Source, embedder: Embedder, progress: Progress = silent, keep: bool = False) -> None:
        super().__init__(source, progress, keep)
        self.embedder, self._backbone = embedder, embedder.backbone(source.name)

    def rows(self) -> Rows:
        """Go through every cell."""
        if self.source.name in self.embedder.opened:
            rows = self._opened()
            self.report.count(self.digests, self.absent)
            return rows
        store = self.embedder.store
        slow = self.source.modality.media or self._backbone is not None
        if slow and store is not None:
            rows = self._kept(store)
        else:
            parts = [self._tokens(self.read(start, cells)) for start, cells in self.chunks()]
            rows = MemoryRows(parts[0] if len(parts) == 1 else Masked.join(parts))
        self.report.count(self.digests, self.absent)
        if self.source.name not in self.embedder.summarised:
            return rows
        view = SummaryRows(rows, self.embedder, self.source.name)
        return view.held(len(self.source))

    def _opened(self) -> OpenRows:
        """Collate everything, and hold it unless it is too much."""
        lengths, parts, size = list[Tensor](), list[Masked](), 0
        for start, cells in self.chunks():
            values = self.read(start, cells)
            for first in range(0, len(values), EMBED):  # few, so that one long row does not lengthen many
                some = self.source.modality.collate(values[first : first + EMBED])
                lengths.append(some.mask.sum(1))
                size += some.values.nbytes
                parts.append(some)
                if size > OPEN:
                    parts.clear()
        return OpenRows(self.source, torch.cat(lengths), FlatRows(parts) if size <= OPEN else None)

    def _kept(self, store: FeatureStore) -> StoredRows:
        """Compute what the store does not have yet, then look at all of it there."""
        shelf = store.open(self.embedder.key(self.source.name), self.source.name, half=self._backbone is not None)
        like = self._tokens([None])
        with shelf.writer() as writer:
            for start, cells in self.chunks():
                fresh = self._fresh(start, cells, shelf)
                if fresh:
                    tokens = self._tokens([reading.value for reading in fresh.values()])
                    notes = [{"repairs": r.repairs, "facts": r.facts} for r in fresh.values()]
                    writer.add(np.frombuffer(b"".join(fresh), np.uint8).reshape(-1, 16), tokens, notes)
        places = np.where(self.absent, -1, shelf.find(self.digests))
        for note in shelf.notes(places):
            if note is not None:
                self.report.note(note["repairs"], note["facts"])
        return shelf.rows(places, like)

    def _fresh(self, start: int, cells: Sequence[Cell | Quarantined | None], shelf: Shelf) -> dict[bytes, Reading]:
        """Read cells whose content is not kept yet, equal content once."""
        known = shelf.find(self.digests[start : start + len(cells)]) >= 0
        fresh: dict[bytes, Reading] = {}
        for i, cell in enumerate(cells):
            if isinstance(cell, Cell) and (known[i] or cell.digest in fresh):
                self.absent[start + i] = False
            elif (reading := self.decode(start + i, cell)) is not None and isinstance(cell, Cell):
                fresh[cell.digest] = reading
        return fresh

    def _tokens(self, values: Sequence[Any | None]) -> Masked:
        """Collate and embed, similar lengths together so that little is padding."""
        if self._backbone is None:
            return self.source.modality.collate(values)
        return embed_values(self.embedder, self.source.name, values, EMBED)


def embed_values(embedder: Embedder, name: str, values: Sequence[Any | None], size: int) -> Masked:
    """Collate and embed one input's values, ``size`` of similar length at a time so that little is padding.

    Args:
        embedder: of an input with a backbone.
        name: of the input.
        values: as its modality read them; None where absent.
        size: rows that go through the backbone together.

    Returns:
        (B, T, W) tokens, in the order of the values.
    """
    modality = embedder.modalities[name]
    if len(values) <= size:
        return embedder.embed(name, modality.collate(values))
    order = sorted(range(len(values)), key=lambda i: -1 if values[i] is None else modality.length(values[i]))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    parts = [embedder.embed(name, modality.collate([values[i] for i in chunk])) for chunk in chunks]
    return Masked.join(parts, torch.tensor(order))
