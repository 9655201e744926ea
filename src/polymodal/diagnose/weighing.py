"""Metrics of weighted rows, for many weightings at once: a resample of rows is a weighting of them.

Each agrees with `Task.metrics` on rows repeated as often as their weight says, at the cost of a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polymodal.diagnose.losses import searches, span_counts
from polymodal.metrics import Ranking, divide, one_hot, per_row
from polymodal.task import Task
from polymodal.tasks.classify import Classify
from polymodal.tasks.generate import Generate
from polymodal.tasks.match import Match
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.tasks.tag import Tag
from polymodal.types import Masked

Array = NDArray[Any]
Weigh = Callable[[Array], Array]
"""From weights (R, N) of the rows to the metric (R,); NaN where it is not defined."""

Rule = Callable[[Tensor, Masked], Weigh]
"""From raw outputs and targets of N labelled rows to a metric of their weights."""


@singledispatch
def rules(task: Task) -> dict[str, Rule]:
    """Metrics of a task that are known for weighted rows; the others are computed on each resample by the task."""
    return {}


@rules.register(Classify)
def _(task: Classify) -> dict[str, Rule]:
    def seen(output: Tensor, target: Masked) -> tuple[Array, Array, Array]:
        p = task.probabilities(output).numpy()
        return target.values[:, 0].cpu().numpy(), p, p.argmax(1)

    def accuracy(output: Tensor, target: Masked) -> Weigh:
        true, _, guess = seen(output, target)
        return mean_of(true == guess)

    def balanced(output: Tensor, target: Masked) -> Weigh:
        true, _, guess = seen(output, target)
        truth = one_hot(true, task.size)
        return mean_ratio(truth & (true == guess)[:, None], truth)

    def macro_f1(output: Tensor, target: Masked) -> Weigh:
        true, _, guess = seen(output, target)
        return f1_of(one_hot(true, task.size), one_hot(guess, task.size))

    def auroc(output: Tensor, target: Masked) -> Weigh:
        true, p, _ = seen(output, target)
        return auroc_of(one_hot(true, task.size), p)

    def nll(output: Tensor, target: Masked) -> Weigh:
        true, p, _ = seen(output, target)
        return mean_of(-np.log(np.clip(p[np.arange(len(true)), true], np.finfo(float).eps, 1.0)))

    def brier(output: Tensor, target: Masked) -> Weigh:
        true, p, _ = seen(output, target)
        return mean_of(((p - one_hot(true, task.size)) ** 2).sum(1) / 2)

    return {
        "accuracy": accuracy, "micro_f1": accuracy, "balanced_accuracy": balanced, "macro_f1": macro_f1,
        "auroc": auroc, "nll": nll, "brier": brier,
    }  # fmt: skip


@rules.register(Generate)
def _(task: Generate) -> dict[str, Rule]:
    def rule(name: str) -> Rule:
        return lambda output, target: mean_of(per_row(*task.said(output, target))[name])

    return {name: rule(name) for name in ("cider", "rouge_l", "token_f1", "exact_match")}


@rules.register(Multilabel)
def _(task: Multilabel) -> dict[str, Rule]:
    def seen(output: Tensor, target: Masked) -> tuple[Array, Array, Array]:
        return target.values.cpu().numpy() > 0.5, task.probabilities(output).numpy(), task.answers(output).numpy()

    def macro_f1(output: Tensor, target: Masked) -> Weigh:
        truth, _, guess = seen(output, target)
        return f1_of(truth, guess)

    def auroc(output: Tensor, target: Masked) -> Weigh:
        truth, p, _ = seen(output, target)
        return auroc_of(truth, p)

    def exact_match(output: Tensor, target: Masked) -> Weigh:
        truth, _, guess = seen(output, target)
        return mean_of((truth == guess).all(1))

    def hamming_loss(output: Tensor, target: Masked) -> Weigh:
        truth, _, guess = seen(output, target)
        return mean_of((truth != guess).mean(1))

    return {"macro_f1": macro_f1, "auroc": auroc, "exact_match": exact_match, "hamming_loss": hamming_loss}


@rules.register(Regress)
def _(task: Regress) -> dict[str, Rule]:
    def seen(output: Tensor, target: Masked) -> tuple[Array, Array]:
        return task.truth(target).numpy()[:, 0], task.answers(output).numpy()[:, 0]

    def r2(output: Tensor, target: Masked) -> Weigh:
        true, guess = seen(output, target)
        y = true - true.mean()  # about their mean, the squares lose no digits

        def score(sums: Array, rows: Array) -> Array:
            error, total, square = (sums[:, i] for i in range(3))
            spread = square - total**2 / rows
            return np.where(spread > 1e-12 * square, 1 - error / np.where(spread > 0, spread, 1.0), math.nan)

        return sums_of(np.stack([(true - guess) ** 2, y, y**2], 1), score)

    def mae(output: Tensor, target: Masked) -> Weigh:
        true, guess = seen(output, target)
        return mean_of(np.abs(true - guess))

    def rmse(output: Tensor, target: Masked) -> Weigh:
        true, guess = seen(output, target)
        return sums_of((true - guess)[:, None] ** 2, lambda sums, rows: np.sqrt(sums[:, 0] / rows))

    return {"r2": r2, "mae": mae, "rmse": rmse} if task.count == 1 else {}


@rules.register(Tag)
def _(task: Tag) -> dict[str, Rule]:
    def share(below: Callable[[Array], Array], times: int) -> Rule:
        def rule(output: Tensor, target: Masked) -> Weigh:
            counts = span_counts(task, output, target)
            whole = below(counts)
            return sums_of(
                np.stack([times * counts[:, 0], whole], 1), lambda sums, rows: divide(sums[:, 0], sums[:, 1])
            )

        return rule

    return {
        "entity_f1": share(lambda counts: counts[:, 1] + counts[:, 2], 2),
        "entity_precision": share(lambda counts: counts[:, 1], 1),
        "entity_recall": share(lambda counts: counts[:, 2], 1),
    }


@rules.register(Match)
def _(task: Match) -> dict[str, Rule]:
    def of(value: Callable[[Ranking], Array]) -> Rule:
        def rule(output: Tensor, target: Masked) -> Weigh:
            found = [value(search.ranking) for search in searches(task, output, target)]
            return mean_known(np.stack(found, 1) if found else np.full((len(output), 1), math.nan))

        return rule

    def recall(k: int) -> Rule:
        return of(lambda found: np.where(np.isnan(found.rank), math.nan, found.rank <= k))

    means = {"map": of(lambda found: found.precision), "ndcg": of(lambda found: found.gain)}
    return {f"recall_at_{k}": recall(k) for k in (1, 5, 10)} | means


def sums_of(columns: Array, score: Callable[[Array, Array], Array]) -> Weigh:
    """A metric of the weighted sums (R, S) of some columns (N, S), and of the weights' own sum (R,)."""
    columns = np.asarray(columns, float)
    return lambda weights: score(weights @ columns, weights.sum(1))


