"""Ask about a picture and the numbers beside it: a language model reads the question word for word.

Data: Tux Paint stamps (GPL-2), 527 rows to learn from and 176 to test on. Questions are made from the table and the
label; the model sees picture and table, never the text. Words that it says are compared with classes that it reads as
likely answers, and with a linear head. No figure is published.

Run: python recipes/ask_stamps.py --data path/of/stamps
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polymodal as pm

NUMBERS = ["width", "height", "aspect", "alpha", "file_kb", "n_langs"]
TABLE = {"type": "table", "numbers": NUMBERS, "categories": ["nomirror", "noflip", "notint", "sound"]}
KINDS = ["symbols", "animals", "town", "food", "seasonal", "plants", "vehicles", "household"]
PROMPT = {"prompt": "<image> <table> <question> Answer: ", "chat": False, "projector": "shuffle"}
SPEC: dict[str, Any] = {
    "inputs": {"image": {"type": "image", "grid": 7}, "table": TABLE, "question": "prompt"},
    "dim": 256,
    "training": {"epochs": 5, "batch_size": 16, "learning_rate": 1e-3, "modality_dropout": 0.1, "refit": 0},
    "split": {"by": "group", "column": "stamp"},
}
SAYS = {"answer": {"type": "generate", "decoder": PROMPT, "decoding": {"tokens": 6}}}
READ = {"type": "classify", "column": "answer", "label_smoothing": 0.0, "decoder": PROMPT}
READS = {"read": READ, "head": {"type": "classify", "column": "answer"}}


def questions(path: Path, seed: int) -> list[dict[str, Any]]:
    """Four questions about each stamp."""
    rng, rows, table = random.Random(seed), list[dict[str, Any]](), pm.Table.read(path)
    for i, row in enumerate(map(table.rows, range(len(table)))):
        stamp = row | {"image": str(path.parent / row["image"]), "stamp": i}
        other = stamp["label"] if rng.random() < 0.5 else rng.choice(KINDS)
        asked = {
            "What kind of thing is it?": stamp["label"],
            f"Does it belong to {other}?": "yes" if other == stamp["label"] else "no",
            "Which is larger, its width or its height?": "width" if stamp["width"] > stamp["height"] else "height",
            "Does it make a sound?": stamp["sound"],
        }
        rows += [stamp | {"question": question, "answer": answer} for question, answer in asked.items()]
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
    spec, found = SPEC | ({"training": {"epochs": 1}} if options.tiny else {}), dict[str, float]()
    train, test = (train[:24], test[:4]) if options.tiny else (train, test)
    for outputs in (SAYS, READS):
        started = time.process_time()
        model = pm.fit(spec | {"outputs": outputs}, train)
        tasks = model.evaluate(test).content["tasks"]
        for name, task in tasks.items():
            rows = {"": task["baselines"]["fusion model"]} | {f", other {x}": y for x, y in task["shuffled"].items()}
            for score in ("exact_match", "accuracy", "ece"):
                found |= {f"{name}: {score}{x}": row[score] for x, row in rows.items() if score in row}
        print(f"{', '.join(tasks)}: {(time.process_time() - started) / 60:.1f} CPU-min")
        if options.out is not None and outputs is SAYS:
            model.save(options.out)
    print("\n".join(f"{name:<48} {score:.3f}" for name, score in found.items()))
    return found


if __name__ == "__main__":
    main()
