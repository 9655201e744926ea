"""Slices: groups of rows in which the model is worse than in the rest, beyond chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polymodal.data.infer import infer_kind
from polymodal.data.table import Table
from polymodal.diagnose.rows import Answered, RowScores, classes, quarters, row_scores
from polymodal.metrics import bootstrap
from polymodal.values import is_missing, parse_boolean, parse_category, parse_date, parse_number

SMALLEST = 10
"""Rows that a slice, and the rest, must have at least."""

LISTED = 20
"""Slices that are listed at most, worst first."""

LEVEL = 0.05
"""Share of false ones that is allowed among the slices called significant."""

DRAWS = 2000
"""Random groups that a slice of numbers is compared with."""

SAMPLED = 1000
"""Cells by which the kind of a column is judged."""

By = Literal["class", "presence", "column"]


@dataclass(frozen=True, slots=True)
class Slice:
    """A group of rows.

    Attributes:
        words: what its rows have in common.
        by: where it comes from.
        rows: (n,) bool.
    """

    words: str
    by: By
    rows: np.ndarray


def slices(
    answered: Answered, table: Table, present: Mapping[str, np.ndarray], media: Sequence[str] = (), seed: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """Slices by class, by which inputs are present, and by every column, that score worse than the rest.

    Each is tested for being worse than as many rows drawn at random, and all together are held to `LEVEL` by the
    procedure of Benjamini and Hochberg, which allows for slices that overlap as long as they depend positively.

    Source: Benjamini and Hochberg 1995, section 3.1.

    Args:
        answered: labelled rows of one task.
        table: that they come from.
        present: input name -> (n,) bool, of the labelled rows.
        media: columns of files, whose content says nothing here.
        seed: of the random draws.

    Returns:
        The slices, significant ones first, then the largest gap first: ``slice``, ``by``, ``rows``, ``metric``,
        ``higher_is_better``, ``score`` with its 95 % ``interval``, ``rest``, ``p`` (one-sided), ``adjusted`` p and
        ``significant``; and how many slices were tested.
    """
    if len(answered) < 2 * SMALLEST:
        return [], 0
    own = set(answered.task.columns(answered.name))
    groups = [Slice(words, "class", rows) for words, rows in classes(answered.task, answered).items()]
    groups += by_presence(present)
    rows = table.select(answered.rows)
    for column in table.columns:
        if column not in own:
            groups += [Slice(w, "column", r) for w, r in by_column(column, list(rows.column(column)), media).items()]
    groups = _distinct(groups)
    if not groups:
        return [], 0
    scored = row_scores(answered.task, answered)
    p = chances(scored, [group.rows for group in groups], seed)
    adjusted = benjamini_hochberg(p)
    gap = np.array([scored.gap(group.rows) for group in groups])
    worst = [i for i in np.lexsort((-gap, adjusted > LEVEL)) if gap[i] > 0][:LISTED]
    return [_entry(groups[i], scored, float(p[i]), float(adjusted[i]), seed) for i in worst], len(groups)


def by_presence(present: Mapping[str, np.ndarray]) -> list[Slice]:
    """Rows by the set of inputs that they have."""
    table = np.stack(list(present.values()), 1)
    patterns, group = np.unique(table, axis=0, return_inverse=True)
    found = []
    for i, pattern in enumerate(patterns):
        lost = [name for name, here in zip(present, pattern, strict=True) if not here]
        words = f"without {' and '.join(lost)}" if lost else "every input present"
        found.append(Slice(words, "presence", group.ravel() == i))
    return found


def by_column(name: str, cells: Sequence[Any], media: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Rows by a column: categories, yes and no, quartiles of numbers, dates and lengths of texts, and missing cells.

    Args:
        name: of the column.
        cells: its n cells.
        media: columns of which only missing cells make a slice.
    """
    missing = np.array([is_missing(cell) for cell in cells], bool)
    found = {f"{name} is missing": missing} if missing.any() else {}
    if name in media:
        return found
    some = [cell for cell, gone in zip(cells, missing, strict=True) if not gone][:SAMPLED]
    kind = infer_kind(name, some, lambda _: False).kind
    if kind == "category":
        keys = [None if gone else parse_category(cell) for cell, gone in zip(cells, missing, strict=True)]
        return found | _values(name, keys)
    if kind == "boolean":
        return found | _values(name, [_try(lambda c: _yes(parse_boolean(c)), cell) for cell in cells])
    measure = {"number": parse_number, "date": _day, "text": _length}.get(kind)
    if measure is None:
        return found
    values = np.array([_nan(_try(measure, cell)) for cell in cells], float)
    return found | quarters({"date": f"day of {name}", "text": f"words of {name}"}.get(kind, name), values)


