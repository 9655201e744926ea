"""The report of a fit or an evaluation as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from polymodal.report.cleaning import data_section, warnings
from polymodal.report.markup import Markup, fold, is_number, join, many, number, part, significant, table, tag
from polymodal.report.plots import curves
from polymodal.report.scores import task_section
from polymodal.report.shell import document, save
from polymodal.report.words import caveat, held_out, verdict

LISTED = 60
"""How many epochs the table of losses lists; of more, every n-th."""


def save_page(report: Mapping[str, Any], path: Path | str) -> Path:
    """Write the page of a report.

    Args:
        report: as for `page`.
        path: of the file; its folder is made.

    Returns:
        The path.

    Raises:
        DataError: the file cannot be written.
    """
    return save(page(report), path)


def page(report: Mapping[str, Any]) -> str:
    """The page of a report: one HTML document, offline, without scripts.

    Args:
        report: ``spec`` (YAML), ``data`` (what cleaning did), ``valid`` and ``test`` (evaluations), ``fit`` (history,
            time, device), all as JSON and each optional. What is missing is left out.
    """
    tasks = task_names(report)
    title = f"Polymodal report: {', '.join(tasks)}" if tasks else "Polymodal report"
    main = [_summary(report, tasks), *(task_section(report, name) for name in tasks), _fit(report)]
    main += [*data_section(report), _spec(report)]
    return document(title, *main)


def task_names(report: Mapping[str, Any]) -> list[str]:
    """Every task that was evaluated, in order."""
    return list(dict.fromkeys(name for side in ("test", "valid") for name in part(report, side, "tasks")))


def _summary(report: Mapping[str, Any], tasks: list[str]) -> Markup:
    """The verdict on each task and what to look at first."""
    lines = []
    for name in tasks:
        side, seen = held_out(report, name)
        lines.append(tag("p", verdict(name, part(seen, "tasks", name), seen.get("rows"), side)))
    if not lines:
        lines.append(tag("p", "No labelled rows were held out, so nothing is known about how good the model is."))
    note = caveat(report, [held_out(report, name)[0] for name in tasks])
    lines.append(tag("p", note, cls="note") if note else None)
    warned = warnings(report)
    notes = tag("div", tag("h2", "Look at this"), tag("ul", warned), cls="warning") if warned else None
    return tag("section", tag("div", lines, cls="verdict"), notes, aria_label="verdict")


def _fit(report: Mapping[str, Any]) -> Markup | None:
    """What training was and how the loss went."""
    fit = part(report, "fit")
    if not fit:
        return None
    rows = part(fit, "rows")
    facts = {
        "rows": ", ".join(f"{number(count)} {side}" for side, count in rows.items()),
        "parameters": number(fit["parameters"]) if is_number(fit.get("parameters")) else "",
        "time": duration(fit["seconds"]) if is_number(fit.get("seconds")) else "",
        "processor time": duration(fit["cpu_seconds"]) if is_number(fit.get("cpu_seconds")) else "",
        "device": fit.get("device") or "",
    }
    listed = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items() if value]
    return tag("section", tag("h2", "Training"), tag("dl", listed), _history(report))


def _history(report: Mapping[str, Any]) -> Markup | None:
    """Losses of the tasks on both sides, so that they compare; the whole objective in words."""
    epochs = [epoch for epoch in part(report, "fit").get("history") or () if is_number(epoch.get("number"))]
    factors = _factors(report)
    shared = bool(factors) and all(is_number(part(e, "terms").get(name)) for e in epochs for name in factors)
    lines: dict[str, list[tuple[float, float]]] = {"train": [], "valid": []}
    for epoch in epochs:
        own = sum(w * part(epoch, "terms")[name] for name, w in factors.items()) if shared else epoch.get("train_loss")
        for name, value in (("train", own), ("valid", epoch.get("valid_loss"))):
            if is_number(value):
                lines[name].append((epoch["number"] + 1, value))
    series = [(name, points) for name, points in lines.items() if points]
    if not series:
        return None
    said = [f"{name} {_course(points)}" for name, points in series]
    of = "Loss of the tasks" if shared else "Loss"
    title = f"{of} over {many(len(epochs), 'epoch')}: {'; '.join(said)}."
    whole = [(epoch["number"] + 1, epoch["train_loss"]) for epoch in epochs if is_number(epoch.get("train_loss"))]
    if shared and whole:
        title += f" All that is minimised, further terms included: {_course(whole)}."
    every = -(-len(epochs) // LISTED)
    known = {name: dict(points) for name, points in series}
    rows = [
        [
            number(e["number"] + 1),
            *(tag("td", significant(values.get(e["number"] + 1)), cls="num") for values in known.values()),
        ]
        for e in epochs[::every]
    ]
    summary = "As a table" if every == 1 else f"As a table, one epoch in {every}"
    listed = fold(summary, table(["epoch", *known], rows, label="losses"))
    return tag("figure", tag("figcaption", title), curves(series, "epoch", "loss", title), listed)


def _course(points: Sequence[tuple[float, float]]) -> str:
    best = min(points, key=lambda point: point[1])
    return f"{significant(points[0][1])} to {significant(points[-1][1])}, lowest in epoch {best[0]}"


def _factors(report: Mapping[str, Any]) -> dict[str, float]:
    """Weight of each task's loss, from the spec."""
    spec = report.get("spec")
    try:
        outputs = part(yaml.safe_load(spec) if isinstance(spec, str) else spec, "outputs")
    except yaml.YAMLError:
        return {}
    weights = {str(name): part(outputs, name).get("weight", 1.0) for name in outputs}
    return weights if all(is_number(weight) for weight in weights.values()) else {}


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{number(float(seconds))} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def _spec(report: Mapping[str, Any]) -> Markup | None:
    spec = report.get("spec")
    if not spec:
        return None
    return tag("section", tag("h2", "Spec"), fold("What was fitted, as YAML", tag("pre", join([spec]))))
