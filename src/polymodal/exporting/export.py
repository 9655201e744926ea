"""Writing the folder of an export, whole or not at all."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from polymodal.bundle import Bundle
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.disk import swap
from polymodal.errors import BundleError, SpecError, suggest
from polymodal.exporting.compare import compare, compare_tokens, exported_inputs, refuse
from polymodal.exporting.words import about, readme
from polymodal.nn.backbone import Backbone
from polymodal.nn.runtime import graph_of
from polymodal.part import Reading
from polymodal.tracing import flat
from polymodal.tracing.answer import verified
from polymodal.tracing.graph import trace_on
from polymodal.tracing.samples import Samples
from polymodal.types import Masked

TARGETS = ("onnx",)
ROWS = 16
"""Rows of a table that the graphs are run on."""
MADE = 4
"""Example rows, where no table is given."""


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, and how it compares.

    Attributes:
        folder: that holds it.
        files: in it.
        compared: {"what", "rows", "largest"}: what was compared, on how many rows, the largest difference of a
            probability or, relative to its size where that is above 1, of another number.
    """

    folder: Path
    files: tuple[str, ...]
    compared: tuple[Mapping[str, Any], ...]

    def lines(self) -> list[str]:
        """For a person."""
        told = [
            f"{entry['what']}: {entry['rows']} rows, largest difference {entry['largest']:.1e}"
            for entry in self.compared
        ]
        return [f"{self.folder}: {', '.join(self.files)}", *told]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"folder": str(self.folder), "files": list(self.files), "compared": [dict(e) for e in self.compared]}


