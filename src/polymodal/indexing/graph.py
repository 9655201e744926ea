"""Graph: approximate search in many vectors, by a library of the extra ``find``."""

from __future__ import annotations

import importlib.util
from typing import Self

import numpy as np
import torch

from polymodal.errors import BundleError, SpecError

LINKS = 32
"""Neighbours that a vector is linked to."""

EXPLORED = 128
"""Candidates that are looked at when a vector is linked."""

LOOKED = 512
"""Candidates that a search looks at, at least: on vectors without any structure, the hardest, 98 % are then found."""


def installed() -> bool:
    """Whether the library is there."""
    return importlib.util.find_spec("usearch") is not None


class Graph:
    """A graph of near vectors, which a search walks along. Vectors are kept as float16 and known by a number.

    Source: Malkov and Yashunin 2018, "Efficient and robust approximate nearest neighbor search using Hierarchical
    Navigable Small World graphs" (arXiv:1603.09320), as usearch implements it.

    Attributes:
        last: the largest number that was added.
        stale: whether vectors have been removed. They are not found any more, but their memory still holds them.
    """

    def __init__(self, width: int) -> None:
        """Start without vectors.

        Raises:
            SpecError: usearch is not installed.
        """
        if not installed():
            raise SpecError(
                "an approximate index needs a package that is not installed: usearch. "
                "Run: pip install 'polymodal[find]', or leave approximate out."
            )
        from usearch.index import Index  # an extra

        self._width, self._graph = width, Index(
            ndim=width, metric="ip", dtype="f16", connectivity=LINKS, expansion_add=EXPLORED, expansion_search=LOOKED
        )  # fmt: skip
        self.last, self.stale = -1, False

    def __len__(self) -> int:
        """Return how many vectors can be found."""
        return len(self._graph)

    def add(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors.

        Args:
            numbers: (n,) int64, rising, larger than any before.
            vectors: (n, W) float32 of length 1.
        """
        if len(numbers):
            self._graph.add(numbers.astype(np.uint64), vectors, threads=torch.get_num_threads())
            self.last = int(numbers[-1])

    def remove(self, numbers: np.ndarray) -> None:
        """Let vectors not be found any more."""
        self._graph.remove(numbers.astype(np.uint64))
        self.stale = self.stale or bool(len(numbers))

    def search(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Numbers of vectors that are probably nearest to each of (Q, W) queries, twice as many as are wanted."""
        wanted = min(len(self), 2 * count + 16)
        self._graph.expansion_search = max(LOOKED, 2 * wanted)
        found = self._graph.search(queries, wanted, threads=torch.get_num_threads())
        keys, counts = np.atleast_2d(found.keys), np.atleast_1d(getattr(found, "counts", len(found.keys)))
        return [row[:n].astype(np.int64) for row, n in zip(keys, counts, strict=True)]

    def dump(self) -> bytes:
        """The graph as a file holds it."""
        return bytes(self._graph.save() or b"")

    @classmethod
    def load(cls, content: bytes, width: int, last: int) -> Self:
        """Read what `dump` gave.

        Raises:
            BundleError: it is none, or of vectors of another length.
            SpecError: usearch is not installed.
        """
        graph = cls(width)
        try:
            graph._graph.load(content)
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"a graph must be one that usearch has saved, got: {error}") from None
        if graph._graph.ndim != width:
            raise BundleError(f"a graph must be of vectors of length {width}, got {graph._graph.ndim}.")
        graph.last = last
        return graph
