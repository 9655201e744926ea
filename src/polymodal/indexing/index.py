"""Index: items by their vectors, to be found by any of a model's inputs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from polymodal.data.gather import Progress, silent
from polymodal.data.table import Table
from polymodal.embedding.embed import space
from polymodal.embedding.space import Space
from polymodal.errors import BundleError, DataError, SpecError, suggest
from polymodal.indexing import exact
from polymodal.indexing.folder import Content, Note, check_index_place, read_index
from polymodal.indexing.graph import Graph, installed
from polymodal.indexing.items import Added, Hit, Items, read_columns, read_ids

Approximate = Literal["auto", "always", "never"]

MANY = 250_000
"""Items from which on ``auto`` searches approximately, where the library for it is installed."""


class Index:
    """Items and their vectors.

    Attributes:
        vectors: (n, W) float32 of length 1, one per item.
        items: ids and kept columns, in the same order.
        note: what holds for all of them: the model's digest, the width, the inputs that are looked at.
        added: what became of the rows that were added last; None where none were.
    """

    def __init__(
        self, note: Note, vectors: np.ndarray, items: Items, model: Space | None = None, graph: Graph | None = None
    ) -> None:
        self.note, self.vectors, self.items, self.added = note, vectors, items, None
        self._space, self._graph, self._lock = model, graph, threading.Lock()

    def __len__(self) -> int:
        """Return how many items there are."""
        return len(self.items)

    def __repr__(self) -> str:
        """How many items, of which inputs."""
        return f"Index({len(self)} items of {', '.join(self.note.inputs)}, width {self.note.width})"

    @classmethod
    def create(  # noqa: PLR0913  (each argument stands for itself)
        cls,
        model: Any,
        table: Any,
        *,
        id_column: str | None = None,
        inputs: Sequence[str] | None = None,
        width: int | None = None,
        columns: Sequence[str] | None = None,
        approximate: Approximate = "auto",
        task: str | None = None,
        device: str = "auto",
        strict: bool = False,
        progress: Progress = silent,
    ) -> Self:
        """Embed the rows of a table and keep them as items.

        An item may have any of the inputs. A row that has none is no item; `added` tells of it.

        Args:
            model: as `polymodal.embedding.embed.space` takes it.
            table: anything `Table.read` takes.
            id_column: that names the items; a column ``id`` if there is one, else they are numbered from 0 on.
            inputs: that are looked at in items, others count as absent; all if None.
            width: entries of a vector that are kept, the first ones; all if None.
            columns: to keep of each item's row; all if None.
            approximate: whether searches may miss an item for speed: ``auto`` from many items on.
            task: which one of a bundle's tasks, where several match.
            device: that the model runs on, unless it is loaded already.
            strict: raise on a broken cell instead of counting it as absent.
            progress: told how far it is.

        Raises:
            DataError: the table cannot be used, an id is missing or there twice, or no row has any of the inputs.
            SpecError: an option is not as it must be.
            BundleError: there is no such model.
        """
        own, rows = space(model, task=task, device=device), Table.read(table)
        if approximate not in get_args(Approximate):
            known = get_args(Approximate)
            raise SpecError(
                f"approximate must be one of {list(known)}, got {approximate!r}.{suggest(approximate, known)}"
            )
        if id_column is None and "id" in rows and "id" not in own.columns:
            id_column = "id"
        kept = None if columns is None else tuple(columns)
        note = Note(
            digest=own.digest, model=own.origin, task=task, inputs=own.check_inputs(inputs),
            width=own.check_width(width), id_column=id_column, columns=kept, approximate=approximate,
        )  # fmt: skip
        index = cls(note, np.empty((0, note.width), np.float32), Items(), own)
        if approximate == "always":
            index._graph = Graph(note.width)
        index.add(rows, strict=strict, progress=progress)
        return index

    @property
    def model(self) -> Space:
        """What embeds items and queries; loaded when it is first needed.

        Raises:
            BundleError: it is not where it was, or is another one than the index was made with.
        """
        return self._space or self._use(None, "auto")

    def use(self, model: Any, device: str = "auto") -> Self:
        """Ask with a model that was found elsewhere than where the index says.

        Args:
            model: as `polymodal.embedding.embed.space` takes it; None for the one that the index names.
            device: that it runs on, unless it is loaded already.

        Raises:
            BundleError: there is none, or the index was made by another one.
        """
        self._use(model, device)
        return self

    def _use(self, model: Any, device: str) -> Space:
        place = self.note.model if model is None else model
        if place is None:
            raise BundleError("The index must be given its model, as it was made by one in memory. Name its folder.")
        found = space(place, task=self.note.task, device=device)
        if found.digest != self.note.digest:
            raise BundleError(
                f"The index must be asked with the model that it was made by, {self.note.model} "
                f"({self.note.digest[:12]}), got another one, {place} ({found.digest[:12]}). Give that model, or make "
                "the index again."
            )
        self._space = found
        return found

    def add(self, table: Any, *, strict: bool = False, progress: Progress = silent) -> Added:
        """Add the rows of a table, all or none of them.

        Args:
            table: with the index's columns.
            strict: raise on a broken cell instead of counting it as absent.
            progress: told how far it is.

        Raises:
            DataError: the table cannot be used, an id is missing, there twice or in the index, or no row has any of
                the inputs.
            BundleError: the model is not there any more, or is another one.
        """
        rows, note = Table.read(table), self.note
        ids = read_ids(rows, note.id_column, self.items.next)
        self.items.check_new(ids, rows.source)
        names = [c for c in rows.columns if c != note.id_column] if note.columns is None else list(note.columns)
        columns, left_out = read_columns(rows, names)
        found = self.model.embed(rows, inputs=note.inputs, width=note.width, strict=strict, progress=progress)
        if not found.present.any():
            raise DataError(f"{rows.source} must have a row with any of the inputs {list(note.inputs)}, got none.")
        reasons = {cell.row: str(cell) for cell in reversed(found.report.quarantined)}
        refused = {
            ids[i]: reasons.get(i, f"it has none of the inputs {list(note.inputs)}")
            for i in np.flatnonzero(~found.present).tolist()
        }
        here = np.flatnonzero(found.present).tolist()
        with self._lock:
            self.items = self.items.joined(ids, columns, here)
            self.vectors = np.concatenate([self.vectors, found.vectors[found.present]])
        self.added = Added(len(rows), refused, left_out, found.report.warnings())
        return self.added

    def remove(self, ids: Sequence[str]) -> None:
        """Take items away, all or none of them. What is saved afterwards holds nothing of them.

        Raises:
            DataError: an id is of no item.
        """
        rows = self.items.find(ids)
        with self._lock:
            if self._graph is not None:
                self._graph.remove(self.items.numbers[rows])
            self.vectors, self.items = np.delete(self.vectors, rows, axis=0), self.items.without(rows)

    def find(self, queries: Any, count: int = 10, *, allow_paths: bool = True) -> list[list[Hit]]:
        """Find the items that are nearest to each query, nearest first; those of equal score in the order of ids.

        Args:
            queries: a row (a mapping from input or column to cell), or many: anything else that `Table.read` takes.
                A query of several inputs is composed of them as the model does it.
            count: of items per query, at most.
            allow_paths: whether cells may name files and URLs.

        Raises:
            DataError: a query has no known input, a cell is broken, or ``count`` is below 1.
            BundleError: the model is not there any more, or is another one.
        """
        table = Table.read([self.model.named(queries)] if isinstance(queries, Mapping) else queries)
        found = self.model.embed(table, width=self.note.width, allow_paths=allow_paths)
        if found.report.quarantined:
            raise DataError(f"{found.report.quarantined[0]}")
        if not found.present.all():
            gone = int(np.flatnonzero(~found.present)[0])
            raise DataError(
                f"{table.source}: row {gone} must have one or more of the inputs {list(self.model.parts)}, got none."
            )
        return self.search(found.vectors, count)

    def search(self, vectors: np.ndarray, count: int = 10) -> list[list[Hit]]:
        """The same for vectors (Q, W) float32 of length 1.

        Raises:
            DataError: they are of another length than the items', or ``count`` is below 1.
        """
        if not isinstance(count, int) or count < 1:
            raise DataError(f"count must be a whole number of 1 or more, got {count!r}.")
        if vectors.ndim != 2 or vectors.shape[1] != self.note.width:
            raise DataError(f"vectors must be of shape (Q, {self.note.width}), got {vectors.shape}.")
        with self._lock:  # what is added meanwhile replaces these, and does not change them
            items, kept, graph = self.items, self.vectors, self._graph_now()
        if not len(items):
            return [[] for _ in vectors]
        if graph is None:
            rows = exact.nearest(vectors, kept, count)
        else:
            rows = [items.at(numbers) for numbers in graph.search(vectors, count)]
        return [
            [
                Hit(items.ids[row], score, items.columns[row])
                for row, score in exact.ranked(v, kept, r, items.ids, count)
            ]
            for v, r in zip(vectors, rows, strict=True)
        ]

    @staticmethod
    def check_place(path: str | Path) -> Path:
        """The absolute path of a folder that an index may be written to.

        Raises:
            BundleError: something that is no index is there.
        """
        return check_index_place(path)

    def save(self, path: str | Path) -> Path:
        """Write the index as a folder, whole or not at all.

        Args:
            path: a new folder, an empty one, or an index to replace.

        Raises:
            BundleError: the folder holds something else, or cannot be written. What was there stays.
        """
        with self._lock:
            if self._graph is not None and self._graph.stale:
                self._graph = Graph(self.note.width)  # what was removed is in the old one's memory
            return Content(self.note, self.vectors, self.items, self._graph_now()).write(path)

    @classmethod
    def load(cls, path: str | Path, *, model: Any = None, device: str = "auto") -> Self:
        """Read an index. Its model is loaded when it is first needed, unless it is given.

        Args:
            path: the folder.
            model: where the model is, if not where the index says.
            device: that the model runs on, unless it is loaded already.

        Raises:
            BundleError: the folder is no index, is incomplete or damaged, or was made by another model.
            SpecError: it must be searched approximately, and what that takes is not installed.
        """
        content = read_index(Path(path))
        index = cls(content.note, content.vectors, content.items, graph=content.graph)
        return index if model is None else index.use(model, device)

    def _graph_now(self) -> Graph | None:
        """The graph with all items in it; None where the search is exact. To be called with the lock."""
        wish = self.note.approximate
        if wish == "never" or (wish == "auto" and (len(self) < MANY or not installed())):
            return None
        if self._graph is None:
            self._graph = Graph(self.note.width)
        new = self.items.numbers > self._graph.last
        self._graph.add(self.items.numbers[new], self.vectors[new])
        return self._graph
