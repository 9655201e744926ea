"""Frozen backbones in an inference runtime: the same tokens, several times faster on a CPU."""

from __future__ import annotations

import copy
import io
import os
import shutil
import threading
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polymodal.disk import write_whole
from polymodal.errors import SpecError
from polymodal.machine import processors
from polymodal.nn.backbone import Backbone
from polymodal.types import Masked

Provider = Literal["onnxruntime", "openvino"]

GRAPH_BYTES = 2 << 30
"""Bytes of kept graphs of backbones; each fine-tuned one has a graph of its own."""


class Session(nn.Module):
    """An ONNX graph as a module from tensors to its first output. It has no gradient and runs on the CPU.

    Sessions may be called from several threads at once, but not shared with a forked process.

    Args:
        graph: an .onnx file, or its bytes.
        provider: the runtime that executes it.
        threads: of one call; as many as torch uses when not given.
        folder: where OpenVINO may keep what it made of a file, so that it starts several times faster the next time.
    """

    def __init__(
        self,
        graph: bytes | Path,
        provider: Provider = "onnxruntime",
        threads: int | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.engine = _ENGINES[provider](graph, threads or torch.get_num_threads(), folder)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Run the graph on its inputs, in their order. The result lies where the first tensor does."""
        if any(x.requires_grad for x in tensors):
            raise RuntimeError("An inference session has no gradient: use the backbone that it was made from.")
        arrays = [x.detach().cpu().contiguous().numpy() for x in tensors]
        return torch.from_numpy(self.engine.run(arrays)).to(tensors[0].device)


class _OnnxRuntime:
    """Runs a graph in ONNX Runtime, without threads that spin while they wait."""

    def __init__(self, graph: bytes | Path, threads: int, folder: Path | None) -> None:
        import onnxruntime  # 0.1 s that only a backbone needs

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = str(graph) if isinstance(graph, Path) else graph
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except _faults() as error:  # which are no RuntimeErrors
            raise RuntimeError(f"ONNX Runtime refuses the graph: {error}") from error
        self.names = [node.name for node in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name

    def run(self, arrays: list[Any]) -> Any:
        return self.session.run([self.output], dict(zip(self.names, arrays, strict=True)))[0]


class _OpenVino:
    """Runs a graph in OpenVINO, in float32 so that tokens stay those of torch."""

    def __init__(self, graph: bytes | Path, threads: int, folder: Path | None) -> None:
        try:
            import openvino  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise SpecError(
                "provider 'openvino' must be installed, got no such package. Run: pip install 'polymodal[openvino]'"
            ) from error
        streams = max(1, processors() // threads)  # calls from several threads wait for one another without
        hints = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": streams, "ENABLE_CPU_PINNING": False}
        hints["INFERENCE_NUM_THREADS"] = threads * streams
        core = openvino.Core()
        if isinstance(graph, bytes):
            self.model = core.compile_model(core.read_model(io.BytesIO(graph)), "CPU", hints)
        else:
            kept = {} if folder is None or not _writable(folder) else {"CACHE_DIR": str(folder)}
            self.model = core.compile_model(str(graph), "CPU", hints | kept)
        self._own = threading.local()

    def run(self, arrays: list[Any]) -> Any:
        request = getattr(self._own, "request", None)
        if request is None:  # one per thread: a request runs one call at a time, and a new one costs 0.5 ms
            request = self._own.request = self.model.create_infer_request()
        request.infer(arrays)
        return request.get_output_tensor(0).data.copy()


_ENGINES = {"onnxruntime": _OnnxRuntime, "openvino": _OpenVino}


class Half(nn.Module):
    """A net whose matrix products and convolutions run in float16. Takes and returns what the net does.

    Args:
        net: on the device it is to run on; shared, not copied.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *tensors: Tensor) -> Tensor:
        """Run the net; its result is float32."""
        with torch.autocast(tensors[0].device.type, torch.float16):
            return self.net(*tensors).float()


def halve(backbone: Backbone) -> Backbone:
    """Copy a frozen backbone so that its ``net`` runs in float16. The weights are shared."""
    return _with_net(backbone, Half(backbone.net))


