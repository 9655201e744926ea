"""Verify: whether every runtime, the traced model and a real server say what torch says in float32."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from polymodal.bundle import Bundle
from polymodal.data.embedding import Embedder
from polymodal.data.features import cache_folder
from polymodal.data.gather import Progress, silent
from polymodal.data.loader import prepare
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.errors import SpecError
from polymodal.nn.provider import INT8, RUNTIMES, exact
from polymodal.predictions import by_row
from polymodal.runtimes import Choice
from polymodal.server.run import PACKAGES
from polymodal.tracing import answerer
from polymodal.trials.agreement import EXACT, Difference, Reference, finite, tolerance_of
from polymodal.trials.ask import Row, made_up, table_rows, targets
from polymodal.types import Masked

MOST = 64
"""Rows of a table that are compared."""

Verdict = Literal["ok", "differs", "not installed", "left out"]
Decode = Callable[[Mapping[str, Masked]], Mapping[str, Tensor]]
Answers = Sequence[Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Check:
    """One way to an answer, beside the reference.

    Attributes:
        name: of the way.
        verdict: ``differs`` where a number moved by more than the tolerance, or a label that is no tie changed;
            ``left out`` where this model cannot be answered so, and nobody is.
        rows: compared.
        difference: largest one of a number, as in `polymodal.trials.agreement.Difference`.
        labels: that differ and are no tie.
        ties: labels that differ where the reference could not tell them apart within the tolerance.
        tolerance: that was allowed.
        ms: milliseconds a row, of all rows together; None where nothing ran.
        scores: task name -> headline score on the labelled rows; empty without labels.
        note: what a user should know, as how to install it.
    """

    name: str
    verdict: Verdict
    rows: int = 0
    difference: float = 0.0
    labels: int = 0
    ties: int = 0
    tolerance: float = EXACT
    ms: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def line(self) -> str:
        """For a person."""
        if self.ms is None:
            return f"{self.name:30} {self.verdict}  {self.note}".rstrip()
        ties = f" ({self.ties} tied)" if self.ties else ""
        told = [f"{task} {score:.4f}" for task, score in self.scores.items()]
        told += [self.note] if self.note else []
        return (
            f"{self.name:30} {self.verdict:8} {self.difference:9.1e} {self.tolerance:7.0e} {self.labels:6}{ties} "
            f"{self.ms:9.2f}  {', '.join(told)}"
        ).rstrip()


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and how it came out.

    Attributes:
        folder: of the bundle.
        rows: compared, with which inputs.
        checks: the reference first.
    """

    folder: str
    rows: str
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether nothing differs. What is not installed is no difference."""
        return all(check.verdict != "differs" for check in self.checks)

    def lines(self) -> list[str]:
        """A table for a person."""
        head = f"{'':30} {'':8} {'difference':>9} {'allowed':>7} {'labels':>6} {'ms a row':>9}"
        found = [check for check in self.checks if check.verdict == "differs"]
        end = "all agree" if self.ok else f"{len(found)} differ: {', '.join(check.name for check in found)}"
        return [f"{self.folder}: {self.rows}", head, *(check.line() for check in self.checks), end]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able mappings; an infinite difference is None."""
        told = [asdict(check) | {"difference": finite(check.difference)} for check in self.checks]
        return {"folder": self.folder, "rows": self.rows, "ok": self.ok, "checks": told}


