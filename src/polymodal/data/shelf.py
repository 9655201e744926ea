"""A shelf of the feature store: rows of one fitted part and backbone, found by the digest of their content."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from polymodal.data.shards import Shard, read_shard, write_shard
from polymodal.types import Masked

_SHARD_BYTES, _SHARD_ROWS = 32 << 20, 4096
_IN_MEMORY = 64 << 20  # bytes of rows up to which they are gathered once
_HALF_MAX = 65504.0
_STALE_SECONDS = 3600.0  # age at which another process's unfinished shard is taken for dead


def rounded(x: Masked) -> Masked:
    """Round floating values to what float16 holds, keeping their dtype, as a shelf with ``half`` does."""
    if not x.values.is_floating_point():
        return x
    half = x.values.clamp(-_HALF_MAX, _HALF_MAX).half()
    return Masked(half.to(x.values.dtype), x.mask, x.at)


class Shelf:
    """Stored rows of one fitted part and backbone, found by the digest of their content.

    Locations are numbers of rows within this object; they hold as long as it lives.

    Attributes:
        path: the folder, or None if the shelf lives in memory.
        half: whether floating values are kept as float16.
        grown: called after each shard that reached the disk.
        refused: called with the error when the disk does not take a shard, which then stays in memory.
    """

    def __init__(
        self, path: Path | None, half: bool, grown: Callable[[], None], refused: Callable[[OSError], None]
    ) -> None:
        self.path, self.half, self.grown, self.refused = path, half, grown, refused
        self.shards: list[Shard] = []
        self._index: tuple[np.ndarray, np.ndarray] | None = None
        for file in sorted(path.glob("*.safetensors")) if path else []:
            shard = read_shard(file)
            if shard is None:
                with suppress(OSError):
                    file.unlink()
            else:
                self.append(shard)
        for file in path.glob(".tmp-*") if path else []:
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                    file.unlink()

    def __len__(self) -> int:
        """Return the number of stored rows."""
        return sum(map(len, self.shards))

    @property
    def starts(self) -> np.ndarray:
        """Location of each shard's first row, and the end."""
        return np.cumsum([0, *map(len, self.shards)])

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Locations of contents.

        Args:
            digests: (n, 16) uint8.

        Returns:
            (n,) int64, -1 where not stored.
        """
        if self._index is None:
            keys = [_keys(shard.arrays["digests"]) for shard in self.shards]
            every = np.concatenate(keys) if keys else np.empty(0, "S16")
            order = np.argsort(every, kind="stable")
            self._index = every[order], order
        known, order = self._index
        wanted = _keys(digests)
        if not len(known):
            return np.full(len(wanted), -1, np.int64)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[at] == wanted, order[at], -1).astype(np.int64)

    def writer(self) -> Writer:
        """Append rows: ``with shelf.writer() as writer: writer.add(...)``."""
        return Writer(self)

    def append(self, shard: Shard) -> None:
        """Take a shard in.

        Raises:
            ValueError: its rows are of another dtype or shape: the key does not name everything they depend on.
        """
        kinds = [
            (s.arrays["values"].dtype, s.arrays["values"].shape[1:], "at" in s.arrays)
            for s in (shard, *self.shards[:1])
        ]
        if kinds[0] != kinds[-1]:
            raise ValueError(
                f"rows of shelf {self.path} must be {kinds[-1]}, got {kinds[0]}. Use another key for them."
            )
        self.shards.append(shard)
        self._index = None

    def rows(self, locations: np.ndarray, like: Masked | None = None) -> StoredRows:
        """View stored rows in the order of a table.

        Args:
            locations: (n,) as from `find`; -1 is an absent row.
            like: any batch of such rows, for the shapes if nothing is stored.
        """
        return StoredRows(self, np.asarray(locations, np.int64), like)

    def notes(self, locations: np.ndarray) -> list[dict[str, Any] | None]:
        """The note of each stored row; None where absent."""
        starts, found = self.starts, np.asarray(locations, np.int64)
        notes: list[dict[str, Any] | None] = [None] * len(found)
        which = np.where(found >= 0, np.searchsorted(starts, found, side="right") - 1, -1)
        order = np.argsort(which, kind="stable")
        parsed: dict[str, dict[str, Any]] = {}  # most rows say the same
        for some in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
            if len(some) and which[some[0]] >= 0:
                s = which[some[0]]
                texts = self.shards[s].notes()
                for i, place in zip(some.tolist(), (found[some] - starts[s]).tolist(), strict=True):
                    text = texts[place]
                    if text not in parsed:
                        parsed[text] = json.loads(text)
                    notes[i] = parsed[text]
        return notes


def _keys(digests: np.ndarray) -> np.ndarray:
    """View (n, 16) uint8 as (n,) byte strings, which sort and compare as wholes."""
    return np.ascontiguousarray(digests, np.uint8).reshape(-1, 16).view("S16").ravel()


class Writer:
    """Appends computed rows to a shelf, shard by shard; what was added is kept even if the block raises."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._parts: list[dict[str, np.ndarray]] = []
        self._notes: list[str] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        """Start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is left."""
        self.flush()

    def add(self, digests: np.ndarray, x: Masked, notes: Sequence[dict[str, Any]] | None = None) -> None:
        """Append a batch.

        Args:
            digests: (B, 16) uint8, each row's content.
            x: (B, N, ...); each row is cut after its last real position.
            notes: one small JSON-able mapping per row; empty if None.
        """
        x = rounded(x) if self.shelf.half else x
        mask = x.mask.cpu().numpy()
        position = np.arange(mask.shape[1])
        lengths = np.maximum(1, (mask * (position + 1)).max(1))
        kept = position < lengths[:, None]
        values = x.values.detach().cpu()
        values = (values.half() if self.shelf.half and values.is_floating_point() else values).numpy()
        part = {"lengths": lengths, "values": values[kept], "mask": mask[kept]}
        if x.at is not None:
            part["at"] = x.at.detach().cpu().float().numpy()[kept]
        part["digests"] = np.array(digests, np.uint8).reshape(len(mask), 16)
        self._parts.append(part)
        self._notes += [json.dumps(note) for note in notes or [{}] * len(mask)]
        self._bytes += part["values"].nbytes
        # Shards grow with the shelf, so that a shelf of many small rows does not need a thousand open files.
        if self._bytes >= _SHARD_BYTES or len(self._notes) >= max(_SHARD_ROWS, len(self.shelf) // 8):
            self.flush()

    def flush(self) -> None:
        """Write the rows added so far as one shard; in memory if the disk does not take it."""
        if not self._parts:
            return
        arrays = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        arrays["offsets"] = np.cumsum([0, *arrays.pop("lengths").tolist()], dtype=np.int64)
        arrays["notes"] = np.frombuffer("\n".join(self._notes).encode(), np.uint8)
        self._parts, self._notes, self._bytes = [], [], 0
        shelf, shard = self.shelf, None
        if shelf.path is not None:
            try:
                shard = read_shard(write_shard(shelf.path, arrays))
            except OSError as error:
                shelf.refused(error)
        shelf.append(shard or Shard(arrays))
        if shard is not None:
            shelf.grown()


class StoredRows:
    """Stored rows in the order of a table, gathered by batch.

    Args:
        shelf: where they lie.
        locations: (n,) int64, -1 absent.
        like: gives shapes and dtype if the shelf is empty.
    """

    def __init__(self, shelf: Shelf, locations: np.ndarray, like: Masked | None) -> None:
        self._shards, self._starts, self._locations = list(shelf.shards), shelf.starts, locations
        if not self._shards:
            like = like if like is not None else Masked(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool))
            at = {} if like.at is None else {"at": np.zeros((0, like.at.shape[2]), np.float32)}
            values = np.zeros((0, *like.values.shape[2:]), like.values.numpy().dtype)
            arrays = {"values": values, "mask": np.zeros(0, bool), "offsets": np.zeros(1, np.int64), **at}
            self._shards, self._starts = [Shard(arrays)], np.zeros(2, np.int64)
        self._hold()

    def __len__(self) -> int:
        """Return the number of rows, absent ones too."""
        return len(self._locations)

    def batch(self, indices: Tensor | np.ndarray) -> Masked:
        """Gather rows.

        Args:
            indices: (B,) positions in this view.

        Returns:
            (B, longest, ...); float16 comes back as float32. Zeros behind the mask of shorter and absent rows.
        """
        places = self._locations[np.asarray(indices)]
        which = np.searchsorted(self._starts, places, side="right") - 1
        shards = [int(s) for s in np.unique(which[places >= 0])]
        rows = {s: np.flatnonzero((which == s) & (places >= 0)) for s in shards}
        spans = {s: self._shards[s].spans(places[rows[s]] - self._starts[s]) for s in shards}
        longest = max([1, *(int(lengths.max()) for _, lengths in spans.values())])
        first = self._shards[0].arrays
        out = {
            name: np.zeros((len(places), longest, *first[name].shape[1:]), first[name].dtype)
            for name in ("values", "mask", "at")
            if name in first
        }
        for s in shards:
            begin, lengths = spans[s]
            row, step = np.nonzero(np.arange(longest) < lengths[:, None])
            for name, target in out.items():
                target[rows[s][row], step] = self._shards[s].arrays[name][begin[row] + step]
            self._shards[s].release()
        values = torch.from_numpy(out["values"])
        values = values.float() if values.dtype == torch.float16 else values
        return Masked(values, torch.from_numpy(out["mask"]), torch.from_numpy(out["at"]) if "at" in out else None)

    def _hold(self) -> None:
        """Gather a small view into one shard in memory."""
        kept = np.unique(self._locations[self._locations >= 0])
        total = sum(shard.nbytes for shard in self._shards)
        if not len(kept) or total * len(kept) / max(1, self._starts[-1]) > _IN_MEMORY:
            return
        parts: list[dict[str, np.ndarray]] = []
        for s, shard in enumerate(self._shards):
            local = kept[(kept >= self._starts[s]) & (kept < self._starts[s + 1])] - self._starts[s]
            if len(local):
                parts.append(shard.take(local))
                shard.release()
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        arrays["offsets"] = np.cumsum(np.concatenate([[0], arrays.pop("lengths")]), dtype=np.int64)
        self._locations = np.where(self._locations >= 0, np.searchsorted(kept, self._locations), -1)
        self._shards, self._starts = [Shard(arrays)], np.array([0, len(kept)])
