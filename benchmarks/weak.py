"""Find the weak modality and repair it, on real data: stamps with voice, occupancy by day, stock movements.

For each data set and seed: the full model, each input alone, each removed, all settings of ``balance``; a diagnosis on
the test rows; ``improve`` of the weakest input, before and after. Means over seeds with 95 % intervals (Student's t).
One thread. Scores are those of the test rows; nothing is chosen on them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from weak_data import PROBLEMS, Problem

import polymodal as pm

ROOT = Path(__file__).resolve().parents[1]
BALANCES = ("none", "auxiliary", "gradient_blending", "ogm_ge", "mmpareto")
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t for 95 %, by the number of seeds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 2 if the data is not there."""
    options = parse(arguments)
    missing = [name for name in options.sets if not (options.data / name).is_dir()]
    if missing:
        reason = f"{options.data} must hold {', '.join(missing)}, got nothing. Give --data or set POLYMODAL_DATA."
        print(reason, file=sys.stderr)
        return 2
    found = {}
    for name in options.sets:
        problem = PROBLEMS[name](options.data, options.rows)
        found[name] = measure(problem, options)
        print(render(name, problem, found[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    shared = os.environ.get("POLYMODAL_DATA")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--balances", nargs="*", default=list(BALANCES), choices=BALANCES)
    help_text = "inputs to improve, each from the same model; the weakest on validation rows if left out"
    parser.add_argument("--improve", nargs="*", default=[""], metavar="INPUT", help=help_text)
    parser.add_argument("--data", type=Path, default=Path(shared) if shared else ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--rows", type=int, help="only so many rows of each side, to try the script")
    return parser.parse_args(arguments)


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Every fit of one data set; all in the result is JSON."""
    found: dict[str, Any] = {"balance": {b: [] for b in options.balances}, "full": [], "improve": []}
    for seed in range(options.seeds):
        for balance in options.balances:
            model, cost = fitted(problem, seed, balance)
            found["balance"][balance].append(scores(problem, model) | {"cpu": cost})
            if balance == "auxiliary":
                found["full"].append(variants(problem, model))
                if seed == 0:
                    found["diagnosis"] = diagnosed(problem, model)
                found["improve"] += [improved(problem, model, seed, name or None) for name in options.improve]
            say(problem.target, seed, balance, found["balance"][balance][-1])
    return found


def fitted(problem: Problem, seed: int, balance: str) -> tuple[pm.Bundle, float]:
    """A model and what it cost in CPU seconds."""
    start = time.process_time()
    spec = {**problem.spec, "training": {**problem.training, "balance": balance}, "seed": seed}
    return pm.fit(spec, problem.train), time.process_time() - start


def scores(problem: Problem, model: pm.Bundle) -> dict[str, float]:
    """Scores of the full model on the test rows."""
    own = model.evaluate(problem.test)[problem.target]
    return {metric: own[metric] for metric in problem.metrics}


def variants(problem: Problem, model: pm.Bundle) -> dict[str, Any]:
    """Every variant that an evaluation has, on the test rows."""
    task = model.evaluate(problem.test).to_dict()["tasks"][problem.target]
    rows = {"full": task["scores"]}
    for kind in ("without", "alone"):
        rows |= {f"{kind} {name}": found for name, found in task[kind].items()}
    rows |= {label: found for label, found in task["baselines"].items() if label.startswith("linear")}
    return {label: {m: found[m] for m in problem.metrics if m in found} for label, found in rows.items()}


def diagnosed(problem: Problem, model: pm.Bundle) -> dict[str, Any]:
    """The verdict on the test rows and what it cost."""
    start = time.process_time()
    content = model.diagnose(problem.test).to_dict()
    keep = {key: content[key] for key in ("verdict", "weakest", "summary")}
    task = content["tasks"][problem.target]
    return keep | {"cpu": time.process_time() - start, "interval": task["interval"], "score": task["score"]}


def improved(problem: Problem, model: pm.Bundle, seed: int, name: str | None) -> dict[str, Any]:
    """Improve one input of a model; test scores before and after."""
    start = time.process_time()
    found = pm.improve(model, problem.train, input=name, seed=seed)
    cost = time.process_time() - start
    result = {"input": found.content["input"], "accepted": found.accepted, "reason": found.reason, "cpu": cost}
    result |= {"before": variants(problem, model), "after": variants(problem, found.bundle), "seed": seed}
    say(problem.target, seed, f"improve {result['input']}", {"accepted": found.accepted, **result["after"]["full"]})
    return result


def interval(values: Sequence[float]) -> str:
    """Mean and half width of its 95 % interval over seeds."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = T95.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} +- {half:.3f}"


def render(name: str, problem: Problem, found: Mapping[str, Any]) -> str:
    """The tables of one data set."""
    head = f"{'':34}" + "".join(f"{metric:>20}" for metric in problem.metrics)
    lines = [f"\n== {name}: {len(problem.train)} / {len(problem.test)} rows. {problem.note}", head]
    lines.append(_row("majority class", [{"accuracy": majority(problem)}], problem.metrics))
    for label in found["full"][0] if found["full"] else ():
        lines.append(_row(label, [run[label] for run in found["full"]], problem.metrics))
    lines += [_row(f"balance {b}", runs, problem.metrics) for b, runs in found["balance"].items() if runs]
    for target in dict.fromkeys(run["input"] for run in found["improve"]):
        runs = [run for run in found["improve"] if run["input"] == target]
        kept = f"{sum(run['accepted'] for run in runs)} of {len(runs)} accepted"
        lines.append(f"improve {target}: {kept}, {statistics.mean(run['cpu'] for run in runs):.0f} CPU-s each")
        for label in ("full", *(label for label in runs[0]["after"] if label.startswith("without"))):
            for side in ("before", "after"):
                lines.append(_row(f"  {side}, {label}", [run[side][label] for run in runs], problem.metrics))
    if verdict := found.get("diagnosis"):
        lines.append(f"diagnosis of seed 0 on the test rows, {verdict['cpu']:.0f} CPU-s: {verdict['summary']}")
        lines += [f"  {line['text']}" for line in verdict["verdict"]]
    return "\n".join(lines)


def _row(label: str, runs: Sequence[Mapping[str, float]], metrics: Sequence[str]) -> str:
    cells = (interval([run[m] for run in runs]) if all(m in run for run in runs) else "" for m in metrics)
    return f"{label[:34]:34}" + "".join(f"{cell:>20}" for cell in cells)


def majority(problem: Problem) -> float:
    """Test accuracy of the class that is most frequent in the training rows."""
    column = problem.spec["outputs"][problem.target]
    column = (column.get("column") if isinstance(column, Mapping) else None) or problem.target
    most = statistics.mode(map(str, problem.train.column(column)))
    return statistics.mean(str(value) == most for value in problem.test.column(column))


def say(*words: Any) -> None:
    """Progress for a person."""
    print("...", *words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
