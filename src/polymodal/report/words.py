"""What the figures say, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polymodal.report.markup import Markup, is_number, join, number, part, significant, tag

LOWER = frozenset(
    {"mae", "rmse", "mse", "nll", "brier", "ece", "hamming_loss", "log_loss", "loss", "error"}
    | {"width", "set_size", "pinball", "crps", "beta_nll", "median_rank"}
)
"""Scores of which less is better; the last part of "target/mae" counts."""

SHARES = frozenset(
    [
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "micro_f1",
        "mcc",
        "f1",
        "precision",
        "recall",
        "auroc",
        "average_precision",
        "exact_match",
        "brier",
        "ece",
        "hamming_loss",
        "coverage",
        "r2",
        *(f"entity_{score}" for score in ("f1", "precision", "recall", "macro_f1", "weighted_f1")),
        *(f"token_{score}" for score in ("accuracy", "micro_f1", "macro_f1", "weighted_f1")),
        *(f"recall_at_{k}" for k in (1, 5, 10)),
        "row_f1",
        "reciprocal_rank",
        "map",
        "ndcg",
    ]
)
"""Scores on a scale that ends at 1."""

NAMES = {
    "auroc": "AUROC", "r2": "R²", "mae": "MAE", "rmse": "RMSE", "nll": "NLL", "ece": "ECE", "brier": "Brier score",
    "macro_f1": "macro F1", "micro_f1": "micro F1", "f1": "F1", "hamming_loss": "Hamming loss", "mcc": "MCC",
    "pinball": "pinball loss", "entity_f1": "entity F1", "entity_macro_f1": "entity macro F1",
    "entity_weighted_f1": "entity weighted F1", "token_micro_f1": "token micro F1 (without O)",
    "token_macro_f1": "token macro F1", "token_weighted_f1": "token weighted F1", "row_f1": "F1 of a row",
    "recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10", "map": "mAP", "ndcg": "NDCG",
}  # fmt: skip

OWN = "fusion model"
"""Label among the baselines that is the model itself, before the linear model is blended in."""

NAMED = 4
"""How many inputs a sentence names."""


def metric_name(metric: str) -> str:
    """As the field writes it."""
    *target, last = metric.rsplit("/", 1)
    return " ".join([*target, NAMES.get(last, last.replace("_", " "))])


def lower_is_better(metric: str) -> bool:
    """Whether less of a score is better."""
    return metric.rsplit("/", 1)[-1] in LOWER


def is_share(metric: str) -> bool:
    """Whether a score's scale ends at 1."""
    return metric.rsplit("/", 1)[-1] in SHARES


def score(value: Any, metric: str, decimals: int = 3) -> str:
    """A score for people."""
    return number(value, decimals) if is_share(metric) else significant(value)


def change(value: float, base: float, metric: str) -> str:
    """How much better or worse a score is than another."""
    size = score(abs(value - base), metric)
    if abs(value - base) < 5e-4 * max(1.0, 0.0 if is_share(metric) else abs(base)):
        return "same"
    return f"{size} {'better' if (value < base) == lower_is_better(metric) else 'worse'}"


def held_out(report: Mapping[str, Any], task: str) -> tuple[str, Mapping[str, Any]]:
    """The side that judges a task, and its evaluation: test where there is one, else valid."""
    sides = [(side, part(report, side)) for side in ("test", "valid")]
    found = [(side, seen) for side, seen in sides if part(seen, "tasks", task)]
    scored = [(side, seen) for side, seen in found if headline(part(seen, "tasks", task))]
    return (scored or found or [("", {})])[0]


def headline(task: Mapping[str, Any]) -> str | None:
    """Name of the score that sums a task up, if it has a value."""
    metric = task.get("headline")
    return metric if isinstance(metric, str) and is_number(part(task, "scores").get(metric)) else None


def interval(task: Mapping[str, Any]) -> tuple[float, float] | None:
    """Interval of the headline score, if both its ends are known."""
    ends = part(task, "interval").get(str(task.get("headline")))
    if isinstance(ends, Sequence) and len(ends) == 2 and all(is_number(end) for end in ends):
        return float(ends[0]), float(ends[1])
    return None


