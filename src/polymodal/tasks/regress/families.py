"""What a raw output can say of K numbers: points, normal distributions, quantiles. All in standardised units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from polymodal.nn.normal import diagonal, lower_factor, normal_nll, on_diagonal, pack_factor, unpack_factor


@dataclass(frozen=True, slots=True)
class Family(ABC):
    """How a raw output (..., size) is read, scored and averaged.

    Attributes:
        count: K, how many numbers a row has.
    """

    count: int

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of the raw output of one row."""

    @abstractmethod
    def each(self, raw: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Loss of each row over its known values.

        Args:
            raw: (N, size).
            value: (N, K); what stands where unknown is ignored.
            mask: (N, K) bool, True where known.

        Returns:
            (N,).
        """

    @abstractmethod
    def mix(self, raw: Tensor, share: Tensor) -> Tensor:
        """The weighted mean of M raw outputs (B, M, size), by shares (B, M, 1) that sum to 1. (B, size)."""

    def center(self, raw: Tensor) -> Tensor:
        """The predicted values. (..., K)."""
        return raw[..., : self.count]

    def deviation(self, raw: Tensor) -> Tensor | None:
        """Standard deviations (..., K), or None where a raw output says nothing of them."""
        return None

    def quantiles(self, raw: Tensor) -> Tensor | None:
        """Quantiles in rising order (..., K, Q), or None where a raw output says nothing of them."""
        return None

    def settle(self, raw: Tensor, factor: Tensor) -> Tensor:
        """The raw output with every standard deviation multiplied, where there are any."""
        return raw


@dataclass(frozen=True, slots=True)
class Points(Family):
    """Values alone, by squared error. Raw output (..., K)."""

    @property
    def size(self) -> int:
        """K."""
        return self.count

    def each(self, raw: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Sum of squared errors over known values, divided by K."""
        return torch.where(mask, value - raw, 0.0).square().sum(1) / self.count

    def mix(self, raw: Tensor, share: Tensor) -> Tensor:
        """Weighted mean."""
        return (share * raw).sum(1)


@dataclass(frozen=True, slots=True)
class Normal(Family):
    """One multivariate normal per row, with a covariance of its own.

    Raw output (..., K + K (K + 1) / 2): the mean, then row by row the lower Cholesky factor of the covariance, its
    diagonal through softplus plus a small floor.
    """

    @property
    def size(self) -> int:
        """K + K (K + 1) / 2."""
        return self.count + self.count * (self.count + 1) // 2

    def factor(self, raw: Tensor) -> Tensor:
        """Lower Cholesky factors of the covariances. (..., K, K)."""
        return unpack_factor(raw[..., self.count :], self.count)

    def each(self, raw: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Negative log likelihood of the known values together (their marginal), in nats."""
        error = torch.where(mask, value - self.center(raw), 0.0)
        return normal_nll(error, self.factor(raw), mask)

    def deviation(self, raw: Tensor) -> Tensor:
        """Root of the covariance's diagonal."""
        return self.factor(raw).norm(dim=-1)

    def mix(self, raw: Tensor, share: Tensor) -> Tensor:
        """Mean and covariance of the mixture of the distributions."""
        means = self.center(raw)
        mean = (share * means).sum(1)
        root = torch.where(share > 0, share.clamp(min=1e-30).sqrt(), 0.0)[..., None]  # no gradient at 0
        apart = (means - mean[:, None])[..., None]
        columns = root * torch.cat([self.factor(raw), apart], -1)  # (B, M, K, K + 1)
        return torch.cat([mean, self._spell(self._lower(columns.transpose(1, 2).flatten(2)))], -1)

    def settle(self, raw: Tensor, factor: Tensor) -> Tensor:
        """The same means with every standard deviation multiplied."""
        return torch.cat([self.center(raw), self._spell(self.factor(raw) * factor)], -1)

    def _spell(self, factor: Tensor) -> Tensor:
        """Raw numbers of factors (..., K, K)."""
        return pack_factor(factor)

    def _lower(self, columns: Tensor) -> Tensor:
        """Factor of the covariance A A^T, for A (B, K, n >= K). (B, K, K)."""
        return lower_factor(columns)


@dataclass(frozen=True, slots=True)
class Separate(Normal):
    """One normal per value, independent of the others: a `Normal` whose covariance has nothing beside its diagonal.

    Raw output (..., 2 K): the means, then the standard deviations through softplus plus a small floor.

    Source: Seitzer et al. 2022 (arXiv:2203.09168), section 4: each value's negative log likelihood is weighted by its
    predicted variance to the power beta, held constant in the gradient. Ours has exactly that gradient, but its value
    is the plain likelihood: a wrong variance lowers the weighted one, which could not tell when to stop.

    Attributes:
        beta: 0 is the negative log likelihood; with 1 the means learn as from squared errors.
    """

    beta: float

    @property
    def size(self) -> int:
        """2 K."""
        return 2 * self.count

    def factor(self, raw: Tensor) -> Tensor:
        """Diagonal factors. (..., K, K)."""
        return on_diagonal(self.deviation(raw))

    def deviation(self, raw: Tensor) -> Tensor:
        """Standard deviations. (..., K)."""
        return unpack_factor(raw[..., self.count :, None], 1)[..., 0, 0]

    def each(self, raw: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Negative log likelihood of the known values in nats, with the weighted gradient."""
        error = torch.where(mask, value - self.center(raw), 0.0)
        std = self.deviation(raw)
        nll = normal_nll(error.reshape(-1, 1), std.reshape(-1, 1, 1), mask.reshape(-1, 1)).view_as(error)
        weight = std.detach() ** (2 * self.beta)
        return (nll.detach() + weight * (nll - nll.detach())).sum(1)

    def _spell(self, factor: Tensor) -> Tensor:
        return pack_factor(diagonal(factor)[..., None, None])[..., 0]

    def _lower(self, columns: Tensor) -> Tensor:
        return on_diagonal(columns.norm(dim=-1))


@dataclass(frozen=True, slots=True)
class Quantiles(Family):
    """Quantiles of each value. Raw output (..., K Q): the levels of the first value, then those of the next.

    Each number learns its own level, so that two may cross; sorting them afterwards never raises the loss.

    Source: Koenker and Bassett 1978 (the loss); Chernozhukov et al. 2010 (the sorting).

    Attributes:
        levels: Q rising probabilities.
    """

    levels: tuple[float, ...]

    @property
    def size(self) -> int:
        """K Q."""
        return self.count * len(self.levels)

    def each(self, raw: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Pinball loss, mean over levels, summed over known values, divided by K."""
        known = mask[..., None]
        error = torch.where(known, value[..., None] - raw.unflatten(-1, (self.count, -1)), 0.0)
        level = raw.new_tensor(self.levels)
        return torch.maximum(level * error, (level - 1) * error).mean(-1).sum(1) / self.count

    def quantiles(self, raw: Tensor) -> Tensor:
        """Sorted quantiles."""
        return raw.unflatten(-1, (self.count, -1)).sort(-1).values

    def center(self, raw: Tensor) -> Tensor:
        """The median, or the quantile next to it."""
        return self.quantiles(raw)[..., self.nearest(0.5)]

    def mix(self, raw: Tensor, share: Tensor) -> Tensor:
        """Weighted mean of each quantile (Vincentisation): unlike a mixture's, its shape is that of what is averaged.

        Source: Ratcliff 1979; Genest 1992.
        """
        return (share * self.quantiles(raw).flatten(-2)).sum(1)

    def nearest(self, level: float) -> int:
        """Number of the level next to another; of two, the lower."""
        return min(range(len(self.levels)), key=lambda i: round(abs(self.levels[i] - level), 9))