def verify(
    folder: str | Path, table: Any = None, *, tolerance: float = EXACT, progress: Progress = silent
) -> Verification:
    """Compare every way to an answer with torch in float32 on the CPU, as training computed it.

    The ways: each runtime of the backbones that is installed, the model as one ONNX graph, one row at a time, the
    bundle saved and loaded again, and a real server on this machine by JSON, multipart and the Open Inference Protocol.

    Args:
        folder: of the bundle.
        table: rows to compare, up to 64 of them; where it has the targets' columns, scores are told too. Made-up rows
            when not given: with all inputs, without each, with each alone, with nothing.
        tolerance: of probabilities, and of numbers in shares of the largest; more is allowed in int8 and half
            precision.
        progress: told how far it is.

    Raises:
        BundleError: the folder is no bundle.
        DataError: the table cannot be read.
        SpecError: the tolerance is below 0.
    """
    if not tolerance >= 0:
        raise SpecError(f"tolerance must be 0 or more, got {tolerance}.")
    folder = Path(folder)
    bundle = Bundle.load(folder, device="cpu")
    if table is None:
        rows, labels, told = made_up(bundle.spec), {}, "made-up rows"
    else:
        rows, index, broken = table_rows(bundle.spec, table, MOST)
        labels, told = targets(bundle.spec, Table.read(table).select(index)), "rows of the table"
        told += f", {broken} broken cells left out" if broken else ""
    trial = _Trial(bundle, folder, rows, labels, tolerance)
    checks, ways = [], trial.ways()
    for done, (name, way) in enumerate(ways.items()):
        progress(f"verify {name}", done, len(ways))
        checks += way()
    progress("verify", len(ways), len(ways))
    return Verification(str(folder), f"{len(rows)} {told}", checks)


