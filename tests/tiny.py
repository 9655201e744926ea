"""Tiny tables with generated media, and specs that train on them in a second."""

from __future__ import annotations

import io
import wave

import numpy as np
from PIL import Image

import polymodal as pm

WORDS = {"a": ("red apple pie", "sweet fruit juice", "green pear tart"), "b": ("old iron bridge", "grey stone tower")}
FAST = {"epochs": 2, "batch_size": 16}
SCRATCH = {
    "text": {"type": "text", "backbone": "none", "min_count": 1},
    "image": {"type": "image", "backbone": "none", "size": 32},
    "audio": {"type": "audio", "backbone": "none", "max_seconds": 1.0},
    "table": {"type": "table", "numbers": ["x"], "categories": ["colour"]},
}


def picture(seed: int, bright: bool = False, kind: str = "PNG") -> bytes:
    """A 24 x 20 image file."""
    pixels = np.random.default_rng(seed).integers(0, 120, (20, 24, 3)) + 120 * bright
    sink = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(sink, kind)
    return sink.getvalue()


def sound(seed: int, pitch: float = 300.0) -> bytes:
    """A quarter of a second of a noisy tone as a WAV file."""
    rng, seconds = np.random.default_rng(seed), np.arange(4000) / 16000
    samples = 0.4 * np.sin(2 * np.pi * pitch * seconds) + 0.05 * rng.standard_normal(4000)
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((32000 * samples.clip(-1, 1)).astype("<i2").tobytes())
    return sink.getvalue()


def columns(rows: int = 40, media: bool = False) -> dict[str, list]:
    """Columns text, x, colour (and image, audio), with targets label, price and tags that they tell."""
    rng, found = np.random.default_rng(7), {}
    labels = ["ab"[i % 2] for i in range(rows)]
    found["text"] = [f"{rng.choice(WORDS[y])} number {i}" for i, y in enumerate(labels)]
    found["x"] = [round(float(rng.normal(2.0 * (y == "b"))), 4) for y in labels]
    found["colour"] = [str(rng.choice(["red", "blue"])) for _ in labels]
    if media:
        found["image"] = [picture(i, y == "b") for i, y in enumerate(labels)]
        found["audio"] = [sound(i, 300.0 if y == "a" else 1500.0) for i, y in enumerate(labels)]
    found["label"] = labels
    found["price"] = [round(3.0 * (y == "b") + float(rng.random()), 4) for y in labels]
    found["tags"] = ["hot|big" if y == "b" else "hot" if i % 3 else "small" for i, y in enumerate(labels)]
    return found


def spec(*inputs: str, outputs=None, **more) -> dict:
    """A spec that learns the label from some of the columns, from scratch, in two epochs."""
    return {
        "inputs": {name: SCRATCH[name] for name in inputs or ("text", "table")},
        "outputs": {"label": "classify"} if outputs is None else outputs,
        "dim": 16,
        "training": FAST,
        **more,
    }


def fitted(*inputs: str, table=None, **more) -> pm.Bundle:
    """A bundle fitted to such a spec, with nothing kept on disk."""
    media = bool({"image", "audio"} & set(inputs))
    return pm.fit(spec(*inputs, **more), columns(media=media) if table is None else table, cache=False)
