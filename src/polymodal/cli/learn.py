"""Commands that learn: fit, improve, search."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml
from rich.markup import escape

import polymodal as pm
from polymodal.cli.common import BundleFolder, Device, Json, Seed, Strict, app, bars, out, print_json, warn
from polymodal.errors import BundleError, SpecError

Method = Literal["lora", "last", "all"]


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
    track: Annotated[list[str] | None, typer.Option(help="tensorboard, wandb or mlflow; may be repeated.")] = None,
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
            cache=cache, resume=place.with_name(f"{place.name}.resume.safetensors"), track=track or (),
            progress=progress,
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
        print_json(model.report | {"bundle": str(out_folder), "page": str(page), "warnings": model.warnings})
        return
    out.print("[bold]spec[/] (edit and pass back: " + escape(f"polymodal fit {out_folder / 'spec.yaml'})"))
    out.print(escape(model.report["spec"]))
    warn(model.warnings)
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
def improve(  # noqa: PLR0913  (options of a command)
    bundle: BundleFolder,
    table: Annotated[str, typer.Argument(help="The table it was fitted to.")],
    *,
    name: Annotated[str | None, typer.Option("--input", help="Input to improve; else the weakest.")] = None,
    method: Annotated[Method | None, typer.Option(help="lora, last or all: what of the backbone learns.")] = None,
    valid: Annotated[str | None, typer.Option(help="Table to validate on.")] = None,
    folds: Annotated[int, typer.Option(help="Compare on so many parts of the rows: surer, slower.", min=1)] = 1,
    epochs: Annotated[int | None, typer.Option(help="Most passes over the input's cells.", min=1)] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the new bundle; else the same.")] = None,
    page: Annotated[Path, typer.Option("--report", help="HTML page to write.")] = Path("improvement.html"),
    device: Device = "auto",
    strict: Strict = False,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Train one input further; keep that only if the whole model proves better on validation rows."""
    place = pm.Bundle.check_place(out_folder or bundle)
    with bars(as_json) as progress:
        found = pm.improve(
            pm.load(bundle, device=device), table, input=name, method=method, valid=valid, folds=folds, epochs=epochs,
            strict=strict, seed=seed, progress=progress,
        )  # fmt: skip
    kept = _deliver(found.bundle, bundle, place) if found.accepted else None
    content = found.content | {"bundle": str(place) if found.accepted else None, "kept": kept and str(kept)}
    content["page"] = str(pm.save_improvement(found.content, page))
    if as_json:
        print_json(content)
        return
    out.print(escape(found.reason))
    if found.accepted:
        out.print(f"bundle {place}" + (f"   the old one: {kept}" if kept else ""))
    out.print(f"report {content['page']}")


def _deliver(new: pm.Bundle, old: Path, place: Path) -> Path | None:
    """Write the new bundle; where it takes the old one's place, keep that beside it and say where.

    It holds the backbones where the old one does.
    """
    whole = (old / "backbones").is_dir()
    if place != Path(os.path.abspath(old)):
        new.save(place, self_contained=whole)
        pm.save_page(new.report, place / "report.html")
        return None
    numbers = (place.with_name(f"{place.name}.old{number}") for number in itertools.count(1))
    kept = next(path for path in numbers if not path.exists())
    try:
        shutil.copytree(place, kept)
        new.save(place, self_contained=whole)
    except (OSError, BundleError) as error:
        if (place / "spec.json").is_file():  # the old one is still in its place
            shutil.rmtree(kept, ignore_errors=True)
        raise BundleError(f"{place} must be kept as {kept} and replaced, got: {error}") from error
    pm.save_page(new.report, place / "report.html")
    if (kept / "spec.yaml").is_file():
        shutil.copyfile(kept / "spec.yaml", place / "spec.yaml")
    return kept


@app.command()
def search(  # noqa: PLR0913  (options of a command)
    source: Annotated[str, typer.Argument(help="A spec (.yaml, .json); or a table, with --target.")],
    table: Annotated[str | None, typer.Argument(help="Table to learn from, with a spec that names none.")] = None,
    *,
    target: Annotated[list[str] | None, typer.Option(help="Column to predict; may be repeated.")] = None,
    trials: Annotated[int, typer.Option(help="How many settings to try.", min=1)] = 30,
    folds: Annotated[int, typer.Option(help="Score by cross-validation on so many folds.", min=1)] = 1,
    space: Annotated[Path | None, typer.Option(help="YAML: setting -> values, or low, high, log, step.")] = None,
    metric: Annotated[str | None, typer.Option(help="Score to search by, in the words of training.monitor.")] = None,
    valid: Annotated[str | None, typer.Option(help="Table to validate on.")] = None,
    prune: Annotated[bool, typer.Option(help="Stop trials early that fall behind.")] = True,
    timeout: Annotated[float | None, typer.Option(help="Start no trial after so many seconds.")] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of study, best spec and table of trials.")] = Path(
        "search"
    ),
    device: Device = "auto",
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Try settings and parts of a spec on validation rows; go on where an earlier search stopped."""
    with bars(as_json) as progress:
        found = pm.search(
            source, table, target=target or None, space=space, trials=trials, folds=folds, valid=valid, metric=metric,
            seed=seed, prune=prune, study=out_folder / "study.journal", timeout=timeout, device=device,
            progress=progress,
        )  # fmt: skip
    place = found.save(out_folder, _tables(source, table, target, valid))
    if as_json:
        print_json(found.to_dict() | {"best_spec": str(place)})
        return
    out.print(escape(str(found)))
    out.print(f"best spec {place}")


def _tables(source: str, table: str | None, target: list[str] | None, valid: str | None) -> dict[str, str]:
    """The tables that the best spec is to name."""
    train = source if target else table
    return {side: place for side, place in (("train", train), ("valid", valid)) if place}
