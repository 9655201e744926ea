"""Commands that ask a bundle: evaluate, predict, diagnose."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import polymodal as pm
from polymodal.cli.common import BundleFolder, Device, Json, Seed, Strict, app, bars, out, print_json, warn
from polymodal.diagnose.verdict import TRY


@app.command()
def evaluate(
    bundle: BundleFolder,
    table: Annotated[str, typer.Argument(help="Labelled table.")],
    page: Annotated[Path | None, typer.Option("--report", help="Also write the report as an HTML page.")] = None,
    device: Device = "auto",
    strict: Strict = False,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Score a bundle: all inputs, without each, with each alone, and baselines."""
    with bars(as_json) as progress:
        model = pm.load(bundle, device=device)
        report = model.evaluate(table, strict=strict, seed=seed, progress=progress)
    if page is not None:
        pm.save_page({"test": report.to_dict(), "data": report.to_dict()["data"]}, page)
    if as_json:
        print_json(report.to_dict())
        return
    warn(report.content["warnings"])
    out.print(escape(str(report)))


@app.command()
def predict(
    bundle: BundleFolder,
    table: Annotated[str, typer.Argument(help="Table; columns and cells may be missing.")],
    out_file: Annotated[Path | None, typer.Option("--out", help="Parquet, CSV, JSONL or CoNLL to write.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also say what each input, and each piece, did.")] = False,
    device: Device = "auto",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Predict every row of a table."""
    if out_file is not None:
        pm.check_ending(out_file, [".conll"])
    model, left = pm.load(bundle, device=device), 0
    if out_file is not None and not model.spec.about:
        pm.check_ending(out_file)
    with bars(as_json) as progress:
        found = model.predict(table, explain=explain, strict=strict, progress=progress)
    if out_file is not None:
        left = pm.write_table(found.to_columns(), out_file)
    if as_json:
        more = {"quarantined": found.quarantined, "warnings": found.warnings}
        more |= {"explanations": found.explanations} if explain else {}
        print_json({"predictions": list(found), "absent": found.absent} | more)
        return
    warn(found.warnings)
    if out_file is not None:
        rest = f"; {left} rows without words have no place there" if left else ""
        out.print(f"{len(found) - left} predictions in {out_file}{rest}")
        return
    for number, row in enumerate(found):
        told = {"explanation": found.explanations[number]} if explain else {}
        typer.echo(f"{number}\t{json.dumps(row | told, ensure_ascii=False)}")


@app.command()
def diagnose(  # noqa: PLR0913  (options of a command)
    bundle: BundleFolder,
    table: Annotated[str, typer.Argument(help="Labelled table that the model has not learned from.")],
    *,
    train: Annotated[str | None, typer.Option(help="Table it has learned from, to find the same rows.")] = None,
    metric: Annotated[str | None, typer.Option(help="Score to judge by; else each task's first.")] = None,
    curve_rows: Annotated[int, typer.Option(help="Rows to corrupt step by step; 0 draws no curves.", min=0)] = 32,
    page: Annotated[Path, typer.Option("--report", help="HTML page to write.")] = Path("diagnosis.html"),
    device: Device = "auto",
    strict: Strict = False,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Say what each input carries, where it breaks, which one is weak and what to do."""
    with bars(as_json) as progress:
        found = pm.load(bundle, device=device).diagnose(
            table, train=train, metric=metric, curve_rows=curve_rows, strict=strict, seed=seed, progress=progress
        )
    content = found.to_dict()
    own = shlex.join(["polymodal", "improve", str(bundle), train or "train.csv"])
    for one in content["verdict"]:
        if one["try"]:
            one["try"] = one["try"].replace(TRY, own, 1)
    place = pm.save_diagnosis(content, page)
    if as_json:
        print_json(content)
        return
    out.print(escape(str(pm.Diagnosis(content))))
    out.print(f"report {place}")
