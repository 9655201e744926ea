"""What a spec scores on validation rows: trained, tuned and judged on each fold, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor

from polymodal.baselines import fit_baselines
from polymodal.data.features import FeatureStore
from polymodal.data.gather import Progress
from polymodal.data.loader import Prepared
from polymodal.errors import PolymodalError, SpecError
from polymodal.evaluate import answers
from polymodal.learn import Tuned, started
from polymodal.model import Model
from polymodal.objectives.monitor import Epoch, best_epoch, monitored
from polymodal.sides import Sides, Tables
from polymodal.spec import Spec
from polymodal.train import Trainer
from polymodal.tune import tune

KEPT = 4
"""Preparations that are held in memory at once, for trials that change inputs."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a spec scored.

    Attributes:
        value: mean over the folds.
        folds: of each one.
        epochs: that the weights of each one are from, counted from 1.
    """

    value: float
    folds: list[float]
    epochs: list[int]

    @property
    def error(self) -> float | None:
        """Standard error of the mean over the folds; None with one.

        The folds' training rows overlap, so it is rather too small.

        Source: Bengio and Grandvalet 2004, "No unbiased estimator of the variance of K-fold cross-validation".
        """
        return standard_error(self.folds)


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None of one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


@dataclass(slots=True)
class Ready:
    """One fold, prepared for all specs with the same inputs and outputs.

    Attributes:
        sides: with train and valid.
        linear: state of its linear models, which depend on nothing else, once they are fitted.
    """

    sides: Sides
    linear: Mapping[str, Tensor] | None = None


@dataclass(slots=True)
class Judge:
    """Scores specs on the same rows.

    Attributes:
        tables: to take rows from.
        rows: row numbers by side for each fold.
        device: to train on.
        store: of features, or None.
        progress: told how far the preparation is.
        ready: folds by what they depend on.
    """

    tables: Tables
    rows: list[dict[str, np.ndarray]]
    device: torch.device
    store: FeatureStore | None
    progress: Progress
    ready: dict[str, list[Ready]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        spec: Spec,
        tables: Tables,
        folds: int,
        device: torch.device,
        store: FeatureStore | None,
        progress: Progress,
    ) -> Judge:
        """Divide the rows: as the spec's split does, or into folds. Those to test are left out.

        Raises:
            DataError: a column of the spec is missing, or there are too few rows.
            SpecError: the split and the tables contradict each other.
        """
        rows = [tables.divide(spec)] if folds == 1 else tables.folds(spec, folds)
        used = Tables(tables.train, {side: table for side, table in tables.others.items() if side == "valid"})
        kept = [{side: part for side, part in fold.items() if side != "test"} for fold in rows]
        return cls(used, kept, device, store, progress)

    def prepare(self, spec: Spec) -> list[Ready]:
        """Every fold, prepared for the inputs and outputs of a spec.

        Raises:
            DataError: the tables cannot be used.
            SpecError: there are no rows to validate on.
        """
        parts = {name: part.model_dump_json() for name, part in (*spec.inputs.items(), *spec.outputs.items())}
        key = f"{parts} {spec.summarised} {list(spec.finetuned)}"
        if key not in self.ready:
            found = [
                Ready(Sides.of(spec, self.tables, self.device, self.store, rows=rows, progress=self.progress))
                for rows in self.rows
            ]
            if any("valid" not in fold.sides.parts for fold in found):
                raise SpecError("search must have labelled rows to validate on, got none. Set split.valid, or folds.")
            while len(self.ready) >= KEPT:
                self.ready.pop(next(iter(self.ready)))
            self.ready[key] = found
        return self.ready[key]

    def score(self, spec: Spec, on_epoch: Callable[[Epoch], None]) -> Score:
        """Train and tune a spec on each fold and judge its answers, with all inputs only.

        Args:
            spec: not fitted.
            on_epoch: told each epoch of the first fold; what it raises ends the trial.

        Raises:
            PolymodalError: the spec cannot be trained or judged.
        """
        values, epochs = [], []
        for fold in self.prepare(spec):
            fitted = spec.model_copy(update={"inputs": fold.sides.spec.inputs, "outputs": fold.sides.spec.outputs})
            value, best = self._learn(fitted, fold, on_epoch if not values else _unwatched)
            values.append(value)
            epochs.append(best)
        return Score(fmean(values), values, epochs)

    def _learn(self, spec: Spec, fold: Ready, on_epoch: Callable[[Epoch], None]) -> tuple[float, int]:
        parts, embedder = fold.sides.parts, fold.sides.embedder
        model = started(spec, embedder, parts["train"], self.device)
        history = Trainer(model, parts["train"], parts["valid"], self.device).run(on_epoch)
        tuned = Tuned.of(model, embedder, parts, self.progress)
        train, valid = tuned.sides["train"], tuned.sides["valid"]
        if fold.linear is None or tuned.adapters:
            fit_baselines(model, train, valid, self.device)
            fold.linear = {name: t.clone() for name, t in model.linear.state_dict().items()}
        model.linear.load_state_dict(fold.linear)
        tune(model, valid, self.device)
        value = _value(model, valid, self.device)
        tuned.forget()
        return value, best_epoch(history, spec.training.monitor).number + 1


def _unwatched(epoch: Epoch) -> None:
    """Take an epoch that nobody waits for."""


def _value(model: Model, valid: Prepared, device: torch.device) -> float:
    """What the spec monitors, of the answers that a user would get.

    Raises:
        PolymodalError: it is not defined here.
    """
    seen, watched = answers(model, valid, device), monitored(model.spec)
    if watched is None:
        tasks = model.spec.outputs.items()
        value = sum(task.weight * float(task.loss(seen.outputs[n], seen.targets[n])) for n, task in tasks)
    else:
        n, name = watched
        value = model.spec.outputs[n].metrics(seen.outputs[n], seen.targets[n]).get(name, math.nan)
    if not math.isfinite(value):
        raise PolymodalError(f"{model.spec.training.monitor} must be finite on the validation rows, got {value}.")
    return value
