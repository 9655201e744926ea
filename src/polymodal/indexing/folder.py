"""The folder that an index lies in: written whole or not at all, read only if nothing in it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from polymodal import __version__
from polymodal.disk import swap
from polymodal.errors import BundleError
from polymodal.indexing.graph import Graph, installed
from polymodal.indexing.items import Items

FORMAT = 1
"""Newest version of the layout that is read."""

NOTE, VECTORS, ITEMS, GRAPH = "index.json", "vectors.safetensors", "items.jsonl", "graph.usearch"
FILES = {NOTE, VECTORS, ITEMS, GRAPH}
"""Everything that an index's folder may hold: it is replaced as a whole."""


class Note(BaseModel):
    """What holds for all items of an index.

    Attributes:
        digest: of the space that they are embedded in.
        model: folder of its bundle, or mapping of its modality; None where it was in memory.
        task: of the bundle; None for its only one that matches.
        inputs: that are looked at in items.
        width: W, of the vectors.
        metric: by which items are near: the cosine of their angle to a query.
        id_column: column of the items' ids; None where they are numbered.
        columns: that are kept of an item's row; None for all.
        approximate: whether searches may miss an item for speed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    digest: str
    model: str | dict[str, Any] | None
    task: str | None
    inputs: tuple[str, ...]
    width: int
    metric: Literal["cosine"] = "cosine"
    id_column: str | None
    columns: tuple[str, ...] | None
    approximate: Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Content:
    """What an index's folder says."""

    note: Note
    vectors: np.ndarray
    items: Items
    graph: Graph | None = None

    def write(self, path: str | Path) -> Path:
        """Write the folder, whole or not at all.

        Raises:
            BundleError: the folder holds something else, or cannot be written. What was there stays.
        """
        path = check_index_place(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            self._fill(beside, path)
            swap(beside, path)
        except OSError as error:
            raise BundleError(
                f"{path} could not be written: {error.strerror or error}. Nothing was changed."
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return path

    def _fill(self, folder: Path, path: Path) -> None:
        files = {VECTORS: save_tensors({"vectors": np.ascontiguousarray(self.vectors)}), ITEMS: self.items.dump()}
        if self.graph is not None:
            files[GRAPH] = self.graph.dump()
        note = self.note.model_dump(mode="json")
        if isinstance(self.note.model, str):
            note["model"] = _relative(Path(self.note.model), path)
        manifest = {
            "index": FORMAT,
            "polymodal": __version__,
            "items": len(self.items),
            "next": self.items.next,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "note": note,
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / NOTE).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def check_index_place(path: str | Path) -> Path:
    """The absolute path of a folder that an index may be written to.

    Raises:
        BundleError: something that is no index is there, or nothing can be written beside it.
    """
    path = Path(os.path.abspath(path))
    if path.is_file():
        raise BundleError(f"{path} must be a folder, got a file. Choose another place.")
    others = sorted({entry.name for entry in path.iterdir()} - FILES) if path.is_dir() else []
    if others:
        raise BundleError(
            f"{path} must be a new folder or hold nothing but an index, got {others[:5]}, which would be lost. "
            "Choose another folder, or move them."
        )
    if (path / NOTE).exists():
        _manifest(path)  # somebody's file of that name is no index either
    home = next(parent for parent in path.parents if parent.exists())
    if not os.access(home, os.W_OK | os.X_OK):
        raise BundleError(f"{home} must be a folder that can be written to, got one that cannot. Choose another place.")
    return path


def read_index(path: Path) -> Content:
    """Read a folder.

    Raises:
        BundleError: it is no index, is incomplete or damaged, or is of a newer version.
        SpecError: it must be searched approximately, and what that takes is not installed.
    """
    manifest = _manifest(path)
    try:
        note, count = Note.model_validate(manifest["note"]), int(manifest["items"])
        sums, following = dict(manifest["sha256"]), int(manifest["next"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / NOTE} must be as this version writes it, got: {error}") from None
    if isinstance(note.model, str):
        note = note.model_copy(update={"model": os.path.normpath(path.absolute() / note.model)})
    items = Items.load(_verified(path / ITEMS, sums), following)
    try:
        vectors = load_tensors(_verified(path / VECTORS, sums))["vectors"]
    except (SafetensorError, KeyError) as error:
        raise BundleError(f"{path / VECTORS} must be safetensors with vectors, got: {error}") from None
    if not len(items) == count == len(vectors) or vectors.dtype != np.float32 or vectors.shape[1:] != (note.width,):
        raise BundleError(
            f"{path} must hold {count} items and as many vectors of length {note.width}, got {len(items)} and "
            f"{vectors.dtype} {vectors.shape}. Make it again."
        )
    return Content(note, vectors, items, _graph(path, note, items, sums))


def index_version(path: Path) -> tuple[int, int] | None:
    """What changes when an index is written again; None while there is none."""
    try:
        stat = (path / NOTE).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _graph(path: Path, note: Note, items: Items, sums: Mapping[str, str]) -> Graph | None:
    """The graph that is kept; none where the search is exact."""
    if GRAPH not in sums or note.approximate == "never" or (note.approximate == "auto" and not installed()):
        return None
    return Graph.load(_verified(path / GRAPH, sums), note.width, int(items.numbers[-1]) if len(items) else -1)


def _manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise BundleError(f"{path} must be an index's folder, but there is none. Make one with polymodal index --out.")
    if not (path / NOTE).exists() and not any(path.iterdir()):
        raise BundleError(f"{path} must be an index's folder, got an empty one. Make an index there without --add.")
    try:
        manifest = json.loads((path / NOTE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path / NOTE} must be an index's JSON, got: {error}. The index is incomplete.") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("index"), int) or "note" not in manifest:
        raise BundleError(f"{path / NOTE} must be an index's manifest with index and note, got something else.")
    if manifest["index"] > FORMAT:
        made = manifest.get("polymodal", "a newer version")
        raise BundleError(
            f"{path}: index format must be at most {FORMAT}, got {manifest['index']}. Install polymodal {made}."
        )
    return manifest


def _verified(file: Path, sums: Mapping[str, str]) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file} must be readable, got {error.strerror}. The index is incomplete.") from None
    if hashlib.sha256(content).hexdigest() != sums.get(file.name):
        raise BundleError(
            f"{file} must be the file that was saved, got {len(content)} other bytes. Copy the index again."
        )
    return content


def _relative(model: Path, index: Path) -> str:
    """Where a model lies as seen from an index, so that both may be moved together."""
    try:
        return Path(os.path.relpath(model, index)).as_posix()
    except ValueError:  # on another drive
        return str(model)