def accelerate(
    backbone: Backbone,
    folder: Path,
    example: Masked,
    provider: Provider = "onnxruntime",
    threads: int | None = None,
    graph: Path | None = None,
) -> Backbone:
    """Copy a frozen backbone with its ``net`` replaced by an inference session.

    The graph is kept as ``folder/<digest>-<torch version>.onnx`` and shared by later runs: the digest must
    therefore name everything that shapes the net, also the sizes of its fixed axes. A damaged file is built
    anew; where the folder cannot be written, the graph stays in memory, with a warning. A backbone with an
    attribute ``graph`` (an .onnx file or its bytes) is not exported: that graph runs as it is.

    Args:
        backbone: agrees with the copy to 1e-4.
        folder: of the kept graphs; made if it is not there.
        example: collated values, one present row is enough. Its content does not matter.
        provider: "openvino" needs the extra of that name.
        threads: of one call; as many as torch uses when not given.
        graph: to run instead of the backbone's own, such as its int8 one.

    Returns:
        A backbone of the same class, width and digest, without gradient.

    Raises:
        SpecError: the provider is not installed.
    """
    ready = graph or getattr(backbone, "graph", None)
    if ready is None:
        return _with_net(backbone, _kept(backbone, Path(folder), example, provider, threads))
    return _with_net(backbone, Session(ready, provider, threads, _compiled(backbone, Path(folder))))


def graph_of(backbone: Backbone, example: Masked) -> bytes:
    """The float graph of a backbone. ``example`` as for `accelerate`."""
    ready = getattr(backbone, "graph", None)
    if ready is None:
        return _export(backbone, example)
    return ready if isinstance(ready, bytes) else Path(ready).read_bytes()


def _with_net(backbone: Backbone, net: nn.Module) -> Backbone:
    fast = copy.copy(backbone)
    fast._modules = dict(backbone._modules)  # a shallow copy shares the table of modules
    fast.net = net
    return fast.eval()


def _kept(backbone: Backbone, folder: Path, example: Masked, provider: Provider, threads: int | None) -> Session:
    """Session of the kept graph; of a new one where it is missing or damaged."""
    path, compiled = _place(backbone, folder), _compiled(backbone, folder)
    if path.is_file():
        with suppress(OSError):
            os.utime(path)  # last used now
        try:
            return Session(path, provider, threads, compiled)
        except (OSError, RuntimeError):
            pass  # damaged: built anew below, where a fault of the runtime itself will show
    graph = _export(backbone, example)
    try:
        write_whole(path, graph)
    except OSError as error:
        _warn_once(folder, error.strerror or str(error))
        return Session(graph, provider, threads)
    _make_room(folder, path)
    return Session(path, provider, threads, compiled)


def _make_room(folder: Path, path: Path) -> None:
    """Remove the graphs that were used longest ago, but not one, until all of them are within the limit."""
    found = []
    for file in folder.glob(f"*-{torch.__version__}.onnx"):
        with suppress(OSError):  # another process may be removing it
            found.append((file.stat().st_mtime, file.stat().st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total > GRAPH_BYTES and file != path:
            total -= size
            with suppress(OSError):
                file.unlink(missing_ok=True)


def _compiled(backbone: Backbone, folder: Path) -> Path:
    """Where OpenVINO keeps what it made of a backbone's graphs."""
    return folder / "openvino" / backbone.digest


def _writable(folder: Path) -> bool:
    """Whether a folder is there, made if need be, and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _place(backbone: Backbone, folder: Path) -> Path:
    """The file of a backbone's kept graph."""
    return folder / f"{backbone.digest}-{torch.__version__}.onnx"


def forget(backbone: Backbone, folder: Path) -> None:
    """Remove what is kept of a backbone: its graph, and what OpenVINO made of it. Sessions that run it go on."""
    _place(backbone, folder).unlink(missing_ok=True)
    shutil.rmtree(_compiled(backbone, folder), ignore_errors=True)


def _export(backbone: Backbone, example: Masked) -> bytes:
    """Trace ``backbone.net`` into an ONNX graph whose batch and `Backbone.dynamic` axes vary."""
    rows = example[example.present]
    if not len(rows):
        raise ValueError("example must have a present row, got none.")
    rows = type(rows).join([rows, rows]) if len(rows) == 1 else rows  # a batch of one may be traced as a constant
    tensors = backbone.tensors(rows)
    names = [f"x{i}" for i in range(len(tensors))]
    extra = backbone.dynamic() or [{} for _ in names]
    axes = {name: {0: "batch", **more} for name, more in zip(names, extra, strict=True)}
    file, net = io.BytesIO(), copy.deepcopy(backbone.net).cpu().eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every shape that it takes as constant
        torch.onnx.export(
            net,
            tuple(x.cpu() for x in tensors),
            file,  # pyright: ignore[reportArgumentType]
            input_names=names,
            output_names=["y"],
            dynamic_axes={**axes, "y": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    return file.getvalue()


@cache
def _warn_once(folder: Path, reason: str) -> None:
    """Tell once per process that graphs cannot be kept."""
    warnings.warn(
        f"{folder}: must be writable, got {reason!r}. Exported graphs stay in memory and are built anew by every "
        "run: free some space or choose another cache folder.",
        RuntimeWarning,
        stacklevel=4,
    )


def _faults() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a graph that it cannot use."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name) for name in names)
