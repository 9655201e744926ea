"""A made-up image file, for examples."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

SIDE = 64


@cache
def sample() -> bytes:
    """A PNG of a disc on a gradient, 64 x 64."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    inside = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09
    pixels = np.stack([x, y, inside], -1) * 200 + 40
    sink = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(sink, "PNG", optimize=True)
    return sink.getvalue()
