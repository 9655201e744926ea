"""What a frozen backbone may run in: the runtimes by name, and what each of them needs."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from polymodal.errors import BundleError, SpecError, suggest

Runtime = Literal["torch", "onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8", "half"]
RUNTIMES: dict[str, Runtime] = {name: name for name in get_args(Runtime)}

PLAIN: dict[str, Runtime] = {name: RUNTIMES[name] for name in ("onnxruntime", "openvino", "torch")}
"""Runtimes that agree with one another and that every backbone may run in on a CPU."""

INT8 = "-int8"
"""How the name of a runtime ends that runs an int8 graph."""


@dataclass(frozen=True, slots=True)
class GraphFile:
    """An .onnx file that must not change.

    Attributes:
        file: where it lies.
        sha256: of its content, in hex.
        alone: whether each row must go through it alone, since its result depends on the rows beside it.
    """

    file: Path
    sha256: str
    alone: bool = False

    def read(self) -> bytes:
        """Its content.

        Raises:
            BundleError: it is gone, or is another one than it was.
        """
        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise BundleError(f"{self.file} must be readable, got {error.strerror}. Copy the bundle again.") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise BundleError(
                f"{self.file} must be the file that was saved, got {len(content)} other bytes. Copy the bundle again."
            )
        return content


def check(runtime: str, device: torch.device, name: str, int8: bool) -> Runtime:
    """The runtime called ``runtime``, if a backbone can run in it here.

    Args:
        runtime: its name.
        device: of the backbone.
        name: of the input that the backbone is of.
        int8: whether there is an int8 graph of it.

    Raises:
        SpecError: it is unknown, not installed or not for this device, or needs an int8 graph.
    """
    found = RUNTIMES.get(runtime)
    if found is None:
        raise SpecError(f"runtime must be one of {list(RUNTIMES)}, got {runtime!r}.{suggest(runtime, RUNTIMES)}")
    if found == "half" and device.type != "cuda":
        raise SpecError(f"runtime 'half' must run on CUDA, got device {device.type!r}. Take another runtime or device.")
    if found not in ("half", "torch") and device.type != "cpu":
        raise SpecError(f"runtime {found!r} must run on the CPU, got device {device.type!r}. Take 'torch'.")
    if not installed(found):
        raise SpecError(
            f"runtime {found!r} must be installed, got no package openvino. Run: pip install 'polymodal[openvino]'"
        )
    if found.endswith(INT8) and not int8:
        raise SpecError(
            f"runtime {found!r} must have an int8 graph, got none for input {name!r}. "
            "Make one with polymodal export MODEL --to int8."
        )
    return found


def installed(runtime: Runtime) -> bool:
    """Whether what a runtime needs is installed."""
    return not runtime.startswith("openvino") or importlib.util.find_spec("openvino") is not None


def exact(runtime: Runtime) -> bool:
    """Whether a runtime gives the tokens of torch in float32, but for rounding."""
    return runtime in PLAIN


def default() -> Runtime:
    """What POLYMODAL_RUNTIME asks for.

    Raises:
        SpecError: it names no runtime, or one that needs more than the backbone.
    """
    name = os.environ.get("POLYMODAL_RUNTIME", "onnxruntime")
    found = PLAIN.get(name)
    if found is None:
        raise SpecError(f"POLYMODAL_RUNTIME must be one of {list(PLAIN)}, got {name!r}.{suggest(name, PLAIN)}")
    return found
