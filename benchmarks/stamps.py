"""Fit, judge and time Polymodal on the stamps: 527 / 176 rows of picture, text and table, one thread.

Every cost is measured in a process of its own (stages.py), as CPU seconds of the whole process, imports included. The
figures of AutoGluon-MM, Ludwig and "LR, earlier" were measured before, on the same split, not in this run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "MKL_NUM_THREADS": "1"}
IMPORTS = 5

# Row -> AutoGluon-MM 1.6.3, Ludwig 0.17.10, LR on frozen features (earlier), goal in words, whether a value reaches it.
Goal = tuple[str, str, str, str, Callable[..., bool]]
ROWS: dict[str, Goal] = {
    "test accuracy / macro-F1": (
        ".869 / .791 (best .915)",
        ".713 (64 px, from scratch)",
        ".920 / .880",
        ">= .940 / .900",
        lambda a, f: a >= 0.94 and f >= 0.9,
    ),
    "text removed at inference": (".358", "error", ".881", ">= .86", lambda a: a >= 0.86),
    "image removed at inference": (".858", "error", ".909", ">= .90", lambda a: a >= 0.90),
    "fit, nothing cached": ("169 CPU-s", "70 CPU-s", "", "<= 30 CPU-s", lambda s: s <= 30),
    "fit, features cached": ("no cache", "", "", "<= 8 CPU-s", lambda s: s <= 8),
    "predict, nothing cached": ("21.5 rows/CPU-s", "423 rows/s, tiny net", "", ">= 60 rows/CPU-s", lambda r: r >= 60),
    "one row, loaded model": ("48 CPU-ms", "35-45 CPU-ms", "", "<= 25 CPU-ms", lambda ms: ms <= 25),
    "peak memory of the fit": ("4.0 GB", "1.4 GB", "", "<= 1.5 GB", lambda gb: gb <= 1.5),
    "import / import torch": ("7.4 CPU-s", "13.5 CPU-s", "", "<= 1.3 x", lambda x: x <= 1.3),
    "installed, CPU torch": ("2.3 GB", "6.6 GB", "", "<= 1.6 GB", lambda gb: gb <= 1.6),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and print it; 2 if the data is not there."""
    options = parse(arguments)
    if not (options.data / "train.csv").is_file():
        reason = f"{options.data} must hold the stamps (train.csv), got nothing. Give --data or set POLYMODAL_DATA."
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    print(render(found, options))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    shared = os.environ.get("POLYMODAL_DATA")
    place = Path(shared) if shared else ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--voice", action="store_true", help="the spoken description as a fourth input")
    parser.add_argument("--data", type=Path, default=place / "stamps")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--rows", type=int, help="only the first rows of both tables, to try the script")
    return parser.parse_args(arguments)


def run(command: Sequence[str], cache: Path) -> dict[str, Any]:
    """Run a Python process on one thread: its CPU seconds, its peak memory in GB and what it printed as JSON."""
    environment = {**os.environ, **THREADS, "POLYMODAL_CACHE": str(cache)}
    with tempfile.TemporaryFile() as sink:
        process = subprocess.Popen([sys.executable, *command], stdout=sink, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        sink.seek(0)
        printed = sink.read().decode().strip().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    scale = 1 if sys.platform == "darwin" else 1024
    cost = {"cpu": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss * scale / 1e9}
    return cost | (json.loads(printed[-1]) if printed else {})


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every stage; everything in the result is JSON."""
    cache, found = folder / "cache", {}

    def stage(name: str, seed: int = 0) -> dict[str, Any]:
        command = [str(Path(__file__).with_name("stages.py")), name, "--seed", str(seed), "--data", str(options.data)]
        command += ["--bundle", str(folder / f"bundle{seed}")] + (["--voice"] if options.voice else [])
        print(f"... {name}, seed {seed}", file=sys.stderr)
        return run(command + (["--rows", str(options.rows)] if options.rows else []), cache)

    found["cold"] = stage("fit")
    found["fits"] = [stage("fit", seed) for seed in range(options.seeds)]
    found["evaluations"] = [stage("evaluate", seed) for seed in range(options.seeds)]
    found["predict"] = stage("predict")
    try:
        metadata.version("scikit-learn")
        found["linear"] = stage("linear")
    except metadata.PackageNotFoundError:
        found["linear"] = None
    codes = {"torch": "import torch", "polymodal": "import polymodal; polymodal.fit; polymodal.load"}
    times = 1 if options.rows else IMPORTS
    costs = {n: [run(["-c", code], cache)["cpu"] for _ in range(times)] for n, code in codes.items()}
    found["imports"] = {name: statistics.median(values) for name, values in costs.items()}
    found["installed"] = installed()
    return found


def installed() -> dict[str, float]:
    """Size in GB of every distribution that a plain installation brings, and of the weights' packages."""
    import polymodal as pm

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    sizes: dict[str, float] = {}
    while wanted:
        text = wanted.pop()
        name = re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0].lower().replace("_", "-")
        if name in sizes or "extra ==" in text:
            continue
        try:
            part = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # its marker excludes this platform
        sizes[name] = disk(part)
        wanted += part.requires or []
    for weights in {w.requirement.split("==")[0] for w in pm.PACKAGED.values()}:
        sizes.setdefault(weights, disk(metadata.distribution(weights)))  # installed without what it requires
    sizes["polymodal"] = sum(f.stat().st_size for f in (ROOT / "src").rglob("*") if f.is_file()) / 1e9
    return sizes


