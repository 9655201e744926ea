"""How the score falls as each input gets worse: a small curve per input and noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymodal.report.figures import Ends, figure, higher_is_better, listed, metric_of, percent, value_of
from polymodal.report.markup import DASH, Markup, join, many, number, part, table, tag
from polymodal.report.plots import decline
from polymodal.report.scores import short
from polymodal.report.words import metric_name, score

REMOVED = "removed"
"""The curve of rows that lose the input altogether."""


def robustness_section(task: Mapping[str, Any]) -> Markup | None:
    """Small multiples per input, all with the same axes."""
    found = {name: _curves(part(task, "inputs", name)) for name in part(task, "inputs")}
    found = {name: curves for name, curves in found.items() if curves}
    if not found:
        return None
    metric, ends = metric_of(task), _span(found)
    inner = [_input(name, curves, task, ends) for name, curves in found.items()]
    low, high = (score(end, metric) for end in ends)
    note = (
        f"Each input gets worse in {_steps(found)}, from clean to the strength below the line; the line is the "
        f"{metric_name(metric)}, from {low} to {high}. Dashed: clean; shaded: the difference; area: the mean."
    )
    return join([tag("h3", "Where it breaks"), tag("p", note, cls="legend"), inner])


def _curves(seen: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Curves with at least one step that has a score; removal comes last."""
    curves = {noise: part(seen, "curves", noise) for noise in part(seen, "curves")}
    curves = {noise: curve for noise, curve in curves.items() if _points(curve)}
    return dict(sorted(curves.items(), key=lambda entry: entry[0] == REMOVED))


def _points(curve: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(level, score) from the lowest level up, the clean one first."""
    steps = [(value_of(step, "level"), value_of(step, "score")) for step in listed(curve, "steps")]
    known = sorted((level, value) for level, value in steps if level is not None and value is not None)
    clean = value_of(curve, "clean")
    return [(0.0, clean), *known] if known and clean is not None and known[0][0] > 0 else known


def _span(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Ends:
    values = [value for curves in found.values() for curve in curves.values() for _, value in _points(curve)]
    low, high = min(values), max(values)
    edge = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return low - edge, high + edge


def _steps(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    counts = {len(listed(curve, "steps")) for curves in found.values() for curve in curves.values()}
    return many(counts.pop(), "step") if len(counts) == 1 else "steps"


def _input(name: str, curves: Mapping[str, Mapping[str, Any]], task: Mapping[str, Any], ends: Ends) -> Markup:
    metric = metric_of(task)
    plots = tag("div", [_one(name, noise, curve, metric, ends) for noise, curve in curves.items()], cls="multiples")
    heading = tag("h4", tag("b", name), " ", tag("small", _said(curves, task)))
    return tag("div", heading, plots, _numbers(name, curves, metric), cls="broken-by")


def _said(curves: Mapping[str, Mapping[str, Any]], task: Mapping[str, Any]) -> str:
    """The noise that costs most, in words."""
    metric, factor = metric_of(task), 1 if higher_is_better(task) else -1
    costs = {}
    for noise, curve in curves.items():
        area, clean = value_of(curve, "area"), value_of(curve, "clean")
        if area is not None and clean is not None and noise != REMOVED:
            costs[noise] = factor * (clean - area)
    counts = [value_of(curve, "rows") for noise, curve in curves.items() if noise != REMOVED or len(curves) == 1]
    rows = {int(count) for count in counts if count is not None}
    on = f"on {many(rows.pop(), 'row')}" if len(rows) == 1 else ""
    if not costs or max(costs.values()) <= 0:
        return on
    worst = max(costs, key=costs.__getitem__)
    return f"{on}; " * bool(on) + f"{worst} costs most, {score(costs[worst], metric)} on average"


def _one(name: str, noise: str, curve: Mapping[str, Any], metric: str, ends: Ends) -> Markup:
    points, clean, area = _points(curve), value_of(curve, "clean"), value_of(curve, "area")
    last = score(points[-1][1], metric, 2)
    title = f"{name}, {noise}: {metric_name(metric)} {score(points[0][1], metric)} to {score(points[-1][1], metric)}"
    mean = None if area is None else f"area {score(area, metric, 2)}"
    drawn = decline(points, clean, ends, _strongest(curve), (last, mean), title)
    return tag("figure", tag("figcaption", noise.replace("_", " ")), drawn)


def _strongest(curve: Mapping[str, Any]) -> str:
    """The last step's strength in its unit."""
    steps = listed(curve, "steps")
    strength = value_of(steps[-1], "severity") if steps else None
    if strength is None:
        return number(value_of(steps[-1], "level"), 1) if steps else ""
    unit = str(curve.get("unit") or "")
    if unit.startswith("share "):
        return short(f"{percent(strength)} {unit.removeprefix('share ')}")
    shown = number(int(strength) if strength == int(strength) else strength)
    return short(f"{unit} {shown}" if unit == "quality" else f"{shown} {unit}".strip())


def _numbers(name: str, curves: Mapping[str, Mapping[str, Any]], metric: str) -> Markup:
    """Every score of every step."""
    levels = sorted({level for curve in curves.values() for level, _ in _points(curve)})
    known = {noise: dict(_points(curve)) for noise, curve in curves.items()}
    rows = [
        [
            number(level),
            *(figure(score(points[level], metric) if level in points else DASH) for points in known.values()),
        ]
        for level in levels
    ]
    areas = [figure(score(value_of(curve, "area"), metric)) for curve in curves.values()]
    heads = ["level", *(noise.replace("_", " ") for noise in curves)]
    drawn = table(heads, [*rows, ["area", *areas]], cls="numbers", label=f"{name}: scores by level")
    return tag("details", tag("summary", "As a table"), drawn, cls="numbers")
