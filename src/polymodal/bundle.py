"""Bundle: a fitted spec, its weights and its report in a folder; what a user keeps, loads and asks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from polymodal import __version__
from polymodal.card import card
from polymodal.data.embedding import Embedder
from polymodal.data.features import FeatureStore
from polymodal.data.gather import Progress, silent
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.devices import choose_device
from polymodal.errors import BundleError, DataError, PolymodalError
from polymodal.evaluate import BATCH, Report, evaluate
from polymodal.model import Model
from polymodal.nn import weights
from polymodal.predictions import Predictions
from polymodal.spec import Spec

FORMAT = 1
"""Version of the bundle's layout. A newer one is refused."""

FILES = {"spec.json", "weights.safetensors", "report.json", "README.md", "backbones", "spec.yaml", "report.html"}
"""Everything that a bundle's folder may hold: it is replaced as a whole."""

CHUNK = 256
"""Rows of a table that are in memory together at prediction."""


@dataclass(slots=True, repr=False)
class Bundle:
    """A model that a user can rely on.

    Attributes:
        spec: fitted.
        model: in evaluation mode.
        report: of the fit, as JSON.
        device: that the model runs on.
        embedder: the frozen backbones; its store serves `evaluate`, not `predict`.
        warnings: of the fit, for a person.
    """

    spec: Spec
    model: Model
    report: dict[str, Any]
    device: torch.device
    embedder: Embedder
    warnings: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        """What goes in, what comes out, where it runs."""
        return f"Bundle({', '.join(self.spec.inputs)} -> {', '.join(self.spec.outputs)}, {self.device})"

    def predict(
        self, table: Any, *, strict: bool = False, allow_paths: bool = True, progress: Progress = silent
    ) -> Predictions:
        """Predict every row.

        Args:
            table: rows (a list of mappings), a path, or any table `Table.read` takes. Columns may be left out and
                cells may be None: that input is then absent.
            strict: raise on a broken cell instead of counting it as absent.
            allow_paths: whether cells may name files and URLs.
            progress: told how far it is.

        Raises:
            DataError: the table cannot be read, or no input's column is in it.
        """
        rows, predictions = Table.read(table), Predictions()
        for start in range(0, len(rows), CHUNK):
            chunk = rows.select(range(start, min(start + CHUNK, len(rows))))
            self._predict_chunk(chunk, predictions, start, strict, allow_paths)
            progress("predict", min(start + CHUNK, len(rows)), len(rows))
        return predictions

    def _predict_chunk(
        self, chunk: Table, predictions: Predictions, first: int, strict: bool, allow_paths: bool
    ) -> None:
        prepared = prepare(
            self.spec, chunk, self.embedder.without_store(), targets=False, strict=strict, allow_paths=allow_paths,
            first=first,
        )  # fmt: skip
        predictions.reports.append(prepared.report)
        for rows in torch.arange(len(prepared)).split(BATCH):
            batch = prepared.batch(rows).to(self.device)
            decoded = self.model.answer(batch.inputs).decoded
            answers = {n: task.predict(decoded[n].cpu()) for n, task in self.spec.outputs.items()}
            predictions += [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]
            present = {name: x.present.tolist() for name, x in batch.inputs.items()}
            predictions.absent += [[name for name in present if not present[name][i]] for i in range(len(rows))]

    def evaluate(
        self, table: Any, *, strict: bool = False, seed: int | None = None, progress: Progress = silent
    ) -> Report:
        """Score the model on labelled rows: all inputs, without each, with each alone, and the baselines.

        Args:
            table: anything `Table.read` takes, with the targets' columns.
            strict: raise on a broken cell instead of counting it as absent.
            seed: of the bootstrap; the spec's when not given.
            progress: told how far it is.

        Raises:
            DataError: no target column, or nothing labelled.
        """
        prepared = prepare(self.spec, Table.read(table), self.embedder, strict=strict, progress=progress).labelled()
        if not len(prepared):
            raise DataError(f"{prepared.report.source} must have labelled rows to evaluate on, got none.")
        return evaluate(self.model, prepared, self.device, self.spec.seed if seed is None else seed)

    @staticmethod
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
            _manifest(path)  # somebody's spec of that name is no bundle either
        return path

    def save(self, path: str | Path, *, self_contained: bool = False) -> Path:
        """Write the bundle as a folder, whole or not at all.

        Args:
            path: a new folder, an empty one, or a bundle to replace.
            self_contained: also hold the frozen backbones' files, so that nothing else must be installed.

        Raises:
            BundleError: the folder holds something else, or cannot be written. What was there stays.
        """
        path = self.check_place(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            self._write(beside, self_contained)
            _swap(beside, path)
        except OSError as error:
            raise BundleError(
                f"{path} could not be written: {error.strerror or error}. Nothing there was changed."
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return path

    def _write(self, folder: Path, self_contained: bool) -> None:
        content = save_tensors({name: t.detach().cpu().contiguous() for name, t in self.model.state_dict().items()})
        (folder / "weights.safetensors").write_bytes(content)
        manifest = {
            "bundle": FORMAT,
            "polymodal": __version__,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "backbones": self.embedder.digests,
            "spec": self.spec.model_dump(mode="json"),
        }
        (folder / "spec.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(self.report, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "README.md").write_text(card(self.spec, self.report), encoding="utf-8")
        if self_contained:
            self.embedder.copy_files(folder / "backbones")

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", store: FeatureStore | None = None) -> Self:
        """Read a bundle.

        Raises:
            BundleError: the folder is no bundle, is incomplete or damaged, is of a newer version, or a backbone it
                needs is not there or not the one it was trained with.
        """
        path = Path(path)
        manifest = _manifest(path)
        if (path / "backbones").is_dir():
            weights.search_also(path / "backbones")
        spec = _spec(path, manifest)
        chosen = choose_device(device)
        embedder = Embedder(spec, chosen, store)
        embedder.check(manifest.get("backbones", {}), path)
        return cls(spec, _model(path, manifest, spec).to(chosen), _report(path), chosen, embedder)


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


def _manifest(path: Path) -> dict[str, Any]:
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


def _model(path: Path, manifest: Mapping[str, Any], spec: Spec) -> Model:
    file = path / "weights.safetensors"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file} must be readable, got {error.strerror}. The bundle is incomplete.") from None
    if hashlib.sha256(content).hexdigest() != manifest.get("weights_sha256"):
        raise BundleError(
            f"{file} must be the file that was saved, got {len(content)} other bytes. Copy the bundle again."
        )
    model = Model(spec)
    try:
        model.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{file} must fit the spec: {error}") from None
    return model.eval()


def _report(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "report.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path / 'report.json'} must be JSON, got: {error}. The bundle is incomplete.") from None
