"""All subsets of the inputs with their scores, and how pairs of inputs work together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polymodal.report.figures import (
    Ends,
    best_first,
    between,
    ends_of,
    figure,
    higher_is_better,
    listed,
    metric_of,
    signed,
    span,
    strings,
    value_of,
)
from polymodal.report.markup import DASH, Markup, fold, join, many, part, tag
from polymodal.report.plots import bar
from polymodal.report.scores import scale, short
from polymodal.report.words import metric_name, score

OPEN = 16
"""Subsets that are all shown; of more, the best of each size."""

MOST = 256
"""Subsets that are listed at all."""

KEY = {"own": "all inputs", "without": "all but one", "some": "some", "alone": "one or none"}
"""Colours of the bars."""

PAIRS = 10
"""Pairs that stand openly."""


def subsets_section(task: Mapping[str, Any]) -> Markup | None:
    """A matrix of dots with a bar per subset, the best first."""
    found, names = best_first(listed(task, "subsets"), task), list(part(task, "inputs"))
    names = names or list(dict.fromkeys(name for one in found for name in strings(one.get("inputs"))))
    if len(found) < 2 or not names:
        return None
    metric = metric_of(task)
    values = [float(one["score"]) for one in found] + [end for one in found for end in ends_of(one) or ()]
    ends, full = scale(values, metric), value_of(task, "score")
    sampled = " Only some of the subsets were tried: a sample." if task.get("sampled") is True else ""
    better = "" if higher_is_better(task) else " Less is better."
    key = [(tag("i", cls=f"key {cls}"), f" {words} ") for cls, words in KEY.items()]
    note = [f"A full dot: the model sees this input; whisker: 95 % interval.{better}{sampled} ", tag("span", key)]
    if len(found) <= OPEN:
        title = join(["Every combination of inputs, the best first ", tag("small", note)])
        return _matrix(found, names, metric, ends, full, title)
    title = join(["The best combination of each size ", tag("small", note)])
    top = _matrix(_best_of_size(found), names, metric, ends, full, title)
    rest = (
        f"The best {MOST} of {many(len(found), 'combination')}"
        if len(found) > MOST
        else f"All {len(found)} combinations"
    )
    return join([top, fold(rest, _matrix(found[:MOST], names, metric, ends, full, rest))])


def _best_of_size(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    best: dict[int, Mapping[str, Any]] = {}
    for one in found:
        best.setdefault(len(strings(one.get("inputs"))), one)
    return [best[size] for size in sorted(best, reverse=True)]


def _matrix(
    found: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    metric: str,
    ends: Ends,
    full: float | None,
    title: Any,
) -> Markup:
    rows = []
    for one in found:
        inside = set(strings(one.get("inputs")))
        drawn = bar(float(one["score"]), *ends, _size(len(inside), len(names)), full, ends_of(one))
        label = tag("span", " + ".join(name for name in names if name in inside) or "no input", cls="unseen")
        figures = [figure(score(one["score"], metric)), figure(between(ends_of(one), metric), "num aside")]
        cells = [tag("th", label, scope="row"), *_dots(names, inside), tag("td", drawn, cls="drawn"), *figures]
        rows.append(tag("tr", cells))
    heads = [tag("th", tag("span", short(name), title=name), scope="col", cls="dot") for name in names]
    tail = [
        tag("th", tag("span", "drawn", cls="unseen"), scope="col"),
        tag("th", metric_name(metric), scope="col", cls="num"),
        tag("th", "95 %", scope="col", cls="num aside"),
    ]
    unseen = tag("th", tag("span", "inputs", cls="unseen"), scope="col")
    head = tag("thead", tag("tr", unseen, heads, tail))
    size = "upset dense" if len(names) > 6 else "upset"
    return tag("table", tag("caption", title), head, tag("tbody", rows), cls=size)


def _dots(names: Sequence[str], inside: set[str]) -> list[Markup]:
    """A dot per input; a line joins the full ones."""
    places = [i for i, name in enumerate(names) if name in inside]
    first, last = (places[0], places[-1]) if len(places) > 1 else (len(names), -1)
    cells = []
    for i in range(len(names)):
        joined = "from" if i == first else "to" if i == last else "thru" if first < i < last else ""
        cells.append(
            tag("td", cls=" ".join(filter(None, ["dot", "on" if i in places else "", joined])), aria_hidden="true")
        )
    return cells


def _size(inside: int, inputs: int) -> str:
    """Colour of a bar: as on the report page, all inputs, one taken away, one alone."""
    if inside == inputs:
        return "own"
    if inside == inputs - 1 and inside:
        return "without"
    return "alone" if inside <= 1 else "some"


def pairs_section(task: Mapping[str, Any]) -> Markup | None:
    """The interaction of each pair, the strongest first."""
    pairs = [pair for pair in listed(task, "pairs") if value_of(pair, "interaction") is not None]
    if not pairs:
        return None
    metric = metric_of(task)
    pairs.sort(key=lambda pair: (pair.get("noise") is True, -abs(pair["interaction"])))
    ends = span([value_of(pair, "interaction") for pair in pairs], [ends_of(pair) for pair in pairs])
    note = "Synergy: two inputs give more together than one by one; redundancy: they tell the same."
    title = join(["Pairs of inputs ", tag("small", note, " Change of the ", metric_name(metric), "; pale: noise.")])
    drawn = _pairs(pairs[:PAIRS], metric, ends, title)
    if len(pairs) <= PAIRS:
        return drawn
    rest = many(len(pairs) - PAIRS, "more pair")
    return join([drawn, fold(rest, _pairs(pairs[PAIRS:], metric, ends, rest))])


def _pairs(pairs: Sequence[Mapping[str, Any]], metric: str, ends: Ends, title: Any) -> Markup:
    rows = []
    for pair in pairs:
        value, noise = float(pair["interaction"]), pair.get("noise") is True
        drawn = bar(value, *ends, "own" if value >= 0 else "alone", None, ends_of(pair))
        said = join([pair.get("kind") or DASH, ", noise" if noise and pair.get("kind") != "independent" else None])
        figures = [
            figure(signed(value, metric)),
            figure(between(ends_of(pair), metric), "num aside"),
            tag("td", said, cls="word"),
        ]
        label = tag("th", " + ".join(strings(pair.get("inputs"))), scope="row")
        rows.append(tag("tr", label, tag("td", drawn, cls="drawn"), figures, cls="quiet" if noise else None))
    heads = [
        tag("th", tag("span", "pair", cls="unseen"), scope="col"),
        tag("th", tag("span", "drawn", cls="unseen"), scope="col"),
        tag("th", "interaction", scope="col", cls="num"),
        tag("th", "95 %", scope="col", cls="num aside"),
        tag("th", "kind", scope="col", cls="word"),
    ]
    return tag("table", tag("caption", title), tag("thead", tag("tr", heads)), tag("tbody", rows), cls="bars pairs")
