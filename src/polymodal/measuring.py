"""Measurement of the runtimes that one input's frozen backbone may run in, and the memory of it."""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from polymodal import __version__
from polymodal.bundle import Bundle
from polymodal.data.embedding import Embedder
from polymodal.data.features import cache_folder
from polymodal.disk import write_whole
from polymodal.nn.provider import INT8, Runtime, exact, installed
from polymodal.nn.race import CLOCKS, Run, race, stretched
from polymodal.types import Masked

TOLERANCE = 1e-3
"""Largest difference of a token's number from torch's, as a share of the largest of these, that counts as agreement."""

COSINE = 0.999
"""Least mean cosine with torch's tokens of half precision."""

SLACK = 0.02
"""By how much int8's cosine with torch's tokens may be below what it was where its loss was measured."""

BATCHES = (1, 4)


class Measured(BaseModel):
    """One runtime of one input's backbone.

    Attributes:
        input: its name.
        runtime: its name.
        ms: milliseconds a row at each size of `BATCHES`, the best of a few rounds; None where it did not run.
        difference: largest one from torch's tokens, as a share of the largest of these.
        chosen: whether the input is answered with it.
        why: not, or what else is to be said, for a person.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: str
    runtime: Runtime
    ms: tuple[float, float] | None = None
    difference: float | None = None
    chosen: bool = False
    why: str = ""

    @property
    def mean(self) -> float:
        """Mean of the milliseconds."""
        return float("inf") if self.ms is None else sum(self.ms) / len(self.ms)


class Kept(BaseModel):
    """What is remembered of one input.

    Attributes:
        rows: one per runtime; one of them is chosen.
        probe: mean token of the example in the chosen runtime, by which a damaged graph in the cache is noticed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: list[Measured]
    probe: list[float]

    @model_validator(mode="after")
    def _one_is_chosen(self) -> Self:
        if sum(row.chosen for row in self.rows) != 1:
            raise ValueError("rows must have one chosen runtime.")
        return self

    @property
    def chosen(self) -> Runtime:
        """The chosen runtime."""
        return next(row.runtime for row in self.rows if row.chosen)


