"""Ask about a picture and the numbers beside it: a language model reads the question word for word.

Data: Tux Paint stamps (GPL-2), 527 rows to learn from and 176 to test on: a picture, its size, a few switches and its
kind. Questions are made from them: what kind it is, whether there is an animal (or a plant, ...), what is larger, its
width or its height, and whether it makes a sound. The model sees the picture and the table, never the text.

Two answers are compared: words that the language model says, and classes that it reads as likely answers; beside them
stands a linear head on what the fusion makes of all inputs. No figure is published.

Run: python recipes/ask_stamps.py --data path/of/stamps
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import polymodal as pm

NUMBERS = ["width", "height", "aspect", "alpha", "file_kb", "n_langs"]
KINDS = ["symbols", "animals", "town", "food", "seasonal", "plants", "vehicles", "household"]
PROMPT = {"prompt": "<image> <table> <question> Answer: ", "chat": False, "projector": "shuffle"}
SPEC: dict[str, Any] = {
    "inputs": {
        "image": {"type": "image", "grid": 7},
        "table": {"type": "table", "numbers": NUMBERS, "categories": ["nomirror", "noflip", "notint", "sound"]},
        "question": "prompt",
    },
    "dim": 256,
    "training": {"epochs": 4, "batch_size": 16, "learning_rate": 1e-3, "modality_dropout": 0.1, "refit": 0},
    "split": {"by": "group", "column": "stamp"},
}
SAYS = {"answer": {"type": "generate", "decoder": PROMPT, "decoding": {"tokens": 6}}}
READS = {
    "read": {"type": "classify", "column": "answer", "label_smoothing": 0.0, "decoder": PROMPT},
    "head": {"type": "classify", "column": "answer"},
}


def questions(path: Path, seed: int) -> list[dict[str, Any]]:
    """Four questions about each stamp."""
    rng, rows, table = random.Random(seed), list[dict[str, Any]](), pm.Table.read(path)
    for i in range(len(table)):
        stamp = table.rows(i)
        seen = {key: stamp[key] for key in [*NUMBERS, "nomirror", "noflip", "notint", "sound"]}
        seen |= {"image": str(path.parent / stamp["image"]), "stamp": i}
        other = stamp["label"] if rng.random() < 0.5 else rng.choice([kind for kind in KINDS if kind != stamp["label"]])
        larger = "width" if stamp["width"] > stamp["height"] else "height"
        for question, answer in (
            ("What kind of thing is it?", stamp["label"]),
            (f"Does it belong to {other}?", "yes" if other == stamp["label"] else "no"),
            ("Which is larger, its width or its height?", larger),
            ("Does it make a sound?", stamp["sound"]),
        ):
            rows.append(seen | {"question": question, "answer": answer})
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Fit, and print what is right on questions about the test stamps."""
    parser = argparse.ArgumentParser(description="Answer questions about pictures and numbers.")
    home = Path(os.environ.get("POLYMODAL_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=home / "stamps")
    parser.add_argument("--out", type=Path, help="folder for the bundle that says its answers")
    parser.add_argument("--tiny", action="store_true", help="a few rows, to see that everything runs")
    options = parser.parse_args(arguments)
    train, test = (questions(options.data / f"{side}.csv", seed) for seed, side in enumerate(("train", "test")))
    spec, found = SPEC, dict[str, float]()
    if options.tiny:
        train, test, spec = train[:32], test[:8], SPEC | {"training": {"epochs": 1}}
    for outputs in (SAYS, READS):
        started = time.process_time()
        model = pm.fit(spec | {"outputs": outputs}, train)
        tasks = model.evaluate(test).content["tasks"]
        for name, task in tasks.items():
            plain, score = task["baselines"]["fusion model"], "exact_match" if name == "answer" else "accuracy"
            found[f"{name}: {score}"] = plain[score]
            found |= {f"{name}: {score}, {x} of another row": one[score] for x, one in task["shuffled"].items()}
            found |= {f"{name}: ece": plain["ece"]} if "ece" in plain else {}
        print(f"{', '.join(tasks)}: {(time.process_time() - started) / 60:.1f} CPU-min")
        if options.out is not None and outputs is SAYS:
            model.save(options.out)
    print("\n".join(f"{name:<48} {score:.3f}" for name, score in found.items()))
    return {"exact match": found["answer: exact_match"], "mean": fmean(found.values())}


if __name__ == "__main__":
    main()
