"""Values of a diagnosis, read with care: what is missing or no number is None, never zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polymodal.report.markup import DASH, Markup, is_number, number, part, tag
from polymodal.report.words import is_share, lower_is_better, score

Ends = tuple[float, float]


def finite(content: Any) -> Any:
    """The same mappings and lists, with None for numbers that are not finite."""
    if isinstance(content, Mapping):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not is_number(content) else content


def value_of(source: Any, key: str) -> float | None:
    """A finite number of a mapping."""
    value = source.get(key) if isinstance(source, Mapping) else None
    return float(value) if is_number(value) else None


def ends_of(source: Any, key: str = "interval") -> Ends | None:
    """Both ends of an interval, if both are known."""
    ends = source.get(key) if isinstance(source, Mapping) else None
    if isinstance(ends, Sequence) and len(ends) == 2 and all(is_number(end) for end in ends):
        return float(ends[0]), float(ends[1])
    return None


def listed(source: Any, key: str) -> list[Mapping[str, Any]]:
    """The mappings of a list."""
    found = source.get(key) if isinstance(source, Mapping) else None
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list | tuple) else []


def strings(values: Any) -> list[str]:
    """What is in a list, as texts; what is no list is an empty one."""
    return [str(value) for value in values if value is not None] if isinstance(values, list | tuple) else []


def metric_of(task: Mapping[str, Any]) -> str:
    """Name of the score that the figures are of."""
    return str(task.get("metric") or "score")


def higher_is_better(task: Mapping[str, Any]) -> bool:
    """Whether more of a task's score is better."""
    given = task.get("higher_is_better")
    return given if isinstance(given, bool) else not lower_is_better(metric_of(task))


def floor_of(task: Mapping[str, Any]) -> tuple[float | None, str]:
    """The score that needs no input, and what has it: the best constant answer, or the model with all hidden."""
    floor = value_of(part(task, "floor"), "score")
    if floor is None:
        return value_of(task, "chance"), "no input"
    known = {"constant": "the best constant answer", "random": "chance"}
    return floor, known.get(str(part(task, "floor").get("by")), "no input")


def percent(share: float) -> str:
    """A share in percent; what is not quite none or all is not called so."""
    shown = number(100 * share, 0 if share in (0, 1) or 0.005 <= share < 0.995 else 1)
    return f"{shown} %"


def best_first(entries: Iterable[Mapping[str, Any]], task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries that have a score, the best first."""
    scored = [entry for entry in entries if value_of(entry, "score") is not None]
    return sorted(scored, key=lambda entry: entry["score"], reverse=higher_is_better(task))


def span(values: Iterable[float | None], ends: Iterable[Ends | None] = ()) -> Ends:
    """A scale about zero that holds every value and interval."""
    known = [0.0, *(v for v in values if v is not None), *(e for pair in ends if pair is not None for e in pair)]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low, low + 1.0)


def signed(value: float | None, metric: str) -> str:
    """A difference of a score, with its sign."""
    shown = _difference(value, metric)
    if value is None or not shown.strip("−0."):
        return shown.removeprefix("−")
    return f"+{shown}" if value > 0 else shown


def between(ends: Ends | None, metric: str) -> str:
    """An interval in words; nothing where it is unknown."""
    return "" if ends is None else f"{_difference(ends[0], metric)} to {_difference(ends[1], metric)}"


def _difference(value: float | None, metric: str) -> str:
    """Three decimals of a share, else three digits, of small ones two: an interval must fit beside them."""
    if value is None or is_share(metric) or abs(value) >= 1:
        return number(value, 3 if is_share(metric) else None)
    return number(float(f"{value:.2g}"))


def figure(shown: str, cls: str = "num") -> Markup:
    """A table cell with a number that is text already."""
    return tag("td", shown, cls=cls)


def brief(value: Any, letters: int = 60) -> Markup:
    """Anything as a short text; the whole of it stands in its title."""
    if isinstance(value, float) and is_number(value):
        return tag("span", score(value, ""))
    shown = DASH if value is None else str(value)
    if len(shown) <= letters:
        return tag("span", shown)
    return tag("span", f"{shown[: letters - 1]}…", title=shown)
