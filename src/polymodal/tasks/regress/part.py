"""regress: one number or several, with the uncertainty of each and how they vary together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from polymodal import metrics
from polymodal.errors import DataError, SpecError
from polymodal.nn.normal import FLOOR, normal_nll
from polymodal.task import VectorTask
from polymodal.tasks.regress.answer import Answer, half_width
from polymodal.tasks.regress.families import Family, Normal, Points, Quantiles, Separate
from polymodal.types import Masked
from polymodal.values import parse_number

ENOUGH = 10
"""Labelled values below which `Regress.calibrate` learns nothing."""


class Regress(VectorTask):
    """K numbers per sample; some of them may be missing in a row.

    The network works in standardised units; predictions and metrics are in the targets' own. What the raw output
    (B, size) holds is said by the `families`; target (B, K), standardised.

    Attributes:
        targets: columns to predict together; a cell is then a mapping {column: value}. Not given: the one ``column``.
        objective: "gaussian" is the negative log likelihood of y ~ N(mean, covariance), both of which depend on the
            sample; "beta_nll" that of one normal per target, independent of the others (a covariance with nothing
            beside its diagonal), with gradients weighted by the variance; "quantiles" is the pinball loss of the
            quantiles, whatever the distribution; "squared" is the mean squared error.
        beta: of "beta_nll": 0 is the plain likelihood, which learns little where it is unsure; with 1 the means learn
            as from squared errors.
        quantiles: rising levels of "quantiles"; the value is the one next to 0.5.
        interval: probability that a predicted interval should cover.
        mean: of each target. Set by `fit`.
        scale: standard deviation of each target. Set by `fit`.
        spread: factor of all predicted standard deviations, for "gaussian" and "beta_nll". Set by `calibrate`.
        residual: standard deviation of each target's errors in units of ``scale``, for "squared". Set by `calibrate`;
            without it there is no interval.
        margin: what is added to both ends of each target's interval in units of ``scale``, for "quantiles". Set by
            `calibrate`.
    """

    type: Literal["regress"] = "regress"
    targets: tuple[str, ...] = ()
    objective: Literal["gaussian", "beta_nll", "quantiles", "squared"] = "gaussian"
    beta: float = Field(default=0.5, ge=0, le=1)
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.05, 0.25, 0.5, 0.75, 0.95), min_length=1
    )
    interval: float = Field(default=0.9, gt=0, lt=1)
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    spread: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    residual: tuple[float, ...] = ()
    margin: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _effective(self) -> Self:
        """Reject settings that contradict one another or have no effect."""
        if self.targets and self.column is not None:
            raise ValueError(f"column must be left out where targets are given, got {self.column!r}.")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must be different columns, got {list(self.targets)}.")
        if list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must rise, got {list(self.quantiles)}.")
        for name, partner in (("beta", "beta_nll"), ("quantiles", "quantiles")):
            if self.objective != partner and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with objective={self.objective}, got {getattr(self, name)}.")
        return self

    def columns(self, name: str) -> tuple[str, ...]:
        """The targets, or the one column."""
        return self.targets or super().columns(name)

    @property
    def count(self) -> int:
        """K."""
        return max(1, len(self.targets))

    @property
    def family(self) -> Family:
        """What a raw output says."""
        match self.objective:
            case "gaussian":
                return Normal(self.count)
            case "beta_nll":
                return Separate(self.count, self.beta)
            case "quantiles":
                return Quantiles(self.count, self.quantiles)
            case "squared":
                return Points(self.count)

    @property
    def size(self) -> int:
        """Length of the family's raw output."""
        return self.family.size

    def _table(self, values: Sequence[Any | None]) -> np.ndarray:
        """Raw cells -> (B, K) float64, NaN where unlabelled."""
        table = np.full((len(values), self.count), np.nan)
        for row, value in zip(table, values, strict=True):
            if value is None:
                continue
            if len(self.targets) > 1 and not isinstance(value, Mapping):
                raise DataError(f"target must be a mapping of {list(self.targets)}, got {value!r}.")
            cells = [value.get(name) for name in self.targets] if len(self.targets) > 1 else [value]
            for k, cell in enumerate(cells):
                row[k] = self._number(cell, k)
        return table

    def _number(self, cell: Any, k: int) -> float:
        try:
            number = parse_number(cell)
        except ValueError as error:
            raise DataError(f"{self._name(k)}: {error} Mend the cell, or leave it empty if it is not known.") from None
        return math.nan if number is None else number

    def _name(self, k: int) -> str:
        return f"target {self.targets[k]!r}" if self.targets else "target"

    def fit(self, values: Sequence[Any | None]) -> Self:
        """A copy that knows each target's mean and scale.

        Raises:
            DataError: a target has fewer than two different values.
        """
        table = self._table(values)
        for k in range(self.count):
            distinct = np.unique(table[:, k][~np.isnan(table[:, k])])
            if len(distinct) < 2:
                got = f"one value only ({distinct[0]:g})" if len(distinct) else "no value"
                raise DataError(
                    f"{self._name(k)} must have at least two different numbers, got {got}. "
                    f"There is nothing to learn from it: choose another column, or add rows."
                )
        update = {"mean": tuple(np.nanmean(table, 0).tolist()), "scale": tuple(np.nanstd(table, 0).tolist())}
        return self.model_copy(update=update)

    def collate(self, values: Sequence[Any | None]) -> Masked:
        """Numbers -> standardised (B, K). None, NaN and "" are unlabelled, each target for itself."""
        if not self.scale:
            raise SpecError("regress must know its targets' scale before it is used, got none. Call fit first.")
        table = (self._table(values) - self.mean) / self.scale
        mask = ~np.isnan(table)
        return Masked(torch.from_numpy(np.where(mask, table, 0.0)).float(), torch.from_numpy(mask))

    def loss(self, output: Tensor, target: Masked) -> Tensor:
        """Mean of the family's loss over rows with any labelled target, in standardised units."""
        rows = target.present
        raw = output[rows].to(torch.promote_types(output.dtype, torch.float32))
        each = self.family.each(raw, target.values[rows].to(raw.dtype), target.mask[rows])
        return each.sum() / max(len(raw), 1)

    def _answer(self, output: Tensor) -> Answer:
        raw, scale, family = output.detach().cpu().double(), np.array(self.scale), self.family
        value = family.center(raw).numpy() * scale + self.mean
        if isinstance(family, Quantiles):
            return self._between(family, family.quantiles(raw).numpy(), value)
        deviation = family.deviation(raw)
        if deviation is not None:
            std = deviation.numpy() * scale * self.spread
        elif self.residual:
            std = np.broadcast_to(np.array(self.residual) * scale, value.shape)
        else:
            return Answer(value)
        reach = half_width(self.interval) * std
        return Answer(value, value - reach, value + reach, std, density=deviation is not None)

    def _between(self, family: Quantiles, standard: np.ndarray, value: np.ndarray) -> Answer:
        """The interval between the quantiles next to its ends, widened by the margin; it always holds the value."""
        table = standard * np.array(self.scale)[:, None] + np.array(self.mean)[:, None]
        first, last = (family.nearest((1 + side * self.interval) / 2) for side in (-1, 1))
        margin = np.array(self.margin or (0.0,)) * self.scale
        low, high = np.minimum(table[..., first] - margin, value), np.maximum(table[..., last] + margin, value)
        return Answer(value, low, high, quantiles=table)

    def answers(self, output: Tensor) -> Tensor:
        """Predicted numbers in the targets' own units. (B, K) float64, on the CPU."""
        return torch.from_numpy(self._answer(output).value)

    def truth(self, target: Masked) -> Tensor:
        """Labels in the targets' own units, NaN where unlabelled. (B, K) float64, on the CPU."""
        table = target.values.detach().cpu().double().numpy() * np.array(self.scale) + self.mean
        return torch.from_numpy(np.where(target.mask.cpu().numpy(), table, np.nan))

    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        """Per sample: value and, where known, low, high (the interval), std and quantiles by level, in own units.

        Each is a number, or a mapping by target where there are several. Quantiles are as trained; the interval is
        corrected by `calibrate`.
        """
        answer = self._answer(output)
        columns = {"value": answer.value, "low": answer.low, "high": answer.high, "std": answer.std}
        lists = {name: table.tolist() for name, table in columns.items() if table is not None}
        rows: list[dict[str, Any]] = [
            {name: self._named(table[i]) for name, table in lists.items()} for i in range(len(answer.value))
        ]
        if answer.quantiles is not None:
            for row, table in zip(rows, answer.quantiles.swapaxes(1, 2).tolist(), strict=True):
                row["quantiles"] = {str(q): self._named(x) for q, x in zip(self.quantiles, table, strict=True)}
        return rows

    def _named(self, row: list[float]) -> float | dict[str, float]:
        return dict(zip(self.targets, row, strict=True)) if self.count > 1 else row[0]

    def metrics(self, output: Tensor, target: Masked) -> dict[str, float]:
        """R2 first (mean over targets), then the joint nll in nats and own units, coverage, and scores of each target.

        Errors and widths are in each target's own unit, so with several targets they are given for each alone.
        """
        answer, true, output, target = self._labelled(output, target)
        single = [answer.single(k, true, self.quantiles) for k in range(self.count)]
        if self.count == 1:
            return metrics.defined(single[0])
        scores = {"r2": metrics.mean(np.array([score["r2"] for score in single]))}
        if isinstance(self.family, Normal):
            scores["nll"] = self._joint_nll(self.family, output, target)
        scores |= answer.coverage(true)
        for name, score in zip(self.targets, single, strict=True):
            scores |= {f"{name}/{key}": value for key, value in score.items()}
        return metrics.defined(scores)

    def _labelled(self, output: Tensor, target: Masked) -> tuple[Answer, np.ndarray, Tensor, Masked]:
        """Predictions, truth, outputs and target of the rows with any label."""
        output, target = output[target.present], target[target.present]
        return self._answer(output), self.truth(target).numpy(), output, target

    def _joint_nll(self, family: Normal, output: Tensor, target: Masked) -> float:
        """Mean negative log density of all labelled targets of a row together, in nats and own units."""
        raw, mask = output.detach().cpu().double(), target.mask.cpu()
        error = torch.where(mask, target.values.cpu().double() - family.center(raw), 0.0)
        units = (mask * torch.tensor(self.scale, dtype=torch.double).log()).sum(1)
        return metrics.mean((normal_nll(error, family.factor(raw) * self.spread, mask) + units).numpy())

    def details(self, output: Tensor, target: Masked) -> dict[str, Any]:
        """JSON-able tables: how often intervals or quantiles hold, the asked coverage, mean correlation of errors."""
        answer, true, output, _ = self._labelled(output, target)
        found: dict[str, Any] = {"targets": list(self.targets), "asked": self.interval}
        found |= answer.reliability(true, self.quantiles)
        if self.objective == "gaussian" and self.count > 1 and len(output):
            factor = functional.normalize(Normal(self.count).factor(output.detach().cpu().double()), dim=-1)
            found["correlation"] = (factor @ factor.mT).mean(0).tolist()
        return found

    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Weighted mean of values, of distributions (the moments of their mixture) or of quantiles. (B, size)."""
        first = outputs[0]
        raw = torch.stack(list(outputs), 1)
        raw = raw.cpu().double() if raw.device.type == "mps" else raw.double()
        share = weights.to(raw).reshape(-1, len(outputs))
        raw = torch.where(share[..., None] > 0, raw, 0.0)  # what counts nothing may hold anything
        total = share.sum(1, keepdim=True)
        share = torch.where(total > 0, share / total.clamp(min=1e-30), 1 / raw.shape[1])[..., None]
        return self.family.mix(raw, share).to(first)

    @property
    def certainty(self) -> float:
        """The factor of all standard deviations."""
        return self.spread

    def settle(self, output: Tensor, factor: Tensor) -> Tensor:
        """The same values with every standard deviation multiplied; "squared" and "quantiles" have none."""
        return self.family.settle(output, factor)

    def calibrate(self, output: Tensor, target: Masked) -> Self:
        """A copy whose intervals cover the asked share of held-out rows; the same task with under 10 labelled values.

        Distributions get one factor for all standard deviations, "squared" one standard deviation per target, and
        "quantiles" one margin per target. Where there are too few values for the asked share, the largest error counts.

        Source: Lei et al. 2018, section 5.2 (locally weighted split conformal), with our sigma as the weight; for
        quantiles Romano et al. 2019, section 4 (conformalised quantile regression).
        """
        bare = self.model_copy(update={"spread": 1.0, "residual": (), "margin": ()})
        answer = bare._answer(output)
        groups = answer.misses(self.truth(target).numpy(), np.array(self.scale))
        if min(len(group) for group in groups) < ENOUGH:
            return self
        bounds = [min(metrics.conformal_bound(group, self.interval), float(group.max())) for group in groups]
        if answer.quantiles is not None:
            return self.model_copy(update={"margin": tuple(bounds)})
        fitted = [max(bound / half_width(self.interval), FLOOR) for bound in bounds]
        return self.model_copy(update={"residual": tuple(fitted)} if answer.std is None else {"spread": fitted[0]})
