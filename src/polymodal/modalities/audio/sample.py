"""A made-up sound file, for examples."""

from __future__ import annotations

import io
import wave
from functools import cache

import numpy as np

RATE = 8000  # Hz
SECONDS = 0.4


@cache
def sample() -> bytes:
    """A WAV of a tone that rises from 300 to 600 Hz, 0.4 s at 8 kHz."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    tone = np.sin(2 * np.pi * (300 + 150 * time / SECONDS) * time)
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((12_000 * tone).astype("<i2").tobytes())
    return sink.getvalue()
