"""Hear a spoken word through a language model: which of ten words is said, read off as likely answers.

Data: Arabic speech commands (Ghandoura et al. 2021, CC BY 4.0), ten words of it, 1,500 clips of a second; no speaker is
on two sides of the split. One model answers twice: a language model reads soft tokens of the sound and says how likely
each word is, and a linear head on the same features stands beside it.

Run: python recipes/speech_commands.py --data path/of/speech_commands
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

SPEC: dict[str, Any] = {
    "inputs": {"sound": {"type": "audio", "column": "file"}},
    "outputs": {
        "read": {
            "type": "classify",
            "column": "word",
            "label_smoothing": 0.0,
            "decoder": {"prompt": "<sound> The word is ", "chat": False, "projector": "mlp"},
        },
        "heard": {"type": "classify", "column": "word"},
    },
    "dim": 256,
    "split": {"given": "split"},
    "training": {"epochs": 12, "batch_size": 32, "learning_rate": 1e-3, "modality_dropout": 0.0},
}
SHOWN = ("accuracy", "macro_f1", "nll", "ece")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Fit with each seed, and print the mean scores on the test clips of both answers."""
    parser = argparse.ArgumentParser(description="Tell spoken words.")
    home = Path(os.environ.get("POLYMODAL_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=home / "speech_commands")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the last seed's bundle")
    parser.add_argument("--tiny", action="store_true", help="a few clips, to see that everything runs")
    options = parser.parse_args(arguments)

    table, spec = pm.Table.read(options.data / "index.csv"), SPEC
    if options.tiny:
        spec = SPEC | {"training": {"epochs": 1}}
        table = table.select(range(0, len(table), 40))
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(1 if options.tiny else options.seeds):
        started = time.process_time()
        model = pm.fit(spec, table, seed=seed)
        found = model.report["test"]["tasks"]
        rows.setdefault("read by the language model", []).append(found["read"]["baselines"]["fusion model"])
        rows.setdefault("with the sound of another row", []).append(found["read"]["shuffled"]["sound"])
        rows.setdefault("linear head", []).append(found["heard"]["baselines"]["fusion model"])
        print(f"seed {seed}: {(time.process_time() - started) / 60:.1f} CPU-min")
    print(" " * 30 + "".join(name.rjust(10) for name in SHOWN))
    for label, scores in rows.items():
        print(label.ljust(30) + "".join(f"{fmean(one[name] for one in scores):10.3f}" for name in SHOWN))
    if options.out is not None:
        model.save(options.out)
    return {"accuracy": fmean(one["accuracy"] for one in rows["read by the language model"])}


if __name__ == "__main__":
    main()
