"""Named entities in noisy text: WNUT 2017, emerging and rare entities of six types.

Data: WNUT 2017 (Derczynski et al. 2017, CC BY 4.0), 3,394 / 1,009 / 1,287 sentences. Its test texts come from other
places than its training texts, and few of their names occur there. Published: entity F1 .4186, best of the shared task.

Run: python recipes/entities.py --data path/of/wnut17
On other CoNLL files: python recipes/entities.py --data conll2003 --files train.txt valid.txt test.txt
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

WNUT17 = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
SPEC: dict[str, Any] = {
    "inputs": {"words": "words"},
    "outputs": {"tags": "tag"},
    "dim": 256,
    "training": {"epochs": 4, "monitor": "entity_f1"},
}
PUBLISHED = {"entity_f1": 0.4186}
"""Best system of the shared task on the test file: Derczynski et al. 2017, table 4 (UH-RiTUAL)."""

SHOWN = ("entity_f1", "entity_precision", "entity_recall", "token_micro_f1", "token_macro_f1")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Fit with each seed, and print the mean scores on the test file beside the published one."""
    parser = argparse.ArgumentParser(description="Tag named entities.")
    home = Path(os.environ.get("POLYMODAL_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=home / "wnut17")
    parser.add_argument("--files", nargs=3, default=WNUT17, metavar=("TRAIN", "VALID", "TEST"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the last seed's bundle")
    parser.add_argument("--tiny", action="store_true", help="a few sentences, to see that everything runs")
    options = parser.parse_args(arguments)

    train, valid, test = (pm.Table.read(options.data / name) for name in options.files)
    spec = SPEC
    if options.tiny:
        train, valid, test = train.head(40), valid.head(20), test.head(20)
        spec = SPEC | {"training": {"epochs": 1}}
    found = []
    for seed in range(1 if options.tiny else options.seeds):
        started = time.process_time()
        model = pm.fit(spec, train, valid=valid, seed=seed)
        spent = (time.process_time() - started) / 60
        scores = model.evaluate(test)["tags"]
        found.append(scores)
        print(f"seed {seed}: " + "  ".join(f"{name} {scores[name]:.3f}" for name in SHOWN) + f"  {spent:.1f} CPU-min")
    mean = {name: fmean(scores[name] for scores in found) for name in SHOWN}
    print("mean:   " + "  ".join(f"{name} {value:.3f}" for name, value in mean.items()))
    if tuple(options.files) == WNUT17:
        print(f"best of the shared task: entity_f1 {PUBLISHED['entity_f1']}")
    if options.out is not None:
        model.save(options.out)
    return mean


if __name__ == "__main__":
    main()
