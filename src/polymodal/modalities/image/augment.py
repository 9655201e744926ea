"""Varied copies of images, for training."""

from __future__ import annotations

import math
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from polymodal.modalities.image.clean import GREY, scale

_Share = Annotated[float, Field(gt=0, le=1)]
_Chance = Annotated[float, Field(ge=0, le=1)]


class ImageAugmentation(BaseModel):
    """How much training images vary.

    Attributes:
        crop: least and greatest share of the image's area that a random crop keeps; (1, 1) crops nothing.
        flip: probability of mirroring left and right: 0 where direction carries meaning, as in writing.
        brightness: factor up to 1 +- this.
        contrast: likewise, around the image's mean grey.
        saturation: likewise, around each pixel's grey.
        erase: probability of blanking a rectangle of 2 to 20 % of the area.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop: tuple[_Share, _Share] = (0.6, 1.0)
    flip: _Chance = 0.5
    brightness: _Chance = 0.2
    contrast: _Chance = 0.2
    saturation: _Chance = 0.2
    erase: _Chance = 0.25

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.crop[0] > self.crop[1]:
            raise ValueError(f"crop must go from the least to the greatest share, got {self.crop}.")
        if self.crop == (1, 1) and not any((self.flip, self.brightness, self.contrast, self.saturation, self.erase)):
            raise ValueError("augmentation must change something, got nothing but zeros. Leave it out instead.")
        return self

    def apply(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Vary (3, size, size) uint8."""
        if self.crop != (1, 1):
            x = _crop(x, rng, *self.crop)
        if rng.random() < self.flip:
            x = x.flip(-1)
        x = self._colour(x, rng)
        return _erase(x, rng) if rng.random() < self.erase else x

    def _colour(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Vary brightness, contrast and saturation."""
        jitter = (self.brightness, self.contrast, self.saturation)
        if not any(jitter):
            return x
        bright, contrast, saturation = (1 + rng.uniform(-j, j) for j in jitter)
        y = x.float() * bright
        grey = (y * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
        y = grey + (y - grey) * saturation
        y = grey.mean() + (y - grey.mean()) * contrast
        return y.round().clamp(0, 255).to(torch.uint8)


def _box(size: int, rng: np.random.Generator, least: float, greatest: float, ratio: float) -> tuple[slice, slice]:
    """Draw a rectangle inside a square by its share of the area; its sides differ by up to ``ratio``."""
    area = rng.uniform(least, greatest) * size * size
    aspect = math.exp(rng.uniform(-math.log(ratio), math.log(ratio)))
    h = min(size, max(1, round(math.sqrt(area * aspect))))
    w = min(size, max(1, round(math.sqrt(area / aspect))))
    top, left = int(rng.integers(size - h + 1)), int(rng.integers(size - w + 1))
    return slice(top, top + h), slice(left, left + w)


def _crop(x: Tensor, rng: np.random.Generator, least: float, greatest: float) -> Tensor:
    """Cut a random part out and bring it to full size.

    Source: Szegedy et al. 2015, section 6 (random resized crop, sides 3:4 to 4:3).
    """
    rows, columns = _box(x.shape[-1], rng, least, greatest, 4 / 3)
    return scale(x[:, rows, columns], *x.shape[1:])


def _erase(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Blank a random rectangle with mid grey.

    Source: Zhong et al. 2020, random erasing, with a constant instead of noise.
    """
    rows, columns = _box(x.shape[-1], rng, 0.02, 0.2, 3.0)
    x = x.clone()
    x[:, rows, columns] = GREY
    return x
