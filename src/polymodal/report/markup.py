"""HTML from small pieces: everything is escaped unless it is HTML already."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

DASH = "–"


class Markup(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """Escape anything, lone surrogates (of odd file names) included."""
    if isinstance(value, Markup):
        return value
    safe = str(value).encode("utf-8", "backslashreplace").decode()
    return Markup(html.escape(safe))


def join(children: Iterable[Any]) -> Markup:
    """Children one after the other; None is nothing, lists are taken apart."""
    parts = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(child))
        elif child is not None:
            parts.append(text(child))
    return Markup("".join(parts))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """One element.

    Args:
        name: of the element.
        *children: `Markup`, anything else is escaped.
        **attributes: "_" stands for "-", ``cls`` for class; None leaves one out. Values are escaped.
    """
    pairs = ((key.replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    inside = "".join(f' {"class" if key == "cls" else key}="{text(value)}"' for key, value in pairs)
    return Markup(f"<{name}{inside}>{join(children)}</{name}>")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, decimals: int | None = None) -> str:
    """A number for people, a dash for what is none.

    Args:
        value: to show.
        decimals: how many; None: whole numbers whole, others with three significant digits.
    """
    if not is_number(value):
        return DASH
    if isinstance(value, int) or abs(value) >= 1000:
        shown = f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"
    elif decimals is None:
        shown = f"{value:.3g}"
    else:
        shown = f"{value:.{decimals}f}"
    return shown.replace("-", "−")


def significant(value: Any) -> str:
    """A number with three significant digits, zeros at the end kept."""
    if not is_number(value) or value == 0 or not 1e-4 <= abs(value) < 1000:
        return number(value)
    return number(float(value), max(0, 2 - math.floor(math.log10(abs(value)))))


def cell(value: Any) -> Markup:
    """One table cell: numbers to the right, shares and scores with three decimals."""
    if isinstance(value, Markup) and value.startswith("<td"):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return tag("td", number(value, 3 if abs(value) < 10 else None), cls="num")
    return tag("td", DASH if value is None else value)


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], caption: Any = None, cls: str | None = None, label: Any = None
) -> Markup:
    """Rows of cells, the first of each row its heading.

    Args:
        head: of the columns; those of numbers stand to the right.
        rows: of values.
        caption: above it.
        cls: its class.
        label: its name for those who do not see it.
    """
    rows = [list(row) for row in rows]
    right = [i > 0 and any(_is_figure(row[i]) for row in rows) for i in range(len(head))]
    heads = [tag("th", name, scope="col", cls="num" if r else None) for name, r in zip(head, right, strict=True)]
    body = [tag("tr", tag("th", _heading(row[0]), scope="row"), [cell(value) for value in row[1:]]) for row in rows]
    parts = [None if caption is None else tag("caption", caption), tag("thead", tag("tr", heads)), tag("tbody", body)]
    return tag("table", parts, cls=cls, aria_label=label)


def _is_figure(value: Any) -> bool:
    return is_number(value) or (isinstance(value, Markup) and value.startswith('<td class="num"'))


def _heading(value: Any) -> Any:
    return number(value) if isinstance(value, float) else value


def records(
    rows: Sequence[Mapping[str, Any]],
    caption: Any = None,
    label: Any = None,
    named: Callable[[str], str] = str,
) -> Markup:
    """A table of mappings, a column per key in order of appearance; ``named`` gives a key's heading."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    heads = [named(name) for name in names]
    return table(heads, [[row.get(name) for name in names] for row in rows], caption, "records", label)


def fold(summary: Any, *children: Any) -> Markup:
    """A block that opens on a click."""
    return tag("details", tag("summary", summary), children)


def part(source: Any, *keys: str) -> Mapping[str, Any]:
    """A mapping inside nested mappings; empty where anything on the way is missing."""
    for key in keys:
        source = source.get(key) if isinstance(source, Mapping) else None
    return source if isinstance(source, Mapping) else {}


def many(count: Any, one: str, more: str | None = None) -> str:
    """A count with its noun."""
    return f"{number(count)} {one if count == 1 else more or one + 's'}"
