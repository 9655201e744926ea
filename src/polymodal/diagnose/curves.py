"""Robustness curves: scores as one input is corrupted step by step, and as it is taken from more and more rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polymodal.data.embedding import Embedder
from polymodal.data.gather import EMBED, Progress, silent
from polymodal.data.loader import Prepared
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.evaluate import BATCH, answers
from polymodal.model import Model
from polymodal.part import Reading
from polymodal.types import Batch, Masked

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CHEAP = 4  # times as many rows of inputs that are no files and have no backbone, which cost next to nothing
MOST = 3 << 20  # bytes of collated values of one step: rows are fewer where the values are large,
FEWEST = 8  # but no fewer than this

Scores = dict[str, float | None]
"""Task name -> its score, None where it is not defined."""

Curves = dict[str, dict[str, Any]]
"""Task name -> a curve."""


@torch.no_grad()
def curves(  # noqa: PLR0913  (each argument stands for itself)
    model: Model,
    table: Table,
    prepared: Prepared,
    embedder: Embedder,
    device: torch.device,
    *,
    rows: int,
    seed: int,
    metric: Mapping[str, str],
    progress: Progress = silent,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Score a model as each input gets worse, all others staying as they are.

    Each of `Modality.corruptions` is applied in its ten severities to a sample of the labelled rows that have the
    input, evenly spread over the first task's targets. One noise has the same random numbers in every step, so that
    steps differ in severity only. "removed" hides the input in a growing share of those rows, and scores all labelled
    rows. Scores are as they come: nothing is smoothed.

    Args:
        model: in evaluation mode.
        table: that ``prepared`` was made from: corruption needs the raw cells.
        prepared: rows with features and targets; those without a label are left out.
        embedder: of the backbones. Corrupted features are not kept.
        device: of the model.
        rows: sampled at most for an input. Four times as many of one that is no file and has no backbone; fewer, but at
            least 8, where they would take more than 3 MiB (20 images of 224 x 224 pixels, 49 seconds of 16 kHz sound).
        seed: of the sample and the noise.
        metric: task name -> the score that is asked for.
        progress: told how far it is.

    Returns:
        Task name -> input name -> noise -> ``unit``, ``rows`` (those with a target), ``clean`` (the score of these rows
        as they are), ``steps`` (``level`` in 0..1, ``severity`` in the unit, ``score``) and ``area``: under the score
        over the level, 0 (clean) to 1, by the trapezoid rule. Scores that are not defined, and areas over them, are
        None. An input that no labelled row has gets no curves.
    """
    probe = Probe(model, table, prepared.labelled(), embedder, device, metric)
    found: dict[str, dict[str, dict[str, Any]]] = {n: {} for n in metric}
    for name in model.spec.inputs:
        here = probe.present(name)
        if len(here):
            own = probe.noises(name, here, rows, seed, progress) | {"removed": probe.removed(name, here, seed)}
            for n in metric:
                found[n][name] = {noise: curve[n] for noise, curve in own.items()}
    return found


def area(scores: Sequence[float | None]) -> float | None:
    """Area under scores at evenly spaced levels 0 to 1, by the trapezoid rule; None if one is not defined."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    return float(np.trapezoid(known, dx=1 / (len(known) - 1)))


def spread(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of so many positions, evenly spaced. (n,) int64."""
    wanted = min(count, wanted)
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.int64)


