"""classify: choose one of several classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from polymodal import metrics
from polymodal.decoder.labels import LabelHead
from polymodal.decoder.spoken import Spoken
from polymodal.errors import DataError, SpecError, suggest
from polymodal.task import VectorTask
from polymodal.tasks.classify.labels import Label, distinct, label_text, text_keys
from polymodal.types import Masked
from polymodal.values import is_missing


class Classify(Spoken, VectorTask):
    """One of K classes per sample, by cross-entropy. Output (B, K): logits; target (B, 1): index of the class.

    With a ``decoder``, a language model reads the inputs, and a class's logit is the log-likelihood of its text as the
    answer.

    Attributes:
        classes: the labels as they came, so that a prediction gives back 1 and not "1". Found by `fit` (sorted) when
            not given; give them to fix their order or to allow for a class that the training rows lack.
        class_weights: how much a row counts in the loss. "balanced": each class as much as any other; a mapping: by
            class, 1 where it is not named. Only ratios count. Probabilities then follow the reweighted classes.
        label_smoothing: share of the target spread evenly over all classes in the loss.
        coverage: asked share of rows whose true class is in the predicted ``set``; None for no sets. It holds for the
            model that was calibrated, on rows like those it was calibrated on. A refit on all rows makes it
            approximate; without one (training.refit 0) it holds up to what else those rows chose: the epoch, the linear
            model's share, the temperature.
        temperature: divides the logits in probabilities, not in the loss. Set by `calibrate`.
        set_threshold: a class is in the set from this probability on. Set by `calibrate`; 0 (all classes) before, and
            where there were too few rows for the asked coverage.
        decoder: a language model that reads the classes, its prompt and what is trained of it; None for a linear map of
            the fused vector.
        verbatim: inputs whose very words the language model reads. Set by the spec; it is not written down.
        weights: factor of each class in the loss, 1 on average over the training rows. Set by `fit`.
    """

    type: Literal["classify"] = "classify"
    classes: tuple[Label, ...] = ()
    class_weights: (
        Literal["none", "balanced"]
        | Annotated[
            dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]],
            BeforeValidator(text_keys),
        ]
    ) = "none"
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    coverage: float | None = Field(default=None, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    set_threshold: float = Field(default=0.0, ge=0, le=1)
    weights: tuple[float, ...] = ()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[Label, ...]) -> tuple[Label, ...]:
        texts = [label_text(label) for label in classes]
        if classes and len(set(texts)) < max(2, len(texts)):
            raise ValueError(f"classes must be at least two different labels, got {list(classes)}.")
        return classes

    @property
    def size(self) -> int:
        """K."""
        if not self.classes:
            raise SpecError("classify must know its classes before it is used, got none. Call fit, or give classes.")
        return len(self.classes)

    def fit(self, values: Sequence[Any | None]) -> Self:
        """A copy that knows its classes and their weights.

        Raises:
            DataError: there are fewer than two classes, or one that is not in the given ``classes``.
            SpecError: ``class_weights`` names a class that does not exist.
        """
        labels = [value for value in values if not is_missing(value)]
        counts = Counter(label_text(label) for label in labels)
        if len(counts) < 2:
            got = f"only {next(iter(counts))!r} in {len(labels)} labelled rows" if counts else "no labelled row"
            raise DataError(
                f"target must have at least two classes, got {got}. "
                f"Add rows of another class, or choose another target column."
            )
        task = self if self.classes else self.model_copy(update={"classes": distinct(labels)})
        task.collate(labels)
        told = {} if self.decoder is None else {"decoder": self.decoder.fitted()}
        return task.model_copy(update={"weights": task._weigh(counts), **told})

    def _weigh(self, counts: Counter[str]) -> tuple[float, ...]:
        """Factor of each class in the loss, () where all are 1."""
        names = [label_text(label) for label in self.classes]
        if self.class_weights == "none":
            return ()
        if self.class_weights == "balanced":
            raw = [1 / max(counts[name], 1) for name in names]
        else:
            for name in self.class_weights:
                if name not in names:
                    raise SpecError(
                        f"class_weights must name classes among {names[:20]}, got {name!r}.{suggest(name, names)}"
                    )
            raw = [self.class_weights.get(name, 1.0) for name in names]
        average = sum(counts[name] * w for name, w in zip(names, raw, strict=True)) / counts.total()
        return tuple(w / average for w in raw)

    def collate(self, values: Sequence[Any | None]) -> Masked:
        """Labels -> indices (B, 1). None, NaN and "" are unlabelled."""
        place = {label_text(label): i for i, label in enumerate(self.classes)}
        index = [0 if is_missing(value) else place.get(label_text(value), -1) for value in values]
        if -1 in index:
            value = values[index.index(-1)]
            known = list(self.classes[:20])
            raise DataError(
                f"class must be one of {known}{' ...' if len(self.classes) > 20 else ''}, got {value!r}."
                f"{suggest(value, place)} Mend the cell, leave it empty, or train again with this class."
            )
        mask = torch.tensor([not is_missing(value) for value in values], dtype=torch.bool)
        return Masked(torch.tensor(index, dtype=torch.long).view(-1, 1), mask.view(-1, 1))

    def head(self, dim: int) -> nn.Module:
        """A linear map of the pooled vector, or a language model that reads the classes."""
        if self.decoder is None:
            return super().head(dim)
        return LabelHead(self.decoder, dim, self.verbatim, [label_text(label) for label in self.classes])

    def loss(self, output: Tensor, target: Masked) -> Tensor:
        """Mean weighted cross-entropy over labelled rows, in nats."""
        rows = target.present
        scores = functional.log_softmax(output[rows].to(torch.promote_types(output.dtype, torch.float32)), -1)
        index = target.values[rows]
        each = -scores.gather(1, index).squeeze(1)
        if self.label_smoothing:
            each = torch.lerp(each, -scores.mean(1), self.label_smoothing)
        if self.weights:
            each = each * scores.new_tensor(self.weights)[index.squeeze(1)]
        return each.sum() / max(len(each), 1)

    def probabilities(self, output: Tensor) -> Tensor:
        """Calibrated probability of each class. (B, K) float64, on the CPU."""
        return (output.detach().cpu().double() / self.temperature).softmax(-1)

    def answers(self, output: Tensor) -> Tensor:
        """Index of the most probable class. (B,)."""
        return self.probabilities(output).argmax(-1)

    def sets(self, output: Tensor) -> Tensor:
        """Which classes are in each sample's set: those probable enough, and always the most probable. (B, K) bool."""
        p = self.probabilities(output)
        return (p >= self.set_threshold) | (p == p.amax(-1, keepdim=True))

    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        """Per sample: class, its probability, probabilities by the class's text, and the set, most probable first."""
        names, sets = [label_text(label) for label in self.classes], self.sets(output).tolist()
        rows = []
        for p, inside in zip(self.probabilities(output).tolist(), sets, strict=True):
            order = sorted(range(len(p)), key=p.__getitem__, reverse=True)
            by_name = dict(zip(names, p, strict=True))
            row = {"class": self.classes[order[0]], "probability": p[order[0]], "probabilities": by_name}
            rows.append(row if self.coverage is None else row | {"set": [self.classes[k] for k in order if inside[k]]})
        return rows

    def _labelled(self, output: Tensor, target: Masked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True index (N,), probabilities (N, K) and predicted index (N,) of labelled rows."""
        rows = target.present
        p = self.probabilities(output[rows]).numpy()
        return target.values[rows].squeeze(1).cpu().numpy(), p, p.argmax(1)

    def metrics(self, output: Tensor, target: Masked) -> dict[str, float]:
        """Accuracy first. AUROC and average precision are one-versus-rest means over the classes that occur.

        With sets: how many hold the true class, and how many classes they hold.
        """
        true, p, guess = self._labelled(output, target)
        truth, guessed = metrics.one_hot(true, self.size), metrics.one_hot(guess, self.size)
        sets = self.sets(output[target.present]).numpy()
        held = {"coverage": metrics.mean(sets[truth]), "set_size": metrics.mean(sets.sum(1))}
        return metrics.defined(
            {
                "accuracy": metrics.accuracy(true, guess),
                "balanced_accuracy": metrics.balanced_accuracy(true, guess, self.size),
                "macro_f1": metrics.macro_f1(truth, guessed),
                "micro_f1": metrics.micro_f1(truth, guessed),
                "mcc": metrics.mcc(metrics.confusion(true, guess, self.size)),
                "auroc": metrics.macro(metrics.auroc, truth, p),
                "average_precision": metrics.macro(metrics.average_precision, truth, p),
                "nll": metrics.log_loss(true, p),
                "brier": metrics.brier(truth, p),
                "ece": metrics.ece(true == guess, p.max(1)),
                **({} if self.coverage is None else held),
            }
        )

    def balance(self, target: Masked) -> dict[str, int]:
        """How many labelled samples each class has, by its text."""
        counts = torch.bincount(target.values[target.present].flatten(), minlength=self.size).tolist()
        return {label_text(label): count for label, count in zip(self.classes, counts, strict=True)}

    def details(self, output: Tensor, target: Masked) -> dict[str, Any]:
        """JSON-able tables: confusion (rows true, columns predicted), scores per class, reliability, asked coverage."""
        true, p, guess = self._labelled(output, target)
        truth, sets = metrics.one_hot(true, self.size), self.sets(output[target.present]).numpy()
        scores = metrics.per_class(truth, metrics.one_hot(guess, self.size))
        per_class = []
        for k, label in enumerate(self.classes):
            row = {"class": label, **{name: column[k].item() for name, column in scores.items()}}
            ranking = {
                "auroc": metrics.auroc(truth[:, k], p[:, k]),
                "average_precision": metrics.average_precision(truth[:, k], p[:, k]),
            }
            if self.coverage is not None:
                ranking["coverage"] = metrics.mean(sets[truth[:, k], k])
            per_class.append(row | metrics.defined(ranking))
        return {
            "classes": list(self.classes),
            "confusion": metrics.confusion(true, guess, self.size).tolist(),
            "per_class": per_class,
            "reliability": metrics.reliability(true == guess, p.max(1)),
            **({} if self.coverage is None else {"asked": self.coverage}),
        }

    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Log of the weighted mean of the probabilities at temperature 1. (B, K)."""
        raw = torch.stack(list(outputs), 1)
        share = weights.to(raw).reshape(-1, len(outputs))[..., None]
        scores = torch.where(share > 0, raw, 0.0).log_softmax(-1)  # what counts nothing may hold anything
        tiny = torch.finfo(raw.dtype)
        log_share = torch.where(share > 0, share.clamp(min=tiny.tiny).log(), tiny.min / 2)  # -inf has no gradient
        return (log_share + scores).logsumexp(1)

    @property
    def certainty(self) -> float:
        """The temperature."""
        return self.temperature

    def settle(self, output: Tensor, factor: Tensor) -> Tensor:
        """Logits divided by a temperature."""
        return output / factor

    def calibrate(self, output: Tensor, target: Masked) -> Self:
        """A copy with the temperature, and the threshold of sets, that fit held-out rows; the same without labels.

        Source: Sadinle et al. 2019 (sets by one threshold on the probability, the smallest on average for a coverage),
        with the threshold of split conformal prediction. Ours never leaves out the most probable class.
        """
        rows = target.present
        if not rows.any():
            return self
        logits, true = output[rows].detach().cpu().double().numpy(), target.values[rows].squeeze(1).cpu().numpy()
        task = self.model_copy(update={"temperature": metrics.fit_temperature(logits, true)})
        if self.coverage is None:
            return task
        p = task.probabilities(output[rows]).numpy()[np.arange(len(true)), true]
        return task.model_copy(update={"set_threshold": max(0.0, -metrics.conformal_bound(-p, self.coverage))})
