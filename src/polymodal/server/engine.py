"""Engine: a bundle taken apart into what is done row by row and what is done in batches."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from polymodal.asking import prompts
from polymodal.bundle import Bundle
from polymodal.data.clean import Quarantined
from polymodal.data.embedding import Embedder
from polymodal.data.features import cache_folder
from polymodal.data.gather import embed_values
from polymodal.data.source import read_cell
from polymodal.decoder.conversation import Conversation
from polymodal.errors import DataError, SpecError
from polymodal.explain.rows import Answering, Game, explain_batch
from polymodal.part import Modality
from polymodal.predictions import by_row
from polymodal.tracing import answerer
from polymodal.types import Batch, Masked

Found = TypeVar("Found")

EMBED = 4
"""Rows that go through a backbone together: on a CPU more of them take longer per row, as fewer do."""

SEVERAL = 5
"""Rows of the largest made-up batch: more than one call of a backbone."""


@dataclass(slots=True)
class Row:
    """One decoded row.

    Attributes:
        values: input name -> what its modality read; only inputs that have something usable.
        broken: cells that could not be read and count as absent: {"input", "column", "reason"}.
        repairs: input name -> what was mended ("cut after 128 tokens", "colour: unseen category").
        explain: whether to say what each input did to the answer.
    """

    values: dict[str, Any]
    broken: list[dict[str, str]] = field(default_factory=list)
    repairs: dict[str, list[str]] = field(default_factory=dict)
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of one row; everything in it is JSON.

    Attributes:
        prediction: task name -> prediction with its certainty, as in `Predictions`.
        absent: inputs that had nothing usable.
        broken: as in `Row`.
        repairs: as in `Row`.
        explanation: as in `Predictions.explanations`, without parts; None unless asked for.
    """

    prediction: dict[str, dict[str, Any]]
    absent: list[str]
    broken: list[dict[str, str]]
    repairs: dict[str, list[str]]
    explanation: dict[str, Any] | None = None


