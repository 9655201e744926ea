"""The data's part of the page: what is there, what is broken, what was mended, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymodal.report.markup import Markup, fold, is_number, join, many, number, part, table, tag
from polymodal.report.plots import bar, stack
from polymodal.report.words import metric_name

LEAKS = 5
"""How many leaks are written out."""

BALANCE = 15
"""How many classes' shares are drawn openly."""


def sources(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables behind a report, each once: side and data report."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for side, data in [("", part(report, "data")), *((s, part(report, s, "data")) for s in ("test", "valid"))]:
        if data and not any(data == other for _, other in found):
            found.append((side, data))
    return found


def warnings(report: Mapping[str, Any]) -> list[Markup]:
    """One line for everything that may make the scores wrong."""
    lines: dict[str, None] = {}
    leaks = [leak for _, data in sources(report) for leak in data.get("leaks") or ()]
    for leak in list(dict.fromkeys(map(str, leaks)))[:LEAKS]:
        lines[leak] = None
    if len(set(map(str, leaks))) > LEAKS:
        lines[f"{len(set(map(str, leaks))) - LEAKS} more leaks."] = None
    for side, data in sources(report):
        where = f" ({side} table)" if side else ""
        for name in part(data, "inputs"):
            seen = part(data, "inputs", name)
            if seen.get("missing_column"):
                lines[f"{name}: the table has no such column{where}; absent in every row."] = None
            elif not seen.get("present"):
                lines[f"{name}: nothing present in {many(data.get('rows'), 'row')}{where}."] = None
            if seen.get("quarantined"):
                lines[f"{name}: {many(seen['quarantined'], 'broken cell')}{where}, counted as absent."] = None
    return [tag("li", line) for line in lines]


def data_section(report: Mapping[str, Any]) -> list[Markup]:
    """What each table holds."""
    return [_source(side, data) for side, data in sources(report)]


def _source(side: str, data: Mapping[str, Any]) -> Markup:
    inputs = {name: part(data, "inputs", name) for name in part(data, "inputs")}
    facts = many(data.get("rows"), "row") if is_number(data.get("rows")) else ""
    heading = tag("h2", f"Data: {side} table" if side else "Data", " ", tag("small", facts))
    origin = tag("p", "From ", tag("code", data["source"]), ".") if data.get("source") else None
    unused = data.get("unused_columns") or []
    left = tag("p", "Columns that the spec does not name: ", ", ".join(map(str, unused)), ".") if unused else None
    parts = [_presence(inputs), _repairs(inputs), _ranges(inputs), _quarantined(inputs), _balance(data)]
    return tag("section", heading, origin, parts, left)


def _presence(inputs: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Present, empty and broken cells per input."""
    rows = []
    for name, seen in inputs.items():
        here, away, broken = (_count(seen, key) for key in ("present", "absent", "quarantined"))
        broken, total = min(broken, away), max(1, here + away)
        parts = [(here / total, "present"), (broken / total, "broken"), ((away - broken) / total, "empty")]
        label = tag("span", name, tag("small", " ", seen.get("kind", "")))
        twins = _count(seen, "duplicates")
        rows.append([label, tag("td", stack(parts), cls="drawn"), here, away - broken, broken, twins])
    if not rows:
        return None
    key = [(tag("i", cls=f"key {cls}"), f" {cls} ") for cls in ("present", "broken", "empty")]
    heads = ["input", join([tag("span", "drawn", cls="unseen")]), "present", "empty", "broken", "duplicates"]
    return table(heads, rows, join(["What each input has. ", tag("small", key)]), "bars presence")


def _repairs(inputs: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    rows = []
    for name, seen in inputs.items():
        total = max(1, _count(seen, "present") + _count(seen, "absent"))
        for what, count in part(seen, "repaired").items():
            share = bar(count / total if is_number(count) else 0.0, 0.0, 1.0, "repaired")
            rows.append([join([name, ": ", what]), tag("td", share, cls="drawn"), count])
    if not rows:
        return None
    note = tag("small", "These cells count as present; bars: share of all cells.")
    return table(["repair", tag("span", "drawn", cls="unseen"), "cells"], rows, join(["Mended. ", note]), "bars")


def _ranges(inputs: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    rows = []
    for name, seen in inputs.items():
        for fact in part(seen, "ranges"):
            span = part(seen, "ranges", fact)
            rows.append(
                [f"{name}: {fact}", *(tag("td", number(span.get(k)), cls="num") for k in ("min", "mean", "max"))]
            )
    return fold("Ranges", table(["input", "min", "mean", "max"], rows, label="ranges")) if rows else None


def _quarantined(inputs: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Broken cells with their reasons, as many as the report lists."""
    lines, total = [], 0
    for seen in inputs.values():
        total += _count(seen, "quarantined")
        for entry in seen.get("quarantined_rows") or ():
            place = tag("b", f"row {entry.get('row')}, {entry.get('column')}")
            lines.append(tag("li", place, " ", tag("code", entry.get("origin")), " ", entry.get("reason")))
    if not lines:
        return None
    first = "" if len(lines) >= total else f", the first {len(lines)} of them"
    return fold(f"{many(total, 'broken cell')}{first}", tag("ul", lines, cls="broken-cells"))


def _balance(data: Mapping[str, Any]) -> list[Markup]:
    """How many rows of each class, per target."""
    found = []
    for name in part(data, "targets"):
        target = part(data, "targets", name)
        counts = {label: n for label, n in part(target, "balance").items() if is_number(n)}
        order = sorted(counts.items(), key=lambda entry: -entry[1])
        known, unknown = many(target.get("labelled"), "labelled row"), number(target.get("unlabelled"))
        title = join([tag("b", metric_name(name)), f": {known}, {unknown} without a label"])
        most = max(counts.values(), default=0) or 1
        rows = [[label, tag("td", bar(n / most, 0.0, 1.0, "class"), cls="drawn"), n] for label, n in order]
        heads = ["class", tag("span", "drawn", cls="unseen"), "rows"]
        if not rows:
            found.append(tag("p", title, "."))
            continue
        found.append(table(heads, rows[:BALANCE], title, "bars"))
        if len(rows) > BALANCE:
            rest = table(heads, rows[BALANCE:], cls="bars", label=f"{name}: other classes")
            found.append(fold(f"{many(len(rows) - BALANCE, 'more class', 'more classes')}", rest))
    return found


def _count(seen: Mapping[str, Any], key: str) -> int:
    value = seen.get(key)
    return int(value) if is_number(value) else 0
