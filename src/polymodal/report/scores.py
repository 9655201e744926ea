"""A task's part of the page: its variants as bars, its confusions, its calibration, its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polymodal.report.markup import DASH, Markup, fold, is_number, join, many, number, part, records, table, tag
from polymodal.report.plots import bar, calibration
from polymodal.report.words import (
    OWN,
    change,
    column,
    headline,
    held_out,
    interval,
    is_share,
    lower_is_better,
    metric_name,
    promises,
    score,
)

SHOWN = 20
"""Classes of a confusion matrix; of more, those with the most errors."""

NARROW = 10
"""Classes up to which a confusion matrix keeps its numbers on a phone."""

LONG = 20
"""Letters of a class's name beside a matrix."""

CONFUSIONS = 5
"""How many confusions are put in words."""

FLOOR = -1.0
"""Where bars of scores that have no lower end (R²) are cut off."""

TITLES = {
    "per_class": "Scores per class", "per_label": "Scores per label", "per_type": "Entities per type",
    "averages": "Entities, means over types", "per_tag": "Words per tag", "token_averages": "Words, means over tags",
    "directions": "Retrieval, each way", "composed": "Retrieval by all other sides together",
    "widths": "Retrieval by the length of embeddings",
}  # fmt: skip
"""Details that are tables, and what stands above them."""

MATRICES = frozenset({"confusion", "correlation"})

CALIBRATIONS = {
    "reliability": (
        "confidence", "accuracy", "Reliability",
        "how often answers were right, by how sure the model was; larger dots are more rows",
        "Below the diagonal: too sure; above: not sure enough.",
    ),
    "levels": (
        "level", "coverage", "Interval coverage",
        "the share of true values inside central intervals, by what the interval promises",
        "Below the diagonal: too sure; above: not sure enough.",
    ),
    "quantiles": (
        "level", "below", "Quantiles",
        "the share of true values below each quantile, by its level",
        "Below the diagonal: the quantile is too low; above: too high.",
    ),
}  # fmt: skip
"""Details that are drawn against the diagonal: both axes, name, what it is, how to read it."""


def task_section(report: Mapping[str, Any], name: str) -> Markup:
    """Everything about one task."""
    side, seen = held_out(report, name)
    task = part(seen, "tasks", name)
    kind, rows = task.get("kind", "task"), number(seen.get("rows"))
    heading = tag("h2", name, " ", tag("small", f"{kind}, {rows} {side} rows"))
    details = part(task, "details")
    said = [tag("p", line) for line in promises(report, name)]
    parts = [variants(task), *said, *_confusion(details), _calibration(details), _correlation(details)]
    return tag("section", heading, parts, _tables(details), all_scores(report, name))


def variants(task: Mapping[str, Any]) -> Markup | None:
    """The headline score of the model, without each input, with each alone, and of the baselines, as bars."""
    metric = headline(task)
    if metric is None:
        return tag("p", "No score is defined on these rows: a score needs labelled rows that differ.")
    own, ends = float(task["scores"][metric]), interval(task)
    groups = _groups(task, metric)
    values = [value for _, rows in groups for value in rows.values()] + list(ends or ())
    low, high = scale(values, metric)
    bodies = []
    for cls, rows in groups:
        lines = []
        for label, value in rows.items():
            drawn = bar(value, low, high, cls, own, ends if cls == "own" else None)
            cells = [tag("td", drawn, cls="drawn"), tag("td", score(value, metric), cls="num")]
            aside = "" if cls == "own" else change(value, own, metric)
            lines.append(tag("tr", tag("th", label, scope="row"), cells, tag("td", aside, cls="num aside")))
        bodies.append(tag("tbody", lines))
    heads = [
        tag("th", tag("span", "model", cls="unseen"), scope="col"),
        tag("th", tag("span", "drawn", cls="unseen"), scope="col"),
        tag("th", metric_name(metric), scope="col", cls="num"),
        tag("th", "than all inputs", scope="col", cls="num"),
    ]
    caption = tag(
        "caption", f"What the {metric_name(metric)} rests on. ", tag("small", _legend(task, metric, low, high))
    )
    return tag("table", caption, tag("thead", tag("tr", heads)), bodies, cls="bars")