def _values(name: str, keys: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Rows by each value that is in enough of them."""
    place = {key: i for i, (key, count) in enumerate(Counter(keys).items()) if key is not None and count >= SMALLEST}
    codes = np.array([place.get(key, -1) if key is not None else -1 for key in keys])
    return {f"{name} = {key}": codes == i for key, i in place.items()}


def _try(parse: Any, cell: Any) -> Any:
    try:
        return None if is_missing(cell) else parse(cell)
    except ValueError:
        return None


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _day(cell: Any) -> float | None:
    """Days since the year 1."""
    day = parse_date(cell)
    return None if day is None else float(day.toordinal())


def _length(cell: Any) -> float:
    return float(len(str(cell).split()))


def _distinct(groups: Sequence[Slice]) -> list[Slice]:
    """Slices of enough rows; of those that hold the same rows, the first."""
    found: dict[bytes, Slice] = {}
    for group in groups:
        if SMALLEST <= group.rows.sum() <= len(group.rows) - SMALLEST:
            found.setdefault(np.packbits(group.rows).tobytes(), group)
    return list(found.values())


def chances(scored: RowScores, groups: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Probability that as many rows drawn at random, without replacement, score as badly as each group.

    For right and wrong answers that is Fisher's exact test, one-sided. For other scores it is a permutation test by
    their mean, with `DRAWS` draws that all groups share.

    Source: Fisher 1935, "The Design of Experiments", section 21; Phipson and Smyth 2010, equation 2 (the one that is
    added to both counts).

    Args:
        scored: a score of each of n rows.
        groups: (n,) bool each.
        seed: of the draws.

    Returns:
        (len(groups),).
    """
    values = scored.values if scored.higher_is_better else -scored.values
    sizes = np.array([group.sum() for group in groups])
    totals = np.array([values[group].sum() for group in groups])
    if scored.higher_is_better and np.isin(values, (0, 1)).all():
        hits = values.sum()
        return np.array([fisher(int(k), int(n), int(hits), len(values)) for k, n in zip(totals, sizes, strict=True)])
    rng, below = np.random.default_rng(seed), np.zeros(len(groups))
    slack = 1e-9 * max(1.0, np.abs(values).sum())
    for _ in range(DRAWS):
        drawn = np.cumsum(rng.permutation(values))[sizes - 1]
        below += drawn <= totals + slack
    return (1 + below) / (1 + DRAWS)


def fisher(hits: int, drawn: int, all_hits: int, total: int) -> float:
    """P(at most ``hits`` of ``drawn`` are hits) when they are drawn from ``total`` of which ``all_hits`` are."""

    def choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    least = max(0, drawn + all_hits - total)
    whole = choose(total, drawn)
    terms = (choose(all_hits, k) + choose(total - all_hits, drawn - k) - whole for k in range(least, hits + 1))
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values: those of at most a level together have at most so large a share of false ones. (n,)."""
    order = np.argsort(p)
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1.0)
    return adjusted


def _entry(group: Slice, scored: RowScores, p: float, adjusted: float, seed: int) -> dict[str, Any]:
    """What is said of a slice."""
    inside, outside = scored.values[group.rows], scored.values[~group.rows]
    return {
        "slice": group.words,
        "by": group.by,
        "rows": len(inside),
        "metric": scored.metric,
        "higher_is_better": scored.higher_is_better,
        "score": float(inside.mean()),
        "interval": list(bootstrap(lambda pick: float(inside[pick].mean()), len(inside), repeats=300, seed=seed)),
        "rest": float(outside.mean()),
        "p": p,
        "adjusted": adjusted,
        "significant": adjusted <= LEVEL,
    }
