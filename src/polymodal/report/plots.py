"""Plots as inline SVG, drawn by hand. Colours and type come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from polymodal.report.markup import Markup, is_number, number, tag

WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40

Point = tuple[float, float]


def bar(
    value: float,
    low: float,
    high: float,
    cls: str,
    reference: float | None = None,
    whisker: tuple[float, float] | None = None,
    chance: float | None = None,
) -> Markup:
    """A bar from zero that fills its table cell; the number stands in another cell.

    Args:
        value: where it ends; beyond the scale it is cut off.
        low: left end of the scale, at most 0.
        high: right end of the scale, at least 0.
        cls: its class.
        reference: where a line crosses it.
        whisker: ends of an interval drawn over it.
        chance: where a dotted line crosses it.
    """
    at = _scale(low, high, 0, 100)
    start, end = sorted((at(0.0), at(value)))
    parts = [tag("rect", x=_n(start), y=2, width=_n(max(end - start, 0.4)), height=8, cls=cls)]
    if low < 0:
        parts.append(_line((at(0.0), 0), (at(0.0), 12), "zero"))
    if reference is not None:
        parts.append(_line((at(reference), 0), (at(reference), 12), "reference"))
    if chance is not None:
        parts.append(_line((at(chance), 0), (at(chance), 12), "chance"))
    if whisker is not None:
        parts.append(_line((at(whisker[0]), 6), (at(whisker[1]), 6), "whisker"))
    return _strip(parts)


def stack(shares: Sequence[tuple[float, str]]) -> Markup:
    """Parts of a whole side by side, as (share, class)."""
    parts, start = [], 0.0
    for share, cls in shares:
        parts.append(tag("rect", x=_n(start), y=2, width=_n(100 * share), height=8, cls=cls))
        start += 100 * share
    return _strip(parts)


def twin(before: float, after: float, low: float, high: float) -> Markup:
    """Two thin bars from zero, one above the other: what was and what is."""
    at = _scale(low, high, 0, 100)
    parts = []
    for top, value, cls in ((1, before, "alone"), (6.5, after, "own")):
        start, end = sorted((at(0.0), at(value)))
        parts.append(tag("rect", x=_n(start), y=_n(top), width=_n(max(end - start, 0.4)), height=4.5, cls=cls))
    if low < 0:
        parts.append(_line((at(0.0), 0), (at(0.0), 12), "zero"))
    return _strip(parts)


def _strip(parts: Any) -> Markup:
    return tag("svg", parts, viewBox="0 0 100 12", preserveAspectRatio="none", cls="strip", aria_hidden="true")


def calibration(points: Sequence[tuple[float, float, float]], across: str, up: str, title: str) -> Markup:
    """Points against the diagonal, both axes from 0 to 1.

    Args:
        points: (x, y, weight); the area of a dot goes with its weight.
        across: name of the x axis.
        up: name of the y axis.
        title: for those who do not see it.
    """
    x, y = _scale(0, 1, LEFT, WIDTH - RIGHT), _scale(0, 1, HEIGHT - BOTTOM, TOP)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    heaviest = max((weight for _, _, weight in points), default=1.0) or 1.0
    dots = [
        tag("circle", cx=_n(x(a)), cy=_n(y(b)), r=_n(2.5 + 5.5 * math.sqrt(weight / heaviest)), cls="dot")
        for a, b, weight in points
    ]
    diagonal = _line((x(0), y(0)), (x(1), y(1)), "diagonal")
    return _plot([_axes(x, y, ticks, ticks, across, up), diagonal, dots], title)


def curves(series: Sequence[tuple[str, Sequence[Point]]], across: str, up: str, title: str) -> Markup:
    """Lines over a common x axis of whole numbers, told apart by dash and by a name at their end.

    Args:
        series: (name, points).
        across: name of the x axis.
        up: name of the y axis.
        title: for those who do not see it.
    """
    every = [point for _, points in series for point in points]
    xs, ys = [a for a, _ in every], [b for _, b in every]
    steps = ticks_of(min(ys), max(ys))
    x = _scale(min(xs), max(max(xs), min(xs) + 1), LEFT + 4, WIDTH - RIGHT - 38)
    y = _scale(min(steps[0], *ys), max(steps[-1], *ys), HEIGHT - BOTTOM, TOP)
    whole = [tick for tick in ticks_of(min(xs), max(xs)) if tick == int(tick) and min(xs) <= tick <= max(xs)]
    drawn, ends = [], []
    for (name, points), cls in zip(series, "abcd", strict=False):
        places = [(x(a), y(b)) for a, b in points]
        drawn.append(_path(places, f"series {cls}") if len(places) > 1 else None)
        drawn += [tag("circle", cx=_n(a), cy=_n(b), r=2, cls=f"mark {cls}") for a, b in places if len(places) < 31]
        ends.append((places[-1][1] + 4, places[-1][0] + 5, name, cls))
    labels, lowest = [], -math.inf
    for height, right, name, cls in sorted(ends):
        lowest = max(height, lowest + 13)  # names keep apart where lines meet
        labels.append(tag("text", name, x=_n(right), y=_n(lowest), cls=f"name {cls}"))
    return _plot([_axes(x, y, whole or [min(xs)], steps, across, up), drawn, labels], title)


def decline(
    points: Sequence[Point], level: float | None, scale: Point, strength: str, said: tuple[str, str | None], title: str
) -> Markup:
    """A small line over levels from 0 to 1 and the level it starts from; what lies between them is shaded.

    Args:
        points: (level, score), by level; at least one.
        level: where the dashed line is.
        scale: both ends of the y axis.
        strength: what stands at the end of the x axis.
        said: what stands at the end of the line, and above the x axis.
        title: for those who do not see it.
    """
    left, right, top, bottom = 2, 98, 6, 58
    x, y = _scale(0, 1, left, right), _scale(*scale, bottom, top)
    places = [(x(a), y(b)) for a, b in points]
    parts = [_line((left, bottom), (right, bottom), "base")]
    if level is not None:
        around = [*places, (places[-1][0], y(level)), (places[0][0], y(level))]
        parts.append(tag("polygon", points=" ".join(f"{_n(a)},{_n(b)}" for a, b in around), cls="lost"))
        parts.append(_line((left, y(level)), (right, y(level)), "level"))
    parts.append(_path(places, "series a"))
    parts += [tag("circle", cx=_n(a), cy=_n(b), r=1.7, cls="mark a") for a, b in places]
    parts.append(tag("text", said[0], x=_n(places[-1][0] + 4), y=_n(places[-1][1] + 4), cls="last"))
    if said[1]:
        free = bottom - 5 if points[-1][1] <= points[0][1] else top + 4  # where the line is not
        parts.append(tag("text", said[1], x=left, y=free, cls="area"))
    parts.append(tag("text", strength, x=right, y=bottom + 13, cls="end"))
    inside = [tag("title", title), parts]
    return tag("svg", inside, viewBox="0 0 130 74", cls="plot decline", role="img", aria_label=title)


def ticks_of(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that span low to high."""
    if not (is_number(low) and is_number(high)) or high - low <= abs(high) * 1e-9:
        return [low, low + (abs(low) * 0.1 or 1.0)]
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = size * next(f for f in (1, 2, 2.5, 5, 10) if f * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _axes(x: Any, y: Any, across_ticks: Any, up_ticks: Any, across: str, up: str) -> list[Markup]:
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    lines = [_line((LEFT, y(tick)), (WIDTH - RIGHT, y(tick)), "grid") for tick in up_ticks]
    marks = [tag("text", _tick(tick), x=LEFT - 6, y=_n(y(tick) + 4), cls="tick end") for tick in up_ticks]
    marks += [tag("text", _tick(tick), x=_n(x(tick)), y=bottom + 16, cls="tick mid") for tick in across_ticks]
    names = [
        tag("text", across, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, cls="axis mid"),
        tag("text", up, x=0, y=0, cls="axis mid", transform=f"translate(11 {middle}) rotate(-90)"),
    ]
    return [*lines, _line((LEFT, bottom), (WIDTH - RIGHT, bottom), "base"), *marks, *names]


def _plot(parts: Any, title: str) -> Markup:
    inside = [tag("title", title), parts]
    return tag("svg", inside, viewBox=f"0 0 {WIDTH} {HEIGHT}", cls="plot", role="img", aria_label=title)


def _scale(low: float, high: float, start: float, end: float) -> Any:
    """Linear map of low..high onto start..end; what lies beyond is cut off."""
    span = (high - low) or 1.0
    return lambda value: start + min(max((value - low) / span, 0.0), 1.0) * (end - start)


def _line(a: Point, b: Point, cls: str) -> Markup:
    return tag("line", x1=_n(a[0]), y1=_n(a[1]), x2=_n(b[0]), y2=_n(b[1]), cls=cls)


def _path(points: Sequence[Point], cls: str) -> Markup:
    return tag("polyline", points=" ".join(f"{_n(a)},{_n(b)}" for a, b in points), cls=cls)


def _tick(value: float) -> str:
    return number(int(value) if value == int(value) and abs(value) < 1e15 else value)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
