"""Choice of the runtime of each frozen backbone: measured once on a machine, then remembered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

from polymodal.bundle import Bundle
from polymodal.data.embedding import Embedder
from polymodal.errors import SpecError, suggest
from polymodal.measuring import InputChoice, Measured
from polymodal.nn.provider import INT8, RUNTIMES, Runtime, check

AUTO = "auto"


class Choice(BaseModel):
    """The runtimes that a bundle's backbones run in.

    Attributes:
        embedder: of the bundle, with these runtimes.
        names: input name -> runtime, for inputs with a backbone.
        threads: of one call.
        measured: one row per input and runtime; empty where the runtime was given.
        remembered: whether all of that was measured by an earlier start.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    embedder: Embedder
    names: dict[str, Runtime]
    threads: int
    measured: list[Measured] = []
    remembered: bool = False

    def lines(self) -> list[str]:
        """A table for a person: what was measured and why."""
        if not self.measured:
            return [f"{name}: {runtime}" for name, runtime in self.names.items()] or ["no input has a backbone"]
        head = ("input", "runtime", "ms at 1", "ms at 4", "difference", "")
        rows = [head, *(_cells(row) for row in self.measured)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        origin = "measured earlier" if self.remembered else "measured now"
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [f"milliseconds a row in batches of 1 and 4, {self.threads} threads, {origin}", *lines]


def choose(bundle: Bundle, *, runtime: str = AUTO, threads: int | None = None, remeasure: bool = False) -> Choice:
    """Choose what each frozen backbone of a bundle runs in.

    ``auto`` takes what is fastest in the mean of batches of 1 and of 4 rows of a made-up example: on a CPU of torch,
    ONNX Runtime, OpenVINO where it is installed, and int8 in either where the bundle holds a graph whose loss was
    measured; on CUDA of torch in float32 and in float16. A runtime in float32 must give torch's tokens. What was found
    is kept in the cache folder for this machine, these versions and this number of threads. Left out are torch.compile
    on CPUs, which takes 20 to 142 s for each shape of input, and OpenVINO with a dynamic int8 graph, which is slower
    there than in float32.

    Args:
        bundle: with its backbones.
        runtime: ``auto``, or one for every input that can: an int8 one leaves inputs without an int8 graph in float.
        threads: of one call; as many as torch uses if None.
        remeasure: forget what was measured.

    Raises:
        SpecError: the runtime is unknown, not installed, not for this device, or in int8 and the bundle holds none.
    """
    if threads is not None and threads < 1:
        raise SpecError(f"threads must be 1 or more, got {threads}.")
    count, names = threads or torch.get_num_threads(), list(bundle.embedder.digests)
    if runtime != AUTO:
        forced = _forced(bundle.embedder, runtime, names)
        return Choice(embedder=bundle.embedder.with_runtimes(forced, threads), names=forced, threads=count)
    embedder, measured, remembered = bundle.embedder, list[Measured](), bool(names)
    for name in names:
        one = InputChoice(bundle, embedder, name, count)
        embedder, rows, known = one.settle(remeasure)
        measured += rows
        remembered &= known
    return Choice(
        embedder=embedder.with_runtimes({}, threads), names={n: embedder.runtime(n) for n in names}, threads=count,
        measured=measured, remembered=remembered,
    )  # fmt: skip


def _forced(embedder: Embedder, runtime: str, names: Sequence[str]) -> dict[str, Runtime]:
    """One runtime for every input that can."""
    if runtime not in RUNTIMES:
        known = [AUTO, *RUNTIMES]
        raise SpecError(f"runtime must be one of {known}, got {runtime!r}.{suggest(runtime, known)}")
    able = set(embedder.int8) if runtime.endswith(INT8) else set(names)
    if names and not able:
        check(runtime, embedder.device, names[0], int8=False)
    other = runtime.removesuffix(INT8)
    return {n: check(runtime if n in able else other, embedder.device, n, n in able) for n in names}


def _cells(row: Measured) -> tuple[str, ...]:
    ms = ("-", "-") if row.ms is None else tuple(f"{value:.2f}" for value in row.ms)
    difference = "-" if row.difference is None else f"{row.difference:.1e}"
    return row.input, row.runtime, *ms, difference, "; ".join(filter(None, ["chosen" * row.chosen, row.why]))
