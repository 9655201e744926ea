"""Scores of `tag`: of spans as seqeval gives them, of tags as scikit-learn does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from polymodal import metrics
from polymodal.metrics import Array, Counts, Spans
from polymodal.tasks.tag.decode import best, spans_of
from polymodal.types import Masked


@dataclass(frozen=True, slots=True)
class Seen:
    """True and best tags of labelled rows, decoded once. A labelled word that the model did not see counts as "O".

    Attributes:
        rows: (B,) bool, which of all rows are labelled: N.
        real: (N, T) bool, which words are labelled.
        true: (N, T) int, 0 where not labelled.
        found: (N, T) int, 0 where not labelled.
        types: of spans.
        tags: all K, in order.
    """

    rows: Array
    real: Array
    true: Array
    found: Array
    types: Sequence[str]
    tags: Sequence[str]

    @classmethod
    def of(cls, output: Tensor, target: Masked, types: Sequence[str], tags: Sequence[str]) -> Seen:
        """Decode the labelled rows."""
        rows = target.present.cpu()
        real, true = target.mask.cpu()[rows].numpy(), target.values.cpu()[rows].numpy().astype(np.int64)
        guess, _ = best(output.detach().cpu()[rows])
        found = np.zeros_like(true)
        width = min(true.shape[1], guess.shape[1])
        found[:, :width] = guess[:, :width]
        return cls(rows.numpy(), real, np.where(real, true, 0), np.where(real, found, 0), types, tags)

    def spans(self) -> tuple[Spans, Spans]:
        """True spans, and those found."""
        per_type = (len(self.tags) - 1) // len(self.types)
        return spans_of(self.true, per_type), spans_of(self.found, per_type)

    def by_type(self) -> Counts:
        """Counts of spans by type."""
        return metrics.span_counts(*self.spans(), len(self.types))

    def by_tag(self) -> Counts:
        """Counts of words by tag."""
        counts = metrics.confusion(self.true[self.real], self.found[self.real], len(self.tags))
        return Counts(counts.diagonal(), counts.sum(0), counts.sum(1))

    def scores(self) -> dict[str, float]:
        """Every score; none without labelled words."""
        if not self.real.any():
            return {}
        entities, words = metrics.averages(self.by_type()), metrics.averages(by_tag := self.by_tag())
        spans_only = metrics.averages(Counts(*(count[1:] for count in by_tag)))
        return metrics.defined(
            {
                "entity_f1": entities["micro"]["f1"],
                "entity_precision": entities["micro"]["precision"],
                "entity_recall": entities["micro"]["recall"],
                "entity_macro_f1": entities["macro"]["f1"],
                "entity_weighted_f1": entities["weighted"]["f1"],
                "token_accuracy": words["micro"]["f1"],
                "token_micro_f1": spans_only["micro"]["f1"],
                "token_macro_f1": words["macro"]["f1"],
                "token_weighted_f1": words["weighted"]["f1"],
            }
        )

    def headline(self) -> Callable[[Array], float] | None:
        """Entity F1 of any of the rows by their numbers, from counts per row."""
        if not self.real.any():
            return None
        true, found = self.spans()
        place, n = self.rows.nonzero()[0], len(self.rows)
        rows = (found.row[metrics.right(true, found)], found.row, true.row)
        each = np.stack([np.bincount(place[row], minlength=n) for row in rows], 1)

        def score(chosen: Array) -> float:
            hit, guessed, there = each[chosen].sum(0).tolist()
            return 2 * hit / (guessed + there) if guessed + there else 0.0

        return score

    def details(self) -> dict[str, Any]:
        """JSON-able tables: scores per type and per tag, and their averages."""
        by_type, by_tag = self.by_type(), self.by_tag()
        words = metrics.averages(by_tag)
        return {
            "per_type": _rows("type", self.types, by_type),
            "averages": metrics.averages(by_type),
            "per_tag": [row for row in _rows("tag", self.tags, by_tag) if row["support"] or row["found"]],
            "token_accuracy": words.pop("micro")["f1"],
            "token_averages": words,
        }


def _rows(label: str, names: Sequence[str], counts: Counts) -> list[dict[str, Any]]:
    """One mapping per class, with how often it was found."""
    columns = metrics.of_counts(counts) | {"found": counts.found}
    return [
        {label: name, **{column: values[i].item() for column, values in columns.items()}}
        for i, name in enumerate(names)
    ]
