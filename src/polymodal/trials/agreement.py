"""Whether two answers to one row say the same: how far their numbers lie apart, and which of their labels differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polymodal.tasks.classify import label_text

_LABELS = ("class", "labels", "set")
_TINY = 1e-12

EXACT = 1e-3
"""What answers of float32 runtimes may differ by; frozen backbones' tokens are rounded to half precision."""

_COARSE = {"int8": 0.2, "half": 0.02}
_BATCHES = {"half": 0.02}

Row = Mapping[str, Mapping[str, Any]]
"""Task name -> prediction with its certainty, as `Predictions` holds it."""


def tolerance_of(runtimes: Iterable[str], exact: float = EXACT, *, same: bool = False) -> float:
    """What answers may differ by where backbones run in these runtimes.

    Args:
        runtimes: their names.
        exact: what is allowed in float32.
        same: whether both answers come of these runtimes, and differ only in what else is in their batches: int8
            answers then agree as float32 ones do. Otherwise the other one is torch in float32: int8 may move a
            probability by .2, and what that costs is the loss that the bundle records.
    """
    words = _BATCHES if same else _COARSE
    return max([exact, *(value for name in runtimes for word, value in words.items() if word in name)])


@dataclass(frozen=True, slots=True)
class Difference:
    """What lies between two answers.

    Attributes:
        number: the largest difference: of probabilities as they are, of other numbers in shares of the largest one
            that the reference says of that target. Infinite where an answer lacks something or has it twice.
        labels: how many labels differ and are no tie.
        ties: how many differ where the reference itself could not tell them apart within the tolerance.
    """

    number: float = 0.0
    labels: int = 0
    ties: int = 0

    def join(self, other: Difference) -> Difference:
        """Of both together."""
        return Difference(max(self.number, other.number), self.labels + other.labels, self.ties + other.ties)


def finite(number: float) -> float | None:
    """A number that JSON can hold."""
    return number if math.isfinite(number) else None


class Reference:
    """Answers that others are compared with.

    Two classes are a tie where their probabilities in the reference are closer than twice the tolerance, since each
    of them may move by it. A label that a threshold lets in or keeps out is a tie where its probability moved in that
    direction: how far it moved is judged as a number. An entity that only one of the two finds is a tie where it is
    hardly likelier than all else together.

    Args:
        rows: one answer per row.
        tolerance: that differences are allowed to have.
    """

    def __init__(self, rows: Sequence[Row], tolerance: float) -> None:
        self.rows, self.tolerance = list(rows), tolerance
        self._scales: dict[tuple[str, str], float] = {}
        for row in self.rows:
            for task, prediction in row.items():
                for path, value in _numbers(prediction):
                    key = (task, _target(path))
                    self._scales[key] = max(self._scales.get(key, _TINY), abs(value))

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.rows)

    def compare(self, i: int, row: Row) -> Difference:
        """Compare another answer to row ``i``."""
        if not isinstance(row, Mapping) or row.keys() != self.rows[i].keys():
            return Difference(float("inf"))
        found = Difference()
        for task, expected in self.rows[i].items():
            found = found.join(self._task(task, expected, row[task]))
        return found

    def agrees(self, difference: Difference) -> bool:
        """Whether a difference is within the tolerance."""
        return difference.number <= self.tolerance and not difference.labels

    def _task(self, task: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> Difference:
        if expected == got:
            return Difference()
        if not isinstance(got, Mapping) or expected.keys() != got.keys():
            return Difference(float("inf"))
        if "entities" in expected:
            return self._entities(expected, got)
        a, b = dict(_numbers(expected)), dict(_numbers(got))
        if a.keys() != b.keys():
            return Difference(float("inf"))
        gaps = [abs(a[path] - b[path]) / self._unit(task, path) for path in a]
        found = Difference(max((float("inf") if math.isnan(gap) else gap for gap in gaps), default=0.0))
        for key in expected:
            if key in _LABELS:
                found = found.join(self._labels(expected, got, key))
        return found

    def _entities(self, expected: Mapping[str, Any], got: Mapping[str, Any]) -> Difference:
        """Spans as labels, their probabilities and gates as numbers. Tags say the same as spans once more."""
        sides = [{(e["type"], e["first"], e["stop"]): e for e in answer["entities"]} for answer in (expected, got)]
        gates = [answer.get("gates", []) for answer in (expected, got)]
        words = expected.get("words"), got.get("words")
        if words[0] != words[1] or len(expected["tags"]) != len(got["tags"]) or len(gates[0]) != len(gates[1]):
            return Difference(float("inf"))
        before, after = sides
        number = max((abs(x - y) for x, y in zip(*gates, strict=True)), default=0.0)
        for span in before.keys() & after.keys():
            number = max(number, *self._same(before[span], after[span]))
        lost = [(before.get(span) or after[span])["probability"] for span in before.keys() ^ after.keys()]
        ties = sum(p <= 0.5 + 2 * self.tolerance for p in lost)
        return Difference(number, len(lost) - ties, ties)

    @staticmethod
    def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[float]:
        """Differences of two entities of the same words."""
        moves = ("probability", "gate")
        fixed = [{key: value for key, value in entity.items() if key not in moves} for entity in (one, other)]
        yield 0.0 if fixed[0] == fixed[1] else float("inf")
        yield from (abs(one[key] - other[key]) for key in moves if key in one and key in other)

    def _unit(self, task: str, path: tuple[str, ...]) -> float:
        return 1.0 if path[0].startswith("probabilit") else self._scales[task, _target(path)]

    def _labels(self, expected: Mapping[str, Any], got: Mapping[str, Any], key: str) -> Difference:
        """Labels under one key that only one of the two has."""
        before, after = _as_texts(expected[key]), _as_texts(got[key])
        p, q = (_by_text(answer.get("probabilities")) for answer in (expected, got))
        wrong = ties = 0
        for label in before ^ after:
            if key == "class":
                tie = bool(p) and p.get(label, -1.0) >= max(p.values()) - 2 * self.tolerance
            else:
                tie = label in p and label in q and (q[label] < p[label] if label in before else q[label] > p[label])
            wrong, ties = wrong + (not tie), ties + tie
        return Difference(0.0, wrong, ties) if key != "class" else Difference(0.0, int(wrong > 0), int(ties == 2))


def _numbers(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number of a prediction that is no label, with where it stands."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if path or key not in _LABELS:
                yield from _numbers(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _numbers(inner, (*path, str(i)))
    elif isinstance(value, int | float):
        yield path, float(value)
    else:
        yield (*path, repr(value)), 0.0  # whatever else it is must stand in both


def _target(path: tuple[str, ...]) -> str:
    """Which of several targets a number is of: {"low": {"price": 1}}, {"quantiles": {"0.1": {"price": 1}}}."""
    depth = 2 if path[0] == "quantiles" else 1
    return path[depth] if len(path) > depth else ""


def _as_texts(labels: Any) -> set[str]:
    return {label_text(label) for label in labels} if isinstance(labels, list | tuple) else {label_text(labels)}


def _by_text(probabilities: Any) -> dict[str, float]:
    if not isinstance(probabilities, Mapping):
        return {}
    return {str(label): float(p) for label, p in probabilities.items() if isinstance(p, int | float)}
