"""What is wrong with the data: weak slices, worst rows, suspect labels, conflicts and leakage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polymodal.report.figures import (
    Ends,
    brief,
    ends_of,
    figure,
    higher_is_better,
    listed,
    metric_of,
    signed,
    strings,
    value_of,
)
from polymodal.report.markup import DASH, Markup, fold, is_number, join, many, number, part, table, tag
from polymodal.report.plots import bar
from polymodal.report.scores import scale
from polymodal.report.words import metric_name, score

SHOWN = 6
"""Entries of a list that stand openly."""

MOST = 200
"""Entries that are listed at all."""

NAMED = 12
"""Rows of a conflict that are named."""


def problems_section(diagnosis: Mapping[str, Any]) -> Markup | None:
    """All that was found in the table."""
    problems = part(diagnosis, "problems")
    names = list(dict.fromkeys([*part(diagnosis, "tasks"), *_tasks(problems)]))
    parts = [_leakage(problems)]
    for name in names:
        aside = name if len(names) > 1 else None
        parts += [
            _slices(listed(part(problems, "slices"), name), part(diagnosis, "tasks", name), aside),
            _worst(listed(part(problems, "worst"), name), aside),
            _labels(part(problems, "labels").get(name), aside),
        ]
    parts.append(_conflicts(listed(problems, "conflicts")))
    if not any(parts):
        return None
    note = tag("small", "row numbers are those of the diagnosed table")
    notes = "; ".join(strings(problems.get("notes")))
    return tag("section", tag("h2", "Data problems ", note), parts, tag("p", notes, cls="legend") if notes else None)


def leaks(diagnosis: Mapping[str, Any]) -> list[str]:
    """What the diagnosed rows share with rows that the model learned from."""
    return strings(part(diagnosis, "problems").get("leakage"))


def _tasks(problems: Mapping[str, Any]) -> list[str]:
    return [name for key in ("slices", "worst", "labels") for name in part(problems, key)]


def _title(words: str, aside: str | None, note: str) -> Markup:
    return join([f"{words} of {aside} " if aside else f"{words} ", tag("small", note)])


def _long(entries: Sequence[Any], drawn: Callable[[Sequence[Any], Any], Markup], title: Markup, noun: str) -> Markup:
    """A table with its first entries; the rest folds away."""
    top = drawn(entries[:SHOWN], title)
    rest = entries[SHOWN:MOST]
    if not rest:
        return top
    of = f", the first {len(rest)} of them" if len(entries) > MOST else ""
    summary = f"{many(len(entries) - SHOWN, f'more {noun}')}{of}"
    return join([top, fold(summary, drawn(rest, None))])


def _leakage(problems: Mapping[str, Any]) -> Markup | None:
    found = strings(problems.get("leakage"))
    if not found:
        return None
    lines = [tag("li", line) for line in found[:MOST]]
    more = [fold(many(len(lines) - SHOWN, "more line"), tag("ul", lines[SHOWN:]))] if len(lines) > SHOWN else []
    return join([tag("h3", "Leakage"), tag("ul", lines[:SHOWN]), *more])


def _slices(slices: Sequence[Mapping[str, Any]], task: Mapping[str, Any], aside: str | None) -> Markup | None:
    """Groups of rows with their score against that of all others."""
    known = [one for one in slices if value_of(one, "score") is not None]
    if not known:
        return None
    first = {"metric": known[0].get("metric") or metric_of(task)}  # a score that single rows have, for all slices
    metric, given = metric_of(first), known[0].get("higher_is_better")
    better = "" if higher_is_better(first | {"higher_is_better": given}) else ", where less is better"
    values = [value for one in known for value in (value_of(one, "score"), value_of(one, "rest")) if value is not None]
    ends = scale([*values, *(end for one in known for end in ends_of(one) or ())], metric)
    note = f"Groups of rows and their {metric_name(metric)}{better}; upright line: all other rows; pale: within noise."
    title = _title("Slices", aside, note)
    return _long(known, lambda some, caption: _slice_table(some, metric, ends, caption), title, "slice")


def _slice_table(slices: Sequence[Mapping[str, Any]], metric: str, ends: Ends, title: Any) -> Markup:
    rows = []
    for one in slices:
        value, rest = float(one["score"]), value_of(one, "rest")
        noise = one.get("significant") is False
        label = [brief(one.get("slice")), tag("small", " ", one.get("by"), ", " if one.get("by") else "", _rows(one))]
        change = None if rest is None else value - rest
        cells = [
            tag("th", label, scope="row"),
            tag("td", bar(value, *ends, "own", rest, ends_of(one)), cls="drawn"),
            figure(score(value, metric)),
            figure(score(rest, metric)),
            figure(join([signed(change, metric), tag("span", " noise") if noise else None]), "num aside"),
        ]
        rows.append(tag("tr", cells, cls="quiet" if noise else None))
    heads = [
        tag("th", tag("span", "slice", cls="unseen"), scope="col"),
        tag("th", tag("span", "drawn", cls="unseen"), scope="col"),
        *(tag("th", head, scope="col", cls="num") for head in (metric_name(metric), "others")),
        tag("th", "difference", scope="col", cls="num aside"),
    ]
    caption = None if title is None else tag("caption", title)
    return tag("table", caption, tag("thead", tag("tr", heads)), tag("tbody", rows), cls="bars slices")


def _rows(one: Mapping[str, Any]) -> str:
    return many(one["rows"], "row") if is_number(one.get("rows")) else ""


def _worst(rows: Sequence[Mapping[str, Any]], aside: str | None) -> Markup | None:
    if not rows:
        return None

    def drawn(some: Sequence[Mapping[str, Any]], title: Any) -> Markup:
        lines = [
            [
                number(row.get("row")),
                figure(number(row.get("loss"), 2)),
                tag("td", brief(row.get("truth")), cls="words"),
                tag("td", brief(row.get("predicted")), cls="words"),
                _by_input(part(row, "by_input")),
            ]
            for row in some
        ]
        return table(["row", "loss", "truth", "predicted", "loss with one input"], lines, title, "found")

    title = _title("Worst rows", aside, "The rows with the highest loss: odd cases, or wrong labels.")
    return _long(rows, drawn, title, "row")


def _by_input(losses: Mapping[str, Any]) -> Markup:
    """Losses of the inputs in a line, the highest in bold."""
    known = {name: float(value) for name, value in losses.items() if is_number(value)}
    most = max(known, key=lambda name: known[name]) if len(known) > 1 else None
    shown = [
        tag("b" if name == most else "span", name, " ", number(value, 2), cls="item") for name, value in known.items()
    ]
    return join([(one, " ") for one in shown]) if shown else Markup(DASH)


def _labels(labels: Any, aside: str | None) -> Markup | None:
    reason = part({"labels": labels}, "labels").get("unavailable")
    if reason:
        named = f" of {aside}" if aside else ""
        return tag("p", tag("b", f"Suspect labels{named}"), ": not looked for. ", reason)
    rows = listed({"labels": labels}, "labels")
    if not rows:
        return None

    def drawn(some: Sequence[Mapping[str, Any]], title: Any) -> Markup:
        lines = [
            [
                number(r.get("row")),
                tag("td", brief(r.get("given")), cls="words"),
                tag("td", brief(r.get("suggested")), cls="words"),
                figure(number(r.get("quality"), 3)),
            ]
            for r in some
        ]
        return table(["row", "given", "suggested", "quality"], lines, title, "found")

    note = "Labels that the model contradicts with confidence; quality: 0 surely wrong, 1 surely right."
    return _long(rows, drawn, _title("Suspect labels", aside, note), "label")


def _conflicts(conflicts: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not conflicts:
        return None

    def drawn(some: Sequence[Mapping[str, Any]], title: Any) -> Markup:
        lines = [
            [
                brief(one.get("input") or "all inputs"),
                tag("td", brief(one.get("task")), cls="words"),
                tag("td", _named(one.get("rows")), cls="words"),
                tag("td", brief(", ".join(strings(one.get("labels"))) or None), cls="words"),
                figure(number(one.get("similarity"), 3)),
            ]
            for one in some
        ]
        return table(["input", "task", "rows", "labels", "similarity"], lines, title, "found")

    title = _title(
        "Conflicts", None, "Rows whose input is nearly the same, with different labels; similarity: 1 is the same."
    )
    return _long(conflicts, drawn, title, "conflict")


def _named(rows: Any) -> str:
    names = (
        [number(row) if is_number(row) else str(row) for row in rows if row is not None]
        if isinstance(rows, list | tuple)
        else []
    )
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) + more) or DASH