def column(variants: Mapping[str, Any], metric: str) -> dict[str, float]:
    """One score of several variants, where it has a value."""
    found = {name: part(variants, name).get(metric) for name in variants}
    return {name: float(value) for name, value in found.items() if is_number(value)}


def best_baseline(task: Mapping[str, Any], metric: str) -> tuple[str, float] | None:
    """The baseline that does best, and its score."""
    found = column(part(task, "baselines"), metric)
    found.pop(OWN, None)
    if not found:
        return None
    name = (min if lower_is_better(metric) else max)(found, key=found.__getitem__)
    return name, found[name]


def verdict(name: str, task: Mapping[str, Any], rows: Any, side: str) -> Markup:
    """One sentence: how good the model is, what it loses without each input, what the best baseline has."""
    metric, place = headline(task), f"{number(rows)} {side} rows"
    if metric is None:
        return join([tag("b", name), f": no score is defined on {place}."])
    digits = 3 if is_number(rows) and rows >= 2000 else 2
    value = task["scores"][metric]
    notes = ["lower is better"] if lower_is_better(metric) else []
    ends = interval(task)
    notes += [f"95 % {score(ends[0], metric, digits)} to {score(ends[1], metric, digits)}"] if ends else []
    return join(
        [
            tag("b", name), ": ", metric_name(metric), " ", tag("b", score(value, metric, digits)),
            f" ({'; '.join(notes)})" if notes else "", f" on {place}",
            _without(task, metric, digits), _against(task, metric, digits), ".",
        ]
    )  # fmt: skip


def caveat(report: Mapping[str, Any], sides: Sequence[str]) -> str | None:
    """What the sides that judge mean, after a fit; None where there is nothing to add."""
    fit = part(report, "fit")
    if not fit or "valid" not in sides:
        return None
    said = "The valid rows also chose when to stop and how to blend, so these scores may be a little too good"
    if fit.get("refitted"):
        return f"{said}; the final model then learned from these rows too, and was not scored again."
    return f"{said}. Rows kept for a test would tell."


def promises(report: Mapping[str, Any], name: str) -> list[str]:
    """How often sets or intervals hold the truth, what was asked, how large they are: a sentence per held-out side."""
    return [said for side in ("test", "valid") if (said := _promise(part(report, side, "tasks", name), side, report))]


def _promise(task: Mapping[str, Any], side: str, report: Mapping[str, Any]) -> str | None:
    scores, asked = part(task, "scores"), part(task, "details").get("asked")
    held, size, width = (scores.get(metric) for metric in ("coverage", "set_size", "width"))
    if not (is_number(held) and is_number(asked)):
        return None
    many = task.get("kind") == "multilabel"
    what, truth, of = "Intervals", "the truth", "values"
    if is_number(size):
        what, truth, of = "Sets", "all true labels" if many else "the truth", "rows"
    said = f"{what} hold {truth} in {100 * held:.0f} % of the {side} {of} (asked {number(100 * float(asked))} %)"
    if is_number(size):
        said += f", {number(float(size), 1)} {'labels' if many else 'classes'} on average"
    elif is_number(width):
        said += f", {significant(width)} wide on average"
    return f"{said}. These rows also set them." if side == "valid" and part(report, "fit") else f"{said}."


def _without(task: Mapping[str, Any], metric: str, digits: int) -> str | None:
    found = column(part(task, "without"), metric)
    order = list(found)
    if len(order) > NAMED:  # the inputs that cost most come first
        order.sort(key=lambda name: found[name], reverse=lower_is_better(metric))
    named = order if len(order) <= NAMED else order[: NAMED - 1]
    phrases = [f"without {name} {score(found[name], metric, digits)}" for name in named]
    rest = [found[name] for name in order[len(named) :]]
    if rest:
        low, high = score(min(rest), metric, digits), score(max(rest), metric, digits)
        between = low if low == high else f"{low} to {high}"
        phrases.append(f"without any one of the {len(rest)} others {between}")
    return f"; {', '.join(phrases)}" if phrases else None


def _against(task: Mapping[str, Any], metric: str, digits: int) -> str | None:
    best = best_baseline(task, metric)
    if best is None:
        return None
    name, value = best
    own = task["scores"][metric]
    ahead = value < own if lower_is_better(metric) else value > own
    return f"; the best baseline ({name}) {'is better with' if ahead else 'has'} {score(value, metric, digits)}"
