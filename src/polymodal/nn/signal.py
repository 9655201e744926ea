"""Sound as a signal: filters, levels, silence, noise, and the log-mel spectrogram with its small encoder."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.types import Masked, tracing

FLOOR_DB = -120.0


def level(wave: Tensor) -> float:
    """Root mean square of a waveform (n,) in dB of full scale; -120 for silence."""
    return max(FLOOR_DB, 10 * math.log10(float(wave.double().square().mean()) + 1e-30))


def frame_levels(wave: Tensor, length: int) -> Tensor:
    """Level in dB of full scale of each ``length`` samples of a waveform (n,). (ceil(n / length),)."""
    frames = functional.pad(wave, (0, -len(wave) % length)).view(-1, length)
    return 10 * (frames.square().mean(1) + 10 ** (FLOOR_DB / 10)).log10()


def normalise(wave: Tensor, target: float, rate: int) -> Tensor:
    """Bring a waveform (n,) to a level, as far as that clips no sample.

    Pauses do not count: the level is that of the 25 ms frames within 40 dB of the loudest one. Silence stays.

    Args:
        wave: (n,) in -1..1.
        target: dB of full scale.
        rate: samples per second.
    """
    levels = frame_levels(wave, max(1, rate // 40))
    loud = levels[levels > levels.max() - 40]
    if levels.max() < -90:
        return wave
    active = 10 * math.log10(float((10 ** (loud.double() / 10)).mean()))
    return wave * min(10 ** ((target - active) / 20), 1 / float(wave.abs().max()))


def trim(wave: Tensor, threshold: float, rate: int) -> Tensor:
    """Cut silence from both ends of a waveform (n,), keeping 50 ms around what is heard.

    Args:
        wave: (n,).
        threshold: 25 ms frames so many dB below the loudest one are silent (a negative number).
        rate: samples per second.
    """
    length = max(1, rate // 40)
    levels = frame_levels(wave, length)
    heard = (levels > max(float(levels.max()) + threshold, -90.0)).nonzero().flatten()
    if not len(heard):
        return wave
    return wave[max(0, int(heard[0]) - 2) * length : (int(heard[-1]) + 3) * length]


def _filter(wave: Tensor, gain: Tensor) -> Tensor:
    """Multiply the spectrum of a waveform (n,), padded to 2n, by real gains (n + 1,): no delay, no wrap-around."""
    return torch.fft.irfft(torch.fft.rfft(wave, 2 * len(wave)) * gain, 2 * len(wave))[: len(wave)]


def _bins(wave: Tensor, rate: int) -> Tensor:
    """Frequencies in Hz of what `_filter` multiplies."""
    return torch.fft.rfftfreq(2 * len(wave), 1 / rate)


def high_pass(wave: Tensor, cutoff: float, rate: int) -> Tensor:
    """Remove what lies below ``cutoff`` Hz from a waveform (n,): the magnitude of a 4th-order Butterworth filter."""
    return _filter(wave, (1 + (cutoff / _bins(wave, rate).clamp(min=1e-6)) ** 8).rsqrt())


def band_stop(wave: Tensor, low: float, high: float, rate: int) -> Tensor:
    """Remove the frequencies between ``low`` and ``high`` Hz from a waveform (n,)."""
    bins = _bins(wave, rate)
    return _filter(wave, ((bins < low) | (bins > high)).to(wave.dtype))


def denoise(wave: Tensor, rate: int) -> Tensor:
    """Reduce steady noise in a waveform (n,) by spectral gating.

    The noise of a frequency is estimated from the 20 % quantile of its power over time. Each cell of the spectrogram
    keeps the share of its power (averaged with its neighbours') that exceeds three times the noise, at least 1 %.

    Source: Berouti et al. 1979, "Enhancement of speech corrupted by acoustic noise": subtraction of an over-estimated
        noise power with a floor. It differs in the estimate of the noise, which needs no marked pauses (as in
        Stahl et al. 2000), and in the floor, a share of the signal and not of the noise.
    """
    size = 2 ** math.ceil(math.log2(rate * 0.032))
    if len(wave) < 8 * size:  # too short to tell noise from sound
        return wave
    window = torch.hann_window(size)
    spectrum = torch.stft(wave, size, size // 4, window=window, return_complex=True)  # (F, T)
    power = spectrum.abs().square()
    noise = power.quantile(0.2, dim=1, keepdim=True) / 0.223  # of exponential noise: its 20 % quantile / mean
    smooth = functional.avg_pool2d(power[None], 3, 1, 1, count_include_pad=False)[0]
    gain = (1 - 3 * noise / smooth.clamp(min=1e-12)).clamp(min=0.01).sqrt()
    return torch.istft(spectrum * gain, size, size // 4, window=window, length=len(wave))


def to_mel(hz: float) -> float:
    """Frequency in Hz on the mel scale (O'Shaughnessy 1987, as in HTK)."""
    return 2595 * math.log10(1 + hz / 700)


def from_mel(mel: float) -> float:
    """Undo `to_mel`."""
    return 700 * (10 ** (mel / 2595) - 1)


def mel_filters(rate: int, size: int, bands: int, low: float = 20.0) -> Tensor:
    """Overlapping triangles of height 1, evenly spaced in mel, ``low`` Hz to half the rate. (size // 2 + 1, bands)."""
    first, last = to_mel(low), to_mel(rate / 2)
    edges = [from_mel(first + (last - first) * i / (bands + 1)) for i in range(bands + 2)]
    left, peak, right = torch.tensor([edges[i : i + 3] for i in range(bands)]).T.unsqueeze(1)
    bins = (torch.arange(size // 2 + 1) * rate / size).unsqueeze(1)
    return torch.minimum((bins - left) / (peak - left), (right - bins) / (right - peak)).clamp(min=0)


class LogMel(nn.Module):
    """Waveforms (B, N) -> log-mel frames (B, T, bands), every 10 ms, each from 25 ms.

    The unit is 20 dB and 0 is 40 dB below a full-scale sine. Frames are centred, with silence around the clip:
    frame t stands at t hops.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, rate: int, bands: int = 64) -> None:
        super().__init__()
        self.hop, width = rate // 100, rate // 40
        self.size = 2 ** math.ceil(math.log2(width))
        window = torch.hann_window(width)
        self.register_buffer("window", window / window.sum() * 2, persistent=False)  # a full-scale sine has power 1
        self.register_buffer("filters", mel_filters(rate, self.size, bands), persistent=False)

    def forward(self, x: Masked) -> Masked:
        """Transform; a row has one frame per started hop."""
        waves = x.values.masked_fill(~x.mask, 0.0)
        power = self._power(functional.pad(waves, (0, self.size))) @ self.filters
        frames = (x.mask.shape[1] + self.hop - 1) // self.hop
        values = (10 * power[:, :frames].clamp(min=1e-10).log10() + 40) / 20
        counts = torch.div(x.mask.sum(1) + self.hop - 1, self.hop, rounding_mode="floor")
        return Masked(values, torch.arange(frames, device=values.device) < counts.unsqueeze(1))

    def _power(self, waves: Tensor) -> Tensor:
        """Power of each frequency of each frame: (B, N) -> (B, T, size // 2 + 1)."""
        width = len(self.window)
        if not tracing():
            spectrum = torch.stft(
                waves, self.size, self.hop, width, self.window, center=True, pad_mode="constant", return_complex=True
            )
            return spectrum.abs().square().transpose(1, 2)
        # ONNX has no complex numbers: the same transform as a convolution with cosines and sines.
        turn = 2 * np.pi / self.size * np.outer(np.arange(self.size // 2 + 1), np.arange(width))
        basis = torch.from_numpy(np.concatenate([np.cos(turn), np.sin(turn)])).float().to(waves.device) * self.window
        framed = functional.pad(waves, (self.size // 2 - (self.size - width) // 2, 0)).unsqueeze(1)
        real, imaginary = functional.conv1d(framed, basis.unsqueeze(1), stride=self.hop).square().chunk(2, 1)
        return (real + imaginary).transpose(1, 2)


class SpectrogramEncoder(nn.Module):
    """Waveforms (B, N) -> tokens (B, T, dim), trained from scratch: log-mel and three convolutions that halve the time.

    A token stands for 80 ms; ``at`` is its middle in seconds. Nothing depends on the padding.
    """

    def __init__(self, rate: int, dim: int, bands: int = 64) -> None:
        super().__init__()
        self.mel, self.step = LogMel(rate, bands), 8 * (rate // 100) / rate
        sizes = [bands, dim, dim, dim]
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 5, 2, 2) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.layers)

    def forward(self, x: Masked) -> Masked:
        """Encode; every row has at least one sample."""
        x = self.mel(x)
        values, mask = x.values, x.mask
        for layer, norm in zip(self.layers, self.norms, strict=True):
            clean = values.masked_fill(~mask.unsqueeze(2), 0.0).transpose(1, 2)
            values, mask = functional.gelu(norm(layer(clean).transpose(1, 2))), mask[:, ::2]
        at = (torch.arange(mask.shape[1], device=values.device) * self.step).expand(mask.shape[0], -1).unsqueeze(2)
        return Masked(values.masked_fill(~mask.unsqueeze(2), 0.0), mask, at)
