"""Int8 graphs: a network's ONNX graph with its weights, and what flows between them, in whole numbers of 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)
from torch import Tensor

from polymodal.nn.runtime import Session

STEPS = (3, 6, 9)
"""How many of the first convolutions of a convolutional net stay in float, tried in order."""

ENOUGH = 0.995
"""Mean cosine with the float graph from which on no more of it is left in float."""

CHECKED = 4
"""One example in this many is kept back from calibration, to measure the agreement."""

STATIC = ["Add", "AveragePool", "Clip", "Conv", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu"]
"""Operators of a convolutional net that become int8, those between two convolutions included: each step to and fro
costs time."""

DYNAMIC = ["Gather", "Gemm", "MatMul"]
"""Operators of any other net that become int8."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """An int8 graph that takes and returns what its float graph does.

    Attributes:
        graph: ONNX.
        method: ``static-N``, the first N convolutions in float; ``dynamic``; or ``dynamic-wide``, embeddings and layers
            with fewer outputs than inputs in float.
        agreement: mean cosine between its result and the float graph's, position by position, on examples that were
            not used for the ranges.
    """

    graph: bytes
    method: str
    agreement: float


def quantise(graph: bytes, examples: Sequence[tuple[Tensor, ...]]) -> Quantised:
    """Turn a float graph into an int8 one. Weights get a scale per output channel.

    A net most of whose weights are in convolutions becomes static: activations have ranges, the lowest and the highest
    value seen in the examples. Its first layers lose most: with 0, 1, 3 and 6 convolutions in float, the cosine is
    .987, .990, .995 and .997 for EfficientNet-lite0 and .842, .996, .999 and .999 for the speech embedding (whose first
    one is the Fourier transform), at nearly the same speed.

    Any other net becomes dynamic: activations get a scale in each call, from everything that is in it, so that a row's
    result depends on the rows beside it: see `depends_on_others`. Layers that narrow, behind a transformer's
    non-linearity, lose most: the cosine is .992 for MiniLM, .996 with these and the embeddings in float.

    Args:
        graph: ONNX, in float32.
        examples: what it takes, one row each; 24 to 64 of them are enough.

    Raises:
        ValueError: fewer than two examples.
    """
    if len(examples) < 2:
        raise ValueError(f"examples must be 2 or more, got {len(examples)}.")
    checked = list(examples[::CHECKED])
    others = [example for i, example in enumerate(examples) if i % CHECKED]
    found: list[Quantised] = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(graph)
        quant_pre_process(str(source), str(source), skip_symbolic_shape=True)  # the symbolic one needs sympy
        model, reference = onnx.load(str(source)), _results(graph, checked)
        for method, kept in _static_ladder(model) if is_convolutional(model) else _dynamic_ladder(model):
            if method.startswith("static"):
                _make_static(source, target, kept, _Reader([x.name for x in model.graph.input], others))
            else:
                _make_dynamic(source, target, kept)
            content = target.read_bytes()
            found.append(Quantised(content, method, agreement(_results(content, checked), reference)))
            if found[-1].agreement >= ENOUGH:
                break
    return max(found, key=lambda one: one.agreement)


def depends_on_others(method: str) -> bool:
    """Whether a row's result depends on the rows that go through the graph with it, so that each should go alone."""
    return method.startswith("dynamic")


Ladder = list[tuple[str, list[str]]]
"""Methods, fastest first, and the nodes that each leaves in float."""


def _static_ladder(model: onnx.ModelProto) -> Ladder:
    nodes = list(model.graph.node)
    places = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    steps = [step for step in STEPS if step < len(places)] or [min(1, len(places) - 1)]
    return [(f"static-{step}", [node.name for node in nodes[: places[step]]]) for step in steps]


def _dynamic_ladder(model: onnx.ModelProto) -> Ladder:
    shapes = {item.name: tuple(item.dims) for item in model.graph.initializer}
    kept = [node.name for node in model.graph.node if node.op_type == "Gather" or _narrows(node, shapes)]
    return [("dynamic", []), *([("dynamic-wide", kept)] if kept else [])]


def _narrows(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a node is a linear layer with fewer outputs than inputs."""
    shape = shapes.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
    if shape is None or len(shape) != 2:
        return False
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return shape[0] < shape[1] if turned else shape[0] > shape[1]


def is_convolutional(model: onnx.ModelProto) -> bool:
    """Whether most of a net's weights are in convolutions."""
    sizes = {item.name: int(np.prod(item.dims)) for item in model.graph.initializer}
    weights = dict.fromkeys(("Conv", "MatMul", "Gemm"), 0)
    for node in model.graph.node:
        if node.op_type in weights:
            weights[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    return weights["Conv"] > weights["MatMul"] + weights["Gemm"]


def agreement(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Mean cosine between results (B, T, W), position by position. Positions that are zero in both are left out."""
    cosines = []
    for a, b in zip(found, wanted, strict=True):
        real = (a != 0).any(-1) | (b != 0).any(-1)
        cosines.append(np.asarray(_cosine(a[real], b[real])))
    return float(np.concatenate(cosines).mean())


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-12)


def _make_static(source: Path, target: Path, kept: list[str], reader: CalibrationDataReader) -> None:
    quantize_static(
        str(source), str(target), reader, quant_format=QuantFormat.QDQ, op_types_to_quantize=STATIC, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=kept,
        calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip


def _make_dynamic(source: Path, target: Path, kept: list[str]) -> None:
    quantize_dynamic(
        str(source), str(target), op_types_to_quantize=DYNAMIC, per_channel=True, weight_type=QuantType.QInt8,
        nodes_to_exclude=kept,
    )  # fmt: skip


def _results(graph: bytes, examples: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    session = Session(graph)
    return [session(*example) for example in examples]


class _Reader(CalibrationDataReader):
    """Hands examples to the calibrator."""

    def __init__(self, names: Sequence[str], examples: Sequence[tuple[Tensor, ...]]) -> None:
        self._feeds: Iterator[Mapping[str, Any]] = iter(
            [{n: x.numpy() for n, x in zip(names, example, strict=True)} for example in examples]
        )

    def get_next(self) -> Mapping[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The next example, None at the end."""
        return next(self._feeds, None)
