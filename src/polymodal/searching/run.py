"""search: try settings and parts of a spec, and keep those that score best on validation rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polymodal.data.features import FeatureStore
from polymodal.data.gather import Progress, silent
from polymodal.devices import choose_device
from polymodal.errors import SpecError
from polymodal.metrics import higher_is_better
from polymodal.objectives.monitor import Epoch, monitored
from polymodal.ranks import Ranks
from polymodal.searching.result import SearchResult
from polymodal.searching.score import Judge, Score, standard_error
from polymodal.searching.space import change, default_space, knobs, look, read_space
from polymodal.searching.study import Study
from polymodal.sides import arguments
from polymodal.spec import Spec

WAIT = 5
"""No trial is pruned in the first of so many parts of its epochs."""


def search(  # noqa: PLR0913  (each argument stands for itself)
    spec: Any,
    table: Any = None,
    *,
    target: str | Sequence[str] | None = None,
    space: Mapping[str, Any] | str | Path | None = None,
    trials: int = 30,
    folds: int = 1,
    valid: Any = None,
    metric: str | None = None,
    seed: int | None = None,
    prune: bool = True,
    study: str | Path | None = None,
    timeout: float | None = None,
    device: str = "auto",
    cache: bool = True,
    progress: Progress = silent,
) -> SearchResult:
    """Search for settings and parts that score better than a spec's own.

    The first trial is the spec as it is, so the best is never worse by the score; the next ones are drawn at random,
    then by a tree-structured Parzen estimator. A trial is a fit up to the choice of blend and calibration: it
    scores the answers of the tuned model, with all inputs, on validation rows. Rows to test take no part. What
    backbones give and what does not depend on the changed settings is computed once. With one trial
    and several folds this is a cross-validation of the spec.

    Args:
        spec: to start from (mapping, path of YAML or JSON, `Spec`); or, with ``target``, a table to infer it from.
        table: anything `Table.read` takes; the spec's own ``data.train`` when not given.
        target: column or columns to predict, if the spec is to be inferred.
        space: path of a setting -> a list of values (parts and their settings too) or a mapping with low, high and
            perhaps log or step; or a YAML or JSON file with it. `default_space` when not given.
        trials: how many there are to be, those in the ``study`` included.
        folds: validate each row that is not for testing once, in this many folds; 1 is the spec's own split.
        valid: table to validate on instead of a part of ``table``.
        metric: to compare trials by, and for each to choose its epoch by, in the words of ``training.monitor``; the
            spec's own when not given, by default the loss.
        seed: of the trials and of the search; the spec's when not given.
        prune: stop a trial whose first fold is worse than the median of the others at the same epoch.
        study: file of the search: read if it is there, and written after every trial.
        timeout: begin no trial after this many seconds.
        device: auto, cpu, cuda, ...
        cache: keep what frozen backbones give on disk.
        progress: told how many trials are over.

    Raises:
        SpecError: the spec or the space is wrong, the study is of another search, or Optuna (extra ``search``) is not
            installed.
        DataError: the table cannot be used.

    Source: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", and the median rule of Golovin et al.
    2017, "Google Vizier", both as in Optuna (Akiba et al. 2019, arXiv:1907.10902).
    """
    began = time.monotonic(), time.process_time()
    parsed, tables = arguments(spec, table, target, {"valid": valid})
    start = _started(parsed, metric, seed)
    _check(trials, folds)
    wanted = default_space(start) if space is None else read_space(space)
    found = knobs(start, wanted) if trials > 1 or space is not None else []
    place = choose_device(device)
    if (world := Ranks.join(place).world) > 1:
        raise SpecError(f"search must run in one process, got {world}. Start it without torchrun.")
    judge = Judge.of(start, tables, folds, place, FeatureStore() if cache else None, progress)
    ready = judge.prepare(start)
    facts = {
        "spec": start.model_copy(update={"data": None}).to_yaml(),
        "space": json.dumps({knob.path: [list(knob.values), str(knob.range)] for knob in found}),
        "table": " ".join(fold.sides.digest for fold in ready),
    }
    pruned_from = start.training.epochs // WAIT if prune else None
    higher = higher_is_better(start.training.monitor)
    kept = Study(found, start.seed, higher, pruned_from, None if study is None else Path(study), facts)

    def run(settings: Mapping[str, Any], watch: Callable[[int, float | None], None]) -> Score:
        def on_epoch(epoch: Epoch) -> None:
            watch(epoch.number, epoch.valid_loss if monitored(start) is None else epoch.score)

        return judge.score(change(start, settings), on_epoch)

    while len(kept) < trials and (timeout is None or not len(kept) or time.monotonic() - began[0] < timeout):
        kept.trial(run)
        progress("search", len(kept), trials)
    return _result(start, kept, judge, began[1])


def _started(spec: Spec, metric: str | None, seed: int | None) -> Spec:
    """The spec that the first trial runs."""
    if seed is not None and seed < 0:
        raise SpecError(f"seed must be 0 or more, got {seed}.")
    spec = spec if seed is None else spec.model_copy(update={"seed": seed})
    if metric is not None:
        spec = spec.model_copy(update={"training": spec.training.model_copy(update={"monitor": metric})})
    monitored(spec)
    return Spec.parse(spec.model_dump(mode="json"))


def _check(trials: int, folds: int) -> None:
    for name, value in (("trials", trials), ("folds", folds)):
        if value < 1:
            raise SpecError(f"{name} must be 1 or more, got {value}.")


def _result(start: Spec, study: Study, judge: Judge, began: float) -> SearchResult:
    higher, first = higher_is_better(start.training.monitor), judge.prepare(start)
    found = study.trials()
    for trial in found:
        trial["error"] = standard_error(trial["folds"])
    found[0]["settings"] = {knob.path: look(start, knob.path) for knob in study.knobs}
    scored = [trial for trial in found if trial["score"] is not None]
    best = min(scored, key=lambda trial: -trial["score"] if higher else trial["score"])
    gains = [(b - a) if higher else (a - b) for a, b in zip(found[0]["folds"], best["folds"], strict=True)]
    spec = change(start, best["settings"]) if best["number"] else start
    content = {
        "metric": start.training.monitor,
        "higher_is_better": higher,
        "folds": len(first),
        "rows": sum(len(fold.sides.parts["valid"]) for fold in first),
        "seed": start.seed,
        "spec": spec.to_yaml(),
        "start": found[0],
        "best": best,
        "gain": {"value": sum(gains) / len(gains), "error": standard_error(gains)},
        "importances": study.importances(),
        "trials": found,
        "note": _note(len(found), len(first)),
        "warnings": first[0].sides.warnings,
        "cpu_seconds": time.process_time() - began,
    }
    return SearchResult(spec, content)


def _note(trials: int, folds: int) -> str:
    """What to think of the scores, in words."""
    optimistic = (
        f"The best of {trials} trials is chosen by these very rows, so its score is optimistic. "
        "Judge it on rows that no trial has seen."
    )
    steadier = "Folds make the choice steadier where rows are few."
    overlap = "+- is the standard error over the folds, which share training rows: the truth is rather wider."
    said = [(optimistic, trials > 1), (steadier, trials > 1 and folds == 1), (overlap, folds > 1)]
    return " ".join(line for line, holds in said if holds)