class Engine:
    """Answers rows as `Bundle.predict` does, through the same `read`, `collate`, backbones and heads.

    A batch may hold rows with any inputs present and of any length. It is grouped input by input: only the rows that
    have an input are collated, sorted by length, and embedded in chunks of `EMBED` rows of like length, so that
    neither absent rows nor padding cost time. The tokens (or their summaries) are then spread back over the batch,
    and the fusion and the heads answer all rows in one call. An input that no row has is left out of it.

    Args:
        bundle: in evaluation mode.
        max_pixels: images that have more are refused before they are decoded.
        max_seconds: sounds that are longer are refused.
        embedder: of the bundle's backbones, in the runtimes of choice; the bundle's own if None.
        beside: idle threads in it embed the second input while the first one is being embedded; none if None.
        lanes: calls of `answer` that there are cores for. While so many run, none takes a thread beside it: more
            threads than cores cost more than they bring.

    Attributes:
        bundle: that answers.
        embedder: keeps nothing on disk.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_pixels: int,
        max_seconds: float,
        embedder: Embedder | None = None,
        beside: Executor | None = None,
        lanes: int = 1,
    ) -> None:
        self.bundle, self.embedder = bundle, (embedder or bundle.embedder).without_store()
        self.max_seconds, self.beside, self._lanes = max_seconds, beside, lanes
        self._running, self._counting = 0, threading.Lock()
        self._parts = {name: _bounded(part, max_pixels) for name, part in bundle.spec.inputs.items()}
        self._slow = {name for name in self._parts if self.embedder.backbone(name) is not None}
        self._decode = _head(bundle)

    def read(self, cells: Mapping[str, Any], *, strict: bool = True, explain: bool = False) -> Row:
        """Decode one row. May be called from several threads.

        Args:
            cells: column -> cell; media as bytes. Columns may be left out and cells may be None.
            strict: refuse a broken cell; else it counts as absent and is listed.
            explain: ask for an explanation.

        Raises:
            DataError: a cell is broken and ``strict``; the message starts with its column.
        """
        row = Row({}, explain=explain)
        for name, part in self._parts.items():
            reading = read_cell(name, part, cells)
            if isinstance(reading, Quarantined):
                row.broken.append({"input": name, "column": reading.column, "reason": reading.reason})
            elif reading is not None:
                row.broken += [{"input": name, "column": c, "reason": r} for c, r in reading.broken.items()]
                if reading.facts.get("seconds", 0.0) > self.max_seconds:
                    row.broken.append(self._too_long(name, reading.facts["seconds"]))
                    continue
                if reading.repairs:
                    row.repairs[name] = list(reading.repairs)
                if reading.value is not None:
                    row.values[name] = reading.value
        if strict and row.broken:
            first = row.broken[0]
            raise DataError(f"{first['column']}: {first['reason']}")
        return row

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """Answer decoded rows together. May be called from several threads.

        Returns:
            One answer per row, in order. A row without any input gets the answer that the model has for nothing.
        """
        spec = self.bundle.spec
        inputs, decoded = self.raw(rows)
        values = {name: [row.values.get(name) for row in rows] for name in spec.about}
        found = by_row(spec, {n: output.cpu() for n, output in decoded.items()}, values)
        present = {name: x.present.tolist() for name, x in inputs.items()}
        told = self._explanations(rows, inputs)
        return [
            Answer(
                found[i],
                [name for name in self._parts if name not in present or not present[name][i]],
                row.broken,
                row.repairs,
                told.get(i),
            )
            for i, row in enumerate(rows)
        ]

    @torch.inference_mode()
    def raw(self, rows: Sequence[Row]) -> tuple[dict[str, Masked], Mapping[str, Tensor]]:
        """What the model takes of decoded rows, by input, and its raw outputs, by task."""
        with self._counted():
            inputs = self._inputs(rows)
        return inputs, self._decode(inputs)

    @torch.inference_mode()
    def prompt(self, task: str, rows: Sequence[Row], other: Conversation | None) -> Tensor:
        """What the language model of a task reads about decoded rows, as embeddings (L, W).

        Args:
            task: that answers.
            rows: the one that is asked about, or the user's turns of a conversation.
            other: what else was said in it.

        Raises:
            SpecError: the language model takes no such conversation.
        """
        with self._counted():
            inputs = self._inputs(rows)
        x = prompts(self.bundle.model, task, inputs, other)
        return x.values[0, x.mask[0]]

    def warm(self) -> None:
        """Answer made-up rows, so that all is loaded before the first request: all inputs, each alone, several."""
        cells = {}
        for name, part in self._parts.items():
            cells[name] = {f.column: f.example for f in part.fields(name) if f.example is not None}
        whole = self.read({c: cell for some in cells.values() for c, cell in some.items()}, strict=False, explain=True)
        for row in (whole, *(self.read(some, strict=False) for some in cells.values())):
            self.answer([row])
        self.answer([whole] * SEVERAL)

    def _inputs(self, rows: Sequence[Row]) -> dict[str, Masked]:
        """What the model takes, on its device: input name -> (B, N, ...), for inputs that any row has."""
        here = {name: torch.tensor([name in row.values for row in rows]) for name in self._parts}
        names = [name for name, present in here.items() if bool(present.any())]
        names = names or [next(iter(self._parts))]  # the model must at least see how many rows there are
        slow = [name for name in names if name in self._slow]
        jobs = [partial(self._input, name, here[name], rows) for name in slow]
        found = dict(zip(slow, self._together(jobs), strict=True))
        found |= {name: self._input(name, here[name], rows) for name in names if name not in found}
        return {name: found[name].to(self.bundle.device) for name in names}

    @torch.inference_mode()
    def _input(self, name: str, here: Tensor, rows: Sequence[Row]) -> Masked:
        """One input of all rows: (B, N, ...); ``here`` (B,) says which rows have it."""
        part = self._parts[name]
        if name not in self._slow or not bool(here.any()):
            x = self.embedder.embed(name, part.collate([row.values.get(name) for row in rows]))
            return self._summed(name, x)
        values = [row.values[name] for row in rows if name in row.values]
        return self._summed(name, embed_values(self.embedder, name, values, EMBED)).spread(here)

    def _summed(self, name: str, x: Masked) -> Masked:
        return self.embedder.summary(name, x) if name in self.embedder.summarised else x

    def _together(self, jobs: Sequence[Callable[[], Found]]) -> list[Found]:
        """Do jobs, the first one here and the others beside it in threads that happen to be idle."""
        if self.beside is None or len(jobs) < 2 or self._running >= max(2, self._lanes):
            return [job() for job in jobs]
        others = [self.beside.submit(job) for job in jobs[1:]]
        try:
            first = jobs[0]()
            # what no thread has begun is done here: all of them are busy
            return [first, *(job() if o.cancel() else o.result() for o, job in zip(others, jobs[1:], strict=True))]
        finally:
            for other in others:
                other.cancel()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a call while it embeds."""
        with self._counting:
            self._running += 1
        try:
            yield
        finally:
            with self._counting:
                self._running -= 1

    def _explanations(self, rows: Sequence[Row], inputs: Mapping[str, Masked]) -> dict[int, dict[str, Any]]:
        """Explanation by number, of the rows that asked for one."""
        asked = [i for i, row in enumerate(rows) if row.explain]
        if not asked:
            return {}
        some = Batch({name: x[torch.tensor(asked, device=x.mask.device)] for name, x in inputs.items()})
        game = Game(self.bundle.model, some, answer=self._decode)
        return dict(zip(asked, explain_batch(game, self.bundle.spec.seed), strict=True))

    def _too_long(self, name: str, seconds: float) -> dict[str, str]:
        reason = f"sound must last at most {self.max_seconds:g} s, got {seconds:.2f} s. Send a shorter one."
        return {"input": name, "column": ", ".join(self._parts[name].columns(name)), "reason": reason}


def _bounded(part: Modality, max_pixels: int) -> Modality:
    """A part that takes no larger images than a server wants to decode; other parts as they are."""
    own = getattr(part, "max_pixels", None)
    return part if own is None or own <= max_pixels else part.model_copy(update={"max_pixels": max_pixels})


def _head(bundle: Bundle) -> Answering:
    """From inputs to raw answers by task, in the fastest way there is for this model here."""
    if bundle.device.type == "cpu" and not bundle.model.decoders:
        try:
            return answerer(bundle.model, cache_folder() / "graphs")
        except SpecError as error:
            warnings.warn(f"The model answers in torch, which takes longer: {error}", RuntimeWarning, stacklevel=3)
    return lambda inputs: bundle.model.answer(inputs).decoded
