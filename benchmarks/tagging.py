"""Time tagging beside the token-classification pipeline of transformers: the same encoder, sentences, batch and thread.

Give the bundle of ``recipes/entities.py --out``. The pipeline gets the published encoder with a new head of as many
tags: what it says means nothing, what it costs does. Both take whole texts and give spans of characters.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import polymodal as pm

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time both, one after the other in each repeat, and print the ratio; 2 if the data is not there."""
    options = parse(arguments)
    if not options.data.is_file() or not (options.bundle / "spec.json").is_file():
        print(f"{options.data} must be a CoNLL file and {options.bundle} a bundle of a tag task.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    model, table = pm.load(options.bundle, device="cpu"), pm.Table.read(options.data).head(options.rows)
    (name,) = [n for n, part in model.spec.inputs.items() if part.worded]
    (task,) = [part for part in model.spec.outputs.values() if part.about == name]
    column = model.spec.inputs[name].columns(name)[0]
    texts = [" ".join(words) for words in table.column(column)]
    theirs = pipeline(len(task.tags), options.batch)
    ways: dict[str, Callable[[], Any]] = {
        "polymodal": lambda: model.predict({column: texts}),
        "transformers": lambda: list(theirs(texts)),
    }
    found = measure(ways, options.repeats)
    words = sum(len(text.split()) for text in texts)
    rate = {way: len(texts) / statistics.median(cost[0] for cost in costs) for way, costs in found.items()}
    cpu = {way: statistics.median(cost[1] for cost in costs) for way, costs in found.items()}
    print(f"{len(texts)} sentences, {words} words, one thread, batch {options.batch}, median of {options.repeats}")
    for way in ways:
        print(f"  {way:<13} {rate[way]:7.1f} sentences/s   {1e3 * cpu[way] / len(texts):6.2f} CPU-ms each")
    print(f"throughput over the pipeline's: {rate['polymodal'] / rate['transformers']:.2f} (goal: 2)")
    if options.json:
        options.json.write_text(json.dumps({"sentences_per_second": rate, "cpu_seconds": cpu}), encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    shared = os.environ.get("POLYMODAL_DATA")
    place = Path(shared) if shared else ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="with one tag task over the packaged encoder")
    parser.add_argument("--data", type=Path, default=place / "wnut17" / "emerging.test.annotated", help="a CoNLL file")
    parser.add_argument("--rows", type=int, default=1287, help="at most so many sentences")
    parser.add_argument("--batch", type=int, default=8, help="of the pipeline; polymodal takes 8 at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every number to this file")
    return parser.parse_args(arguments)


def pipeline(tags: int, batch: int) -> Any:
    """The pipeline of transformers around the packaged encoder."""
    import transformers

    folder = pm.PACKAGED["minilm"].find().parent
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=tags)
    net = transformers.AutoModelForTokenClassification.from_pretrained(folder, config=config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.pipeline(
        "token-classification", model=net, tokenizer=tokenizer, aggregation_strategy="simple", batch_size=batch
    )


def measure(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each way in each repeat, after one round that does not count."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, ask in ways.items():
            start, spent = time.perf_counter(), time.process_time()
            ask()
            if turn:
                found[way].append((time.perf_counter() - start, time.process_time() - spent))
    return found


if __name__ == "__main__":
    sys.exit(main())