def _groups(task: Mapping[str, Any], metric: str) -> list[tuple[str, dict[str, float]]]:
    """Bars by kind; the fusion model stands alone only where the answer is not it already."""
    baselines = column(part(task, "baselines"), metric)
    if not task.get("share"):
        baselines.pop(OWN, None)
    return [
        ("own", {"all inputs": float(task["scores"][metric])}),
        ("without", {f"without {name}": value for name, value in column(part(task, "without"), metric).items()}),
        ("alone", {f"only {name}": value for name, value in column(part(task, "alone"), metric).items()}),
        ("baseline", baselines),
    ]


def scale(values: Sequence[float], metric: str) -> tuple[float, float]:
    """Both ends of a bar chart, zero within.

    Args:
        values: to draw.
        metric: scores that cannot pass 1 have 1 as their end.
    """
    low, high = min([0.0, *values]), max([0.0, *values])
    if is_share(metric) and not lower_is_better(metric):
        return max(low, FLOOR), 1.0
    return low, high if high > low else low + 1.0


def _legend(task: Mapping[str, Any], metric: str, low: float, high: float) -> str:
    better = "Lower is better: shorter bars" if lower_is_better(metric) else "Higher is better"
    lines = [f"{better}. Bars from {number(low)} to {number(high)}; the upright line is the model with all inputs"]
    lines.append(", the thin line its 95 % interval." if interval(task) else ".")
    share = task.get("share")
    if is_number(share) and share > 0:
        lines.append(f" The linear model has a share of {number(float(share), 2)} in the answer.")
    return "".join(lines)


def _confusion(details: Mapping[str, Any]) -> list[Markup]:
    """Confusion matrix as a heat table, and its biggest entries in words."""
    counts, classes = details.get("confusion"), details.get("classes")
    if not counts or not classes or len(counts) != len(classes):
        return []
    total = sum(sum(row) for row in counts)
    if not total:
        return []
    wrong = [sum(counts[k]) + sum(row[k] for row in counts) - 2 * counts[k][k] for k in range(len(classes))]
    order = sorted(range(len(classes)), key=lambda k: (-wrong[k], -sum(counts[k]), k))
    keep = sorted(order[:SHOWN])
    names = [str(classes[k]) for k in keep]
    heads, rows = names, [[counts[i][j] for j in keep] for i in keep]
    if len(keep) < len(classes):
        heads = [*names, "any other"]
        rows = [[*row, sum(counts[i]) - sum(row)] for i, row in zip(keep, rows, strict=True)]
    sums = [sum(row) or 1 for row in rows]

    def shade(i: int, j: int) -> tuple[str, float]:
        return "hit" if i == j else "miss", rows[i][j] / sums[i]

    of = f" {len(keep)} of {len(classes)} classes: those with the most errors." if len(keep) < len(classes) else ""
    note = f"Rows: the true class; columns: the predicted one; shade: share of the row.{of}"
    drawn = heat(names, heads, rows, shade, join(["Confusion matrix. ", tag("small", note)]))
    return [drawn, *_mistakes(counts, classes)]


def _mistakes(counts: Sequence[Sequence[int]], classes: Sequence[Any]) -> list[Markup]:
    wrong = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    worst = sorted(wrong, key=lambda entry: (-entry[0], entry[1], entry[2]))[:CONFUSIONS]
    if not worst:
        return [tag("p", "Nothing was taken for anything else.")]
    lines = [
        tag("li", tag("b", classes[i]), " taken for ", tag("b", classes[j]), f": {n} of {sum(counts[i])}")
        for n, i, j in worst
    ]
    return [tag("p", "Most frequent mistakes:", cls="lead"), tag("ul", lines)]


def heat(
    names: Sequence[str],
    heads: Sequence[str],
    rows: Sequence[Sequence[Any]],
    shade: Callable[[int, int], tuple[str, float]],
    caption: Markup,
) -> Markup:
    """A matrix as a table with shaded cells.

    Args:
        names: of the rows.
        heads: of the columns.
        rows: of numbers.
        shade: from row and column to a class (hit, miss) and a strength from 0 to 1.
        caption: above it.
    """
    top = [tag("th", tag("span", short(head), title=head), scope="col") for head in heads]
    body = []
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        cells = []
        for j, value in enumerate(row):
            cls, strength = shade(i, j)
            shown = number(value, 2) if isinstance(value, float) else number(value)
            cells.append(tag("td", shown if value else "·", cls=cls, style=f"--h:{100 * strength:.0f}%"))
        body.append(tag("tr", tag("th", tag("span", short(name), title=name), scope="row"), cells))
    size = "heat dense" if len(heads) > NARROW else "heat"
    head = tag("thead", tag("tr", tag("td"), top))
    return tag("table", tag("caption", caption), head, tag("tbody", body), cls=size)


