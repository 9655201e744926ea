"""regress: one number or several, with the uncertainty of each and how they vary together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from polymodal import metrics
from polymodal.errors import DataError, SpecError
from polymodal.nn.normal import FLOOR, lower_factor, normal_nll, pack_factor, unpack_factor
from polymodal.part import VectorTask
from polymodal.types import Masked
from polymodal.values import parse_number

ENOUGH = 10
"""Labelled values below which `Regress.calibrate` learns nothing."""


class Regress(VectorTask):
    """K numbers per sample; some of them may be missing in a row.

    The network works in standardised units; predictions and metrics are in the targets' own. Output (B, K) for
    "squared"; for "gaussian" (B, K + K (K + 1) / 2): the mean, then row by row the lower Cholesky factor of the
    covariance, its diagonal through softplus plus a small floor. Target (B, K), standardised.

    Attributes:
        targets: columns to predict together; a cell is then a mapping {column: value}. Not given: the one ``column``.
        objective: "gaussian" is the negative log likelihood of y ~ N(mean, covariance), both of which depend on the
            sample; "squared" is the mean squared error.
        interval: probability that a predicted interval should cover.
        mean: of each target. Set by `fit`.
        scale: standard deviation of each target. Set by `fit`.
        spread: factor of all predicted standard deviations, for "gaussian". Set by `calibrate`.
        residual: standard deviation of each target's errors in units of ``scale``, for "squared". Set by `calibrate`;
            without it there is no interval.
    """

    type: Literal["regress"] = "regress"
    targets: tuple[str, ...] = ()
    objective: Literal["gaussian", "squared"] = "gaussian"
    interval: float = Field(default=0.9, gt=0, lt=1)
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    spread: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    residual: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _one_way_to_name(self) -> Self:
        if self.targets and self.column is not None:
            raise ValueError(f"column must be left out where targets are given, got {self.column!r}.")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must be different columns, got {list(self.targets)}.")
        return self

    def columns(self, name: str) -> tuple[str, ...]:
        """The targets, or the one column."""
        return self.targets or super().columns(name)

    @property
    def count(self) -> int:
        """K."""
        return max(1, len(self.targets))

    @property
    def size(self) -> int:
        """K, or K + K (K + 1) / 2 with a covariance."""
        return self.count if self.objective == "squared" else self.count + self.count * (self.count + 1) // 2

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
        """Mean over rows with any labelled target, in standardised units.

        "gaussian": negative log likelihood in nats of the labelled targets together (their marginal). "squared": sum of
        squared errors over labelled targets, divided by K.
        """
        rows = target.present
        raw = output[rows].to(torch.promote_types(output.dtype, torch.float32))
        mask = target.mask[rows]
        error = torch.where(mask, target.values[rows].to(raw.dtype) - raw[:, : self.count], 0.0)
        if self.objective == "squared":
            return error.square().sum() / max(error.numel(), 1)
        return normal_nll(error, self._normal(raw), mask).sum() / max(len(raw), 1)

    def _normal(self, raw: Tensor) -> Tensor:
        """Cholesky factors (..., K, K), in standardised units, of raw output (..., size)."""
        return unpack_factor(raw[..., self.count :], self.count)

    def _moments(self, output: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean and, where known, standard deviation of each target in its own unit. (B, K) each."""
        raw, scale = output.detach().cpu().double(), np.array(self.scale)
        center = raw[:, : self.count].numpy() * scale + self.mean
        if self.objective == "gaussian":
            return center, self._normal(raw).norm(dim=-1).numpy() * scale * self.spread
        return center, np.broadcast_to(np.array(self.residual) * scale, center.shape) if self.residual else None

    def answers(self, output: Tensor) -> Tensor:
        """Predicted numbers in the targets' own units. (B, K) float64, on the CPU."""
        return torch.from_numpy(self._moments(output)[0])

    def truth(self, target: Masked) -> Tensor:
        """Labels in the targets' own units, NaN where unlabelled. (B, K) float64, on the CPU."""
        table = target.values.detach().cpu().double().numpy() * np.array(self.scale) + self.mean
        return torch.from_numpy(np.where(target.mask.cpu().numpy(), table, np.nan))

    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        """Per sample: value and, where the uncertainty is known, low, high (the interval) and std, in own units.

        Each is a number, or a mapping by target where there are several.
        """
        center, std = self._moments(output)
        columns = {"value": center}
        if std is not None:
            reach = _quantile(self.interval) * std
            columns |= {"low": center - reach, "high": center + reach, "std": std}
        lists = {name: table.tolist() for name, table in columns.items()}
        return [{name: self._named(table[i]) for name, table in lists.items()} for i in range(len(center))]

    def _named(self, row: list[float]) -> float | dict[str, float]:
        return dict(zip(self.targets, row, strict=True)) if self.count > 1 else row[0]

    def metrics(self, output: Tensor, target: Masked) -> dict[str, float]:
        """R2 first (mean over targets), then the joint nll in nats and own units, coverage, and scores of each target.

        Errors and widths are in each target's own unit, so with several targets they are given for each alone.
        """
        output, target = output[target.present], target[target.present]
        (center, std), true = self._moments(output), self.truth(target).numpy()
        single = [self._single(k, true, center, std) for k in range(self.count)]
        if self.count == 1:
            return metrics.defined(single[0])
        scores = {"r2": metrics.mean(np.array([score["r2"] for score in single]))}
        if self.objective == "gaussian":
            scores["nll"] = self._joint_nll(output, target)
        if std is not None:
            reach, known = _quantile(self.interval) * std, ~np.isnan(true)
            scores["coverage"] = metrics.coverage(true[known], (center - reach)[known], (center + reach)[known])
        for name, score in zip(self.targets, single, strict=True):
            scores |= {f"{name}/{key}": value for key, value in score.items()}
        return metrics.defined(scores)

    def _single(self, k: int, true: np.ndarray, center: np.ndarray, std: np.ndarray | None) -> dict[str, float]:
        """Scores of one target over its labelled rows."""
        known = ~np.isnan(true[:, k])
        y, c = true[known, k], center[known, k]
        scores = {"r2": metrics.r2(y, c), "mae": metrics.mae(y, c), "rmse": metrics.rmse(y, c)}
        if std is None:
            return scores
        s = std[known, k]
        reach = _quantile(self.interval) * s
        if self.objective == "gaussian":
            scores["nll"] = metrics.gaussian_nll(y, c, s)
        return scores | {"coverage": metrics.coverage(y, c - reach, c + reach), "width": metrics.mean(2 * reach)}

    def _joint_nll(self, output: Tensor, target: Masked) -> float:
        """Mean negative log density of all labelled targets of a row together, in nats and own units."""
        raw, mask = output.detach().cpu().double(), target.mask.cpu()
        error = torch.where(mask, target.values.cpu().double() - raw[:, : self.count], 0.0)
        units = (mask * torch.tensor(self.scale, dtype=torch.double).log()).sum(1)
        return metrics.mean((normal_nll(error, self._normal(raw) * self.spread, mask) + units).numpy())

    def details(self, output: Tensor, target: Masked) -> dict[str, Any]:
        """JSON-able tables: coverage of central intervals per level, and the mean correlation of the errors."""
        output, target = output[target.present], target[target.present]
        (center, std), true = self._moments(output), self.truth(target).numpy()
        found: dict[str, Any] = {"targets": list(self.targets)}
        known = ~np.isnan(true)
        if std is not None and known.any():
            z = np.abs(true - center)[known] / std[known]
            levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
            found["levels"] = [{"level": p, "coverage": metrics.mean(z <= _quantile(p))} for p in levels]
        if self.objective == "gaussian" and self.count > 1 and len(output):
            factor = functional.normalize(self._normal(output.detach().cpu().double()), dim=-1)
            found["correlation"] = (factor @ factor.mT).mean(0).tolist()
        return found

    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Weighted mean; for "gaussian" the mean and covariance of the mixture of the distributions. (B, size)."""
        first = outputs[0]
        raw = torch.stack(list(outputs), 1)
        raw = raw.cpu().double() if raw.device.type == "mps" else raw.double()
        share = weights.to(raw).expand(len(raw), -1)
        raw = torch.where(share[..., None] > 0, raw, 0.0)  # what counts nothing may hold anything
        total = share.sum(1, keepdim=True)
        share = torch.where(total > 0, share / total.clamp(min=1e-30), 1 / raw.shape[1])[..., None]
        means = raw[..., : self.count]
        mean = (share * means).sum(1)
        if self.objective == "squared":
            return mean.to(first)
        root = torch.where(share > 0, share.clamp(min=1e-30).sqrt(), 0.0)[..., None]  # no gradient at 0
        apart = (means - mean[:, None])[..., None]
        columns = root * torch.cat([self._normal(raw), apart], -1)  # (B, M, K, K + 1)
        return torch.cat([mean, pack_factor(lower_factor(columns.transpose(1, 2).flatten(2)))], -1).to(first)

    @property
    def certainty(self) -> float:
        """The factor of all standard deviations."""
        return self.spread

    def settle(self, output: Tensor, factor: Tensor) -> Tensor:
        """The same means with every standard deviation multiplied; "squared" has none."""
        if self.objective == "squared":
            return output
        return torch.cat([output[..., : self.count], pack_factor(self._normal(output) * factor)], -1)

    def calibrate(self, output: Tensor, target: Masked) -> Self:
        """A copy whose intervals cover the asked share of held-out rows; the same task with under 10 labelled values.

        "gaussian" gets one factor for all standard deviations, "squared" one standard deviation per target.

        Source: Lei et al. 2018, section 5.2 (locally weighted split conformal), with our sigma as the weight.
        """
        center, std = self.model_copy(update={"spread": 1.0})._moments(output)
        true, scale = self.truth(target).numpy(), np.array(self.scale)
        error = np.abs(true - center) / (scale if std is None or self.objective == "squared" else std)
        groups = [error.ravel()] if self.objective == "gaussian" else list(error.T)
        groups = [group[~np.isnan(group)] for group in groups]
        if min(len(group) for group in groups) < ENOUGH:
            return self
        fitted = [_conformal(group, self.interval) for group in groups]
        if self.objective == "gaussian":
            return self.model_copy(update={"spread": fitted[0]})
        return self.model_copy(update={"residual": tuple(fitted)})


def _quantile(level: float) -> float:
    """Half width of a normal variable's central interval, in standard deviations."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _conformal(error: np.ndarray, level: float) -> float:
    """Standard deviation whose central interval holds ``level`` of the absolute errors (N,), at least `FLOOR`."""
    rank = min(len(error), math.ceil((len(error) + 1) * level))
    return max(float(np.sort(error)[rank - 1]) / _quantile(level), FLOOR)