def disk(part: metadata.Distribution) -> float:
    """Size of a distribution's files in GB."""
    files = (Path(str(part.locate_file(file))) for file in part.files or [])
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e9


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and standard deviation if there are several."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def ours(found: dict[str, Any]) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Each row of the table: in words, and the numbers that its goal judges."""
    seen = found["evaluations"]
    accuracy, macro = ([e["scores"][m] for e in seen] for m in ("accuracy", "macro_f1"))
    means = statistics.mean(accuracy), statistics.mean(macro)
    cells: dict[str, tuple[str, tuple[float, ...]]] = {}
    cells["test accuracy / macro-F1"] = (f"{spread(accuracy)} / {spread(macro)}", means)
    for name in seen[0]["without"]:
        values = [e["without"][name] for e in seen]
        cells[f"{name} removed at inference"] = (spread(values), (statistics.mean(values),))
    cached, predict, imports = [f["cpu"] for f in found["fits"]], found["predict"], found["imports"]
    ratio, size = imports["polymodal"] / imports["torch"], sum(found["installed"].values())
    return cells | {
        "fit, nothing cached": (f"{found['cold']['cpu']:.1f} CPU-s", (found["cold"]["cpu"],)),
        "fit, features cached": (f"{spread(cached, 1)} CPU-s", (statistics.mean(cached),)),
        "predict, nothing cached": (
            f"{predict['rows_per_cpu_s']:.0f} rows/CPU-s ({predict['with_loading']:.0f} with loading the model)",
            (predict["rows_per_cpu_s"],),
        ),
        "one row, loaded model": (f"{predict['one_row_ms']:.1f} CPU-ms", (predict["one_row_ms"],)),
        "peak memory of the fit": (f"{found['cold']['peak_gb']:.2f} GB", (found["cold"]["peak_gb"],)),
        "import / import torch": (
            f"{ratio:.2f} x ({imports['polymodal']:.2f} / {imports['torch']:.2f} CPU-s)",
            (ratio,),
        ),
        "installed, CPU torch": (f"{size:.2f} GB", (size,)),
    }


def render(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Lay out the table as Markdown, with how it was made."""
    linear = found["linear"]
    here = {}
    if linear:
        here["test accuracy / macro-F1"] = f"{linear['accuracy']:.3f} / {linear['macro_f1']:.3f}"
        for name, scores in linear["without"].items():
            here[f"{name} removed at inference"] = f"{scores['blanked']:.3f} (retrained {scores['retrained']:.3f})"
    lines = ["| | AutoGluon-MM 1.6.3 | Ludwig 0.17.10 | LR, earlier | LR, this run | ours | goal | |", "|---" * 8 + "|"]
    reached = 0
    for name, (text, values) in ours(found).items():
        *others, goal, reaches = ROWS.get(name, ("", "", "", "", None))
        mark = "" if reaches is None else "yes" if reaches(*values) else "NO"
        reached += mark == "yes"
        lines.append("| " + " | ".join([name, *others, here.get(name, ""), text, goal, mark]) + " |")
    versions = {n: metadata.version(n) for n in ("torch", "onnxruntime", "numpy")}
    return "\n".join(
        [
            f"command: python benchmarks/stamps.py {' '.join(sys.argv[1:])}",
            f"polymodal on Python {platform.python_version()}, {versions}; {processor()}, 1 thread",
            f"{len(found['fits'])} seeds; the spec that the library infers:\n",
            found["fits"][0]["spec"],
            *lines,
            "",
            f"{reached} of {len(ROWS)} goals reached." + (" On part of the rows: no result." if options.rows else ""),
            "AutoGluon-MM, Ludwig and LR (earlier) were measured before, on the same split, not in this run.",
            "LR (this run) answers without an input as the others must, by the model that was fitted with everything:",
            "the missing features are the training mean. LR (retrained) was fitted again without that input.",
        ]
    )


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
