"""The feature store: what frozen backbones say of each content, computed once and kept on disk.

A store is a folder of shelves, a shelf a folder of shards, a shard one safetensors file that is written to a
temporary name, then renamed: a process killed in the middle loses at most the shard it was writing, and
processes that write to one shelf at once disturb each other in nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polymodal.data.shards import read_shard
from polymodal.data.shelf import Shelf
from polymodal.disk import cache_folder as cache_folder
from polymodal.errors import SpecError

_IN_USE: weakref.WeakSet[Shelf] = weakref.WeakSet()


def cache_limit() -> int:
    """The default limit in bytes: $POLYMODAL_CACHE_LIMIT, else 10 GB.

    Raises:
        SpecError: the variable is no positive number.
    """
    text = os.environ.get("POLYMODAL_CACHE_LIMIT", "10e9")
    try:
        limit = int(float(text))
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise SpecError(f"POLYMODAL_CACHE_LIMIT must be a number of bytes above 0, got {text!r}.")
    return limit


@dataclass(frozen=True, slots=True)
class Usage:
    """What one shelf takes.

    Attributes:
        key: the shelf's key.
        label: what it holds, for people.
        rows: stored rows.
        bytes: on disk.
        used: when it was last opened, in seconds since 1970.
    """

    key: str
    label: str
    rows: int
    bytes: int
    used: float


class FeatureStore:
    """A folder of shelves with a limit of bytes; the shelves used longest ago make room.

    Args:
        folder: made if missing; `cache_folder` if None. If it cannot be written, shelves live in memory.
        limit_bytes: `cache_limit` if None. Shelves open in this process are never evicted.
    """

    def __init__(self, folder: Path | str | None = None, limit_bytes: int | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.limit_bytes = limit_bytes if limit_bytes is not None else cache_limit()
        self._warned: set[str] = set()
        self._memory: dict[str, Shelf] = {}

    def open(self, key: str, label: str = "", half: bool = True) -> Shelf:
        """Open the shelf of one fitted part and backbone.

        Args:
            key: letters, digits, ``-`` and ``_``; everything that the rows depend on besides the content must be in it.
            label: what it holds, for `usage`.
            half: keep floating values as float16 (see `rounded`); else every dtype as it is.
        """
        path = self._path(key)
        try:
            path.mkdir(parents=True, exist_ok=True)
            note = path / "shelf.json"
            if not note.exists():
                (path / f".tmp-{os.getpid()}").write_text(json.dumps({"label": label}))
                os.replace(path / f".tmp-{os.getpid()}", note)
            os.utime(note)
        except OSError as error:
            self._refused(error)
            if not path.is_dir():  # else what is there can still be read
                return self._memory.setdefault(key, Shelf(None, half, self.evict, self._refused))
        shelf = Shelf(path, half, self.evict, self._refused)
        _IN_USE.add(shelf)
        self.evict()
        return shelf

    def usage(self) -> list[Usage]:
        """Every shelf on disk, last used first."""
        found = []
        for note in self.folder.glob("*/shelf.json"):
            with suppress(OSError, ValueError):  # another process may be removing it
                files = list(note.parent.glob("*.safetensors"))
                rows = sum(len(shard) for file in files if (shard := read_shard(file)))
                size = sum(file.stat().st_size for file in files)
                label = json.loads(note.read_text())["label"]
                found.append(Usage(note.parent.name, label, rows, size, note.stat().st_mtime))
        return sorted(found, key=lambda shelf: -shelf.used)

    def clear(self, key: str | None = None) -> int:
        """Remove one shelf, or all and the kept graphs of backbones; rows already opened stay readable.

        Returns:
            The bytes freed.
        """
        notes = self.folder.glob("*/shelf.json") if key is None else [self._path(key) / "shelf.json"]
        freed = sum(_remove(note.parent) for note in notes if note.exists())
        for pattern in ("graphs/*.onnx", "graphs/openvino/*/*.blob") if key is None else ():
            for graph in self.folder.glob(pattern):
                freed += graph.stat().st_size
                graph.unlink(missing_ok=True)
        return freed

    def evict(self) -> None:
        """Remove the shelves used longest ago, until the rest is within the limit."""
        shelves = []
        for note in self.folder.glob("*/shelf.json"):
            with suppress(OSError):
                size = sum(file.stat().st_size for file in note.parent.glob("*.safetensors"))
                shelves.append((note.stat().st_mtime, size, note.parent))
        total = sum(size for _, size, _ in shelves)
        used = {shelf.path for shelf in _IN_USE}
        for _, size, path in sorted(shelves):
            if total > self.limit_bytes and path not in used:
                total -= size
                _remove(path)
        if total > self.limit_bytes:
            self._warn(
                "limit",
                f"the feature cache {self.folder} holds {total:,} bytes in use, above its limit of "
                f"{self.limit_bytes:,}. Raise POLYMODAL_CACHE_LIMIT.",
            )

    def _refused(self, error: OSError) -> None:
        """Say once that the disk does not take rows."""
        self._warn(
            "write",
            f"the feature cache {self.folder} cannot be written, so features stay in memory for this run: {error}. "
            "Set POLYMODAL_CACHE to a folder with space.",
        )

    def _warn(self, kind: str, message: str) -> None:
        """Warn once for each kind of message."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=4)

    def _path(self, key: str) -> Path:
        """Return a shelf's folder."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", key):
            raise ValueError(f"key must be 1 to 128 letters, digits, - or _, got {key!r}.")
        return self.folder / key


def _remove(path: Path) -> int:
    """Remove a shelf's folder; return the bytes of its shards."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    shutil.rmtree(path, ignore_errors=True)
    return size
