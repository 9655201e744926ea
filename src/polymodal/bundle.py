"""Bundle: a fitted spec, its weights and its report; what a user keeps, loads and asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from polymodal.data.embedding import Embedder
from polymodal.data.features import FeatureStore
from polymodal.data.gather import Progress, silent
from polymodal.data.loader import Prepared, named_as, prepare
from polymodal.data.table import Table
from polymodal.devices import choose_device
from polymodal.errors import BundleError, DataError, SpecError
from polymodal.evaluate import BATCH, Report, evaluate
from polymodal.folder import Content, check_place
from polymodal.int8 import Held
from polymodal.model import Model
from polymodal.nn import weights
from polymodal.nn.adapt import Adapter, adapted
from polymodal.nn.backbone import Backbone
from polymodal.nn.language.files import copy_language
from polymodal.predictions import Predictions, by_row
from polymodal.spec import Spec

if TYPE_CHECKING:
    from polymodal.diagnose.run import Diagnosis

CHUNK = 256
"""Rows of a table that are in memory together at prediction."""

TOGETHER = 32
"""Rows that are answered together where each token is answered for."""


@dataclass(slots=True, repr=False)
class Bundle:
    """A model that a user can rely on.

    Attributes:
        spec: fitted.
        model: in evaluation mode.
        report: of the fit, as JSON.
        device: that the model runs on.
        embedder: the frozen backbones; its store serves `evaluate`, not `predict`.
        warnings: of the fit, for a person.
        adapters: input name -> changes of its backbone since it was pretrained, in order.
        int8: int8 graphs of its backbones and what was measured with them; None where the folder held none.
    """

    spec: Spec
    model: Model
    report: dict[str, Any]
    device: torch.device
    embedder: Embedder
    warnings: list[str] = field(default_factory=list)
    adapters: Mapping[str, Sequence[Adapter]] = field(default_factory=dict)
    int8: Held | None = None

    def __repr__(self) -> str:
        """What goes in, what comes out, where it runs."""
        return f"Bundle({', '.join(self.spec.inputs)} -> {', '.join(self.spec.outputs)}, {self.device})"

    def predict(
        self,
        table: Any,
        *,
        explain: bool | Literal["inputs"] = False,
        strict: bool = False,
        allow_paths: bool = True,
        progress: Progress = silent,
    ) -> Predictions:
        """Predict every row.

        Args:
            table: rows (a list of mappings), a path, or any table `Table.read` takes. Columns may be left out and
                cells may be None: that input is then absent.
            explain: also say what each input did to the answer, and each word, region, stretch or column of it, which
                takes many passes per row; ``inputs`` leaves the second out (see `polymodal.explain.rows.explain`).
            strict: raise on a broken cell instead of counting it as absent.
            allow_paths: whether cells may name files and URLs.
            progress: told how far it is.

        Raises:
            DataError: the table cannot be read, or no input's column is in it.
            SpecError: explanations need a package that is not installed.
        """
        rows, predictions = self._read(table), Predictions()
        for start in range(0, len(rows), CHUNK):
            chunk = rows.select(range(start, min(start + CHUNK, len(rows))))
            prepared = self._predict_chunk(chunk, predictions, start, strict, allow_paths)
            if explain:
                from polymodal.explain.rows import explain as explain_rows  # which few predictions need

                predictions.explanations += explain_rows(
                    self.model, prepared, chunk, self.embedder.without_store(), self.device, parts=explain is True,
                    allow_paths=allow_paths, seed=self.spec.seed,
                )  # fmt: skip
            progress("predict", min(start + CHUNK, len(rows)), len(rows))
        return predictions

    def _read(self, table: Any) -> Table:
        return named_as(self.spec, Table.read(table))

    def _predict_chunk(
        self, chunk: Table, predictions: Predictions, first: int, strict: bool, allow_paths: bool
    ) -> Prepared:
        prepared = prepare(
            self.spec, chunk, self.embedder.without_store(), targets=False, strict=strict, allow_paths=allow_paths,
            first=first,
        )  # fmt: skip
        predictions.reports.append(prepared.report)
        answers, absent = dict[int, dict[str, Any]](), dict[int, list[str]]()
        for rows in _batches(len(prepared), prepared.values):
            batch = prepared.batch(torch.tensor(rows)).to(self.device)
            decoded = self.model.answer(batch.inputs).decoded
            some = {name: [read[i] for i in rows] for name, read in prepared.values.items()}
            found = by_row(self.spec, {n: output.cpu() for n, output in decoded.items()}, some)
            present = {name: x.present.tolist() for name, x in batch.inputs.items()}
            answers |= dict(zip(rows, found, strict=True))
            absent |= {row: [name for name in present if not present[name][i]] for i, row in enumerate(rows)}
        predictions += [answers[row] for row in range(len(prepared))]
        predictions.absent += [absent[row] for row in range(len(prepared))]
        return prepared

    def evaluate(
        self, table: Any, *, strict: bool = False, seed: int | None = None, progress: Progress = silent
    ) -> Report:
        """Score the model on labelled rows: all inputs, without each, with each alone, and the baselines.

        Args:
            table: anything `Table.read` takes, with the targets' columns.
            strict: raise on a broken cell instead of counting it as absent.
            seed: of the bootstrap; the spec's when not given.
            progress: told how far it is.

        Raises:
            DataError: no target column, or nothing labelled.
            SpecError: the seed is below 0.
        """
        if seed is not None and seed < 0:
            raise SpecError(f"seed must be 0 or more, got {seed}.")
        prepared = prepare(self.spec, self._read(table), self.embedder, strict=strict, progress=progress).labelled()
        if not len(prepared):
            raise DataError(f"{prepared.report.source} must have labelled rows to evaluate on, got none.")
        return evaluate(self.model, prepared, self.device, self.spec.seed if seed is None else seed)

    def diagnose(
        self,
        table: Any,
        *,
        train: Any = None,
        metric: str | None = None,
        curve_rows: int = 32,
        repeats: int = 300,
        strict: bool = False,
        seed: int | None = None,
        progress: Progress = silent,
    ) -> Diagnosis:
        """Say what each input carries, what the model makes of it, where it breaks, and which one is weak.

        Args:
            table: labelled rows that the model has not learned from; anything `Table.read` takes.
            train: table that it has learned from, to look for the same content in.
            metric: score to judge by; each task's headline score when not given.
            curve_rows: rows whose cells are corrupted step by step; 0 leaves the curves out.
            repeats: resamples behind each interval.
            strict: raise on a broken cell instead of counting it as absent.
            seed: of resamples, permutations and noises; the spec's when not given.
            progress: told how far it is.

        Raises:
            DataError: a table cannot be used, or nothing is labelled.
            SpecError: no task has the metric.
        """
        table = self._read(table)
        prepared = prepare(self.spec, table, self.embedder, strict=strict, progress=progress)
        learned = None if train is None else prepare(self.spec, self._read(train), self.embedder, progress=progress)
        from polymodal.diagnose.run import diagnose  # much code that fit and predict do without

        return diagnose(
            self.model, prepared, table, self.embedder, self.device, fit_report=self.report.get("fit", {}),
            metric=metric, curve_rows=curve_rows, repeats=repeats, train=learned,
            seed=self.spec.seed if seed is None else seed, progress=progress,
        )  # fmt: skip

    @staticmethod
    def check_place(path: str | Path) -> Path:
        """The absolute path of a folder that a bundle may be written to.

        Raises:
            BundleError: something that is no bundle is there.
        """
        return check_place(path)

    def save(self, path: str | Path, *, self_contained: bool = False) -> Path:
        """Write the bundle as a folder, whole or not at all.

        Args:
            path: a new folder, an empty one, or a bundle to replace.
            self_contained: also hold the frozen backbones' files, so that nothing else must be installed.

        Raises:
            BundleError: the folder holds something else, or cannot be written. What was there stays.
        """
        content = Content(
            self.spec, self.model.state_dict(), self.report, self.embedder.digests, self.adapters, self.int8
        )
        return content.write(path, self._copy_files if self_contained else None)

    def _copy_files(self, folder: Path) -> None:
        """Copy the files of every backbone and language model."""
        self.embedder.copy_files(folder)
        for name in {head.plan.pretrained for head in self.model.decoders.values()}:
            copy_language(name, folder)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", store: FeatureStore | None = None) -> Self:
        """Read a bundle.

        Raises:
            BundleError: the folder is no bundle, is incomplete or damaged, is of a newer version, or a backbone it
                needs is not there or not the one it was trained with.
        """
        path = Path(path)
        if (path / "backbones").is_dir():
            weights.search_also(path / "backbones")
        content, chosen = Content.read(path), choose_device(device)
        graphs = content.int8.graphs if content.int8 is not None else {}
        embedder = Embedder(content.spec, chosen, store, _adapted(content, path), graphs)
        embedder.check(content.backbones, path)
        model = Model(content.spec)
        try:
            model.load_state_dict(content.weights)
        except RuntimeError as error:
            raise BundleError(f"{path / 'weights.safetensors'} must fit the spec: {error}") from None
        return cls(
            content.spec, model.to(chosen).eval(), content.report, chosen, embedder, adapters=content.adapters,
            int8=content.int8,
        )  # fmt: skip


def _batches(count: int, values: Mapping[str, Sequence[Any | None]]) -> list[list[int]]:
    """Numbers of the rows that are answered together; of like length, so that little is padding, where ``values`` are.

    Args:
        count: of rows.
        values: input name -> what was read in each row, for every input that a task is about.
    """
    order, size = list(range(count)), BATCH
    if values:
        lengths = [
            max(0 if value is None else len(value) for value in row) for row in zip(*values.values(), strict=True)
        ]
        order.sort(key=lengths.__getitem__)
        size = TOGETHER
    return [order[start : start + size] for start in range(0, count, size)]


def _adapted(content: Content, path: Path) -> dict[str, Backbone]:
    """Backbones with their changes merged, by input.

    Raises:
        BundleError: a change is of no input, or of another backbone.
    """
    found = {}
    for name, adapters in content.adapters.items():
        base = content.spec.inputs[name].backbone() if name in content.spec.inputs else None
        if base is None:
            raise BundleError(f"{path}: an adapter must be of an input with a backbone, got {name!r}. Copy it again.")
        try:
            found[name] = adapted(base, adapters)
        except BundleError as error:
            raise BundleError(f"{path / 'adapters.safetensors'}: {name}: {error}") from None
    return found
