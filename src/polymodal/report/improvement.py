"""Before and after an improvement, as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polymodal.report.figures import (
    Ends,
    between,
    ends_of,
    figure,
    finite,
    higher_is_better,
    listed,
    metric_of,
    signed,
    span,
    strings,
    value_of,
)
from polymodal.report.markup import DASH, Markup, fold, is_number, join, many, number, part, significant, table, tag
from polymodal.report.plots import bar, curves, twin
from polymodal.report.scores import scale
from polymodal.report.shell import document, save
from polymodal.report.words import metric_name, score

SHEETS = ("style.css", "diagnosis.css")

METHODS = {"lora": "LoRA", "last": "its last layers", "all": "all its layers"}


def save_improvement(result: Mapping[str, Any], path: Path | str) -> Path:
    """Write the page of an improvement.

    Args:
        result: as for `improvement_page`.
        path: of the file; its folder is made.

    Returns:
        The path.

    Raises:
        DataError: the file cannot be written.
    """
    return save(improvement_page(result), path)


def improvement_page(result: Mapping[str, Any]) -> str:
    """The page of an improvement: one HTML document, offline, without scripts.

    Args:
        result: ``input``, ``method``, ``accepted``, ``reason``, ``before`` and ``after`` with their scores, their
            ``difference``, ``history``, and what was ``changed`` and ``frozen``, all as JSON and each optional. What
            is missing is left out.
    """
    result = finite(result)
    name = result.get("input")
    title = f"Polymodal improvement: {name}" if name else "Polymodal improvement"
    compared, trained = _compared(result), _trained(result)
    return document(title, _summary(result), compared, trained, sheets=SHEETS)


def _summary(result: Mapping[str, Any]) -> Markup:
    accepted, name = result.get("accepted"), result.get("input") or "the input"
    method = result.get("method")
    by = f" by {METHODS.get(str(method), method)}" if method else ""
    if accepted is None:
        said = join([tag("b", name), f" was trained further{by}. Nothing says whether that was accepted."])
    elif accepted:
        said = join([tag("b", name), f" was improved{by}: accepted, the new model is kept."])
    else:
        said = join([tag("b", name), f" was trained further{by}: not accepted, the old model is kept."])
    reason = tag("p", result["reason"], cls="note") if result.get("reason") else None
    return tag("section", tag("div", tag("p", said), _change(result), reason, cls="verdict"), aria_label="verdict")


def _change(result: Mapping[str, Any]) -> Markup | None:
    """The score before and after, and how sure the difference is."""
    metric, sides = metric_of(result), [value_of(part(result, side), "score") for side in ("before", "after")]
    if None in sides:
        return None
    on = f" on {many(result['rows'], 'validation row')}" if is_number(result.get("rows")) else ""
    task = join([tag("b", result["task"]), ": "]) if result.get("task") else None
    better = "" if higher_is_better(result) else " (less is better)"
    was, now = (score(value, metric) for value in sides)
    parts = [task, f"{metric_name(metric)}{better} {was} → ", tag("b", now), on]
    difference = part(result, "difference")
    parts += _difference(difference, metric, metric_name(metric))
    parts += _difference(part(difference, "loss"), "loss", "loss")
    return tag("p", parts, ".")


def _difference(found: Mapping[str, Any], metric: str, name: str) -> list[str]:
    value, ends = value_of(found, "value"), ends_of(found)
    if value is None:
        return []
    aside = f" (95 % {between(ends, metric)})" if ends else ""
    noise = ", within noise" if ends and ends[0] <= 0 <= ends[1] else ""
    return [f"; {name} {signed(value, metric)}{aside}{noise}"]


def _compared(result: Mapping[str, Any]) -> Markup | None:
    """The score with all inputs, without each and with each alone: before and after."""
    metric, groups = metric_of(result), _groups(result)
    values = [value for lines in groups for _, before, after in lines for value in (before, after)]
    if not values:
        return None
    ends, better = scale(values, metric), 1 if higher_is_better(result) else -1
    bodies = []
    for lines in groups:
        rows = []
        for label, before, after in lines:
            change = better * (after - before)
            shown = signed(after - before, metric)
            said = f"{shown} {'better' if change > 0 else 'worse'}" if shown.strip("0.") else "same"
            cells = [figure(score(before, metric)), figure(score(after, metric))]
            aside = figure(said, "num aside")
            drawn = tag("td", twin(before, after, *ends), cls="drawn")
            rows.append(tag("tr", tag("th", label, scope="row"), drawn, cells, aside))
        bodies.append(tag("tbody", rows))
    unseen = [tag("th", tag("span", head, cls="unseen"), scope="col") for head in ("inputs", "drawn")]
    heads = [*unseen, *(tag("th", head, scope="col", cls="num") for head in ("before", "after", "change"))]
    note = f"Upper bar before, lower bar after, from {number(ends[0])} to {number(ends[1])}."
    caption = tag("caption", f"What the {metric_name(metric)} rests on ", tag("small", note))
    drawn = tag("table", caption, tag("thead", tag("tr", heads)), bodies, cls="bars twins")
    return tag("section", tag("h2", "Before and after"), drawn, _differences(result, metric))


def _groups(result: Mapping[str, Any]) -> list[list[tuple[str, float, float]]]:
    """Lines of what was measured on both sides."""
    before, after = part(result, "before"), part(result, "after")
    whole = [("all inputs", value_of(before, "score"), value_of(after, "score"))]
    groups = [whole]
    for key, words in (("without", "without {}"), ("alone", "only {}")):
        old, new = part(before, key), part(after, key)
        groups.append([(words.format(name), value_of(old, name), value_of(new, name)) for name in old])
    known = [[(n, b, a) for n, b, a in lines if b is not None and a is not None] for lines in groups]
    return [lines for lines in known if lines]


def _differences(result: Mapping[str, Any], metric: str) -> Markup | None:
    """The paired differences with their intervals, each on a scale of its own."""
    difference, rows = part(result, "difference"), []
    less = not higher_is_better(result)
    for found, name, down in ((difference, metric, less), (part(difference, "loss"), "loss", True)):
        value, ends = value_of(found, "value"), ends_of(found)
        if value is None:
            continue
        limits: Ends = span([value, -value], [ends])
        good = value <= 0 if down else value >= 0
        drawn = bar(value, *limits, "own" if good else "harm", None, ends)
        label = f"{metric_name(name)}{', less is better' if down else ''}"
        cells = [figure(signed(value, name)), figure(between(ends, name), "num aside")]
        noise = ends is not None and ends[0] <= 0 <= ends[1]
        word = tag("td", "noise" if noise else "", cls="word")
        row = [tag("th", label, scope="row"), tag("td", drawn, cls="drawn"), cells, word]
        rows.append(tag("tr", row, cls="quiet" if noise else None))
    if not rows:
        return None
    unseen = [tag("th", tag("span", head, cls="unseen"), scope="col") for head in ("score", "drawn")]
    heads = [*unseen, tag("th", "change", scope="col", cls="num"), tag("th", "95 %", scope="col", cls="num aside")]
    heads.append(tag("th", tag("span", "noise", cls="unseen"), scope="col"))
    note = "Both models on the same rows, drawn again with replacement; whisker: 95 % interval."
    caption = tag("caption", "How sure the difference is ", tag("small", note))
    return tag("table", caption, tag("thead", tag("tr", heads)), tag("tbody", rows), cls="bars pairs")


def _trained(result: Mapping[str, Any]) -> Markup | None:
    """What was trained, and how the loss went."""
    facts = {"changed": result.get("changed"), "frozen": result.get("frozen")}
    shown = {name: ", ".join(strings(value)) for name, value in facts.items() if strings(value)}
    shown |= {"teacher": str(result["teacher"])} if result.get("teacher") else {}
    listing = [tag("div", tag("dt", name), tag("dd", value)) for name, value in shown.items()]
    plot = _history(result)
    if not listing and plot is None:
        return None
    return tag("section", tag("h2", "Training"), tag("dl", listing) if listing else None, plot)


def _history(result: Mapping[str, Any]) -> Markup | None:
    epochs = [epoch for epoch in listed(result, "history") if is_number(epoch.get("number"))]
    series = []
    for key, name in (("train_loss", "train"), ("valid_loss", "valid")):
        points = [(e["number"] + 1, float(e[key])) for e in epochs if is_number(e.get(key))]
        series += [(name, points)] if points else []
    if not series:
        return None
    said = [f"{name} {significant(points[0][1])} to {significant(points[-1][1])}" for name, points in series]
    title = f"Loss over {many(len(epochs), 'epoch')}: {'; '.join(said)}."
    known = {name: dict(points) for name, points in series}
    rows = [
        [number(n), *(figure(significant(values.get(n)) if n in values else DASH) for values in known.values())]
        for n in (epoch["number"] + 1 for epoch in epochs)
    ]
    drawn = fold("As a table", table(["epoch", *known], rows, label="losses"))
    return tag("figure", tag("figcaption", title), curves(series, "epoch", "loss", title), drawn)
