"""Describe a picture in words: a small language model reads soft tokens of it and of a spoken description.

Data: Tux Paint stamps (GPL-2), 527 rows to learn from and 176 to test on. The voices say the text in Spanish, by
espeak-ng; some are missing, and equal texts sound the same. What the nearest training picture and voice are called
stands in the prompt, as hints, and beside the model, which must do better. No figure is published.

Run: python recipes/describe_stamps.py --data path/of/stamps
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import polymodal as pm

DECODER = {"prompt": "<image> <voice> Looks like: <looks> Sounds like: <sounds> This one: ", "chat": False}
SPEC: dict[str, Any] = {
    "inputs": {"image": {"type": "image", "grid": 4}, "voice": "audio", "looks": "prompt", "sounds": "prompt"},
    "outputs": {"text": {"type": "generate", "decoder": DECODER, "decoding": {"tokens": 24}}},
    "dim": 256,
    "training": {"epochs": 5, "batch_size": 8, "learning_rate": 1e-3, "rates": {"language": 5e-4}, "refit": 0},
    "split": {"valid": 0.1},
}
SAME = 0.98  # cosine of two voices from which one hints at the other; below, 2 of 312 training rows say the same


def hinted(train: pm.Table, test: pm.Table) -> list[pm.Table]:
    """Both tables with what the nearest training picture, and the voice if it is near, of another row are called."""
    texts, sides = list(train.column("text")), [train, test]
    for kind, column, hint, least in (("image", "image", "looks", -1.0), ("audio", "voice", "sounds", SAME)):
        known, asked = (np.nan_to_num(pm.embed({"type": kind, "column": column}, s).vectors) for s in sides)
        alike = known @ known.T
        np.fill_diagonal(alike, -2.0)
        for i, near in enumerate((alike, asked @ known.T)):
            best = zip(near.argmax(1).tolist(), near.max(1).tolist(), strict=True)
            sides[i] = sides[i].with_column(hint, [texts[place] if x >= least else None for place, x in best])
    return sides


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Fit, and print the scores on the test rows beside the others."""
    parser = argparse.ArgumentParser(description="Describe pictures.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("POLYMODAL_DATA", "../shared/data"), "stamps"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the bundle")
    parser.add_argument("--tiny", action="store_true", help="a few rows, to see that everything runs")
    options = parser.parse_args(arguments)
    train, test = hinted(*(pm.Table.read(options.data / f"{side}.csv") for side in ("train", "test")))
    spec = SPEC | ({"training": {"epochs": 1}} if options.tiny else {})
    train, test = (train.head(12), test.head(2)) if options.tiny else (train, test)
    right, looks, sounds = [[text] for text in test.column("text")], *map(list, map(test.column, ("looks", "sounds")))
    rows = {"nearest picture": pm.text_scores(looks, right)}
    rows["nearest voice, or picture"] = pm.text_scores([s or p for s, p in zip(sounds, looks, strict=True)], right)
    started, other = time.process_time(), test
    model = pm.fit(spec, train, seed=options.seed)
    print(f"{(time.process_time() - started) / 60:.1f} CPU-min")
    found = model.evaluate(test).content["tasks"]["text"]
    rows["all"] = found["scores"]
    for name in spec["inputs"]:
        rows |= {f"without {name}": found["without"][name], f"{name} of another row": found["shuffled"][name]}
    for name in ("image", "looks"):
        other = other.with_column(name, [*test.column(name)][1:] + [*test.column(name)][:1])
    rows["image, looks of another row"] = pm.text_scores([a["text"]["text"] for a in model.predict(other)], right)
    print(" " * 28 + "".join(name.rjust(13) for name in found["scores"]))
    for label, scores in rows.items():
        print(label.ljust(28) + "".join(f"{scores[name]:13.3f}" for name in found["scores"]))
    if options.out is not None:
        model.save(options.out)
    return {"rouge_l": rows["all"]["rouge_l"]}


if __name__ == "__main__":
    main()
