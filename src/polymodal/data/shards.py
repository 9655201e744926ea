"""Shards of the feature store: one safetensors file each, written at once and read memory-mapped."""

from __future__ import annotations

import json
import mmap
import os
import struct
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np

_NAMES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_CODES = {np.dtype(kind): name for name, kind in _NAMES.items()}


class Shard:
    """Rows of varying length, end to end.

    Attributes:
        arrays: values (P, ...), mask (P,), offsets (rows + 1,), perhaps at (P, K); on shelves also digests
            (rows, 16) and notes, one JSON text a line.
    """

    def __init__(self, arrays: dict[str, np.ndarray], mapped: mmap.mmap | None = None) -> None:
        self.arrays, self._mapped = arrays, mapped

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.arrays["offsets"]) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all positions."""
        return sum(a.nbytes for name, a in self.arrays.items() if name in ("values", "mask", "at"))

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First position and length of rows. (n,), (n,)."""
        begin = self.arrays["offsets"][rows]
        return begin, self.arrays["offsets"][rows + 1] - begin

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Copy the positions of rows, end to end, with their lengths."""
        begin, lengths = self.spans(rows)
        place = np.repeat(begin - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        taken = {name: a[place] for name, a in self.arrays.items() if name in ("values", "mask", "at")}
        return {"lengths": lengths, **taken}

    def notes(self) -> list[str]:
        """One JSON text per row."""
        return self.arrays["notes"].tobytes().decode().split("\n")

    def release(self) -> None:
        """Give mapped pages back, so that memory stays flat; the operating system keeps them at hand."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def write_shard(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write a shard under a name of its own: first in full under a temporary one, then renamed.

    Raises:
        OSError: the disk does not take it; nothing is left behind.
    """
    header, end = {}, 0
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)  # so that every array is aligned
    for name, array in ordered:
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unique = uuid.uuid4().hex
    draft, final = folder / f".tmp-{unique}", folder / f"{unique}.safetensors"
    try:
        with draft.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, array in ordered:
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, final)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
    return final


def read_shard(path: Path) -> Shard | None:
    """Map a shard; None if the file is gone, cut short or no shard."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (size,) = struct.unpack("<Q", mapped[:8])
        header = json.loads(mapped[8 : 8 + size])
        if max(entry["data_offsets"][1] for entry in header.values()) != len(mapped) - 8 - size:
            return None
        arrays = {}
        for name, entry in header.items():
            kind = np.dtype(_NAMES[entry["dtype"]])
            begin, end = entry["data_offsets"]
            array = np.frombuffer(mapped, kind, (end - begin) // kind.itemsize, 8 + size + begin)
            arrays[name] = array.reshape(entry["shape"])
        shard = Shard(arrays, mapped)
        positions = {len(arrays["values"]), len(arrays["mask"]), int(arrays["offsets"][-1])}
        fits = len(positions) == 1 and len(arrays["digests"]) == len(shard) == len(shard.notes())
    except (OSError, ValueError, KeyError, TypeError, struct.error, IndexError, OverflowError):
        return None
    shard.release()
    return shard if fits else None
