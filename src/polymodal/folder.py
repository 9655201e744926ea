"""The folder that a bundle lies in: written whole or not at all, read only if nothing in it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from polymodal import __version__
from polymodal.card import card
from polymodal.disk import swap
from polymodal.errors import BundleError, PolymodalError
from polymodal.int8 import FOLDER, Held, Note, read_int8, write_int8
from polymodal.nn.adapt import Adapter
from polymodal.spec import Spec

FORMAT = 2
"""Newest version of the layout that is read. 2 adds adapted backbones; without any, 1 is written."""

FILES = {
    "spec.json", "weights.safetensors", "adapters.safetensors", "report.json", "README.md", "backbones", "spec.yaml",
    "report.html", FOLDER,
}  # fmt: skip
"""Everything that a bundle's folder may hold: it is replaced as a whole."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a bundle's folder says.

    Attributes:
        spec: fitted.
        weights: state of the model.
        report: of the fit, as JSON.
        backbones: input name -> digest of the frozen backbone it was trained with.
        adapters: input name -> changes of its backbone, in the order in which they were made.
        int8: graphs of its backbones; they are written only with the weights and backbones that they were scored with.
    """

    spec: Spec
    weights: Mapping[str, Tensor]
    report: dict[str, Any]
    backbones: Mapping[str, str]
    adapters: Mapping[str, Sequence[Adapter]] = field(default_factory=dict)
    int8: Held | None = None

    def write(self, path: str | Path, copy_backbones: Callable[[Path], None] | None = None) -> Path:
        """Write the folder, whole or not at all.

        Args:
            path: a new folder, an empty one, or a bundle to replace.
            copy_backbones: puts the frozen backbones' files into a folder, if the bundle is to hold them too.

        Raises:
            BundleError: the folder holds something else, or cannot be written. What was there stays.
        """
        path = check_place(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            self._fill(beside)
            if copy_backbones is not None:
                copy_backbones(beside / "backbones")
            swap(beside, path)
        except OSError as error:
            raise BundleError(
                f"{path} could not be written: {error.strerror or error}. Nothing there was changed."
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return path

    def _fill(self, folder: Path) -> None:
        manifest = {
            "bundle": FORMAT if self.adapters else 1,
            "polymodal": __version__,
            "weights_sha256": _put(folder / "weights.safetensors", self.weights),
            "backbones": self.backbones,
            "spec": self.spec.model_dump(mode="json"),
        }
        if self.adapters:
            manifest |= self._put_adapters(folder / "adapters.safetensors")
        (folder / "spec.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(self.report, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "README.md").write_text(card(self.spec, self.report) + _improvements(self.report), encoding="utf-8")
        if self.int8 is not None and self.int8.fits(manifest["weights_sha256"], self.backbones):
            self.int8.copy(folder / FOLDER)

    def _put_adapters(self, file: Path) -> dict[str, Any]:
        """Write the adapters' tensors, named by their place in the list that the manifest gets."""
        flat = [(name, adapter) for name, adapters in self.adapters.items() for adapter in adapters]
        tensors = {f"{i}/{key}": t for i, (_, adapter) in enumerate(flat) for key, t in adapter.tensors.items()}
        kept = ("method", "rank", "alpha", "layers")
        listed = [{"input": name} | {key: getattr(adapter, key) for key in kept} for name, adapter in flat]
        return {"adapters": listed, "adapters_sha256": _put(file, tensors)}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a folder.

        Raises:
            BundleError: it is no bundle, is incomplete or damaged, or is of a newer version.
        """
        manifest = read_manifest(path)
        spec, sha256, backbones = _spec(path, manifest), manifest.get("weights_sha256"), manifest.get("backbones", {})
        weights, int8 = _tensors(path / "weights.safetensors", sha256), read_int8(path / FOLDER, sha256, backbones)
        return cls(spec, weights, _report(path), backbones, _adapters(path, manifest), int8)


def put_int8(path: Path, note: Note, graphs: Mapping[str, bytes]) -> None:
    """Put int8 graphs into a bundle's folder, in the place of those it holds; whole or not at all.

    Raises:
        BundleError: the folder is no bundle, holds another model than the one they were scored with, or cannot be
            written.
    """
    path = Path(os.path.abspath(path))
    if read_manifest(path).get("weights_sha256") != note.weights_sha256:
        raise BundleError(f"{path} must hold the model that was scored in int8, got another one. Score that one.")
    beside = path.with_name(f".{path.name}.{os.getpid()}.{FOLDER}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        write_int8(beside, note, graphs)
        swap(beside, path / FOLDER)
    except OSError as error:
        raise BundleError(f"{path} could not be written: {error.strerror or error}. Nothing was changed.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_place(path: str | Path) -> Path:
    """The absolute path of a folder that a bundle may be written to.

    Raises:
        BundleError: something that is no bundle is there, or nothing can be written beside it.
    """
    path = Path(os.path.abspath(path))
    if path.is_file():
        raise BundleError(f"{path} must be a folder, got a file. Choose another place.")
    others = sorted({entry.name for entry in path.iterdir()} - FILES) if path.is_dir() else []
    if others:
        raise BundleError(
            f"{path} must be a new folder or hold nothing but a bundle, got {others[:5]}, which would be lost. "
            "Choose another folder, or move them."
        )
    if (path / "spec.json").exists():
        read_manifest(path)  # somebody's spec of that name is no bundle either
    home = next(parent for parent in path.parents if parent.exists())
    if not os.access(home, os.W_OK | os.X_OK):
        raise BundleError(f"{home} must be a folder that can be written to, got one that cannot. Choose another place.")
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """What a bundle says of itself.

    Raises:
        BundleError: there is none, or it is damaged or of a newer version.
    """
    if not path.is_dir():
        raise BundleError(f"{path} must be a bundle's folder, but there is none. Make one with polymodal fit --out.")
    try:
        manifest = json.loads((path / "spec.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(
            f"{path / 'spec.json'} must be a bundle's JSON, got: {error}. The bundle is incomplete."
        ) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("bundle"), int) or "spec" not in manifest:
        raise BundleError(f"{path / 'spec.json'} must be a bundle's manifest with bundle and spec, got something else.")
    if manifest["bundle"] > FORMAT:
        made = manifest.get("polymodal", "a newer version")
        raise BundleError(
            f"{path}: bundle format must be at most {FORMAT}, got {manifest['bundle']}. Install polymodal {made}."
        )
    return manifest


def _spec(path: Path, manifest: Mapping[str, Any]) -> Spec:
    try:
        return Spec.parse(manifest["spec"])
    except (PolymodalError, ValidationError) as error:
        made = manifest.get("polymodal")
        raise BundleError(
            f"{path / 'spec.json'}: the spec must be valid here; it was made by polymodal {made}: {error}"
        ) from None


def _adapters(path: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[Adapter, ...]]:
    """Changes of backbones by input; none in a bundle that holds no such file."""
    listed, file = manifest.get("adapters", []), path / "adapters.safetensors"
    if not listed:
        if file.exists():
            raise BundleError(f"{file}: {path / 'spec.json'} must name what it holds, got no adapters. Copy it again.")
        return {}
    tensors, found = _tensors(file, manifest.get("adapters_sha256")), dict[str, tuple[Adapter, ...]]()
    try:
        for i, entry in enumerate(listed):
            own = {key.partition("/")[2]: t for key, t in tensors.items() if key.partition("/")[0] == str(i)}
            adapter = Adapter(entry["method"], entry["rank"], entry["alpha"], own)
            if set(adapter.layers) != set(entry["layers"]):
                raise BundleError(f"adapter {i} must change {entry['layers']}, got {adapter.layers}.")
            found[entry["input"]] = (*found.get(entry["input"], ()), adapter)
    except (KeyError, TypeError, BundleError) as error:
        raise BundleError(f"{path / 'spec.json'}: adapters must be as this version writes them: {error}") from None
    return found


def _improvements(report: Mapping[str, Any]) -> str:
    """What the card says of later trainings of single inputs; nothing where there was none."""
    lines = []
    for one in report.get("improvements", []):
        sides = [f"{one[side]['score']:.3f}" for side in ("before", "after") if "score" in one[side]]
        score = f": {one['metric']} {' -> '.join(sides)} on {one['rows']} validation rows" if sides else ""
        lines.append(f"- {one['input']} ({one['method'] or 'learned anew'}){score}.")
    return "\n".join(["", "## Improvements", "", *lines, ""]) if lines else ""


def _put(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors; their sha256."""
    content = _packed(tensors)
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Sha256, in hex, of the file that a model's state is saved as."""
    return hashlib.sha256(_packed(tensors)).hexdigest()


def _tensors(file: Path, sha256: str | None) -> dict[str, Tensor]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file} must be readable, got {error.strerror}. The bundle is incomplete.") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(
            f"{file} must be the file that was saved, got {len(content)} other bytes. Copy the bundle again."
        )
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise BundleError(f"{file} must be safetensors: {error}") from None


def _report(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "report.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path / 'report.json'} must be JSON, got: {error}. The bundle is incomplete.") from None
