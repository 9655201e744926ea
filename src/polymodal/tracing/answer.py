"""A graph of a model, kept on disk and run in ONNX Runtime."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as faults  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from polymodal import __version__
from polymodal.disk import write_whole
from polymodal.errors import DataError, SpecError
from polymodal.model import Model
from polymodal.task import Task
from polymodal.tracing.graph import OPSET, Port, refused, trace_on
from polymodal.tracing.samples import Samples
from polymodal.types import Masked

TOLERANCE = 1e-4
"""Largest difference of a raw output from the model's own, relative to outputs above 1."""

DAMAGED = tuple(
    getattr(faults, name) for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
)
"""What ONNX Runtime raises for a graph that it cannot use."""


def answerer(model: Model, folder: Path) -> Answerer:
    """`Model.answer` through ONNX Runtime, on one thread of a CPU.

    The graph is kept as ``folder/answer-<hash>.onnx`` under what it was made of: the spec, the weights, the versions. A
    damaged file is built anew; where the folder cannot be written, the graph stays in memory, with a warning. Every
    graph is first compared to the model on made-up rows.

    Args:
        model: in evaluation mode.
        folder: of the kept graphs; made if it is not there.

    Raises:
        SpecError: a part does what ONNX cannot hold, or the graph answers otherwise than the model.
    """
    path, own = Path(folder) / f"answer-{_key(model)}.onnx", copy.deepcopy(model).cpu().eval()
    samples = Samples(own)
    if path.is_file():
        with suppress(SpecError):  # damaged, or the code of a part has changed: built anew
            return verified(path, own, samples)
    graph = trace_on(own, samples).graph
    found = verified(graph, own, samples)
    try:
        write_whole(path, graph)
    except OSError as error:
        warnings.warn(
            f"{folder}: must be writable, got {error.strerror or error}. The model's graph stays in memory and is "
            "built anew at every start: free some space or choose another cache folder.",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


class Answerer:
    """Answers batches from a graph. May be called from several threads.

    Args:
        graph: an .onnx file that `trace` made, or its bytes.
        names: of the model's inputs.
    """

    def __init__(self, graph: bytes | Path, names: tuple[str, ...]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised
        content = str(graph) if isinstance(graph, Path) else graph
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.ports = tuple(_port(node) for node in self._session.get_inputs())
        self.outputs = [node.name for node in self._session.get_outputs()]
        self.names = names

    def __call__(self, inputs: Mapping[str, Masked]) -> dict[str, Tensor]:
        """Each task's raw output (B, ...), on the CPU.

        Args:
            inputs: as `Model.answer` takes them; an input that is left out is absent in every row.

        Raises:
            DataError: no input is one of the model's, or one that needs positions has none.
        """
        rows = next((len(inputs[name]) for name in self.names if name in inputs), None)
        if rows is None:
            raise DataError(f"inputs must hold at least one of {list(self.names)}, got {list(inputs)}. Give one.")
        tensors = {port.name: _given(port, rows, inputs) for port in self.ports}
        found = self._session.run(self.outputs, tensors)
        return {n.removesuffix(".output"): torch.from_numpy(y) for n, y in zip(self.outputs, found, strict=True)}


def verified(graph: bytes | Path, model: Model, samples: Samples) -> Answerer:
    """Run a graph, once it has answered as its model on several numbers of rows, lengths and absences.

    Raises:
        SpecError: they differ, or the graph does not run.
    """
    cases = [samples.draw(1), samples.draw(2, 0.0, 0.3), samples.draw(5, 1.6, 0.5), samples.draw(2, 1.0, 1.0)]
    cases += [{name: cases[2][name]} for name in model.names]
    try:
        run = Answerer(graph, model.names)
        answers = [run(inputs) for inputs in cases]
    except (*DAMAGED, OSError) as error:
        raise refused(error) from error
    for inputs, got in zip(cases, answers, strict=True):
        for n, y in model.answer(inputs).decoded.items():
            apart = difference(model.spec.outputs[n], got[n], y)
            if not apart <= TOLERANCE:
                raise SpecError(
                    f"outputs.{n}: the ONNX graph must answer as the model does, got a difference of "
                    f"{apart:.2g} on {len(y)} rows. Run the model in torch."
                )
    return run


def difference(task: Task, got: Tensor, want: Tensor) -> float:
    """Largest difference of two raw outputs, relative to numbers above 1; infinite where they differ in form.

    NaN stands for what is absent, and must stand in the same places in both. Those of a task that is about an input may
    differ in how much stands behind their longest row.
    """
    if task.about is not None and len(got) == len(want):
        got, want = task.join([got, want]).chunk(2)
    if got.shape != want.shape or not torch.equal(got.isnan(), want.isnan()):
        return math.inf
    other = (got != want) & ~want.isnan()
    apart = (got[other] - want[other]).abs() / want[other].abs().clamp(min=1)
    return float(apart.max()) if apart.numel() else 0.0


def _given(port: Port, rows: int, inputs: Mapping[str, Masked]) -> np.ndarray:
    """What a batch gives for one of a graph's tensors; one absent position where it has nothing."""
    name, _, kind = port.name.rpartition(".")
    x = inputs.get(name)
    given: Tensor | None = None if x is None else getattr(x, kind)
    if given is not None:
        return given.detach().cpu().contiguous().numpy()
    if x is not None and bool(x.mask.any()):
        raise DataError(f"{name} must have positions, as the model learned with them, got none. Give `at`.")
    length = 1 if x is None else x.mask.shape[1]
    fixed = [size if isinstance(size, int) else length for size in port.shape[1:]]
    return np.zeros((rows, *fixed), port.dtype)


def _port(node: Any) -> Port:
    """A tensor as ONNX Runtime tells of it."""
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    names = {"float": "float32", "double": "float64"}
    return Port(node.name, names.get(kind) or kind, tuple(node.shape))


def _key(model: Model) -> str:
    """Hash of everything that a graph is made of."""
    text = f"{__version__} {torch.__version__} {OPSET} {model.spec.model_dump_json()}"
    made = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        made.update(name.encode())
        made.update(tensor.detach().cpu().contiguous().numpy())
    return made.hexdigest()