class _Trial:
    """The rows, what torch says of them, and every other way to ask."""

    def __init__(
        self, bundle: Bundle, folder: Path, rows: Sequence[Row], labels: Mapping[str, Sequence[Any]], tolerance: float
    ) -> None:
        self.bundle, self.folder, self.rows, self.tolerance = bundle, folder, rows, tolerance
        self.table, self.labelled = Table.read(rows), bool(labels)
        for column, cells in labels.items():
            self.table = self.table.with_column(column, cells)
        self.backbones = tuple(bundle.embedder.digests)
        self.reference = Reference([], tolerance)
        self.eager: Decode = lambda inputs: bundle.model.answer(inputs).decoded

    def ways(self) -> dict[str, Callable[[], list[Check]]]:
        """Each way by a name, in order; the reference must be asked first."""
        runtimes = {name: partial(self.runtime, name) for name in self._runtimes()}
        found = {"torch": self.torch, **runtimes, "graph": self.graph, "single": self.single}
        return {**found, "saved": self.saved, "server": self.server}

    def _runtimes(self) -> list[str]:
        """Those that this bundle's backbones could run in on a CPU."""
        int8 = self.bundle.embedder.int8
        known = [name for name in RUNTIMES if name not in ("torch", "half") and (int8 or not name.endswith(INT8))]
        return known if self.backbones else []

    def torch(self) -> list[Check]:
        """The reference itself."""
        answers, ms, scores = self._ask(self._embedder("torch"), self.eager)
        self.reference = Reference(answers, self.tolerance)
        return [Check("torch, float32 (reference)", "ok", len(answers), 0.0, 0, 0, self.tolerance, ms, scores)]

    def runtime(self, name: str) -> list[Check]:
        """The backbones in another runtime."""
        title, tolerance = f"backbones in {name}", tolerance_of([name], self.tolerance)
        try:
            found = self._ask(self._embedder(name), self.eager)
        except SpecError as error:
            return [Check(title, "not installed", note=str(error))]
        return [replace(self._check(title, *found, tolerance=tolerance), note=self._recorded(name))]

    def _recorded(self, runtime: str) -> str:
        """What int8 was measured to lose."""
        if not runtime.endswith(INT8) or self.bundle.int8 is None:
            return ""
        note = self.bundle.int8.note
        losses = ", ".join(f"{one.task} {one.metric} {one.loss:+.4f}" for one in note.together)
        return f"recorded loss: {losses} on {note.rows} rows of {note.table}"

    def graph(self) -> list[Check]:
        """Encoders, fusion and heads as one ONNX graph."""
        title = "model as one ONNX graph"
        try:
            run = answerer(self.bundle.model, cache_folder() / "graphs")
        except SpecError as error:
            return [Check(title, "left out", note=f"the server answers in torch: {error}")]
        return [self._check(title, *self._ask(self._embedder("torch"), run))]

    def single(self) -> list[Check]:
        """One row at a time, as `predict` runs it."""
        start = time.perf_counter()
        answers = [self.bundle.predict([row])[0] for row in self.rows]
        return [self._check("one row at a time", answers, self._since(start))]

    def saved(self) -> list[Check]:
        """Written to disk and read again."""
        with tempfile.TemporaryDirectory() as place:
            again, start = Bundle.load(self.bundle.save(Path(place, "bundle")), device="cpu"), time.perf_counter()
            return [self._check("saved and loaded again", again.predict(self.rows), self._since(start))]

    def server(self) -> list[Check]:
        """A real server on this machine, by each of its protocols."""
        if missing := [name for name in PACKAGES if find_spec(name) is None]:
            note = f"lacks {', '.join(missing)}. Run: pip install 'polymodal[serve]'"
            return [Check("server", "not installed", note=note)]
        from polymodal.trials.probe import probe  # needs the extra

        checks = []
        with probe(self.folder) as server:
            reference, note = self._served(server.choice)
            for protocol, ask in server.protocols(self.bundle.spec).items():
                start = time.perf_counter()
                try:
                    answers = ask(self.rows)
                except SpecError as error:
                    checks.append(Check(f"server, {protocol}", "differs", note=str(error)))
                    continue
                found = self._check(f"server, {protocol}", answers, self._since(start), reference=reference)
                checks.append(replace(found, note=note))
        return checks

    def _served(self, choice: Choice) -> tuple[Reference, str]:
        """What a server must answer, whose runtime may be inexact, and which one it chose."""
        note = ", ".join(f"{name} in {runtime}" for name, runtime in choice.names.items())
        if all(exact(runtime) for runtime in choice.names.values()):
            return self.reference, note
        answers = replace(self.bundle, embedder=choice.embedder).predict(self.rows)
        tolerance = tolerance_of(choice.names.values(), self.tolerance, same=True)
        return Reference(answers, tolerance), f"{note}; compared with predict in the same"

    def _embedder(self, runtime: str) -> Embedder:
        int8, plain = self.bundle.embedder.int8, runtime.removesuffix(INT8)
        names = {name: runtime if name in int8 else plain for name in self.backbones}
        return self.bundle.embedder.with_runtimes(names).without_store()

    def _ask(self, embedder: Embedder, decode: Decode) -> tuple[Answers, float, dict[str, float]]:
        """Answers to all rows, milliseconds a row, headline scores."""
        spec = self.bundle.spec
        prepare(spec, self.table.head(1), embedder, targets=False)  # loads what is only loaded when it is needed
        values = {name: list(Source(name, spec.inputs[name], self.table)) for name in spec.about}
        start = time.perf_counter()
        prepared = prepare(spec, self.table, embedder, targets=self.labelled)
        batch = prepared.batch(torch.arange(len(prepared)))
        with torch.inference_mode():
            raw = decode(batch.inputs)
        told, ms = by_row(spec, raw, values), self._since(start)
        ms = self._since(start)
        every = {n: spec.outputs[n].metrics(raw[n], target) for n, target in batch.targets.items()}
        scores = {n: next(iter(found.values())) for n, found in every.items() if found}  # none where undefined
        return told, ms, scores

    def _since(self, start: float) -> float:
        return (time.perf_counter() - start) * 1e3 / len(self.rows)

    def _check(
        self,
        name: str,
        answers: Answers,
        ms: float,
        scores: Mapping[str, float] | None = None,
        *,
        tolerance: float | None = None,
        reference: Reference | None = None,
    ) -> Check:
        reference = reference or Reference(self.reference.rows, self.tolerance if tolerance is None else tolerance)
        found = Difference(float("inf")) if len(answers) != len(reference) else Difference()
        for i, row in enumerate(answers[: len(reference)]):
            found = found.join(reference.compare(i, row))
        verdict = "ok" if reference.agrees(found) else "differs"
        seen = len(answers), found.number, found.labels, found.ties, reference.tolerance, ms
        return Check(name, verdict, *seen, scores or {})
