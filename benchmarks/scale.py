"""Train one epoch on a generated table of 100,000 and of 1,000,000 rows x 4 modalities: time and memory per row.

The table and its features are random numbers: they say nothing about accuracy. Three modalities, defined below through
the public parts, have a frozen backbone whose tokens are written straight into a feature store, as if computed before;
the fourth are plain number columns. Each size runs in a process of its own, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
SHAPES = {"picture": (4, 64), "note": (8, 32), "sound": (2, 32)}  # most tokens, width; float16 on disk
NUMBERS = ("length", "weight", "age")
FLAT = 0.5  # memory counts as flat if it grows by less than this share of the features' size
STEADY = 1.3  # and time per row as steady if it grows by less than this factor


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each size and compare; 1 if time or memory per row grows."""
    options = parse(arguments)
    if options.worker is not None:
        print(json.dumps(work(options.worker, options)))
        return 0
    print("a generated table: random features, of which only time and memory are of interest")
    found = []
    for rows in sorted(options.rows):
        found.append(measure(rows, options))
        print(render(found), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return int(len(found) > 1 and not all(verdict(found)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--fusion", default="attention", help="a deep fusion trains on tokens, another on summaries")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--profile", action="store_true", help="print where a fit spends its time")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def measure(rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fill a store, then fit in a second process, so that only the fit's memory counts."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **THREADS, "POLYMODAL_CACHE": folder, "POLYMODAL_CACHE_LIMIT": "1e12"}
        command = [sys.executable, __file__, "--worker", str(rows), "--fusion", options.fusion]
        subprocess.run(command, env=environment | {"POLYMODAL_FILL": "1"}, check=True, stdout=subprocess.DEVNULL)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        command += ["--profile"] if options.profile else []
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        *text, last = done.stdout.strip().splitlines()
        print("\n".join(text))
        return {"rows": rows, "features_gb": size / 1e9} | json.loads(last)


def work(rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fill the store or fit, in this process."""
    import polymodal as pm

    define()
    inputs = {name: {"type": "generated", "tokens": t, "width": w} for name, (t, w) in SHAPES.items()}
    spec = pm.Spec.parse(
        {
            "inputs": {**inputs, "numbers": {"type": "table", "numbers": NUMBERS}},
            "fusion": options.fusion,
            "outputs": {"label": "classify"},
            "dim": 16,
            "training": {"epochs": 1, "batch_size": 1024},
            "split": {"valid": 0.05, "by": "random"},
        }
    )
    if os.environ.get("POLYMODAL_FILL"):
        fill(spec, rows)
        return {}
    return fit(spec, generated(rows), options.profile)


def define() -> None:
    """Enter a modality of generated tokens in the library's table of parts."""
    from typing import Literal

    import torch
    from torch import Tensor, nn

    import polymodal as pm
    from polymodal.nn.backbone import Backbone
    from polymodal.nn.blocks import TokenEncoder

    class Frozen(Backbone):
        """A stand-in: its tokens are in the store already, so its net only sees a single row's shape."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.width, self.digest, self.net = width, f"generated-{width}", nn.Linear(1, width)

        def tensors(self, x: pm.Masked) -> tuple[Tensor, ...]:
            return (x.values,)

        def tokens(self, y: Tensor, x: pm.Masked) -> pm.Masked:
            return pm.Masked(y, x.mask)

    class Generated(pm.Modality):
        """Cells are numbers that name a row's tokens."""

        type: Literal["generated"] = "generated"
        tokens: int
        width: int

        def read(self, content: Any) -> pm.Reading:
            return pm.Reading(torch.full((self.tokens, 1), float(content)))

        def collate(self, values: Sequence[Any]) -> pm.Masked:
            return pm.Masked.pad(values, torch.zeros(1))

        def backbone(self) -> Frozen:
            return Frozen(self.width)

        def encoder(self, dim: int) -> nn.Module:
            return TokenEncoder(self.width, dim)

        def summary(self, x: pm.Masked) -> Tensor:
            return x.mean()


def generated(rows: int) -> Any:
    """Make the table: each row's own number for each modality, three numbers and a label that depends on one."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=rows) for name in NUMBERS}
    label = (numbers["length"] + rng.normal(size=rows) > 0).astype(np.int64)
    return pa.table({**dict.fromkeys(SHAPES, np.arange(rows)), **numbers, "label": label})


def fill(spec: Any, rows: int) -> None:
    """Write random tokens for every row, of varying number for the notes, as a fit would have done."""
    import numpy as np
    import torch

    import polymodal as pm
    from polymodal.data.cells import digest
    from polymodal.data.embedding import Embedder

    rng, embedder = np.random.default_rng(1), Embedder(spec, torch.device("cpu"))
    for name, (tokens, width) in SHAPES.items():
        with pm.FeatureStore().open(embedder.key(name), name).writer() as writer:
            for start in range(0, rows, 4096):
                names = b"".join(digest(i) for i in range(start, min(start + 4096, rows)))
                digests = np.frombuffer(names, np.uint8).reshape(-1, 16)
                values = torch.from_numpy(rng.standard_normal((len(digests), tokens, width), dtype=np.float32))
                lengths = rng.integers(1, tokens + 1, len(digests)) if name == "note" else np.full(len(digests), tokens)
                mask = torch.arange(tokens) < torch.from_numpy(lengths)[:, None]
                notes = [{"repairs": [], "facts": {}}] * len(digests)
                writer.add(digests, pm.Masked(values, mask), notes)


def fit(spec: Any, table: Any, profile: bool) -> dict[str, Any]:
    """Fit once; CPU seconds of each stage, and the peak memory in GB when it ended."""
    import cProfile
    import pstats

    import torch

    import polymodal as pm

    torch.set_num_threads(1)
    start = time.process_time()
    seconds, peaks, last = {}, {"before": peak()}, [start]

    def progress(what: str, done: int, total: int) -> None:
        now = time.process_time()
        seconds[what] = seconds.get(what, 0.0) + now - last[0]
        last[0], peaks[what] = now, peak()

    profiler = cProfile.Profile(time.process_time)
    if profile:
        profiler.enable()
    pm.fit(spec, table, progress=progress)
    profiler.disable()
    seconds["evaluate"] = time.process_time() - last[0]
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
        pstats.Stats(profiler).sort_stats("cumtime").print_stats("polymodal", 70)
    return {"cpu": time.process_time() - start, "stages": seconds, "peaks": peaks, "peak_gb": peak()}


def peak() -> float:
    """Most memory this process has held so far, in GB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def verdict(found: Sequence[dict[str, Any]]) -> tuple[bool, bool]:
    """Whether time per row is steady, and memory flat, from the smallest to the largest table."""
    small, large = found[0], found[-1]
    slower = (large["cpu"] / large["rows"]) / (small["cpu"] / small["rows"])
    grown = (large["peak_gb"] - small["peak_gb"]) / max(1e-9, large["features_gb"] - small["features_gb"])
    return slower <= STEADY, grown <= FLAT


def render(found: Sequence[dict[str, Any]]) -> str:
    """Lay out stages, totals and conclusion as Markdown."""
    lines = ["| CPU microseconds per row | " + " | ".join(f"{f['rows']:,} rows" for f in found) + " |"]
    lines.append("|---" * (len(found) + 1) + "|")
    for stage in dict.fromkeys(name for f in found for name in f["stages"]):
        cells = (f"{1e6 * f['stages'].get(stage, 0.0) / f['rows']:.1f}" for f in found)
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    lines.append("| all | " + " | ".join(f"{1e6 * f['cpu'] / f['rows']:.1f}" for f in found) + " |")
    lines.append("| features on disk | " + " | ".join(f"{f['features_gb']:.2f} GB" for f in found) + " |")
    lines.append("| peak memory | " + " | ".join(f"{f['peak_gb']:.2f} GB" for f in found) + " |")
    lines.append("| of it before the fit | " + " | ".join(f"{f['peaks']['before']:.2f} GB" for f in found) + " |")
    if len(found) > 1:
        small, large = found[0], found[-1]
        extra = large["rows"] - small["rows"]
        grown = 1e9 * (large["peak_gb"] - small["peak_gb"]) / extra
        held = 1e9 * (large["features_gb"] - small["features_gb"]) / extra
        steady, flat = verdict(found)
        ratio = (large["cpu"] / large["rows"]) / (small["cpu"] / small["rows"])
        lines.append(f"\ntime per row: {ratio:.2f} x ({'steady' if steady else 'GROWS'}, at most {STEADY})")
        lines.append(
            f"memory: {grown:.0f} bytes per further row, which has {held:.0f} bytes of features "
            f"({'flat' if flat else 'GROWS'}, at most {FLAT} of them)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
