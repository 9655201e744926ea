"""A diagnosis as one HTML file that needs nothing else: the verdict on top, then plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polymodal.report.figures import between, ends_of, finite, floor_of, higher_is_better, listed, metric_of, value_of
from polymodal.report.inputs import badge, inputs_section
from polymodal.report.markup import Markup, fold, is_number, join, many, number, part, table, tag
from polymodal.report.method import facts_of, learning_section, method_section
from polymodal.report.problems import leaks, problems_section
from polymodal.report.robustness import robustness_section
from polymodal.report.shell import document, save
from polymodal.report.subsets import pairs_section, subsets_section
from polymodal.report.words import metric_name, score

SHEETS = ("style.css", "diagnosis.css")


def save_diagnosis(diagnosis: Mapping[str, Any], path: Path | str) -> Path:
    """Write the page of a diagnosis.

    Args:
        diagnosis: as for `diagnosis_page`.
        path: of the file; its folder is made.

    Returns:
        The path.

    Raises:
        DataError: the file cannot be written.
    """
    return save(diagnosis_page(diagnosis), path)


def diagnosis_page(diagnosis: Mapping[str, Any]) -> str:
    """The page of a diagnosis: one HTML document, offline, without scripts.

    Args:
        diagnosis: ``verdict``, ``tasks``, ``learning``, ``problems``, ``settings`` and what they are of, all as JSON
            and each optional. What is missing is left out.
    """
    diagnosis = finite(diagnosis)
    names = list(part(diagnosis, "tasks"))
    title = f"Polymodal diagnosis: {', '.join(names)}" if names else "Polymodal diagnosis"
    sections = [_task(diagnosis, name) for name in names]
    rest = [learning_section(diagnosis), problems_section(diagnosis), method_section(diagnosis)]
    return document(title, _summary(diagnosis, names), *sections, *rest, sheets=SHEETS)


def _summary(diagnosis: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """The verdict: a sentence, then a line per input with what to try."""
    said = diagnosis.get("summary")
    lines = [tag("p", said) if said else None]
    scored = [tag("span", tag("b", name), ": ", _scored(part(diagnosis, "tasks", name)), " ") for name in names]
    facts = [facts_of(diagnosis), *([] if said else scored)]
    lines.append(tag("p", facts, cls="note") if any(facts) else None)
    verdicts = listed(diagnosis, "verdict")
    tasks = list(dict.fromkeys(str(one.get("task", "")) for one in verdicts))
    judged = []
    for name in tasks:
        own = [one for one in verdicts if str(one.get("task", "")) == name]
        weakest = str(diagnosis.get("weakest"))
        own.sort(key=lambda one: (str(one.get("input")) != weakest, one.get("kind") == "fine"))
        judged += [tag("h3", name) if len(tasks) > 1 else None, tag("ul", [_judged(o) for o in own], cls="judged")]
    if not judged:
        judged = [tag("p", "No verdict: no input of any task was measured.")]
    found = leaks(diagnosis)
    warned = (
        tag("div", tag("b", "Leakage: "), f"{many(len(found), 'finding')}; scores may be too good. See ",
            "“Data problems”.", cls="warning")
        if found
        else None
    )  # fmt: skip
    return tag("section", tag("div", lines, cls="verdict"), warned, judged, _behind(verdicts), aria_label="verdict")


def _scored(task: Mapping[str, Any]) -> str:
    """How good the whole model is."""
    value, metric = value_of(task, "score"), metric_of(task)
    if value is None:
        return "No score is defined on these rows."
    ends, (floor, by) = between(ends_of(task), metric), floor_of(task)
    notes = [*([] if higher_is_better(task) else ["less is better"]), *([f"95 % {ends}"] if ends else [])]
    aside = f" ({'; '.join(notes)})" if notes else ""
    beside = f"; {by}: {score(floor, metric)}" if floor is not None else ""
    return f"With all inputs, {metric_name(metric)} {score(value, metric)}{aside}{beside}."


def _judged(one: Mapping[str, Any]) -> Markup:
    """One input: its name, its kind, why, and a command."""
    name, kind, said = str(one.get("input") or ""), one.get("kind"), str(one.get("text") or "")
    for known in (f"{one.get('task')}, {name}: {kind}.", f"{name}: {kind}."):  # stands beside it already
        said = said.removeprefix(known).strip()
    tried = tag("span", "Try ", _command(str(one["try"])), cls="try") if one.get("try") else None
    why = tag("span", said or _numbers(one), tried, cls="why")
    return tag("li", tag("b", name, cls="name"), badge(kind) if kind else None, why)


def _command(command: str) -> Markup:
    """A command that is copied whole and breaks between its words only."""
    words = [(" " if i else None, tag("span", word)) for i, word in enumerate(command.split())]
    return tag("code", words)


def _numbers(one: Mapping[str, Any]) -> str:
    """Figures behind a verdict in a line."""
    found = part(one, "numbers")
    plain = {k: v.get("value") if isinstance(v, Mapping) else v for k, v in found.items()}
    return " · ".join(f"{str(k).replace('_', ' ')} {number(v, 3)}" for k, v in plain.items() if is_number(v))


def _behind(verdicts: Sequence[Mapping[str, Any]]) -> Markup | None:
    lines = [(one, _numbers(one)) for one in verdicts]
    items = [tag("li", tag("b", one.get("input") or ""), ": ", said) for one, said in lines if said]
    return tag("div", fold("The numbers behind it", tag("ul", items)), cls="numbers") if items else None


def _task(diagnosis: Mapping[str, Any], name: str) -> Markup:
    """Every plot of one task."""
    task = part(diagnosis, "tasks", name)
    facts = [task.get("kind"), many(task["rows"], "row") if is_number(task.get("rows")) else None]
    said = ", ".join(str(fact) for fact in facts if fact)
    kinds = {
        str(one.get("input")): one.get("kind")
        for one in listed(diagnosis, "verdict")
        if one.get("task") in (name, None)
    }
    inputs = inputs_section(task, part(diagnosis, "kinds"), kinds)
    drawn = [inputs, subsets_section(task), pairs_section(task), robustness_section(task), _scores(task)]
    return tag("section", tag("h2", name, " ", tag("small", said)), tag("p", _scored(task), cls="scored"), drawn)


def _scores(task: Mapping[str, Any]) -> Markup | None:
    """Every score with all inputs."""
    known = {name: value for name, value in part(task, "scores").items() if is_number(value)}
    if len(known) < 2:
        return None
    rows = [[metric_name(name), tag("td", score(value, name), cls="num")] for name, value in known.items()]
    return fold("All scores with all inputs", join([table(["score", "value"], rows, label="scores with all inputs")]))
