"""What a speaker asks for: the intent of an utterance and the slots in it, by one model.

Data: the SNIPS benchmark (Coucke et al. 2018, CC0), 13,784 utterances of seven intents to learn from, 700 to test on.
Published, joint BERT (Chen et al. 2019, arXiv:1902.10909, table 2): intent accuracy .986, slot F1 .970.
Run: python recipes/intents.py --data path/of/snips_nlu
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import polymodal as pm

SPEC: dict[str, Any] = {
    "inputs": {"words": {"type": "words", "column": "text"}},
    "outputs": {"intent": "classify", "slots": "tag"},
    "dim": 256,
    "training": {"epochs": 4, "batch_size": 32, "monitor": "slots.entity_f1"},
    "split": {"valid": 0.05},
}
PUBLISHED = {"intent accuracy": 0.986, "slot F1": 0.970}


def utterances(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Rows of a text, its intent, and its slots as spans of characters."""
    rows = []
    for file in sorted(folder.rglob(pattern)):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # some of the published files are older
            text = file.read_text(encoding="latin-1")
        for intent, said in json.loads(text).items():
            for pieces in said:
                row = {"text": "", "intent": intent, "slots": []}
                for piece in pieces["data"]:
                    start, row["text"] = len(row["text"]), row["text"] + piece["text"]
                    if "entity" in piece:
                        row["slots"].append({"start": start, "end": len(row["text"]), "type": piece["entity"]})
                rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Fit with each seed, and print the mean scores on the test rows beside the published ones."""
    parser = argparse.ArgumentParser(description="Classify intents and tag slots.")
    home = Path(os.environ.get("POLYMODAL_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=home / "snips_nlu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the last seed's bundle")
    parser.add_argument("--tiny", action="store_true", help="a few utterances, to see that everything runs")
    options = parser.parse_args(arguments)

    train, test = utterances(options.data, "train_*_full.json"), utterances(options.data, "validate_*.json")
    spec = SPEC
    if options.tiny:
        train, test, spec = train[::300], test[::20], SPEC | {"training": {"epochs": 1}, "split": {"valid": 0.2}}
    found = []
    for seed in range(1 if options.tiny else options.seeds):
        started = time.process_time()
        model = pm.fit(spec, train, seed=seed)
        report = model.evaluate(test)
        found.append({"intent accuracy": report["intent"]["accuracy"], "slot F1": report["slots"]["entity_f1"]})
        told = "  ".join(f"{name} {score:.3f}" for name, score in found[-1].items())
        print(f"seed {seed}: {told}  {(time.process_time() - started) / 60:.1f} CPU-min")
    mean = {name: fmean(scores[name] for scores in found) for name in PUBLISHED}
    print("\n".join(f"{name}: {score:.3f}, published {PUBLISHED[name]:.3f}" for name, score in mean.items()))
    if options.out is not None:
        model.save(options.out)
    return mean


if __name__ == "__main__":
    main()
