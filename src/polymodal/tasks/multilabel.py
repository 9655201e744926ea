"""multilabel: choose any number of labels, also none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from polymodal import metrics
from polymodal.errors import DataError, SpecError, suggest
from polymodal.task import VectorTask
from polymodal.types import Masked, tracing
from polymodal.values import is_missing


class Multilabel(VectorTask):
    """Any of K labels per sample, by binary cross-entropy. Output (B, K): logits; target (B, K): 0 or 1.

    A cell is a list of labels, or a text of labels with a separator between them. An empty list, or a text of nothing
    but separators, says that no label holds; an empty cell says that nothing is known.

    Attributes:
        labels: found by `fit` (sorted) when not given; give them to fix their order or to allow for labels that the
            training rows lack.
        separator: between the labels of a text cell.
        pos_weight: "balanced" makes the rows with a label count as much in its loss as those without it.
            Probabilities then follow the reweighted rows.
        threshold: a label is predicted from this probability on.
        tune_thresholds: let `calibrate` choose a threshold per label that maximises its F1 on held-out rows.
        coverage: asked share of rows whose true labels are all in the predicted ``set``; None for no sets. It holds for
            the model that was calibrated, on rows like those it was calibrated on. A refit on all rows makes it
            approximate; without one (training.refit 0) it holds up to what else those rows chose: the epoch, the linear
            model's share, the temperature.
        temperature: divides the logits in probabilities, not in the loss. Set by `calibrate`.
        thresholds: one per label, used instead of ``threshold`` where set by `calibrate`.
        set_threshold: a label is in the set from this probability on. Set by `calibrate`; 0 (all labels) before, and
            where there were too few rows for the asked coverage.
        positive: factor of each label's positive rows in the loss. Set by `fit`.
    """

    type: Literal["multilabel"] = "multilabel"
    labels: tuple[str, ...] = ()
    separator: str = Field(default="|", min_length=1)
    pos_weight: Literal["none", "balanced"] = "none"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    tune_thresholds: bool = False
    coverage: float | None = Field(default=None, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    thresholds: tuple[float, ...] = ()
    set_threshold: float = Field(default=0.0, ge=0, le=1)
    positive: tuple[float, ...] = ()

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) < len(labels) or any(not label or label != label.strip() for label in labels):
            raise ValueError(f"labels must be different texts without space around them, got {list(labels)}.")
        return labels

    @property
    def size(self) -> int:
        """K."""
        if not self.labels:
            raise SpecError("multilabel must know its labels before it is used, got none. Call fit, or give labels.")
        return len(self.labels)

    def _cell(self, value: Any) -> list[str] | None:
        """Labels of one cell, None where it is empty."""
        if is_missing(value):
            return None
        if isinstance(value, str):
            value = value.split(self.separator)
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(value, list | tuple | set | frozenset):
            raise DataError(
                f"target must be a list of labels or a text with {self.separator!r} between them, got {value!r} "
                f"({type(value).__name__}). Mend the cell, or leave it empty."
            )
        if wrong := [label for label in value if isinstance(label, bool) or not isinstance(label, str | int)]:
            raise DataError(f"label must be a text or a whole number, got {wrong[0]!r}. Mend the cell.")
        return [text for label in value if (text := str(label).strip())]

    def fit(self, values: Sequence[Any | None]) -> Self:
        """A copy that knows its labels and their weights.

        Raises:
            DataError: no row has a label, or one has a label that is not in the given ``labels``.
        """
        cells = [cell for value in values if (cell := self._cell(value)) is not None]
        found = sorted({label for cell in cells for label in cell})
        if not found:
            raise DataError(
                f"target must hold at least one label, got none in {len(cells)} labelled rows. "
                f"Check the column, and the separator {self.separator!r}."
            )
        task = self if self.labels else self.model_copy(update={"labels": tuple(found)})
        target = task.collate(cells)
        if self.pos_weight == "none":
            return task.model_copy(update={"positive": ()})
        yes = target.values.sum(0)
        no = len(cells) - yes
        return task.model_copy(update={"positive": tuple((no.clamp(min=1) / yes.clamp(min=1)).tolist())})

    def collate(self, values: Sequence[Any | None]) -> Masked:
        """Cells -> 0 or 1 per label (B, K). None, NaN and "" are unlabelled; [] is labelled with no label."""
        place = {label: i for i, label in enumerate(self.labels)}
        cells = [self._cell(value) for value in values]
        target = torch.zeros(len(cells), self.size)
        for row, cell in zip(target, cells, strict=True):
            for label in cell or ():
                if label not in place:
                    known = f"{list(self.labels[:20])}{' ...' if len(place) > 20 else ''}"
                    raise DataError(
                        f"label must be one of {known}, got {label!r}.{suggest(label, place)} "
                        f"Mend the cell, leave it empty, or train again with this label."
                    )
                row[place[label]] = 1.0
        mask = torch.tensor([cell is not None for cell in cells], dtype=torch.bool)
        return Masked(target, mask[:, None].expand(-1, self.size).clone())

    def loss(self, output: Tensor, target: Masked) -> Tensor:
        """Mean binary cross-entropy over labelled rows and labels, in nats."""
        rows = target.present
        logits = output[rows].to(torch.promote_types(output.dtype, torch.float32))
        factor = logits.new_tensor(self.positive) if self.positive else None
        truth = target.values[rows].to(logits.dtype)
        each = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=factor, reduction="sum")
        return each / max(logits.numel(), 1)

    def probabilities(self, output: Tensor) -> Tensor:
        """Calibrated probability of each label. (B, K) float64, on the CPU."""
        return (output.detach().cpu().double() / self.temperature).sigmoid()

    def answers(self, output: Tensor) -> Tensor:
        """Whether each label is predicted. (B, K) bool."""
        p = self.probabilities(output)
        return p >= p.new_tensor(self.thresholds or [self.threshold] * self.size)

    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        """Per sample: the labels that reach their threshold, the probability of every label, and the set."""
        rows = []
        for p, chosen in zip(self.probabilities(output).tolist(), self.answers(output).tolist(), strict=True):
            labels = [label for label, yes in zip(self.labels, chosen, strict=True) if yes]
            row = {"labels": labels, "probabilities": dict(zip(self.labels, p, strict=True))}
            inside = [label for label, x in zip(self.labels, p, strict=True) if x >= self.set_threshold]
            rows.append(row if self.coverage is None else row | {"set": inside})
        return rows

    def _labelled(self, output: Tensor, target: Masked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth (bool), probabilities and answers (bool) of labelled rows. (N, K) each."""
        rows = target.present
        truth = target.values[rows].cpu().numpy() > 0.5
        return truth, self.probabilities(output[rows]).numpy(), self.answers(output[rows]).numpy()

    def metrics(self, output: Tensor, target: Masked) -> dict[str, float]:
        """Macro F1 first: the mean over labels that are true or predicted anywhere.

        AUROC and average precision are means over the labels where they are defined; nll, brier and ece take each label
        of each row as one yes-or-no question. With sets: how many hold all true labels, and how many labels they hold.
        """
        truth, p, guess = self._labelled(output, target)
        sets = p >= self.set_threshold
        held = {"coverage": metrics.mean(np.all(sets | ~truth, axis=1)), "set_size": metrics.mean(sets.sum(1))}
        flat, either = truth.ravel().astype(int), np.stack([1 - p.ravel(), p.ravel()], 1)
        return metrics.defined(
            {
                "macro_f1": metrics.macro_f1(truth, guess),
                "micro_f1": metrics.micro_f1(truth, guess),
                "auroc": metrics.macro(metrics.auroc, truth, p),
                "average_precision": metrics.macro(metrics.average_precision, truth, p),
                "exact_match": metrics.mean((truth == guess).all(1)),
                "hamming_loss": metrics.mean(truth != guess),
                "nll": metrics.log_loss(flat, either),
                "brier": metrics.brier(metrics.one_hot(flat, 2), either),
                "ece": metrics.ece(flat, p.ravel()),
                **({} if self.coverage is None else held),
            }
        )

    def details(self, output: Tensor, target: Masked) -> dict[str, Any]:
        """JSON-able tables: scores and threshold per label, reliability bins over all cells, the asked coverage."""
        truth, p, guess = self._labelled(output, target)
        scores = metrics.per_class(truth, guess)
        thresholds = self.thresholds or (self.threshold,) * self.size
        per_label = []
        for k, label in enumerate(self.labels):
            row = {"label": label, "threshold": thresholds[k]}
            row |= {name: column[k].item() for name, column in scores.items()}
            ranking = {
                "auroc": metrics.auroc(truth[:, k], p[:, k]),
                "average_precision": metrics.average_precision(truth[:, k], p[:, k]),
            }
            per_label.append(row | metrics.defined(ranking))
        return {
            "labels": list(self.labels),
            "per_label": per_label,
            "reliability": metrics.reliability(truth.ravel(), p.ravel()),
            **({} if self.coverage is None else {"asked": self.coverage}),
        }

    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Logit of the weighted mean of the probabilities at temperature 1. (B, K)."""
        raw = torch.stack(list(outputs), 1)
        share = weights.to(raw).reshape(-1, len(outputs))[..., None]
        raw = torch.where(share > 0, raw, 0.0)  # what counts nothing may hold anything
        tiny = torch.finfo(raw.dtype)
        log_share = torch.where(share > 0, share.clamp(min=tiny.tiny).log(), tiny.min / 2)  # -inf has no gradient
        yes, no = _log_sigmoid(raw), _log_sigmoid(-raw)
        return (log_share + yes).logsumexp(1) - (log_share + no).logsumexp(1)

    @property
    def certainty(self) -> float:
        """The temperature."""
        return self.temperature

    def settle(self, output: Tensor, factor: Tensor) -> Tensor:
        """Logits divided by a temperature."""
        return output / factor

    def calibrate(self, output: Tensor, target: Masked) -> Self:
        """A copy with the temperature and thresholds that fit held-out rows; the same task where none is labelled.

        Sets get one threshold by split conformal prediction, where a row counts by its least probable true label.

        Source: Cauchois et al. 2021 (outer sets: those that hold every true label), with a score of our own: one
        threshold for all labels.
        """
        rows = target.present
        if not rows.any():
            return self
        logits = output[rows].detach().cpu().double().numpy().ravel()
        true = target.values[rows].cpu().numpy().ravel().astype(int)
        temperature = metrics.fit_temperature(np.stack([np.zeros_like(logits), logits], 1), true)
        task = self.model_copy(update={"temperature": temperature})
        truth, p, _ = task._labelled(output, target)
        update: dict[str, Any] = {}
        if self.tune_thresholds:
            tuned = [_best_threshold(truth[:, k], p[:, k], self.threshold) for k in range(self.size)]
            update["thresholds"] = tuple(tuned)
        if self.coverage is not None:
            least = np.where(truth, p, 1.0).min(1)
            update["set_threshold"] = max(0.0, -metrics.conformal_bound(-least, self.coverage))
        return task.model_copy(update=update)


def _best_threshold(truth: np.ndarray, p: np.ndarray, default: float) -> float:
    """Threshold of the best F1, midway between two probabilities; ``default`` where no row has the label."""
    if not truth.any():
        return default
    order = np.argsort(-p, kind="stable")
    p, hits = p[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + hits[-1])
    last = np.append(p[1:] < p[:-1], True)  # rows with equal probability stand or fall together
    best = int(np.argmax(np.where(last, f1, -1.0)))
    following = p[best + 1] if best + 1 < len(p) else 0.0
    return float(p[best] + following) / 2


def _log_sigmoid(x: Tensor) -> Tensor:
    """Log of the sigmoid."""
    if tracing():  # ONNX would make it of a sigmoid, which becomes 0
        return -functional.softplus(-x)
    return functional.logsigmoid(x)
