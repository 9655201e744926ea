"""Quantise: int8 graphs of a bundle's backbones, kept only where a labelled table shows that little is lost."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polymodal.bundle import Bundle
from polymodal.data.embedding import Embedder
from polymodal.data.gather import Gathering, Progress, silent
from polymodal.data.loader import Prepared, prepare
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.errors import DataError, SpecError
from polymodal.evaluate import answers
from polymodal.folder import put_int8, weights_sha256
from polymodal.int8 import Int8, Loss, Note, loss
from polymodal.nn.provider import GraphFile
from polymodal.nn.quantise import Quantised, agreement, depends_on_others
from polymodal.nn.quantise import quantise as quantise_graph
from polymodal.nn.runtime import Session, graph_of
from polymodal.types import Masked

LIMIT = 0.005
"""Loss of the headline score from which on an input stays in float."""

FEWEST = 8
"""Rows of an input that int8 must be made from at least."""


@dataclass(frozen=True, slots=True)
class Found:
    """What int8 does to one input.

    Attributes:
        graph: content of the .onnx file; empty where none could be made.
        entry: what was measured; None where none could be made.
        accepted: whether it may be served.
        why: not, for a person.
    """

    graph: bytes = b""
    entry: Int8 | None = None
    accepted: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What int8 does to a bundle.

    Attributes:
        inputs: input name -> what was found, for inputs with a backbone.
        together: loss of each task with all accepted inputs in int8; empty where none is.
        rows: labelled rows that were scored.
        table: where they came from.
        limit: loss from which on an input stays in float.
        weights_sha256: of the model that was scored.
        unscored: tasks that no score could be computed of, such as unlabelled ones: what they lose is not known.
    """

    inputs: Mapping[str, Found]
    together: list[Loss]
    rows: int
    table: str
    limit: float
    weights_sha256: str
    unscored: Sequence[str] = ()

    @property
    def accepted(self) -> list[str]:
        """Inputs that may be served in int8."""
        return [name for name, found in self.inputs.items() if found.accepted]

    def save(self, path: str | Path) -> Path:
        """Put the accepted graphs into the bundle's folder, in the place of those it holds; whole or not at all.

        Raises:
            SpecError: none is accepted.
            BundleError: the folder is no bundle, holds another model, or cannot be written.
        """
        if not self.accepted:
            raise SpecError(f"int8 must be accepted for an input, got none: {'; '.join(self.lines())}. Serve in float.")
        kept = {name: found for name, found in self.inputs.items() if found.accepted}
        entries = {name: found.entry for name, found in kept.items() if found.entry is not None}
        note = Note(
            weights_sha256=self.weights_sha256, inputs=entries, together=self.together, rows=self.rows, table=self.table
        )
        put_int8(Path(path), note, {name: found.graph for name, found in kept.items()})
        return Path(path)

    def lines(self) -> list[str]:
        """One line per input and one for all accepted ones together, for a person."""
        lines = []
        for name, found in self.inputs.items():
            verdict = "int8" if found.accepted else f"stays in float: {found.why}"
            made = "" if found.entry is None else f"{found.entry.method}, {found.entry.worst}, "
            cosine = "" if found.entry is None else f"cosine {found.entry.agreement:.4f}; "
            lines.append(f"{name}: {made}{cosine}{verdict}")
        if self.together:
            worst = max(self.together, key=lambda one: one.loss)
            lines.append(f"together: {worst}, {self.rows} rows of {self.table}")
        lines += [f"{n}: {self.table} gives it no score, so what it loses is not known" for n in self.unscored]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything but the graphs, as JSON."""
        inputs = {
            name: {"accepted": one.accepted, "why": one.why, "measured": one.entry and one.entry.model_dump()}
            for name, one in self.inputs.items()
        }
        more = {"rows": self.rows, "table": self.table, "limit": self.limit, "unscored": list(self.unscored)}
        return {"inputs": inputs, "together": [one.model_dump() for one in self.together], **more}

    def __str__(self) -> str:
        """The lines."""
        return "\n".join(self.lines())


def quantise(
    bundle: Bundle,
    table: Any,
    *,
    calibrate: Any = None,
    rows: int = 64,
    limit: float = LIMIT,
    progress: Progress = silent,
) -> Quantisation:
    """Make int8 graphs of a bundle's backbones and score what they lose.

    The same labelled rows are answered in float, with each input alone in int8 and with all accepted ones together. An
    input is accepted if no task's headline score loses ``limit`` or more; then, while all accepted ones together lose
    that much, the one that loses most alone stays in float. A score that is an error (lower is better) has no fixed
    scale: of it, the share that it grew by counts.

    Args:
        bundle: on the CPU.
        table: labelled rows that the model has not learned from; anything `Table.read` takes.
        calibrate: rows to see ranges in, such as those the model has learned from; evenly spaced ones are taken. The
            first rows of ``table`` when not given. Rows of ``table`` that hold the same as one of these are not scored.
        rows: to calibrate with.
        limit: loss from which on an input stays in float.
        progress: told how far it is.

    Raises:
        SpecError: the bundle is not on the CPU or has no backbone, or an argument is out of range.
        DataError: a table cannot be read, or has no labelled row left to score.
    """
    table = Table.read(table)
    _check(bundle, rows, limit)
    if calibrate is not None:
        seen = Table.read(calibrate)
        seen = seen.select(np.unique(np.linspace(0, len(seen) - 1, min(rows, len(seen))).astype(int)).tolist())
    else:
        seen = table.select(range(min(rows, len(table))))
    scored = _unseen(bundle, seen, table)
    exact = dict.fromkeys(bundle.embedder.digests, "onnxruntime")
    embedder = bundle.embedder.without_store().with_runtimes(exact, bundle.embedder.threads)
    judged = table.select(scored)
    prepared = prepare(bundle.spec, judged, embedder, progress=progress).labelled() if len(judged) else None
    if prepared is None or not len(prepared):
        raise DataError(
            f"{table.source} must have labelled rows to score beside the {len(seen)} to calibrate, got none."
        )
    with tempfile.TemporaryDirectory() as folder:
        return _Trial(bundle, embedder, judged, prepared, Path(folder), limit, progress).run(seen)


def _unseen(bundle: Bundle, seen: Table, table: Table) -> list[int]:
    """Rows of a table whose inputs are not those of a row that is calibrated with."""
    wanted = [column for name, part in bundle.spec.inputs.items() for column in part.columns(name)]

    def cells(place: Table, i: int) -> str:
        row = place.rows(i)
        return repr((place.base, [row.get(column) for column in wanted]))

    known = {cells(seen, i) for i in range(len(seen))}
    return [i for i in range(len(table)) if cells(table, i) not in known]


def _check(bundle: Bundle, rows: int, limit: float) -> None:
    if bundle.device.type != "cpu":
        raise SpecError(f"bundle must be on the CPU, got {bundle.device}. Load it with device='cpu'.")
    if not bundle.embedder.digests:
        raise SpecError("bundle must have an input with a backbone, got none. There is nothing to make int8 of.")
    if rows < FEWEST:
        raise SpecError(f"rows must be {FEWEST} or more, got {rows}.")
    if not 0 < limit < math.inf:
        raise SpecError(f"limit must be above 0, got {limit}.")


@dataclass(slots=True)
class _Trial:
    """One run of `quantise`."""

    bundle: Bundle
    embedder: Embedder
    table: Table
    prepared: Prepared
    folder: Path
    limit: float
    progress: Progress
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)

    def run(self, seen: Table) -> Quantisation:
        self.before = self.scores({})
        found = {name: self.input(name, seen) for name in self.embedder.digests}
        together = self.settle(found)
        sha256, source = weights_sha256(self.bundle.model.state_dict()), self.table.source
        unscored = [n for n in self.bundle.spec.outputs if n not in self.before]
        return Quantisation(found, together, len(self.prepared), source, self.limit, sha256, unscored)

    def input(self, name: str, seen: Table) -> Found:
        """Make one input's graph, and score it with the others in float."""
        backbone, examples = self.embedder.backbone(name), self.examples(name, seen)
        if backbone is None or len(examples) < FEWEST:
            return Found(why=f"{seen.source} must have it in {FEWEST} rows to calibrate with, got {len(examples)}")
        try:
            made = quantise_graph(graph := graph_of(backbone, examples[0]), [backbone.tensors(x) for x in examples])
        except (RuntimeError, TypeError, NotImplementedError) as error:
            return Found(why=f"ONNX cannot hold it: {str(error).splitlines()[0]}")
        number = list(self.embedder.digests).index(name)
        sha256, alone = hashlib.sha256(made.graph).hexdigest(), depends_on_others(made.method)
        file = GraphFile(self.folder / f"{number}.onnx", sha256, alone)
        file.file.write_bytes(made.graph)
        self.rows[name] = self.gathered(name, file)
        losses = self.losses([name])
        example = _on_example(self.embedder.example(name), backbone.tensors, graph, made)
        entry = Int8(
            file=file.file.name, sha256=sha256, backbone=backbone.digest, method=made.method,
            agreement=made.agreement, example=example, alone=alone, losses=losses,
        )  # fmt: skip
        accepted = entry.worst.loss < self.limit
        return Found(made.graph, entry, accepted, "" if accepted else f"it loses {self.limit:g} or more")

    def examples(self, name: str, seen: Table) -> list[Masked]:
        """Collated rows that have the input."""
        part = self.bundle.spec.inputs[name]
        return [part.collate([value]) for value in Source(name, part, seen) if value is not None]

    def gathered(self, name: str, file: GraphFile) -> Any:
        """The scored rows of an input, embedded by its int8 graph."""
        fast = self.embedder.without_store()
        fast.int8 = {name: file}
        fast = fast.with_runtimes({name: "onnxruntime-int8"}, self.embedder.threads)
        return Gathering(Source(name, self.bundle.spec.inputs[name], self.table), fast, self.progress).rows()

    def settle(self, found: dict[str, Found]) -> list[Loss]:
        """Take acceptance back until all accepted inputs together lose little; what they lose."""
        while names := [name for name, one in found.items() if one.accepted]:
            together = self.losses(names)
            if max(one.loss for one in together) < self.limit:
                return together
            worst = max(names, key=lambda name: _worst(found[name]))
            found[worst] = replace(found[worst], accepted=False, why="of all together, it loses most")
        return []

    def losses(self, names: list[str]) -> list[Loss]:
        """What each task loses with some inputs in int8."""
        after, lost = self.scores({name: self.rows[name] for name in names}), list[Loss]()
        for n, own in self.before.items():
            metric, before = next(iter(own.items()))
            now = after.get(n, {}).get(metric, math.nan)
            lost.append(Loss(task=n, metric=metric, score_float=before, score_int8=now, loss=loss(metric, before, now)))
        return lost

    def scores(self, rows: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Scores of each task that has any, the headline score first, with other rows for some inputs."""
        prepared = replace(self.prepared, inputs={**self.prepared.inputs, **rows})
        seen = answers(self.bundle.model, prepared, self.bundle.device)
        tasks = self.bundle.spec.outputs
        scores = {n: tasks[n].metrics(output, seen.targets[n]) for n, output in seen.outputs.items()}
        found = {n: own for n, own in scores.items() if own}
        if not found:
            raise DataError(f"{self.table.source} must have rows that a score can be computed on, got none.")
        return found


def _worst(found: Found) -> float:
    return found.entry.worst.loss if found.entry is not None else -math.inf


def _on_example(
    example: Masked | None, tensors: Callable[[Masked], tuple[Tensor, ...]], graph: bytes, made: Quantised
) -> float | None:
    if example is None:
        return None
    with torch.inference_mode():
        taken = tensors(example)
        return agreement([Session(made.graph)(*taken)], [Session(graph)(*taken)])
