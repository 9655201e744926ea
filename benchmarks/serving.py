"""Serve the stamps bundle (image, text, table) and load it, beside a bare loop, FastAPI and LitServe; on two cores.

Each server runs in a process of its own on this machine and shares the two cores with the clients, which run here. The
figures of Ludwig and AutoGluon-MM were measured before, on the same data, not in this run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from serving_stages import CLIENTS, FLOAT, Bench
from stamps import ROOT, processor

import polymodal as pm

# Row -> the peers' earlier figures, goal in words, whether values reach it.
Goal = tuple[str, str, Callable[..., bool]]
GOALS: dict[str, Goal] = {
    "CPU of an image + text request / bare decode + forward": (
        "Ludwig 38, AutoGluon-MM 48 CPU-ms a row", "<= 1.3 x", lambda x: x <= 1.3,
    ),
    "throughput at 16 clients / FastAPI calling predict": ("Ludwig 24 /s, 1-3 % HTTP 500", ">= 3 x", lambda x: x >= 3),
    "p50 / p99 at half of that load": (
        "Ludwig p99 1150 ms at 16 clients", "<= 30 / 80 ms", lambda a, b: a <= 30 and b <= 80,
    ),
    "text + table only, p50 at one client": ("", "<= 6 ms", lambda x: x <= 6),
    "empty model / bare Starlette, a request": ("", "<= + 1 ms", lambda x: x <= 1),
    "soak at 16 clients": ("", "0 wrong, 0 lost", lambda wrong, lost: not wrong and not lost),
    "memory over the soak": ("", "flat within 5 %", lambda x: abs(x) <= 0.05),
    "start to ready": ("", "<= 4 s", lambda x: x <= 4),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and print it; 2 if the data is not there."""
    options = parse(arguments)
    if not options.quick and not (options.data / "train.csv").is_file():
        reason = f"{options.data} must hold the stamps (train.csv), got nothing. Give --data or set POLYMODAL_DATA."
        print(reason, file=sys.stderr)
        return 2
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # inherited by every server
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POLYMODAL_CACHE"] = str(Path(folder, "cache"))
        bundle, table = options.bundle, None if options.quick else str(options.data / "test.csv")
        if bundle is None:
            bundle = tiny(Path(folder)) if options.quick else fitted(Path(folder), options.data)
        found = Bench(options, bundle, table).run()
    print(render(found, options))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    shared = os.environ.get("POLYMODAL_DATA")
    place = Path(shared) if shared else ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="one that takes the stamps' columns; fitted when not given")
    parser.add_argument("--data", type=Path, default=place / "stamps")
    parser.add_argument("--runtime", default="auto", help="of Polymodal's server")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="of each; medians are told")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--quick", action="store_true", help="a tiny bundle and moments, to try the script")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.repeats, options.soak = 0.3, 1, min(options.soak, 1.0)
    return options


def tiny(folder: Path) -> Path:
    """A bundle without pretrained backbones, fitted to a made-up table in a second."""
    rows = [{"text": f"{'red' if i % 2 else 'blue'} {i}", "width": i % 7, "label": "ab"[i % 2]} for i in range(40)]
    spec = {
        "inputs": {"text": {"type": "text", "backbone": "none"}, "table": {"type": "table", "numbers": ["width"]}},
        "outputs": {"label": "classify"},
        "dim": 16,
        "training": {"epochs": 1},
    }
    return pm.fit(spec, rows, cache=False).save(folder / "bundle")


def fitted(folder: Path, data: Path) -> Path:
    """The stamps bundle, without the spoken text."""
    whole = pm.Table.read(data / "train.csv")
    table = pm.Table({c: whole.column(c) for c in whole.columns if c != "voice"}, whole.source, whole.base)
    return pm.fit(table, target="label").save(folder / "bundle")


def median(reports: Sequence[dict[str, Any]], *keys: str) -> float:
    """Median of one number over repeats."""
    values = []
    for report in reports:
        value: Any = report
        for key in keys:
            value = value[key]
        values.append(value)
    return statistics.median(values)


