"""Embedder: the frozen backbones of a spec, each in the fastest runtime that agrees with it."""

from __future__ import annotations

import copy
import hashlib
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from polymodal import __version__
from polymodal.data.features import FeatureStore, cache_folder
from polymodal.data.shelf import rounded
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.errors import BundleError, SpecError, suggest
from polymodal.nn import hub
from polymodal.nn.backbone import Backbone
from polymodal.nn.provider import INT8, GraphFile, Runtime, check, default, exact
from polymodal.nn.runtime import accelerate, forget, halve
from polymodal.nn.weights import PACKAGED, hub_place
from polymodal.part import Modality, Reading
from polymodal.spec import Spec
from polymodal.types import Masked

_STARTING = threading.Lock()


class Embedder:
    """Turns collated values into backbone tokens.

    On a CPU a backbone runs through ONNX Runtime, from a graph kept in the cache folder; on another device it
    runs in torch. The environment variable POLYMODAL_RUNTIME takes another: ``openvino`` (an extra) or ``torch``;
    `with_runtimes` names one for each input. Tokens are rounded to half precision, as the feature store keeps them, so
    that kept and fresh ones agree. May be called from several threads at once.

    Attributes:
        store: of features, or None to keep nothing on disk.
        summarised: inputs that the model takes as one summary per sample.
        adapted: input name -> the backbone that takes the place of its modality's.
        int8: input name -> int8 graph of its backbone, where there is one.
        opened: inputs whose values stay as they were collated, for a model that trains their backbones itself.
        threads: of one call of an inference runtime; as many as torch uses if None.
    """

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        store: FeatureStore | None = None,
        adapted: Mapping[str, Backbone] | None = None,
        int8: Mapping[str, GraphFile] | None = None,
    ) -> None:
        self.modalities: dict[str, Modality] = dict(spec.inputs)
        self.device, self.store, self.summarised = device, store, spec.summarised
        self.adapted, self.int8 = dict(adapted or {}), dict(int8 or {})
        self.opened: frozenset[str] = frozenset()
        self.threads: int | None = None
        self._named: dict[str, Runtime] = {}
        self._ready: dict[str, Backbone] = {}

    def with_opened(self, names: Iterable[str]) -> Embedder:
        """The same, but for inputs whose values stay as they were collated."""
        other = copy.copy(self)
        other.opened = frozenset(names)
        other.summarised = tuple(name for name in self.summarised if name not in other.opened)
        return other

    def with_adapted(self, name: str, backbone: Backbone) -> Embedder:
        """The same, already loaded backbones included, but for one input's."""
        other = copy.copy(self)
        other.adapted = self.adapted | {name: backbone}
        other.int8 = {n: graph for n, graph in self.int8.items() if n != name}
        other._named = {n: way for n, way in self._named.items() if n != name or not way.endswith(INT8)}
        other._ready = {n: ready for n, ready in self._ready.items() if n != name}
        return other

    @property
    def runtimes(self) -> dict[str, Runtime]:
        """Input name -> what its backbone runs in, for inputs that have one."""
        return {name: self.runtime(name) for name in self.digests}

    def runtime(self, name: str) -> Runtime:
        """What an input's backbone runs in."""
        return self._named.get(name) or (default() if self.device.type == "cpu" else "torch")

    def with_runtimes(self, names: Mapping[str, str], threads: int | None = None) -> Embedder:
        """The same, already loaded backbones that stay in their runtime included.

        Args:
            names: input name -> runtime; others keep theirs.
            threads: of one call of an inference runtime; as many as torch uses if None.

        Raises:
            SpecError: an input has no backbone, or a runtime is unknown, not installed or not for this device, or
                needs an int8 graph that is not there.
        """
        other = copy.copy(self)
        other._named = dict(self._named)
        other._named.update((name, self._checked(name, runtime)) for name, runtime in names.items())
        other.threads = threads
        kept = [n for n in self._ready if other._way(n) == self._way(n)]
        other._ready = {n: self._ready[n] for n in kept}
        return other

    def _way(self, name: str) -> tuple[Runtime, int | None]:
        """Runtime and threads of an input; torch has its own threads."""
        runtime = self.runtime(name)
        return runtime, None if runtime in ("torch", "half") else self.threads or torch.get_num_threads()

    def _checked(self, name: str, runtime: str) -> Runtime:
        if name not in self.digests:
            raise SpecError(f"runtimes must be of inputs with a backbone, got {name!r}.{suggest(name, self.digests)}")
        return check(runtime, self.device, name, name in self.int8)

    def forget(self, name: str) -> None:
        """Remove from the disk what is kept of an adapted backbone that nobody will use: its features, its graph."""
        if name not in self.adapted:
            raise ValueError(f"name must be of an input with an adapted backbone, got {name!r}.")
        if self.store is not None:
            self.store.clear(self.key(name))
        forget(self.adapted[name], _graphs())

    def renew(self, name: str) -> None:
        """Let an input's backbone be started anew, from a graph that is made anew: what is kept of it is damaged."""
        if (backbone := self.backbone(name)) is not None:
            forget(backbone, _graphs())
        self._ready.pop(name, None)

    def without_store(self) -> Embedder:
        """The same backbones, already loaded ones included, that keep nothing on disk."""
        other = copy.copy(self)
        other.store = None
        return other

    def backbone(self, name: str) -> Backbone | None:
        """The backbone of an input: the adapted one, else as its modality gives it; None where it is opened."""
        if name in self.opened:
            return None
        return self.adapted.get(name) or self.modalities[name].backbone()

    def key(self, name: str) -> str:
        """Name of all that an input's tokens depend on besides its content: fitted part, backbone, inexact runtime."""
        backbone = self.backbone(name)
        part = self.modalities[name].model_dump_json(exclude={"column", "augmentation"})
        text = f"{__version__} {part} {backbone.digest if backbone else ''}"  # another version may read otherwise
        runtime = self._named.get(name, "torch")
        if not exact(runtime):
            text += f" {runtime} {self.int8[name].sha256 if runtime.endswith(INT8) else ''}"
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
        return rounded(self.run(name, self._fast(name, backbone, here[:1]), here)).spread(rows)

    def tokens(self, name: str, x: Masked) -> Masked:
        """Tokens (B, T, W) as an input's backbone gives them, not rounded, on the CPU. Every row must be present."""
        backbone = self.backbone(name)
        if backbone is None:
            raise ValueError(f"name must be of an input with a backbone, got {name!r}.")
        return self.run(name, self._fast(name, backbone, x[:1]), x)

    @torch.inference_mode()
    def run(self, name: str, backbone: Backbone, x: Masked) -> Masked:
        """Tokens of a started backbone, not rounded, on the CPU. Every row must be present."""
        graph = self.int8[name] if self.runtime(name).endswith(INT8) else None
        x = x.to(self.device)
        if graph is not None and graph.alone:
            return Masked.join([backbone(row) for row in x.split()])
        return backbone(x).to("cpu")

    def summary(self, name: str, x: Masked) -> Masked:
        """What the model takes of a summarised input's tokens: (B, T, W) -> (B, 1, F)."""
        rows = x.present
        some = self.modalities[name].summary(x[rows] if bool(rows.any()) else x)
        whole = Masked(some[:, None], torch.ones(len(some), 1, dtype=torch.bool))
        return whole.spread(rows) if bool(rows.any()) else Masked(torch.zeros_like(whole.values), rows[:, None])

    def example(self, name: str) -> Masked | None:
        """One collated row of an input, made up from what was fitted; None where its modality knows none."""
        part = self.modalities[name]
        cells = {field.column: field.example for field in part.fields(name)}
        source = Source(name, part, Table.read([{"": None, **cells}]), allow_paths=False)
        reading = source.read(0, next(source.cells(0, 1)))
        return part.collate([reading.value]) if isinstance(reading, Reading) and reading.value is not None else None

    def start(self, name: str, example: Masked) -> Backbone:
        """The backbone of an input in its runtime, started anew.

        Args:
            name: of an input with a backbone.
            example: collated values with a present row; their content does not matter.

        Raises:
            RuntimeError: ONNX cannot hold it.
            TypeError: likewise.
            SpecError: its runtime is not installed.
            BundleError: its int8 graph is damaged.
        """
        backbone, runtime = self.backbone(name), self.runtime(name)
        if backbone is None:
            raise ValueError(f"name must be of an input with a backbone, got {name!r}.")
        if runtime in ("torch", "half"):
            backbone = backbone.to(self.device).eval()
            return halve(backbone) if runtime == "half" else backbone
        graph = self.int8[name] if runtime.endswith(INT8) else None
        if graph is not None:
            graph.read()
        provider = "openvino" if runtime.startswith("openvino") else "onnxruntime"
        return accelerate(backbone, _graphs(), example, provider, self.threads, graph and graph.file)

    def _fast(self, name: str, backbone: Backbone, example: Masked) -> Backbone:
        if name not in self._ready:
            with _STARTING:
                if name not in self._ready:
                    self._ready[name] = self._started(name, backbone, example)
        return self._ready[name]

    def _started(self, name: str, backbone: Backbone, example: Masked) -> Backbone:
        try:
            return self.start(name, example)
        except (RuntimeError, TypeError) as error:  # a hub model that cannot be traced
            if self.runtime(name) in ("torch", "half"):
                raise
            reason = str(error).splitlines()[0]
            warnings.warn(f"{name}: its backbone runs in torch, since ONNX cannot hold it: {reason}", stacklevel=2)
            return backbone.eval()

    def copy_files(self, folder: Path) -> None:
        """Copy the files of every backbone, so that a bundle needs nothing else installed but this library."""
        for name in self.modalities:
            backbone = self.backbone(name)
            if backbone is None:
                continue
            for file in backbone.packaged:
                PACKAGED[file].copy(folder)
            if backbone.hub is not None and not (folder / hub_place(backbone.hub)).is_dir():
                hub.copy_model(backbone.hub, folder)


def _graphs() -> Path:
    """Where exported graphs are kept."""
    return cache_folder() / "graphs"
