"""Bring images to one size, and clean them on request."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

GREY = 127  # what the networks take as zero


def median(pixels: np.ndarray) -> np.ndarray:
    """Replace each pixel (h, w, 3) by the median of its 3 x 3 neighbours, per channel."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.MedianFilter(3)))


def unify(pixels: np.ndarray, size: int, resize: Literal["stretch", "crop", "pad"]) -> Tensor:
    """Bring (h, w, 3) uint8 to (3, size, size) uint8, smoothly."""
    x = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    h, w = x.shape[1:]
    if resize == "crop":
        side = min(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        x = x[:, top : top + side, left : left + side]
    if resize != "pad":
        return scale(x, size, size)
    tall, wide = max(1, round(size * h / max(h, w))), max(1, round(size * w / max(h, w)))
    canvas = x.new_full((3, size, size), GREY)
    top, left = (size - tall) // 2, (size - wide) // 2
    canvas[:, top : top + tall, left : left + wide] = scale(x, tall, wide)
    return canvas


def scale(x: Tensor, height: int, width: int) -> Tensor:
    """Resize (3, h, w) uint8 by antialiased bilinear interpolation, as Pillow does."""
    if x.shape[1:] == (height, width):
        return x.contiguous()
    y = functional.interpolate(x[None], (height, width), mode="bilinear", antialias=True)
    return y[0].contiguous()


def equalise(x: Tensor, tiles: int = 8, limit: float = 2.0) -> Tensor:
    """Equalise the local contrast of (3, h, w) uint8; colours keep their differences.

    Args:
        x: RGB.
        tiles: the image is cut into tiles x tiles parts, each with a histogram of its own.
        limit: a histogram's bins are cut at so many times their mean, and the rest is spread evenly.

    Source: Zuiderveld 1994, contrast limited adaptive histogram equalization, on Rec. 601 luminance.
    """
    rgb = x.numpy().astype(np.int32)
    grey = (299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2] + 500) // 1000
    rows = np.linspace(0, grey.shape[0], tiles + 1).round().astype(int)
    columns = np.linspace(0, grey.shape[1], tiles + 1).round().astype(int)
    curves = np.empty((tiles, tiles, 256))
    for i in range(tiles):
        for j in range(tiles):
            curves[i, j] = _curve(grey[rows[i] : rows[i + 1], columns[j] : columns[j + 1]], limit)
    (top, bottom, down), (left, right, across) = _between(rows), _between(columns)
    down, top, bottom = down[:, None], top[:, None], bottom[:, None]
    above = curves[top, left, grey] * (1 - across) + curves[top, right, grey] * across
    below = curves[bottom, left, grey] * (1 - across) + curves[bottom, right, grey] * across
    change = np.rint(above * (1 - down) + below * down).astype(np.int32) - grey
    return torch.from_numpy((rgb + change).clip(0, 255).astype(np.uint8))


def _curve(tile: np.ndarray, limit: float) -> np.ndarray:
    """Map of the 256 grey levels that equalises one tile, as far as the limit allows."""
    histogram = np.bincount(tile.ravel(), minlength=256).astype(float)
    cut = np.minimum(histogram, max(1.0, limit * tile.size / 256))
    cut += (histogram.sum() - cut.sum()) / 256
    return np.cumsum(cut) * (255 / max(tile.size, 1))


def _between(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per pixel: the two nearest tile centres, and how far it is on the way from the first to the second."""
    centres = (edges[:-1] + edges[1:] - 1) / 2
    place = np.interp(np.arange(edges[-1]), centres, np.arange(len(centres)))
    first = np.floor(place).astype(int)
    return first, np.minimum(first + 1, len(centres) - 1), place - first
