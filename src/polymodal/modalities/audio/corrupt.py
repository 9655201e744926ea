"""Noises natural to sounds, in ten severities each, for robustness curves.

The kinds are those of recordings and calls: background noise, lost packets, rooms and narrow lines. The severities
are our own: ten steps from what is hardly heard to what leaves little.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polymodal.nn.signal import band_stop
from polymodal.part import Corruption

GAP = 0.05  # seconds of one dropout
LOWEST = 20.0  # Hz from which on pink noise falls
NEAR = 0.5  # seconds of reverberation time at which a room is as loud as the sound itself


def corruptions(rate: int) -> dict[str, Corruption]:
    """Noises of waveforms (n,) at a rate in Hz, by name. The low-pass goes from 3/4 of half the rate down to 1/25."""
    cutoffs = tuple(round(share * rate / 2) for share in (0.75, 0.6, 0.5, 0.4, 0.3, 0.22, 0.16, 0.11, 0.07, 0.04))
    shares = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    seconds = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.1, 1.5, 2.0, 3.0)
    return {
        "noise": Corruption.each(
            "dB",
            (40.0, 30.0, 25.0, 20.0, 15.0, 10.0, 5.0, 0.0, -5.0, -10.0),
            lambda wave, ratio, rng: add_noise(wave, ratio, rng, rate),
        ),
        "dropouts": Corruption.each(
            "share of the time", shares, lambda wave, share, rng: drop(wave, share, rng, round(GAP * rate))
        ),
        "reverb": Corruption.each("seconds", seconds, lambda wave, rt60, rng: reverberate(wave, rt60, rng, rate)),
        "low_pass": Corruption.each("Hz", cutoffs, lambda wave, cutoff, rng: band_stop(wave, cutoff, rate, rate)),
    }


def add_noise(wave: Tensor, ratio: float, rng: np.random.Generator, rate: int) -> Tensor:
    """Add pink noise, as most backgrounds are, at a signal-to-noise ratio in dB of the whole sound's mean power."""
    size = _size(len(wave))
    white = torch.fft.rfft(torch.from_numpy(rng.standard_normal(size, np.float32)))
    pink = torch.fft.irfft(white * torch.fft.rfftfreq(size, 1 / rate).clamp(min=LOWEST).rsqrt(), size)[: len(wave)]
    power = wave.square().mean() / pink.square().mean().clamp(min=1e-30)
    return wave + pink * power.sqrt() * 10 ** (-ratio / 20)


def drop(wave: Tensor, share: float, rng: np.random.Generator, length: int) -> Tensor:
    """Silence a share of the stretches of ``length`` samples; one at least stays."""
    count = -(-len(wave) // length)
    gone = torch.zeros(count, dtype=torch.bool)
    gone[torch.from_numpy(rng.permutation(count)[: min(round(share * count), count - 1)])] = True
    return wave.masked_fill(gone.repeat_interleave(length)[: len(wave)], 0.0)


def reverberate(wave: Tensor, rt60: float, rng: np.random.Generator, rate: int) -> Tensor:
    """Put a sound into a room: the sound itself and an exponentially decaying tail, at the level that it had.

    Source: Polack 1988, "La transmission de l'energie sonore dans les salles" (Gaussian noise under an exponential:
        after ``rt60`` seconds the tail is 60 dB down). A room's tail is as strong as its reverberation time is long
        (Sabine); that it is as strong as the sound itself at 0.5 s is our choice.
    """
    time = torch.arange(len(wave)) / rate
    tail = torch.from_numpy(rng.standard_normal(len(wave), np.float32)) * 10 ** (-3 * time / rt60)
    # The integral of the decaying power is rt60 / (6 ln 10) seconds.
    echo = tail * (6 * np.log(10) / rate / NEAR) ** 0.5
    size = _size(2 * len(wave))
    wet = wave + torch.fft.irfft(torch.fft.rfft(wave, size) * torch.fft.rfft(echo, size), size)[: len(wave)]
    return wet * (wave.square().mean() / wet.square().mean().clamp(min=1e-30)).sqrt()


def _size(least: int) -> int:
    """A power of 2 from ``least`` on: other sizes can take a Fourier transform ten times as long."""
    return 1 << max(1, least - 1).bit_length()