class InputChoice:
    """The choice of one input's runtime.

    Args:
        bundle: that it is of.
        embedder: with the runtimes that were chosen for other inputs.
        name: of the input.
        threads: of one call.
    """

    def __init__(self, bundle: Bundle, embedder: Embedder, name: str, threads: int) -> None:
        self.embedder, self.name, self.threads = embedder, name, threads
        self.entry = bundle.int8.note.inputs.get(name) if bundle.int8 is not None else None
        self.rows_scored = bundle.int8.note.rows if bundle.int8 is not None else 0
        self.example = embedder.example(name)
        self.file = cache_folder() / "runtimes" / f"{self.key()}.json"

    def key(self) -> str:
        """Name of everything that a measurement depends on."""
        device, graph = self.embedder.device, self.embedder.int8.get(self.name)
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
        mine = [self.name, self.embedder.key(self.name), None if graph is None else graph.sha256]
        versions = [_version(name) for name in ("torch", "onnxruntime", "openvino")]
        content = [__version__, *mine, machine, device.type, self.threads, *versions]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def settle(self, remeasure: bool) -> tuple[Embedder, list[Measured], bool]:
        """The embedder with the input's runtime started, what was measured, and whether that was known before."""
        if self.example is None:
            embedder, why = self.in_runtime(self.embedder.runtime(self.name)), "no example to measure with"
            return (
                embedder,
                [Measured(input=self.name, runtime=embedder.runtime(self.name), chosen=True, why=why)],
                True,
            )
        kept = None if remeasure else _read(self.file)
        if kept is not None and kept.chosen in self.candidates():
            embedder = self.in_runtime(kept.chosen)
            if _alike(self.probe(embedder, self.example), kept.probe):
                return embedder, kept.rows, True
            embedder.renew(self.name)
        rows = self.measure(self.example)
        embedder = self.in_runtime(next(row.runtime for row in rows if row.chosen))
        _write(self.file, Kept(rows=rows, probe=self.probe(embedder, self.example)))
        return embedder, rows, False

    def in_runtime(self, runtime: Runtime) -> Embedder:
        """The embedder with this input in another runtime."""
        return self.embedder.with_runtimes({self.name: runtime}, self.threads)

    def probe(self, embedder: Embedder, example: Masked) -> list[float]:
        """Mean token of the example."""
        return embedder.embed(self.name, example).mean()[0].tolist()

    def measure(self, example: Masked) -> list[Measured]:
        """Run every runtime that there is; the fastest of those that are right is chosen."""
        torch_only = self.in_runtime("torch")
        wanted = torch_only.run(self.name, torch_only.start(self.name, example), example)
        rows, runs = list[Measured](), dict[Runtime, Run]()
        for runtime in self.candidates():
            row, run = self.one(runtime, example, wanted)
            rows.append(row)
            if run is not None:
                runs[runtime] = run
        clocks = CLOCKS if self.embedder.device.type == "cpu" else CLOCKS[:1]
        backbone = self.embedder.backbone(self.name)
        some = stretched(example) if backbone is not None and any(backbone.dynamic()) else [example]
        ms = [race(runs, [Masked.join([x] * size) for x in some], clocks) for size in BATCHES]
        rows = [r.model_copy(update={"ms": tuple(m[r.runtime] for m in ms)}) if r.runtime in runs else r for r in rows]
        best = min(rows, key=lambda row: row.mean)
        return [row.model_copy(update={"chosen": row is best}) for row in rows]

    def candidates(self) -> list[Runtime]:
        """Runtimes that may be right here; torch is always one."""
        kind, graph = self.embedder.device.type, self.embedder.int8.get(self.name)
        if kind != "cpu":
            return ["torch", "half"] if kind == "cuda" else ["torch"]
        int8: list[Runtime] = [] if graph is None else ["onnxruntime-int8"]
        if graph is not None and not graph.alone:
            int8.append("openvino-int8")
        return ["torch", "onnxruntime", "openvino", *int8]

    def one(self, runtime: Runtime, example: Masked, wanted: Masked) -> tuple[Measured, Run | None]:
        """Start one runtime and compare its tokens; how to run it, if they are right."""
        row = Measured(input=self.name, runtime=runtime)
        if not installed(runtime):
            return row.model_copy(update={"why": "not installed: pip install 'polymodal[openvino]'"}), None
        embedder = self.in_runtime(runtime)
        try:
            backbone = embedder.start(self.name, example)
        except (RuntimeError, TypeError) as error:
            return row.model_copy(update={"why": f"ONNX cannot hold it: {str(error).splitlines()[0]}"}), None
        found = embedder.run(self.name, backbone, example)
        fault = self.fault(runtime, found, wanted)
        row = row.model_copy(update={"difference": _difference(found, wanted), "why": fault or self.lost(runtime)})
        return row, None if fault else lambda x: embedder.run(self.name, backbone, x)

    def fault(self, runtime: Runtime, found: Masked, wanted: Masked) -> str:
        """What is wrong with the tokens of a runtime; empty where nothing is."""
        if exact(runtime):
            wrong = _difference(found, wanted) > TOLERANCE
            return f"differs from torch by more than {TOLERANCE:g}" if wrong else ""
        cosine = torch.cosine_similarity(found.values, wanted.values, -1)[wanted.mask].mean().item()
        if runtime == "half":
            return f"cosine with torch {cosine:.4f}, below {COSINE:g}" if cosine < COSINE else ""
        least = self.entry.example - SLACK if self.entry is not None and self.entry.example is not None else -1.0
        return (
            f"cosine with torch {cosine:.4f}, below {least:.4f}: its loss is not known here" if cosine < least else ""
        )

    def lost(self, runtime: Runtime) -> str:
        """What int8 was measured to lose."""
        if not runtime.endswith(INT8) or self.entry is None:
            return ""
        worst = self.entry.worst
        return f"loses {worst.loss:.4f} of {worst.task} {worst.metric} on {self.rows_scored} rows"


def _difference(found: Masked, wanted: Masked) -> float:
    real = wanted.values[wanted.mask]
    return ((found.values[wanted.mask] - real).abs().max() / real.abs().max().clamp(min=1e-12)).item()


def _alike(now: list[float], then: list[float]) -> bool:
    return len(now) == len(then) and torch.allclose(torch.tensor(now), torch.tensor(then), rtol=0.02, atol=0.01)


def _read(file: Path) -> Kept | None:
    """What is remembered; None where nothing is, or nothing that can be read."""
    try:
        return Kept.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(file: Path, kept: Kept) -> None:
    """Remember, as a whole or not at all."""
    try:
        write_whole(file, kept.model_dump_json().encode())
    except OSError as error:
        _warn_once(file.parent, error.strerror or str(error))


@cache
def _warn_once(folder: Path, reason: str) -> None:
    """Tell once per process that measurements cannot be kept."""
    warnings.warn(
        f"{folder}: must be writable, got {reason!r}. Runtimes are measured anew by every start: free some space or "
        "set POLYMODAL_CACHE to another folder.",
        RuntimeWarning,
        stacklevel=4,
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _processor() -> str:
    """Model and abilities of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join(
        next((x for x in lines if x.startswith(start)), "") for start in ("model name", "flags", "Features")
    )
