"""What each input gives by itself and what the model gains from it: two small groups of bars per input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymodal.report.figures import (
    Ends,
    between,
    ends_of,
    figure,
    floor_of,
    higher_is_better,
    metric_of,
    percent,
    signed,
    span,
    value_of,
)
from polymodal.report.markup import DASH, Markup, is_number, join, number, part, tag
from polymodal.report.plots import bar
from polymodal.report.scores import scale
from polymodal.report.words import metric_name, score

GAINS = {"contribution": "value", "shapley": "value", "permuted": "loss"}
"""Gains of an input, and where each keeps its value."""

TITLES = {"contribution": "contribution", "shapley": "Shapley", "permuted": "permuted"}


BADGES = {"fine": "badge well", "harmful": "badge act", "under-trained": "badge act"}


def badge(kind: Any) -> Markup:
    """The kind of a verdict as a word with a dot: full where something is to be done, hollow where all is well."""
    return tag("span", kind, cls=BADGES.get(str(kind), "badge"))


def inputs_section(task: Mapping[str, Any], kinds: Mapping[str, Any], verdicts: Mapping[str, Any]) -> Markup | None:
    """A block per input.

    Args:
        task: of a diagnosis.
        kinds: the modality of each input.
        verdicts: the kind of each input's verdict.
    """
    inputs = {name: part(task, "inputs", name) for name in part(task, "inputs")}
    if not inputs:
        return None
    metric, score_span, gain_span = metric_of(task), _scores(task, inputs), _gains(inputs)
    full, floor = value_of(task, "score"), floor_of(task)[0]
    blocks = []
    for name, seen in inputs.items():
        facts = [kinds.get(name) if kinds.get(name) != name else None, *_shares(seen)]
        aside = tag("small", ", ".join(str(fact) for fact in facts if fact))
        kind = verdicts.get(name)
        heading = tag("h4", tag("b", name), " ", aside, " ", badge(kind) if kind else None)
        own = _alone(seen, metric, score_span, full, floor, name)
        gains = _gained(seen, metric, gain_span, name)
        if own or gains:
            blocks.append(tag("div", heading, tag("div", own, gains, cls="sides"), cls="input"))
    if not blocks:
        return None
    heading = tag("h3", "What each input can give, and what the model gains from it")
    return join([heading, _legend(task, metric, score_span, gain_span), blocks])


def _shares(seen: Mapping[str, Any]) -> list[str]:
    """Shares of the rows that have the input, and of its cells that are broken."""
    present, broken = value_of(seen, "present"), value_of(seen, "broken")
    said = [] if present is None else [f"in {percent(present)} of rows"]
    return [*said, f"{percent(broken)} of cells broken"] if broken else said


def _own(seen: Mapping[str, Any]) -> dict[str, float]:
    """What an input could give, by how it was found."""
    found = {
        "alone": value_of(part(seen, "alone"), "score"),
        "own head": value_of(seen, "own_head"),
        "linear": value_of(seen, "linear"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _gain(seen: Mapping[str, Any], name: str) -> tuple[float | None, Ends | None]:
    found = part(seen, name)
    return value_of(found, GAINS[name]), ends_of(found)


def _scores(task: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]]) -> Ends:
    """The scale of scores: up to 1 where that is the end of it."""
    values = [value for seen in inputs.values() for value in _own(seen).values()]
    values += [value for value in (value_of(task, "score"), floor_of(task)[0]) if value is not None]
    for seen in (task, *(part(seen, "alone") for seen in inputs.values())):
        values += ends_of(seen) or ()
    return scale(values, metric_of(task))


def _gains(inputs: Mapping[str, Mapping[str, Any]]) -> Ends:
    gains = [_gain(seen, name) for seen in inputs.values() for name in GAINS]
    return span([value for value, _ in gains], [ends for _, ends in gains])


def _alone(
    seen: Mapping[str, Any], metric: str, ends: Ends, full: float | None, floor: float | None, name: str
) -> Markup | None:
    own = _own(seen)
    best = str(part(seen, "ceiling").get("by") or "").replace("_", " ")
    rows = []
    for label, value in own.items():
        whisker = ends_of(part(seen, "alone")) if label == "alone" else None
        drawn = bar(value, *ends, "alone" if label == "alone" else "ceiling", full, whisker, floor)
        said, word = _ceiling(seen, metric) if label == best and len(own) > 1 else (None, None)
        if whisker is not None:
            said, word = between(whisker, metric), said
        rows.append(_row(label, drawn, score(value, metric), said, word))
    return _table(f"{name}: {metric_name(metric)} by itself", rows, "bars meter itself")


def _ceiling(seen: Mapping[str, Any], metric: str) -> tuple[Markup, str | None]:
    """How far the best of them is above the model on this input alone."""
    room = part(seen, "headroom")
    value = value_of(room, "value")
    said = None if not value else f" {signed(value, metric)}"
    return tag("span", tag("b", "ceiling"), said), "noise" if said and room.get("noise") is True else None


def _gained(seen: Mapping[str, Any], metric: str, ends: Ends, name: str) -> Markup | None:
    rows = []
    for gain, title in TITLES.items():
        value, whisker = _gain(seen, gain)
        if value is None:
            continue
        noise = part(seen, gain).get("noise") is True
        drawn = bar(value, *ends, "own" if value >= 0 else "harm", None, whisker)
        word = "noise" if noise else None
        cls = "quiet" if noise else None
        rows.append(_row(title, drawn, signed(value, metric), between(whisker, metric), word, cls))
    return _table(f"{name}: gain for the model", rows, "bars meter")


def _row(label: str, drawn: Markup, shown: str, aside: Any, word: Any, cls: str | None = None) -> Markup:
    cells = [tag("td", drawn, cls="drawn"), figure(shown), tag("td", aside, cls="aside"), tag("td", word, cls="word")]
    return tag("tr", tag("th", label, scope="row"), cells, cls=cls)


def _table(title: str, rows: list[Markup], cls: str) -> Markup | None:
    if not rows:
        return None
    heads = [tag("th", head, scope="col") for head in ("measure", "drawn", "value", "95 % interval", "remark")]
    head = tag("thead", tag("tr", heads), cls="unseen")
    columns = tag("colgroup", [Markup(f'<col class="{name}">') for name in ("label", "bar", "num", "ends", "word")])
    return tag("table", columns, head, tag("tbody", rows), cls=cls, aria_label=title)


def _legend(task: Mapping[str, Any], metric: str, scores: Ends, gains: Ends) -> Markup:
    name, better = metric_name(metric), "" if higher_is_better(task) else ", where less is better"
    lines = [f" {name}{better}, from {number(scores[0])} to {number(scores[1])}"]
    if is_number(task.get("score")):
        lines.append(f"; upright line: all inputs, {score(task['score'], metric)}")
    floor, by = floor_of(task)
    if floor is not None:
        lines.append(f"; dotted: {by}, {score(floor, metric)}")
    low, high = (signed(end, metric) if end else DASH for end in gains)
    about = f"{low} to {high}" if gains[0] < 0 < gains[1] else f"0 to {high if gains[1] > 0 else low}"
    gain = f" how much better the {name} is with it, from {about}. Pale and “noise”: the interval holds zero."
    return tag(
        "div",
        tag("p", tag("b", "By itself:"), lines, "."),
        tag("p", tag("b", "Gain for the model:"), gain),
        cls="sides legend",
    )
