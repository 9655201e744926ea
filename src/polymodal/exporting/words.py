"""What an export says of its graphs, so that they can be used without Polymodal."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.helper import tensor_dtype_to_np_dtype

from polymodal import __version__
from polymodal.nn.backbone import Backbone
from polymodal.part import Modality
from polymodal.spec import Spec

FORMAT = 1

ORDER = (
    "1. Read a row's cells (read) and make tensors of them (collate). 2. Where an input has a backbone: make its "
    "graph's tensors (tensors), run it on the present rows only, join what it gives (tokens) and round that to float16 "
    "and back. 3. Where the input is summarised: take its summary, one position per row. 4. Run model.onnx on all "
    "inputs; where an input is absent from a row, its mask has no True in that row, and its values may be anything. "
    "5. Make an answer of each raw output (predict)."
)
_MASK = "True where a position is real; a row without any True is absent."
_AT = "Where or when each position is; 0 where absent."


def about(spec: Spec, backbones: Mapping[str, Backbone], graphs: Mapping[str, Path]) -> dict[str, Any]:
    """Everything an export says of itself, as JSON.

    Args:
        spec: fitted.
        backbones: input name -> its backbone, for inputs that have one.
        graphs: input name, or "" for the model, -> the graph's file.
    """
    inputs = {name: _input(name, part, backbones.get(name), spec) for name, part in spec.inputs.items()}
    listed = []
    for name, file in graphs.items():
        graph = onnx.load(str(file)).graph
        meaning = _model_ports(inputs) if not name else {}
        listed.append(
            {
                "file": file.name,
                "of": f"inputs.{name}" if name else "encoders, fusion and heads",
                "inputs": [_port(node, meaning) for node in graph.input],
                "outputs": [_port(node, meaning) for node in graph.output],
            }
        )
    return {
        "polymodal_export": FORMAT,
        "polymodal": __version__,
        "torch": torch.__version__,
        "order": ORDER,
        "graphs": listed,
        "inputs": inputs,
        "outputs": {
            n: {
                "raw": f"{n}.output",
                "meaning": _doc(type(task)),
                "predict": _doc(task.predict),
                "settings": task.model_dump(mode="json"),
            }
            for n, task in spec.outputs.items()
        },
    }


def readme(said: Mapping[str, Any], files: list[str]) -> str:
    """The same in Markdown, shorter."""
    lines = ["# Exported model", "", f"Made by polymodal {said['polymodal']}. {said['order']}", "", "## Graphs", ""]
    for graph in said["graphs"]:
        lines += [f"`{graph['file']}`: {graph['of']}", ""]
        for side in ("inputs", "outputs"):
            lines += [
                f"- {side[:-1]} `{p['name']}` {p['dtype']} {p['shape']} {p['meaning']}".rstrip() for p in graph[side]
            ]
        lines.append("")
    for side in ("inputs", "outputs"):
        lines += [f"## {side.capitalize()}", ""]
        for name, one in said[side].items():
            lines += [f"### {name}", ""]
            lines += [f"- **{key}**: {' '.join(text.split())}" for key, text in one.items() if isinstance(text, str)]
            lines.append("")
    lines += ["## Check", "", "`python run.py` runs every graph on `example.npz`, with numpy and onnxruntime only.", ""]
    lines += [f"Files: {', '.join(files)}.", ""]
    lines += ["Settings and what the parts have learned (scales, vocabularies, classes) are in `export.json`.", ""]
    return "\n".join(lines)


def _input(name: str, part: Modality, backbone: Backbone | None, spec: Spec) -> dict[str, Any]:
    said: dict[str, Any] = {
        "type": part.kind,
        "columns": list(part.columns(name)),
        "meaning": _doc(type(part)),
        "read": _doc(part.read),
        "collate": _doc(part.collate),
        "settings": part.model_dump(mode="json"),
        "tensor_files": [],
        "to_model": "collated values",
    }
    if backbone is not None:
        said |= {
            "backbone": _doc(type(backbone)),
            "tensors": _doc(backbone.tensors),
            "tokens": _doc(backbone.tokens),
            "numbers": _numbers(backbone),
            "to_model": "the backbone's tokens",
        }
    if name in spec.summarised:
        said |= {"summary": _doc(part.summary), "to_model": "the summary of the backbone's tokens"}
    return said


def _model_ports(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    found = {}
    for name, said in inputs.items():
        found |= {f"{name}.values": f"{said['to_model']}.", f"{name}.mask": _MASK, f"{name}.at": _AT}
    return found


def _port(node: Any, meaning: Mapping[str, str]) -> dict[str, Any]:
    kind = node.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    dtype = str(tensor_dtype_to_np_dtype(kind.elem_type))
    return {"name": node.name, "dtype": dtype, "shape": shape, "meaning": meaning.get(node.name, "")}


def _numbers(backbone: Backbone) -> dict[str, Any]:
    """The plain attributes of a backbone: ids that frame a window, its length, the grid ..."""
    kept = {"width": backbone.width, "digest": backbone.digest}
    plain = {k: v for k, v in vars(backbone).items() if not k.startswith("_") and k != "training"}
    return kept | {k: v for k, v in plain.items() if isinstance(v, int | float | str) or _flat(v)}


def _flat(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(item, int | float | str) for item in value)


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""