def short(name: str) -> str:
    """A name that fits beside a matrix; the whole one stands in its title."""
    return name if len(name) <= LONG else f"{name[: LONG - 1]}…"


def _calibration(details: Mapping[str, Any]) -> Markup | None:
    """Reliability of probabilities, or coverage of intervals or quantiles, as a plot with its table."""
    for key, (across, up, name, note, below) in CALIBRATIONS.items():
        rows = [row for row in details.get(key) or () if is_number(row.get(across)) and is_number(row.get(up))]
        if not rows:
            continue
        points = [(row[across], row[up], row.get("count", 1)) for row in rows]
        title = f"{name}: {note}. On the diagonal, the model is as sure as it should be."
        shown = [{key: _whole(value) for key, value in row.items()} for row in rows]
        caption = tag("figcaption", tag("b", name), ": ", note, f". {below}")
        drawn = calibration(points, {"level": "promised share"}.get(across, across), up, title)
        return tag("figure", caption, drawn, fold("As a table", records(shown, label=name, named=metric_name)))
    return None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value > 1 and value == int(value) else value


def _correlation(details: Mapping[str, Any]) -> Markup | None:
    rows, names = details.get("correlation"), details.get("targets")
    if not rows or not names or len(rows) != len(names) or len(names) > SHOWN:
        return None

    def shade(i: int, j: int) -> tuple[str, float]:
        return ("hit" if rows[i][j] >= 0 else "miss"), min(1.0, abs(rows[i][j]))

    note = "How errors of two targets go together: 1 the same way, −1 opposite ways."
    names = [str(name) for name in names]
    return heat(names, names, rows, shade, join(["Correlation of the errors. ", tag("small", note)]))


def _tables(details: Mapping[str, Any]) -> list[Markup]:
    """Every other list of records, scores per class among them."""
    found = []
    for name, rows in details.items():
        if isinstance(rows, Mapping) and all(isinstance(row, Mapping) for row in rows.values()):
            rows = [{"mean": label} | dict(row) for label, row in rows.items()]
        if name in {*MATRICES, *CALIBRATIONS} or not isinstance(rows, list) or not rows:
            continue
        if all(isinstance(row, Mapping) for row in rows):
            title = TITLES.get(name, name.replace("_", " "))
            wide = len(rows) > SHOWN
            drawn = records(rows, "" if wide else title, title, metric_name)
            found.append(fold(f"{title} ({many(len(rows), 'row')})", drawn) if wide else drawn)
    return found


def all_scores(report: Mapping[str, Any], name: str) -> Markup | None:
    """Every score on each held-out side, and of every variant."""
    sides = {side: part(report, side, "tasks", name) for side in ("test", "valid")}
    sides = {side: task for side, task in sides.items() if task}
    metrics = list(dict.fromkeys(metric for task in sides.values() for metric in part(task, "scores")))
    if not metrics:
        return None
    rows = [
        [
            _named(metric),
            *(tag("td", score(part(task, "scores").get(metric), metric), cls="num") for task in sides.values()),
        ]
        for metric in metrics
    ]
    own = table(["all inputs", *sides], rows, label=f"scores of {name}")
    task = next(iter(sides.values()))
    shown, lines = metrics[:4], {"all inputs": part(task, "scores")}
    lines |= {f"without {other}": part(task, "without", other) for other in part(task, "without")}
    lines |= {f"only {other}": part(task, "alone", other) for other in part(task, "alone")}
    lines |= {label: part(task, "baselines", label) for label in part(task, "baselines")}
    cells = [[n, *(tag("td", score(s.get(m), m) if s else DASH, cls="num") for m in shown)] for n, s in lines.items()]
    each = table(["model", *map(metric_name, shown)], cells, label=f"scores of {name} by model")
    return fold("All scores", own, each if len(lines) > 1 else None)


def _named(metric: str) -> Markup:
    aside = tag("small", " lower is better") if lower_is_better(metric) else None
    return tag("span", metric_name(metric), aside)
