"""The folder that a bundle lies in: written whole or not at all, read only if nothing in it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from polymodal import __version__
from polymodal.card import card
from polymodal.errors import BundleError, PolymodalError
from polymodal.spec import Spec

FORMAT = 1
"""Version of the layout. A newer one is refused."""

FILES = {"spec.json", "weights.safetensors", "report.json", "README.md", "backbones", "spec.yaml", "report.html"}
"""Everything that a bundle's folder may hold: it is replaced as a whole."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a bundle's folder says.

    Attributes:
        spec: fitted.
        weights: state of the model.
        report: of the fit, as JSON.
        backbones: input name -> digest of the frozen backbone it was trained with.
    """

    spec: Spec
    weights: Mapping[str, Tensor]
    report: dict[str, Any]
    backbones: Mapping[str, str]

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
            _swap(beside, path)
        except OSError as error:
            raise BundleError(
                f"{path} could not be written: {error.strerror or error}. Nothing there was changed."
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return path

    def _fill(self, folder: Path) -> None:
        content = save_tensors({name: t.detach().cpu().contiguous() for name, t in self.weights.items()})
        (folder / "weights.safetensors").write_bytes(content)
        manifest = {
            "bundle": FORMAT,
            "polymodal": __version__,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "backbones": self.backbones,
            "spec": self.spec.model_dump(mode="json"),
        }
        (folder / "spec.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(self.report, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "README.md").write_text(card(self.spec, self.report), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a folder.

        Raises:
            BundleError: it is no bundle, is incomplete or damaged, or is of a newer version.
        """
        manifest = read_manifest(path)
        spec, weights = _spec(path, manifest), _weights(path, manifest)
        return cls(spec, weights, _report(path), manifest.get("backbones", {}))


def check_place(path: str | Path) -> Path:
    """The absolute path of a folder that a bundle may be written to.

    Raises:
        BundleError: something that is no bundle is there.
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
    return path


def _swap(new: Path, path: Path) -> None:
    """Put a finished folder in the place of what is there."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    had = path.exists()
    if had:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if had:
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


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


def _weights(path: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    file = path / "weights.safetensors"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file} must be readable, got {error.strerror}. The bundle is incomplete.") from None
    if hashlib.sha256(content).hexdigest() != manifest.get("weights_sha256"):
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
