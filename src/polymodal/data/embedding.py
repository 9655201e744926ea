"""Embedder: the frozen backbones of a spec, each in the fastest runtime that agrees with it."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from polymodal import __version__
from polymodal.data.features import FeatureStore, cache_folder
from polymodal.data.shelf import rounded
from polymodal.errors import BundleError, SpecError, suggest
from polymodal.nn import hub
from polymodal.nn.backbone import Backbone
from polymodal.nn.runtime import Provider, accelerate, forget
from polymodal.nn.weights import PACKAGED, hub_place
from polymodal.part import Modality
from polymodal.spec import Spec
from polymodal.types import Masked

RUNTIMES: dict[str, Provider | Literal["torch"]] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torch": "torch",
}


class Embedder:
    """Turns collated values into backbone tokens.

    On a CPU a backbone runs through ONNX Runtime, from a graph kept in the cache folder; on another device it
    runs in torch. The environment variable POLYMODAL_RUNTIME takes another: ``openvino`` (an extra) or ``torch``.
    Tokens are rounded to half precision, as the feature store keeps them, so that kept and fresh ones agree.

    Attributes:
        store: of features, or None to keep nothing on disk.
        summarised: inputs that the model takes as one summary per sample.
        adapted: input name -> the backbone that takes the place of its modality's.
    """

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        store: FeatureStore | None = None,
        adapted: Mapping[str, Backbone] | None = None,
    ) -> None:
        self.modalities: dict[str, Modality] = dict(spec.inputs)
        self.device, self.store, self.summarised = device, store, spec.summarised
        self.adapted = dict(adapted or {})
        self._ready: dict[str, Backbone] = {}

    def with_adapted(self, name: str, backbone: Backbone) -> Embedder:
        """The same, already loaded backbones included, but for one input's."""
        other = copy.copy(self)
        other.adapted = self.adapted | {name: backbone}
        other._ready = {n: ready for n, ready in self._ready.items() if n != name}
        return other

    def forget(self, name: str) -> None:
        """Remove from the disk what is kept of an adapted backbone that nobody will use: its features, its graph."""
        if name not in self.adapted:
            raise ValueError(f"name must be of an input with an adapted backbone, got {name!r}.")
        if self.store is not None:
            self.store.clear(self.key(name))
        forget(self.adapted[name], _graphs())

    def without_store(self) -> Embedder:
        """The same backbones, already loaded ones included, that keep nothing on disk."""
        other = copy.copy(self)
        other.store = None
        return other

    def backbone(self, name: str) -> Backbone | None:
        """The backbone of an input: the adapted one, else as its modality gives it."""
        return self.adapted.get(name) or self.modalities[name].backbone()

    def key(self, name: str) -> str:
        """Name of everything that an input's tokens depend on besides its content: its fitted part and its backbone."""
        backbone = self.backbone(name)
        part = self.modalities[name].model_dump_json(exclude={"column", "augmentation"})
        text = f"{__version__} {part} {backbone.digest if backbone else ''}"  # another version may read otherwise
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def digests(self) -> dict[str, str]:
        """Input name -> digest of its backbone, for inputs that have one."""
        found = {name: self.backbone(name) for name in self.modalities}
        return {name: backbone.digest for name, backbone in found.items() if backbone is not None}

    def check(self, expected: Mapping[str, str], place: Path) -> None:
        """Refuse other backbones than those a model was trained with.

        Raises:
            BundleError: one is not the same.
        """
        found = self.digests
        for name in sorted({*found, *expected}):
            if expected.get(name) != found.get(name):
                raise BundleError(
                    f"{place}: the backbone of input {name!r} must have digest {expected.get(name)}, "
                    f"got {found.get(name)}. "
                    "Install the version it was trained with, or fit again."
                )

    def embed(self, name: str, x: Masked) -> Masked:
        """Tokens of the rows that are present; collated values as they are where there is no backbone.

        Args:
            name: of the input.
            x: (B, N, ...) collated.

        Returns:
            (B, T, W) on the CPU.
        """
        backbone = self.backbone(name)
        if backbone is None:
            return x
        rows = x.present
        if not bool(rows.any()):
            return Masked(torch.zeros(len(x), 1, backbone.width), rows[:, None])
        here = x if bool(rows.all()) else x[rows]
        with torch.inference_mode():
            some = self._fast(name, backbone, here[:1])(here.to(self.device)).to("cpu")
        return rounded(some).spread(rows)

    def summary(self, name: str, x: Masked) -> Masked:
        """What the model takes of a summarised input's tokens: (B, T, W) -> (B, 1, F)."""
        rows = x.present
        some = self.modalities[name].summary(x[rows] if bool(rows.any()) else x)
        whole = Masked(some[:, None], torch.ones(len(some), 1, dtype=torch.bool))
        return whole.spread(rows) if bool(rows.any()) else Masked(torch.zeros_like(whole.values), rows[:, None])

    def _fast(self, name: str, backbone: Backbone, example: Masked) -> Backbone:
        if name not in self._ready:
            self._ready[name] = self._start(name, backbone, example)
        return self._ready[name]

    def _start(self, name: str, backbone: Backbone, example: Masked) -> Backbone:
        runtime = _runtime()
        if self.device.type != "cpu" or runtime == "torch":
            return backbone.to(self.device).eval()
        try:
            return accelerate(backbone, _graphs(), example, runtime)
        except (RuntimeError, TypeError) as error:  # a hub model that cannot be traced
            reason = str(error).splitlines()[0]
            warnings.warn(f"{name}: its backbone runs in torch, since ONNX cannot hold it: {reason}", stacklevel=2)
            return backbone.eval()

    def copy_files(self, folder: Path) -> None:
        """Copy the files of every backbone, so that a bundle needs nothing else installed but this library."""
        for name in self.modalities:
            backbone = self.backbone(name)
            if backbone is None:
                continue
            for weights in (PACKAGED[file] for file in backbone.packaged):
                root = Path(str(weights.find()).removesuffix(weights.file))
                for file in (weights.file, *weights.companions):
                    target = folder / weights.package / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(root / file, target)
            if backbone.hub is not None and not (folder / hub_place(backbone.hub)).is_dir():
                hub.copy_model(backbone.hub, folder)


def _graphs() -> Path:
    """Where exported graphs are kept."""
    return cache_folder() / "graphs"


def _runtime() -> Provider | Literal["torch"]:
    """What POLYMODAL_RUNTIME asks for.

    Raises:
        SpecError: it names no runtime.
    """
    name = os.environ.get("POLYMODAL_RUNTIME", "onnxruntime")
    if name not in RUNTIMES:
        raise SpecError(f"POLYMODAL_RUNTIME must be one of {list(RUNTIMES)}, got {name!r}.{suggest(name, RUNTIMES)}")
    return RUNTIMES[name]
