"""One measurement of the stamps benchmark (see stamps.py), in this process: fit, evaluate, predict or linear."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polymodal as pm

TARGET = "label"
SINGLE, FEW = 50, 5  # rows that are predicted one by one; on part of the table


def table(options: argparse.Namespace, name: str) -> Any:
    """Read one side of the stamps, without the voice unless it was asked for."""
    whole = pm.Table.read(options.data / f"{name}.csv")
    columns = {c: whole.column(c) for c in whole.columns if options.voice or c != "voice"}
    chosen = pm.Table(columns, whole.source, whole.base)
    return chosen.head(options.rows) if options.rows else chosen


def fit_stage(options: argparse.Namespace) -> dict[str, Any]:
    """Fit with the spec that the library infers, and save."""
    model = pm.fit(table(options, "train"), target=TARGET, seed=options.seed)
    model.save(options.bundle)
    return {"spec": model.report["spec"], "fit": model.report["fit"]["cpu_seconds"]}


def evaluate_stage(options: argparse.Namespace) -> dict[str, Any]:
    """Score a bundle on the test rows, with everything and without each input."""
    task = pm.load(options.bundle).evaluate(table(options, "test")).to_dict()["tasks"][TARGET]
    without = {name: scores["accuracy"] for name, scores in task["without"].items()}
    baselines = {name: scores["accuracy"] for name, scores in task["baselines"].items()}
    return {"scores": task["scores"], "without": without, "baselines": baselines, "share": task["share"]}


def predict_stage(options: argparse.Namespace) -> dict[str, Any]:
    """Load a bundle, predict the test rows at once and some of them one by one; nothing comes from the store."""
    test = table(options, "test")
    rows = [
        {n: v for n, v in test.rows(i).items() if n != TARGET}
        for i in range(min(FEW if options.rows else SINGLE, len(test)))
    ]
    media = [name for name in ("image", "voice") if name in test]
    rows = [row | {n: str(Path(test.base or ".", row[n]).resolve()) for n in media if row[n]} for row in rows]
    start = time.process_time()
    model = pm.load(options.bundle)
    model.predict(rows[:1])
    loaded = time.process_time()
    model.predict(test)
    batch = time.process_time()
    for row in rows[:5]:
        model.predict([row])
    times = []
    for row in rows:
        before = time.process_time()
        model.predict([row])
        times.append(1000 * (time.process_time() - before))
    return {
        "rows_per_cpu_s": len(test) / (batch - loaded),
        "with_loading": len(test) / (batch - start),
        "load_cpu_s": loaded - start,
        "one_row_ms": statistics.median(times),
    }


def linear_stage(options: argparse.Namespace) -> dict[str, Any]:
    """Logistic regression of scikit-learn on the pooled features of our own frozen backbones."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    from polymodal.data.loader import prepare

    model = pm.load(options.bundle)
    blocks: dict[str, list[Any]] = {}
    answers = []
    for side in ("train", "test"):
        prepared = prepare(model.spec, table(options, side), model.embedder)
        batch = prepared.batch(torch.arange(len(prepared)))
        for name, part in model.spec.inputs.items():
            blocks.setdefault(name, []).append(part.summary(batch.inputs[name]).numpy())
        answers.append(batch.targets[TARGET].values[:, 0].numpy())
    blocks = {n: [(s := StandardScaler().fit(a)).transform(a), s.transform(b)] for n, (a, b) in blocks.items()}

    def score(names: Sequence[str], blank: str | None = None) -> tuple[float, float]:
        train = np.hstack([blocks[n][0] for n in names])
        test = np.hstack([blocks[n][1] * (n != blank) for n in names])  # 0 is a standardised column's mean
        guess = LogisticRegression(max_iter=3000).fit(train, answers[0]).predict(test)
        return float((guess == answers[1]).mean()), float(f1_score(answers[1], guess, average="macro"))

    names, most = list(blocks), {}
    for name in names if len(names) > 1 else []:
        most[name] = {"retrained": score([n for n in names if n != name])[0], "blanked": score(names, name)[0]}
    accuracy, macro = score(names)
    return {"accuracy": accuracy, "macro_f1": macro, "without": most}


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "fit": fit_stage,
    "evaluate": evaluate_stage,
    "predict": predict_stage,
    "linear": linear_stage,
}


def main() -> None:
    """Run one stage and print what it found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--voice", action="store_true")
    options = parser.parse_args()
    print(json.dumps(STAGES[options.stage](options)))


if __name__ == "__main__":
    main()
