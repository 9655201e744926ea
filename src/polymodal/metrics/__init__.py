"""The field's scores, as pure functions on numpy arrays.

A score that is not defined (AUROC with one class, R2 of a constant) is NaN; `defined` leaves such scores out of a
report, so that nothing is invented.

Shapes: N rows, K classes, labels or targets. Class labels are indices 0..K-1.
"""

from __future__ import annotations

from polymodal.metrics.base import LOWER_IS_BETTER, Array, defined, divide, higher_is_better, mean
from polymodal.metrics.certainty import (
    brier,
    conformal_bound,
    coverage,
    ece,
    fit_temperature,
    gaussian_nll,
    log_loss,
    pinball,
    reliability,
)
from polymodal.metrics.classes import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    confusion,
    counts_of,
    macro,
    macro_f1,
    mcc,
    micro_f1,
    one_hot,
    per_class,
)
from polymodal.metrics.ngrams import bleu, cider, words
from polymodal.metrics.numbers import bootstrap, mae, r2, rmse
from polymodal.metrics.ranking import Ranking, ranked
from polymodal.metrics.spans import Counts, Spans, averages, of_counts, right, span_counts, spans_of
from polymodal.metrics.texts import exact_match, per_row, rouge_l, text_scores, token_f1, vqa_accuracy

__all__ = [
    "LOWER_IS_BETTER",
    "Array",
    "Counts",
    "Ranking",
    "Spans",
    "accuracy",
    "auroc",
    "average_precision",
    "averages",
    "balanced_accuracy",
    "bleu",
    "bootstrap",
    "brier",
    "cider",
    "conformal_bound",
    "confusion",
    "counts_of",
    "coverage",
    "defined",
    "divide",
    "ece",
    "exact_match",
    "fit_temperature",
    "gaussian_nll",
    "higher_is_better",
    "log_loss",
    "macro",
    "macro_f1",
    "mae",
    "mcc",
    "mean",
    "micro_f1",
    "of_counts",
    "one_hot",
    "per_class",
    "per_row",
    "pinball",
    "r2",
    "ranked",
    "reliability",
    "right",
    "rmse",
    "rouge_l",
    "span_counts",
    "spans_of",
    "text_scores",
    "token_f1",
    "vqa_accuracy",
    "words",
]
