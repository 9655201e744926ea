"""Random variation of waveforms, for training."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from polymodal.nn.signal import band_stop, from_mel, to_mel

Decibels = Annotated[float, Field(ge=-100, le=100)]


class AudioAugmentation(BaseModel):
    """How training sounds are varied. Each change is drawn anew for every sample and epoch.

    Masks act on the waveform, so they work with every backbone.

    Attributes:
        gain: range of the change of level in dB; no change when None.
        noise: range of the signal-to-noise ratio in dB at which white noise is added; none when None.
        shift: most seconds by which a sound is moved to and fro; silence fills the gap.
        time_mask: most seconds that are silenced, at most half of the sound.
        frequency_mask: largest share of the mel scale that is removed, as one band.
            Source of both masks: Park et al. 2019, "SpecAugment", section 2, there on the spectrogram.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gain: tuple[Decibels, Decibels] | None = (-6.0, 6.0)
    noise: tuple[Decibels, Decibels] | None = (15.0, 40.0)
    shift: float = Field(default=0.1, ge=0, le=60)
    time_mask: float = Field(default=0.1, ge=0, le=60)
    frequency_mask: float = Field(default=0.1, ge=0, le=0.5)

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        for name in ("gain", "noise"):
            low, high = getattr(self, name) or (0, 0)
            if low > high:
                raise ValueError(f"{name} must be (lowest, highest), got ({low}, {high}). Swap them.")
        if self.gain is self.noise is None and not self.shift + self.time_mask + self.frequency_mask:
            raise ValueError("augmentation must change something, got all off. Set augmentation to null.")
        return self

    def apply(self, wave: Tensor, rng: np.random.Generator, rate: int) -> Tensor:
        """A varied copy of a waveform (n,), of the same length."""
        wave = wave.clone()
        if self.shift:
            wave = shift(wave, round(rng.uniform(-self.shift, self.shift) * rate))
        if self.frequency_mask:
            wave = _mask_band(wave, rng, rate, self.frequency_mask)
        if self.time_mask:
            wave = _mask_time(wave, rng, min(round(self.time_mask * rate), len(wave) // 2))
        if self.noise:
            wave = _add_noise(wave, rng, rng.uniform(*self.noise))
        return wave if self.gain is None else wave * 10 ** (rng.uniform(*self.gain) / 20)


def shift(wave: Tensor, by: int) -> Tensor:
    """Move a waveform (n,) by so many samples (later if positive), at most half of it, and fill up with silence."""
    by = max(-(len(wave) // 2), min(len(wave) // 2, by))
    moved = torch.zeros_like(wave)
    moved[max(0, by) : len(wave) + min(0, by)] = wave[max(0, -by) : len(wave) - max(0, by)]
    return moved


def _mask_band(wave: Tensor, rng: np.random.Generator, rate: int, most: float) -> Tensor:
    """Remove one band of at most a share of the mel scale."""
    top = to_mel(rate / 2)
    width = rng.uniform(0, most) * top
    low = rng.uniform(0, top - width)
    return band_stop(wave, from_mel(low), from_mel(low + width), rate)


def _mask_time(wave: Tensor, rng: np.random.Generator, most: int) -> Tensor:
    """Silence one span of at most so many samples."""
    width = int(rng.integers(0, most + 1))
    start = int(rng.integers(0, len(wave) - width + 1))
    wave[start : start + width] = 0.0
    return wave


def _add_noise(wave: Tensor, rng: np.random.Generator, ratio: float) -> Tensor:
    """Add white noise at a signal-to-noise ratio in dB."""
    noise = torch.from_numpy(rng.standard_normal(len(wave), dtype=np.float32))
    return wave + noise * wave.square().mean().sqrt() * 10 ** (-ratio / 20)
