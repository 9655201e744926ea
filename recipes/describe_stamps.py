"""Describe a picture in words: a small language model reads soft tokens of it and of a spoken description.

Data: Tux Paint stamps (GPL-2), 527 rows to learn from and 176 to test on. The voices say the text in Spanish, by
espeak-ng. What the most similar training picture is called stands in the prompt, as a hint, and beside the model, which
must do better than that, and worse with another row's picture and hint. No figure is published.

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

DECODER = {"prompt": "<image> <voice> One like it: <like> This one: ", "chat": False}
SPEC: dict[str, Any] = {
    "inputs": {"image": {"type": "image", "grid": 4}, "voice": "audio", "like": "prompt"},
    "outputs": {"text": {"type": "generate", "decoder": DECODER, "decoding": {"tokens": 24}}},
    "dim": 256,
    "training": {"epochs": 5, "batch_size": 8, "learning_rate": 1e-3, "rates": {"language": 5e-4}, "refit": 0},
    "split": {"valid": 0.1},
}
SHOWN = ("cider", "rouge_l", "bleu", "token_f1", "exact_match")


def hinted(train: pm.Table, test: pm.Table) -> list[pm.Table]:
    """Both tables with what the most similar training picture, another one, is called."""
    known, asked = (pm.embed("image", side).vectors for side in (train, test))
    texts, alike = list(train.column("text")), known @ known.T
    alike[range(len(known)), range(len(known))] = -1.0
    pairs = ((train, alike), (test, asked @ known.T))
    return [side.with_column("like", [texts[i] for i in near.argmax(1).tolist()]) for side, near in pairs]


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Fit with each seed, and print the mean scores on the test rows beside the others."""
    parser = argparse.ArgumentParser(description="Describe pictures.")
    home = Path(os.environ.get("POLYMODAL_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=home / "stamps")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the last seed's bundle")
    parser.add_argument("--tiny", action="store_true", help="a few rows, to see that everything runs")
    options = parser.parse_args(arguments)
    train, test = hinted(*(pm.Table.read(options.data / f"{side}.csv") for side in ("train", "test")))
    spec = SPEC | ({"training": {"epochs": 1}} if options.tiny else {})
    train, test = (train.head(12), test.head(2)) if options.tiny else (train, test)
    said, right = list(test.column("like")), [[text] for text in test.column("text")]
    rows: dict[str, list[dict[str, float]]] = {"most similar": [pm.text_scores(said, right)]}
    rolled = {name: [*test.column(name)][1:] + [*test.column(name)][:1] for name in ("image", "like")}
    other = test.with_column("image", rolled["image"]).with_column("like", rolled["like"])
    for seed in range(1 if options.tiny else options.seeds):
        started = time.process_time()
        model = pm.fit(spec, train, seed=seed)
        print(f"seed {seed}: {(time.process_time() - started) / 60:.1f} CPU-min")
        found = model.evaluate(test).content["tasks"]["text"]
        rows.setdefault("all", []).append(found["scores"])
        for name in spec["inputs"]:
            rows.setdefault(f"without {name}", []).append(found["without"][name])
            rows.setdefault(f"{name} of another row", []).append(found["shuffled"][name])
        said = [answer["text"]["text"] for answer in model.predict(other)]
        rows.setdefault("another row's picture", []).append(pm.text_scores(said, right))
    print(" " * 24 + "".join(name.rjust(13) for name in SHOWN))
    for label, scores in rows.items():
        print(label.ljust(24) + "".join(f"{fmean(one[name] for one in scores):13.3f}" for name in SHOWN))
    if options.out is not None:
        model.save(options.out)
    return {"rouge_l": fmean(one["rouge_l"] for one in rows["all"])}


if __name__ == "__main__":
    main()
