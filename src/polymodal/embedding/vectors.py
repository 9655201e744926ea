"""Embeddings: what embedding a table gives, and the files that hold it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import save as save_tensors

from polymodal.data.clean import DataReport
from polymodal.data.write import check_ending, write_table
from polymodal.disk import write_whole
from polymodal.errors import DataError

ARRAYS = (".npz", ".safetensors")
"""Endings of files that hold vectors as one array."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of a table's rows.

    Attributes:
        vectors: (n, W) float32 of length 1; NaN where a row has none of the inputs.
        present: (n,) bool, which rows have a vector.
        report: what cleaning did.
    """

    vectors: np.ndarray
    present: np.ndarray
    report: DataReport

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.vectors)

    @property
    def warnings(self) -> list[str]:
        """One line for everything a user should look at: broken cells, repairs, rows without a vector."""
        gone = np.flatnonzero(~self.present)
        lines = [f"{len(gone)} of {len(self)} rows have no vector, the first is row {gone[0]}"] if len(gone) else []
        return [*self.report.warnings(), *lines]

    @staticmethod
    def check_file(path: str | Path) -> Path:
        """The path of a file that `save` can write.

        Raises:
            DataError: its ending is unknown, or there is no such folder.
        """
        return check_ending(path, ARRAYS)

    def save(self, path: str | Path) -> Path:
        """Write the vectors, whole or not at all.

        Args:
            path: ends in .npz or .safetensors for arrays ``vectors`` and ``present`` (0 or 1), or in .parquet, .csv or
                .jsonl for columns ``row``, from 0, and ``vector``, null where a row has none.

        Raises:
            DataError: the ending is none of these, or the file cannot be written.
        """
        path = self.check_file(path)
        present = self.present.astype(np.uint8)
        if path.suffix.lower() == ".safetensors":
            return _put(path, save_tensors({"vectors": self.vectors, "present": present}))
        if path.suffix.lower() == ".npz":
            sink = io.BytesIO()
            np.savez(sink, vectors=self.vectors, present=present)
            return _put(path, sink.getvalue())
        rows = [row.tolist() if here else None for row, here in zip(self.vectors, self.present, strict=True)]
        column = rows if path.suffix.lower() == ".csv" else pa.array(rows, pa.list_(pa.float32()))
        write_table({"row": range(len(rows)), "vector": column}, path)
        return path


def _put(path: Path, content: bytes) -> Path:
    try:
        write_whole(path, content)
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror}. What was there is unchanged.") from error
    return path
