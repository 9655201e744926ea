"""The demo: sort parcels by a handwritten digit, a spoken digit, a note and a weight.

Run ``make demo``, or ``python recipes/digits.py``. The data and the rule are described in ``digits_data.py``: the
handwriting is real, voices and notes are made. No input is enough on its own; the report says what each is worth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import digits_data
import polymodal as pm

SIZES = {False: (1400, 300), True: (140, 60)}  # training and test parcels, without and with --tiny


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data, fit, report, save, load, predict."""
    parser = argparse.ArgumentParser(description="Fit a model on parcels: image, sound, text and numbers.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="for data and model (default: demo)")
    parser.add_argument("--tiny", action="store_true", help="few parcels, to see that everything runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    data, bundle = options.folder / "data", options.folder / "model"

    train, test = SIZES[options.tiny]
    print(f"1. Data: {train} parcels to learn from, {test} to test on, in {data}")
    digits_data.make(data, train, test, options.seed)

    print("2. Fit: the spec is inferred from the columns")
    model = pm.fit(data / "train.csv", target="lane", test=data / "test.csv", seed=options.seed, progress=show)
    print(indent(model.report["spec"]))

    print("3. What was found in the data")
    print(indent("\n".join(model.warnings)))

    print("4. Test: with all inputs, without each, with each alone, and baselines")
    print(indent(str(pm.Report(model.report["test"]))))

    model.save(bundle)
    page = pm.save_page(model.report, bundle / "report.html")

    print("5. Predict, from the saved bundle, one parcel with different gaps, and two with one input each")
    predictions = pm.load(bundle).predict(data / "new.csv")
    for row, absent in zip(predictions, predictions.absent, strict=True):
        answer = row["lane"]
        print(f"   {answer['class']:<12} {answer['probability']:4.0%} sure   without {', '.join(absent) or 'nothing'}")

    print(f"\nDone in {time.perf_counter() - started:.0f} s. Open the report: {page}\nNext, try:")
    command = Path(sys.executable).with_name("polymodal")
    command = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    for line in (
        f"inspect {data / 'train.csv'} --target lane",
        f"evaluate {bundle} {data / 'test.csv'}",
        f"predict {bundle} {data / 'new.csv'} --out predictions.csv",
        f"fit {data / 'train.csv'} --target lane --target weight_kg --out {options.folder / 'two_targets'}",
    ):
        print(f"   {command} {line}")


def show(what: str, done: int, total: int) -> None:
    """Progress: a counter on a terminal, nothing in a log."""
    if sys.stderr.isatty():
        print(
            f"\r   {what}: {done} of {total}\033[K", end="" if done < total else "\r\033[K", file=sys.stderr, flush=True
        )


def indent(text: str) -> str:
    """A block of output, set off from the left."""
    return "".join(f"   {line}\n" for line in text.splitlines())


if __name__ == "__main__":
    main()
