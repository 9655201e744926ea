"""What came of a search: the best spec, every trial, and what they say together."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polymodal.errors import PolymodalError
from polymodal.spec import Spec

SHOWN = 10
"""Trials that are printed."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What came of a search. Prints as a page; `to_dict` holds all of it.

    Attributes:
        best: the spec with the best score, not fitted, as `fit` takes it. The one that was given if none is better.
        content: as JSON. ``metric``, ``higher_is_better``, ``folds``, ``rows`` to validate on (over all folds),
            ``seed``, ``spec`` (the best, as YAML), ``trials``, ``start`` and ``best`` (two of them), ``gain``
            (``value`` of the best over the start, positive where it is better, and its ``error`` over the folds),
            ``importances`` by setting or None, ``note``, ``warnings``, ``cpu_seconds`` of this call.

            A trial has ``number``, ``state`` (complete, pruned, failed), ``score``, ``error`` (standard error over the
            folds; None with one), ``folds`` (score of each), ``epochs`` (that the weights of each are from; of a
            pruned trial, how many it had), ``settings`` by path, and ``reason`` where it failed.
    """

    best: Spec
    content: dict[str, Any]

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Every trial, in the order in which they were made; the first one is the spec that was given."""
        return self.content["trials"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able mappings."""
        return json.loads(json.dumps(self.content))

    def __str__(self) -> str:
        """The best against the start, what mattered, the best trials, and what to think of them."""
        said, start, best = self.content, self.content["start"], self.content["best"]
        better = "higher" if said["higher_is_better"] else "lower"
        how = f"{said['folds']} folds" if said["folds"] > 1 else "validation rows"
        lines = [f"{said['metric']} on {how} ({said['rows']} rows; {better} is better)"]
        if len(self.trials) == 1:
            return f"{lines[0]}\n{_score(start)}" + (f"\n{said['note']}" if said["note"] else "")
        counts = {state: sum(t["state"] == state for t in self.trials) for state in ("complete", "pruned", "failed")}
        lines[0] += f", {len(self.trials)} trials: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        lines.append(f"start  {_score(start)}")
        gain, error = said["gain"]["value"], said["gain"]["error"]
        beside = "" if error is None else f" +- {error:.4f}"
        lines.append(f"best   {_score(best)}   trial {best['number']}, better by {gain:.4f}{beside}")
        if best["number"]:
            lines += [
                f"  {path}: {_text(start['settings'].get(path))} -> {_text(value)}"
                for path, value in best["settings"].items()
                if value != start["settings"].get(path)
            ]
        if said["importances"]:
            lines.append("what mattered: " + ", ".join(f"{path} {x:.2f}" for path, x in said["importances"].items()))
        return "\n".join([*lines, "", *self._table(), "", said["note"]])

    def save(self, folder: str | Path, data: Mapping[str, str | Path] | None = None) -> Path:
        """Write ``best.yaml`` (for `fit`), ``trials.csv`` and ``search.json``; nothing else in the folder changes.

        Args:
            folder: made if it is not there.
            data: ``train``, and perhaps ``valid`` and ``test`` -> the table's path or URL, which best.yaml will name.
                Without it best.yaml names no tables.

        Returns:
            The path of best.yaml.

        Raises:
            PolymodalError: the folder cannot be written.
        """
        folder = Path(folder)
        places = {side: str(place) for side, place in (data or {}).items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            seen = {side: place if "://" in place else os.path.relpath(place, folder) for side, place in places.items()}
            spec = Spec.parse(
                self.best.model_copy(update={"data": None}).model_dump(mode="json") | ({"data": seen} if seen else {})
            )
            (folder / "best.yaml").write_text(spec.to_yaml(), encoding="utf-8")
            (folder / "search.json").write_text(
                json.dumps(self.content, indent=1, ensure_ascii=False), encoding="utf-8"
            )
            with (folder / "trials.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(_cells(self.trials))
        except OSError as error:
            raise PolymodalError(f"{folder} must be a folder that can be written, got: {error}.") from None
        return folder / "best.yaml"

    def _table(self) -> list[str]:
        sign = -1 if self.content["higher_is_better"] else 1
        scored = sorted((t for t in self.trials if t["score"] is not None), key=lambda t: sign * t["score"])
        paths = list(self.content["start"]["settings"])
        head = ["trial", "score", *(path.removeprefix("training.") for path in paths)]
        rows = [[str(t["number"]), _score(t), *(_text(t["settings"].get(path)) for path in paths)] for t in scored]
        widths = [max(map(len, column)) for column in zip(head, *rows[:SHOWN], strict=True)]
        return [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows[:SHOWN]]
        ]


def _cells(trials: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The table of trials, its head first."""
    paths = list(dict.fromkeys(path for trial in trials for path in trial["settings"]))
    plain = ["number", "state", "score", "error"]
    rows = [[*(t[name] for name in plain), *(_text(t["settings"].get(p)) for p in paths), t["reason"]] for t in trials]
    return [[*plain, *paths, "reason"], *rows]


def _score(trial: Mapping[str, Any]) -> str:
    return f"{trial['score']:.4f}" + ("" if trial["error"] is None else f" +- {trial['error']:.4f}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