def export(bundle: Bundle, folder: str | Path, *, to: str = "onnx", table: Any = None) -> Export:
    """Write a bundle as ONNX graphs, run them, and compare what they say with the bundle.

    The folder holds a graph per frozen backbone, ``model.onnx`` (encoders, fusion and heads), tokenizers,
    ``export.json`` and ``README.md`` that say how raw content becomes tensors and raw outputs become answers, and
    ``run.py`` with ``example.npz``, which check it all without Polymodal.

    Args:
        bundle: stays as it is.
        folder: new, empty, or an earlier export, which is replaced.
        to: format; "onnx" is the only one.
        table: rows to compare on, at most the first 16; made-up ones when not given. Anything `Table.read` takes.

    Raises:
        SpecError: a part does what ONNX cannot hold, or the graphs answer otherwise. Nothing is written then.
        BundleError: the folder holds something else, or cannot be written.
        DataError: the table cannot be read.
    """
    if to not in TARGETS:
        raise SpecError(f"to must be one of {list(TARGETS)}, got {to!r}.{suggest(to, TARGETS)}")
    path = _checked(Path(os.path.abspath(folder)))
    rows = _examples(bundle) if table is None else Table.read(table)
    rows = rows.select(range(min(ROWS, len(rows))))
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        compared = _fill(beside, bundle, rows)
        swap(beside, path)
    except OSError as error:
        raise BundleError(f"{path} could not be written: {error.strerror or error}. Choose another place.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Export(path, tuple(sorted(file.name for file in path.iterdir())), tuple(compared))


def _fill(folder: Path, bundle: Bundle, table: Table) -> list[dict[str, Any]]:
    """Write the files of an export, and compare them."""
    example, compared, graphs = dict[str, np.ndarray](), list[dict[str, Any]](), dict[str, Path]()
    backbones, tokenizers = dict[str, Backbone](), dict[str, list[str]]()
    for name, part in bundle.spec.inputs.items():
        label = _file_name(name, set(graphs.values()), folder)
        for file, content in part.files().items():
            (folder / f"{label}-{file}").write_bytes(content)
            tokenizers.setdefault(name, []).append(f"{label}-{file}")
        backbone = bundle.embedder.backbone(name)
        if backbone is not None:
            backbones[name], graphs[name] = backbone, folder / f"{label}-backbone.onnx"
            entry, tensors = _backbone(name, backbone, graphs[name], _present(bundle, name, table))
            compared.append(entry)
            example |= tensors
    file, model = folder / "model.onnx", copy.deepcopy(bundle.model).cpu().eval()
    samples = Samples(model)
    file.write_bytes(trace_on(model, samples).graph)
    run, inputs = verified(file, model, samples), exported_inputs(bundle, table, graphs)
    compared += compare(bundle, table, inputs, run)
    given, used = flat(inputs), {port.name for port in run.ports}
    example |= {f"model.onnx:{n}": x.numpy() for n, x in given.items() if n in used}
    answered, graph = model.answer(inputs).decoded, run(inputs)
    for n, task in bundle.spec.outputs.items():  # a task about an input answers as many tokens as there are
        whole = answered[n] if task.about is None else task.join([answered[n], graph[n]])[: len(answered[n])]
        example[f"model.onnx:{n}.output"] = whole.numpy()
    np.savez_compressed(folder / "example.npz", **example)  # pyright: ignore[reportArgumentType]
    graphs[""] = file
    for path in graphs.values():
        onnx.checker.check_model(str(path), full_check=True)
    _tell(folder, about(bundle.spec, backbones, graphs), tokenizers)
    return compared


def _tell(folder: Path, said: dict[str, Any], tokenizers: Mapping[str, list[str]]) -> None:
    """Write what the export says of itself, and the script that checks it."""
    for name, files in tokenizers.items():
        said["inputs"][name]["tensor_files"] = files
    shutil.copyfile(Path(__file__).with_name("run.py"), folder / "run.py")
    said["files"] = sorted({*(file.name for file in folder.iterdir()), "README.md", "export.json"})
    (folder / "README.md").write_text(readme(said, said["files"]), encoding="utf-8")
    (folder / "export.json").write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")


def _backbone(name: str, backbone: Backbone, file: Path, x: Masked) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Write a backbone's graph and compare it; its example tensors."""
    try:
        file.write_bytes(graph_of(backbone, x))
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(
            f"inputs.{name}: its backbone must be one that an ONNX graph can hold, got: {reason}"
        ) from error
    entry = compare_tokens(name, backbone, file, x)
    refuse(entry)
    with torch.inference_mode():
        tensors = [tensor.cpu() for tensor in backbone.tensors(x)]
        tensors.append(copy.deepcopy(backbone.net).cpu().eval()(*tensors))
    graph = onnx.load(str(file)).graph
    names = [node.name for node in (*graph.input, *graph.output)]
    return entry, {f"{file.name}:{n}": t.numpy() for n, t in zip(names, tensors, strict=True)}


def _present(bundle: Bundle, name: str, table: Table) -> Masked:
    """The rows of a table that have an input, collated: two at most, which is enough to compare a backbone."""
    part = bundle.spec.inputs[name]
    source = Source(name, part, table)
    readings = (source.read(i, cell) for i, cell in enumerate(source.cells(0, len(table))))
    values = [r.value for r in readings if isinstance(r, Reading) and r.value is not None]
    if not values:
        raise SpecError(f"inputs.{name}: there must be a row that has it, got none. Give a table with such a row.")
    return part.collate(values[:2])


def _examples(bundle: Bundle) -> Table:
    """Made-up rows from the fields of every input."""
    fields = [field for name, part in bundle.spec.inputs.items() for field in part.fields(name)]
    return Table.read(
        [{f.column: f.levels[i % len(f.levels)] if f.levels else f.example for f in fields} for i in range(MADE)]
    )


def _file_name(name: str, taken: set[Path], folder: Path) -> str:
    """An input's name as the start of a file's name, unlike any other's."""
    label = re.sub(r"[^\w-]", "_", name)
    while folder / f"{label}-backbone.onnx" in taken:
        label += "_"
    return label


def _checked(path: Path) -> Path:
    """A folder that an export may be written to.

    Raises:
        BundleError: something that is no export is there.
    """
    if not path.exists():
        return path
    there = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
    try:
        said = json.loads((path / "export.json").read_text(encoding="utf-8")) if path.is_dir() else {}
        ours = set(said["files"]) if "polymodal_export" in said else set[str]()
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    if not path.is_dir() or there - ours:
        raise BundleError(
            f"{path} must be a new folder or hold nothing but an export, got {sorted(there - ours)[:5]}, which would "
            "be lost. Choose another folder."
        )
    return path
