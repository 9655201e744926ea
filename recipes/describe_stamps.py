"""Describe a picture in words: a small language model reads soft tokens of the picture, and of a spoken description.

Data: Tux Paint stamps (GPL-2), 527 rows to learn from and 176 to test on. The voices say the text in Spanish, by
espeak-ng. Beside the model stand what a picture's nearest neighbour among the training pictures is called, and the same
model with inputs of another row: what a language model says without looking reads well, too. No figure is published.

Run: python recipes/describe_stamps.py --data path/of/stamps
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import polymodal as pm

SEEN = {
    "image": {"type": "image", "grid": 4},
    "shape": {"type": "image", "backbone": "hog", "column": "image"},
    "names": {"type": "image", "backbone": "imagenet-names", "column": "image"},
}
DECODER = {"prompt": "<image> <shape> <names> <voice> This is: ", "chat": False}
SPEC: dict[str, Any] = {
    "inputs": SEEN | {"voice": "audio"},
    "outputs": {"text": {"type": "generate", "decoder": DECODER, "decoding": {"tokens": 24}}},
    "dim": 256,
    "training": {"epochs": 7, "batch_size": 8, "learning_rate": 1e-3, "rates": {"language": 5e-4}, "refit": 0},
    "split": {"valid": 0.1},
}
SHOWN = ("cider", "rouge_l", "bleu", "token_f1", "exact_match")


def neighbours(train: pm.Table, test: pm.Table) -> dict[str, float]:
    """Scores of the text of the training picture that is most like each test picture."""
    known, asked = (pm.embed("image", side).vectors for side in (train, test))
    nearest = (asked @ known.T).argmax(1)
    said = [train.column("text")[i] for i in nearest.tolist()]
    return pm.text_scores(said, [[text] for text in test.column("text")])


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Fit with each seed, and print the mean scores on the test rows beside the others."""
    parser = argparse.ArgumentParser(description="Describe pictures.")
    home = Path(os.environ.get("POLYMODAL_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=home / "stamps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the last seed's bundle")
    parser.add_argument("--tiny", action="store_true", help="a few rows, to see that everything runs")
    options = parser.parse_args(arguments)

    train, test = (pm.Table.read(options.data / f"{side}.csv") for side in ("train", "test"))
    spec = SPEC
    if options.tiny:
        train, test, spec = train.head(12), test.head(2), SPEC | {"training": {"epochs": 1}}
    rows: dict[str, list[dict[str, float]]] = {"nearest neighbour": [neighbours(train, test)]}
    for seed in range(1 if options.tiny else options.seeds):
        started = time.process_time()
        model = pm.fit(spec, train, seed=seed)
        found = model.evaluate(test).content["tasks"]["text"]
        rows.setdefault("picture and voice", []).append(found["scores"])
        for name in spec["inputs"]:
            rows.setdefault(f"only {name}", []).append(found["alone"][name])
            rows.setdefault(f"{name} shuffled", []).append(found["shuffled"][name])
        print(f"seed {seed}: cider {found['scores']['cider']:.3f}  {(time.process_time() - started) / 60:.1f} CPU-min")
    print(" " * 20 + "".join(name.rjust(13) for name in SHOWN))
    for label, scores in rows.items():
        print(label.ljust(20) + "".join(f"{fmean(one[name] for one in scores):13.3f}" for name in SHOWN))
    if options.out is not None:
        model.save(options.out)
    return {"rouge_l": fmean(one["rouge_l"] for one in rows["picture and voice"])}


if __name__ == "__main__":
    main()
