"""From a model to a graph."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polymodal.errors import SpecError
from polymodal.model import Model
from polymodal.tracing.samples import FAULTS, Samples
from polymodal.types import Masked

OPSET = 17


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor that a graph takes or gives.

    Attributes:
        name: "<input>.values", ".mask", ".at"; or "<task>.output".
        dtype: as numpy names it.
        shape: a length, or the name of an axis whose length varies.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Traced:
    """`Model.answer` as a graph, behind the frozen backbones.

    Attributes:
        graph: ONNX.
        inputs: in the graph's order; positions only where an answer depends on them.
        outputs: each task's raw output; its second axis varies where the task is about an input.
    """

    graph: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def trace(model: Model) -> Traced:
    """Trace a model in evaluation mode into one graph: encoders, fusion, heads and what the linear model adds.

    Batch and lengths vary, and any row may be absent from any input. Inputs behind a backbone are its tokens, or their
    summary. The graph is not verified here: `answerer` does that.

    Raises:
        SpecError: a part does what ONNX cannot hold.
    """
    own = copy.deepcopy(model).cpu().eval()
    return trace_on(own, Samples(own))


class _Answers(nn.Module):
    """`Model.answer` from plain tensors to plain tensors."""

    def __init__(self, model: Model, names: list[str]) -> None:
        super().__init__()
        self.model, self.tensors = model, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.tensors, tensors, strict=True))
        inputs = {
            name: Masked(given[f"{name}.values"], given[f"{name}.mask"], given.get(f"{name}.at"))
            for name in self.model.names
        }
        decoded = self.model.answer(inputs).decoded
        return tuple(decoded[n] for n in self.model.spec.outputs)


def trace_on(model: Model, samples: Samples) -> Traced:
    """Trace a model on the CPU on made-up rows of its own.

    Raises:
        SpecError: a part does what ONNX cannot hold.
    """
    if model.decoders:
        raise SpecError(
            f"outputs {list(model.decoders)} must do without a language model to become an ONNX graph. Serve the "
            "bundle instead, with polymodal serve."
        )
    tensors = flat(samples.draw(3, 2.0))  # an axis of one position may be traced as a constant
    outputs = [f"{n}.output" for n in model.spec.outputs]
    axes: dict[str, dict[int, str]] = {n: {0: "batch"} for n in (*tensors, *outputs)}
    for name in samples.vary:
        for part in ("values", "mask", "at"):
            axes.get(f"{name}.{part}", {})[1] = f"{name}.length"
    for n, task in model.spec.outputs.items():
        if task.about is not None:
            axes[f"{n}.output"][1] = f"{n}.length"
    module, file = _Answers(model, list(tensors)).eval(), io.BytesIO()
    try:
        with _quiet(), torch.no_grad():
            found = module(*tensors.values())
            torch.onnx.export(
                module,
                tuple(tensors.values()),
                file,  # pyright: ignore[reportArgumentType]
                input_names=list(tensors),
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except FAULTS as error:
        raise refused(error) from error
    ports = [
        Port(n, str(x.dtype).removeprefix("torch."), tuple(axes[n].get(i) or size for i, size in enumerate(x.shape)))
        for n, x in [*tensors.items(), *zip(outputs, found, strict=True)]
    ]
    return Traced(file.getvalue(), tuple(ports[: len(tensors)]), tuple(ports[len(tensors) :]))


def flat(inputs: Mapping[str, Masked]) -> dict[str, Tensor]:
    """A model's inputs as named tensors, as a graph takes them."""
    found = {}
    for name, x in inputs.items():
        found |= {f"{name}.values": x.values, f"{name}.mask": x.mask}
        found |= {} if x.at is None else {f"{name}.at": x.at}
    return found


def refused(error: Exception) -> SpecError:
    """What to tell of a model that makes no graph."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SpecError(f"the model must be one that an ONNX graph can hold, got: {reason} Run it in torch.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer from warning of every shape that it takes as constant, and from printing what it refuses."""
    jit: Any = torch._C
    told = jit._jit_is_onnx_log_enabled()
    jit._jit_set_onnx_log_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        jit._jit_set_onnx_log_enabled(told)