def mean_of(values: Array) -> Weigh:
    """The weighted mean of values (N,)."""
    return sums_of(np.asarray(values, float)[:, None], lambda sums, rows: sums[:, 0] / rows)


def mean_known(values: Array) -> Weigh:
    """Mean over columns of (N, D) of the weighted mean of what is no NaN; the gallery stays whole."""
    known = ~np.isnan(values)
    return mean_ratio(np.where(known, values, 0.0), known)


def mean_ratio(part: Array, whole: Array) -> Weigh:
    """Mean over labels of ``part / whole``, both (N, K) and summed over rows, where ``whole`` is not 0."""

    def score(sums: Array, rows: Array) -> Array:
        above, below = np.split(sums, 2, 1)
        known = below > 0
        return np.where(known.any(1), divide(divide(above, below).sum(1), known.sum(1)), math.nan)

    return sums_of(np.concatenate([part, whole], 1), score)


def f1_of(true: Array, guess: Array) -> Weigh:
    """Macro F1 of (N, K) bool arrays, over the labels that are true or predicted anywhere."""
    return mean_ratio(2 * (true & guess), true.astype(int) + guess)


def auroc_of(positive: Array, scores: Array) -> Weigh:
    """Mean AUROC over the columns of (N, K) arrays where it is defined; a tie counts half."""
    ranked = [_ranking(scores[:, k]) for k in range(scores.shape[1])]

    def weigh(weights: Array) -> Array:
        found = []
        for k, (order, starts) in enumerate(ranked):
            yes = weights[:, order] * positive[order, k]
            up, down = (np.add.reduceat(w, starts, axis=1) for w in (yes, weights[:, order] - yes))
            wins = (up * (down.cumsum(1) - down / 2)).sum(1)
            pairs = up.sum(1) * down.sum(1)
            found.append(np.where(pairs > 0, divide(wins, pairs), math.nan))
        table = np.stack(found)
        known = ~np.isnan(table)
        return np.where(known.any(0), divide(np.nansum(table, 0), known.sum(0)), math.nan)

    return weigh


def _ranking(scores: Array) -> tuple[Array, Array]:
    """Order of scores (N,) from low to high, and where in it each run of equal ones starts."""
    order = np.argsort(scores, kind="stable")
    levels = scores[order]
    return order, np.flatnonzero(np.append(True, levels[1:] > levels[:-1]))