class Probe:
    """Makes one input of a table worse and scores what a model then answers. Arguments as of `curves`."""

    def __init__(
        self,
        model: Model,
        table: Table,
        prepared: Prepared,
        embedder: Embedder,
        device: torch.device,
        metric: Mapping[str, str],
    ) -> None:
        self.model, self.table, self.prepared, self.embedder = model, table, prepared, embedder
        self.device, self.metric = device, metric
        self.full = answers(model, prepared, device)

    def present(self, name: str) -> np.ndarray:
        """Positions of the rows that have an input. (n,) int64."""
        kept = self.prepared.inputs[name]
        here = torch.cat([kept.batch(rows).present for rows in self.prepared.rows.split(BATCH)])
        return here.nonzero().flatten().numpy()

    def removed(self, name: str, here: np.ndarray, seed: int) -> Curves:
        """Hide an input in a growing share of the rows ``here``; what is hidden once stays so.

        A row's answer depends on no other row, so that two passes give every step.
        """
        without = answers(self.model, self.prepared, self.device, [name]).outputs
        tasks = self.model.spec.outputs
        both = {n: tasks[n].join([output, without[n]]) for n, output in self.full.outputs.items()}
        order, steps = torch.from_numpy(_rng(seed, name, "removed").permutation(here)), []
        for rate in (0.0, *RATES):
            gone = order[: round(rate * len(order))]
            rows = torch.arange(len(self.prepared)).index_add(0, gone, torch.full((len(gone),), len(self.prepared)))
            mixed = {n: output[rows] for n, output in both.items()}
            steps.append(self._scores(mixed, self.full.targets))
        return self._curves("share of rows", self.full.targets, RATES, steps)

    def noises(self, name: str, here: np.ndarray, rows: int, seed: int, progress: Progress) -> dict[str, Curves]:
        """Corrupt an input in a sample of the rows ``here``, by every noise that its modality has."""
        corruptions = self.model.spec.inputs[name].corruptions
        if not corruptions:
            return {}
        picked, values = self._sample(name, here, rows, seed)
        if not values:
            return {}
        batch, found = self.prepared.batch(picked), dict[str, Curves]()
        digests = [digest for digest, _ in self._contents(name, values)]
        original = dict(zip(digests, batch.inputs[name].split(), strict=True))
        clean, total = self._answer(batch), sum(len(corruption.levels) for corruption in corruptions.values())
        done = 0
        for noise, corruption in corruptions.items():
            steps, known = [clean], original
            for level in corruption.levels:
                worse = self._contents(name, corruption.apply(values, level, _rng(seed, name, noise)))
                # What comes again comes from the step before, or is unchanged.
                known = original | self._features(name, worse, known)
                rows_now = Masked.join([known[digest] for digest, _ in worse])
                steps.append(self._answer(replace(batch, inputs={**batch.inputs, name: rows_now})))
                progress(f"corrupt {name}", done := done + 1, total)
            found[noise] = self._curves(corruption.unit, batch.targets, corruption.levels, steps)
        return found

    def _sample(self, name: str, here: np.ndarray, rows: int, seed: int) -> tuple[Tensor, list[Any | None]]:
        """Positions of the rows to corrupt, spread over the first task's targets, and their values as read.

        A file that is gone since the features were computed takes its row out.
        """
        modality = self.model.spec.inputs[name]
        costly = modality.media or self.embedder.backbone(name) is not None
        target = next(iter(self.prepared.targets.values()))[self.prepared.rows[torch.from_numpy(here)]]
        first = target.values.reshape(len(here), -1)[:, 0].double().masked_fill(~target.mask[:, 0], torch.inf).numpy()
        ranked = here[np.lexsort((_rng(seed, name, "rows").random(len(here)), first))]
        picked = ranked[spread(len(ranked), rows if costly else CHEAP * rows)]
        values = self._read(name, picked)
        there = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
        size = sum(row.values.nbytes for _, row in self._contents(name, values))
        kept = there[spread(len(there), max(FEWEST, len(there) * MOST // max(1, size)))]
        return torch.from_numpy(picked[kept]), [values[i] for i in kept]

    def _read(self, name: str, picked: np.ndarray) -> list[Any | None]:
        """Decode an input's cells of some rows, as they were prepared."""
        source = Source(name, self.model.spec.inputs[name], self.table)
        numbers = self.prepared.rows[torch.from_numpy(picked)].numpy()
        readings = [source.read(row, cell) for row, cell in zip(numbers.tolist(), source.some(numbers), strict=True)]
        return [reading.value if isinstance(reading, Reading) else None for reading in readings]

    def _contents(self, name: str, values: Sequence[Any | None]) -> list[tuple[bytes, Masked]]:
        """Each value collated, with a digest of what is in it."""
        rows = self.model.spec.inputs[name].collate(values).split()
        return [(_digest(row), row) for row in rows]

    def _features(
        self, name: str, contents: Sequence[tuple[bytes, Masked]], known: Mapping[bytes, Masked]
    ) -> dict[bytes, Masked]:
        """What the model takes of each content, by digest; computed where it is not known, similar lengths together."""
        fresh = {digest: row for digest, row in contents if digest not in known}
        found = {digest: known[digest] for digest, _ in contents if digest in known}
        order = sorted(fresh, key=lambda digest: fresh[digest].mask.shape[1])
        for start in range(0, len(order), EMBED):
            some = order[start : start + EMBED]
            made = self.embedder.embed(name, Masked.join([fresh[digest] for digest in some]))
            made = self.embedder.summary(name, made) if name in self.embedder.summarised else made
            found |= dict(zip(some, made.split(), strict=True))
        return found

    def _answer(self, batch: Batch) -> Scores:
        """Scores of one batch."""
        outputs = self.model.answer(batch.to(self.device).inputs).decoded
        return self._scores({n: output.cpu() for n, output in outputs.items()}, batch.targets)

    def _scores(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Masked]) -> Scores:
        tasks = self.model.spec.outputs
        return {n: tasks[n].metrics(outputs[n], targets[n]).get(score) for n, score in self.metric.items()}

    def _curves(
        self, unit: str, targets: Mapping[str, Masked], levels: Sequence[float], scores: Sequence[Scores]
    ) -> Curves:
        """Lay the scores of every step, the clean one first, out by task."""
        return {
            n: {
                "unit": unit,
                "rows": int(targets[n].present.sum()),
                "clean": scores[0][n],
                "steps": [
                    {"level": round(i / len(levels), 6), "severity": level, "score": score[n]}
                    for i, (level, score) in enumerate(zip(levels, scores[1:], strict=True), 1)
                ],
                "area": area([score[n] for score in scores]),
            }
            for n in self.metric
        }


def _rng(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *"/".join(names).encode()])


def _digest(row: Masked) -> bytes:
    """Digest of a collated row (1, n, ...)."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in (row.values, row.mask, row.at):
        if tensor is not None:
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.digest()
