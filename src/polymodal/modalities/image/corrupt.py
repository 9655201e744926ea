"""Noises natural to images, in ten severities each, for robustness curves.

Source: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    section 4.1, for Gaussian noise, blur, JPEG and contrast; Zeiler and Fergus 2014, "Visualizing and Understanding
    Convolutional Networks", section 4.2, for the grey square. The severities are our own: ten steps from what is
    hardly seen to what leaves little.
"""

from __future__ import annotations

import math

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from polymodal.modalities.image.clean import GREY
from polymodal.part import Corruption

SIDE = 224  # of the images that the blur's severities are given for
SIGMAS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0)


def corruptions(side: int) -> dict[str, Corruption]:
    """Noises of images (3, side, side) uint8, by name. The blur's severity is its standard deviation."""
    sigmas = tuple(round(sigma * side / SIDE, 3) for sigma in SIGMAS)
    shares = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    return {
        "blur": Corruption.each("pixels", sigmas, blur),
        "noise": Corruption.each(
            "share of the range", (0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.2, 0.26, 0.32, 0.4), noise
        ),
        "jpeg": Corruption.each("quality", (80, 60, 45, 35, 25, 18, 14, 10, 7, 4), jpeg),
        "contrast": Corruption.each("share kept", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05), contrast),
        "occlusion": Corruption.each("share of the area", shares, occlude),
    }


def blur(x: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Gaussian blur of an image (3, h, w). At the border the weights inside the image sum to 1."""
    down, across = (_kernel(size, sigma) for size in x.shape[1:])
    tall = (down @ x.float()).transpose(1, 2).contiguous()  # half the time of a product with a transpose
    return _pixels((across @ tall).transpose(1, 2).contiguous())


def noise(x: Tensor, deviation: float, rng: np.random.Generator) -> Tensor:
    """Add Gaussian noise to every value, with a standard deviation in units of 255."""
    drawn = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
    return _pixels(x + 255 * deviation * drawn)


def jpeg(x: Tensor, quality: float, rng: np.random.Generator) -> Tensor:
    """Compress as JPEG of a quality (1 to 100, colours at half the resolution) and decode again."""
    pixels = np.ascontiguousarray(x.permute(1, 2, 0).numpy())
    content = simplejpeg.encode_jpeg(pixels, round(quality), "RGB", "420")
    return torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB")).permute(2, 0, 1).contiguous()


def contrast(x: Tensor, kept: float, rng: np.random.Generator) -> Tensor:
    """Keep a share of each value's difference to its channel's mean."""
    mean = x.float().mean((1, 2), keepdim=True)
    return _pixels(mean + kept * (x - mean))


def occlude(x: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Cover a share of the area with a grey rectangle of the image's proportions at a random place."""
    place, covered = rng.random(2), x.clone()
    sizes = [round(math.sqrt(share) * size) for size in x.shape[1:]]
    tops = [math.floor(u * (size - side)) for u, size, side in zip(place, x.shape[1:], sizes, strict=True)]
    rows, columns = (slice(top, top + side) for top, side in zip(tops, sizes, strict=True))
    covered[:, rows, columns] = GREY
    return covered


def _kernel(size: int, sigma: float) -> Tensor:
    """Gaussian weights of every position for every position; each row sums to 1. (size, size)."""
    at = torch.arange(size, dtype=torch.float32)
    return torch.softmax(-(at[:, None] - at).square() / (2 * sigma * sigma), 1)


def _pixels(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)