def ours(found: dict[str, Any]) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Each row of the table: in words, and the numbers that its goal judges."""
    rounds, bare, fast = found["rounds"], found["bare"]["polymodal"], found["throughput"]
    cpu, half = median(rounds["polymodal"], "server", "cpu_ms"), found["half"]
    ratio = cpu / bare["cpu_ms_1"]
    cells: dict[str, tuple[str, tuple[float, ...]]] = {
        "CPU of an image + text request / bare decode + forward": (
            f"{ratio:.2f} x ({cpu:.1f} / {bare['cpu_ms_1']:.1f} CPU-ms)", (ratio,),
        ),
    }  # fmt: skip
    if "fastapi" in fast:
        times = fast["polymodal"] / fast["fastapi"]
        text = f"{times:.2f} x ({fast['polymodal']:.0f} / {fast['fastapi']:.0f} /s)"
        cells["throughput at 16 clients / FastAPI calling predict"] = text, (times,)
    tail = median(half, "latency", "p50"), median(half, "latency", "p99")
    text = f"{tail[0]:.1f} / {tail[1]:.1f} ms at {half[0]['rate']:.0f} /s"
    cells["p50 / p99 at half of that load"] = text, tail
    alone = median(found["one client, text + table"], "latency", "p50")
    cells["text + table only, p50 at one client"] = f"{alone:.2f} ms", (alone,)
    more = {which: overhead(found, which) for which in ("text + table", "upload")}
    text = ", ".join(f"{which}: + {ms:.2f} ms, + {spent:.2f} CPU-ms" for which, (ms, spent) in more.items())
    cells["empty model / bare Starlette, a request"] = text, (max(ms for ms, _ in more.values()),)
    if "soak" in found:
        soak = found["soak"]
        text = f"{soak['wrong']} wrong, {soak['lost']} lost of {soak['requests']}, statuses {soak['statuses']}"
        failed = soak["requests"] - soak["statuses"].get("200", 0)
        cells["soak at 16 clients"] = text, (soak["wrong"], failed)
        first, last = (dict(soak["memory"])[share] for share in (0.1, 1.0))
        text = f"{last / first - 1:+.1%} ({first / 1e6:.0f} MB after a tenth, {last / 1e6:.0f} MB at the end)"
        cells["memory over the soak"] = text, (last / first - 1,)
    cells["start to ready"] = (
        f"{found['start'][1]:.2f} s (the first time {found['start'][0]:.2f} s)",
        (found["start"][1],),
    )
    return cells


def overhead(found: dict[str, Any], which: str) -> tuple[float, float]:
    """What our application adds to a bare Starlette route: milliseconds (p50) and CPU milliseconds of a request."""
    both = [found["empty"][f"{name}, {which}"] for name in ("empty", "starlette")]
    ms, cpu = ([median(reports, *keys) for reports in both] for keys in (("latency", "p50"), ("server", "cpu_ms")))
    return ms[0] - ms[1], cpu[0] - cpu[1]


def servers(found: dict[str, Any]) -> list[str]:
    """The table of all servers under sixteen clients."""
    lines = [
        "| image + text, 16 clients | requests/s | p50 | p99 | CPU-ms | wrong | lost | other than 200 |",
        "|---" * 8 + "|",
    ]
    for name, reports in found["rounds"].items():
        p50, p99, cpu = (
            median(reports, *keys) for keys in (("latency", "p50"), ("latency", "p99"), ("server", "cpu_ms"))
        )
        wrong, lost = (sum(report[key] for report in reports) for key in ("wrong", "lost"))
        other = sum(count for report in reports for status, count in report["statuses"].items() if status != "200")
        rates = " ".join(f"{report['throughput']:.0f}" for report in reports)
        lines.append(f"| {name} | {rates} | {p50:.1f} ms | {p99:.1f} ms | {cpu:.1f} | {wrong} | {lost} | {other} |")
    return lines


def render(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Lay out the tables as Markdown, with how they were made."""
    lines = ["| | peers, earlier | this run | goal | |", "|---" * 5 + "|"]
    cells, reached = ours(found), 0
    for name, (peers, goal, reaches) in GOALS.items():
        text, values = cells.get(name, ("not measured", ()))
        mark = "" if not values else "yes" if reaches(*values) else "NO"
        reached += mark == "yes"
        lines.append(f"| {name} | {peers} | {text} | {goal} | {mark} |")
    bare, one = found["bare"], found["one client, image + text"]
    cpu = median(one, "server", "cpu_ms")
    return "\n".join(
        [
            f"command: python benchmarks/serving.py {' '.join(sys.argv[1:])}",
            *(f"         {command}" for command in found["commands"]),
            f"polymodal on Python {platform.python_version()}, {versions()}; {processor()}",
            f"{cores()} cores for clients and server together, {bare['polymodal']['threads']} threads of a runtime",
            f"{options.repeats} repeats of {options.seconds:g} s, medians; {CLIENTS} clients, closed loop\n",
            *found["choice"],
            "",
            *servers(found),
            "",
            *lines,
            "",
            f"{reached} of {len(GOALS)} goals reached." + (" A tiny bundle: no result." if options.quick else ""),
            "bare: " + "; ".join(
                f"{', '.join(b['names'].values()) or 'no backbone'}: {b['cpu_ms_1']:.1f} CPU-ms a row, "
                f"{b['cpu_ms_16']:.1f} with 16 together" for b in bare.values()
            ),
            f"one client, image + text: {cpu:.1f} CPU-ms a request "
            f"({cpu / bare['polymodal']['cpu_ms_1']:.2f} x bare), p50 {median(one, 'latency', 'p50'):.1f} ms",
            f"FastAPI and LitServe call Bundle.predict in its own runtime, {FLOAT}, as does 'polymodal, float32'.",
            "LitServe gets JSON with base64, since it hands no uploads to its workers.",
            "Every answer was compared with predict.",
            "The figures of Ludwig and AutoGluon-MM were measured before, on the same data, not in this run.",
        ]
    )  # fmt: skip


def versions() -> str:
    """Of what takes part and is installed."""
    names = ("torch", "onnxruntime", "openvino", "starlette", "uvicorn", "aiohttp", "fastapi", "litserve")
    installed = {found.metadata["Name"].lower(): found.version for found in metadata.distributions()}
    return ", ".join(f"{name} {installed[name]}" for name in names if name in installed)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    raise SystemExit(main())
