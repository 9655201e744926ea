"""A modality that a user adds in one file: radar returns, any number of (range, azimuth, velocity) per sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.errors import DataError
from polymodal.part import Modality, Reading
from polymodal.types import Masked


class Radar(Modality):
    """Returns of one sweep: range in metres, azimuth in radians, velocity in metres per second.

    Attributes:
        farthest: returns beyond this range are removed.
        jitter: standard deviation of the range's variation in training; 0 varies nothing.
        scale: fitted: standard deviation of each of the three.
    """

    type: Literal["radar"] = "radar"
    farthest: float = 200.0
    jitter: float = 0.0
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def read(self, content: Any) -> Reading:
        try:
            sweep = np.asarray(content, np.float32).reshape(-1, 3)
        except (TypeError, ValueError):
            raise DataError(f"radar must be rows of (range, azimuth, velocity), got {content!r}.") from None
        near = sweep[sweep[:, 0] <= self.farthest]
        repairs = ("far returns removed",) if len(near) < len(sweep) else ()
        return Reading(torch.from_numpy(near) if len(near) else None, repairs, {"returns": float(len(near))})

    def fit(self, values: Iterable[Tensor | None]) -> Self:
        every = torch.cat([value for value in values if value is not None] or [torch.ones(1, 3)])
        return self.model_copy(update={"scale": tuple((every.std(0, correction=0) + 1e-6).tolist())})

    @property
    def augments(self) -> bool:
        return self.jitter > 0

    def augment(self, value: Tensor, rng: np.random.Generator) -> Tensor:
        shift = torch.tensor([rng.normal(0, self.jitter), 0, 0], dtype=torch.float32)
        return value + shift

    def collate(self, values: Sequence[Tensor | None]) -> Masked:
        places = [None if value is None else value[:, :2] for value in values]
        return Masked.pad(values, torch.zeros(3), places)

    def encoder(self, dim: int) -> nn.Module:
        return Returns(self.scale, dim)

    def summary(self, x: Masked) -> Tensor:
        return torch.cat([x.mean(), x.mask.sum(1, keepdim=True).float()], 1)


class Returns(nn.Module):
    """Each return through a perceptron. (B, N, 3) -> (B, N, dim)."""

    scale: Tensor

    def __init__(self, scale: Sequence[float], dim: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.net = nn.Sequential(nn.Linear(3, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Masked) -> Masked:
        return Masked(self.net(x.values / self.scale), x.mask, x.at)
