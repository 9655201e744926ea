"""Commands that draw rows together in one space: embed, index, find, classify."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import polymodal as pm
from polymodal.cli.common import Device, Json, Strict, app, bars, cells, out, print_json, print_table, warn
from polymodal.errors import SpecError

if TYPE_CHECKING:
    from polymodal.indexing.items import Hit

Model = Annotated[str, typer.Argument(help="A bundle's folder, a modality (text), or JSON of one.")]
Inputs = Annotated[list[str] | None, typer.Option("--input", help="Input to look at, others are absent; repeat.")]
Task = Annotated[str | None, typer.Option(help="Output of type match, where the model has several.")]
SHOWN = 60
"""Characters of a cell that a table on the screen shows."""


@app.command()
def embed(  # noqa: PLR0913  (options of a command)
    model: Model,
    table: Annotated[str, typer.Argument(help="Table; columns and cells may be missing.")],
    *,
    out_file: Annotated[Path, typer.Option("--out", help="npz, safetensors, Parquet, CSV or JSONL to write.")],
    inputs: Inputs = None,
    width: Annotated[int | None, typer.Option(help="Entries of a vector to keep, the first ones.")] = None,
    task: Task = None,
    device: Device = "auto",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Write a vector of length 1 for every row of a table."""
    pm.Embeddings.check_file(out_file)
    with bars(as_json) as progress:
        found = pm.embed(
            _model(model), table, inputs=inputs, width=width, task=task, device=device, strict=strict, progress=progress
        )
    found.save(out_file)
    count, size = found.vectors.shape
    if as_json:
        print_json({"rows": count, "width": size, "without": int((~found.present).sum()), "warnings": found.warnings})
        return
    warn(found.warnings)
    out.print(f"{count} vectors of length {size} in {out_file}")


@app.command()
def index(  # noqa: PLR0913  (options of a command)
    model: Model,
    items: Annotated[str | None, typer.Argument(help="Table of items; columns and cells may be missing.")] = None,
    *,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the index.")],
    add: Annotated[bool, typer.Option("--add", help="Add the items to the index that is there.")] = False,
    remove: Annotated[
        list[str] | None, typer.Option(help="Ids to take out of it, with commas between; repeat.")
    ] = None,
    inputs: Inputs = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column of ids; else id, else numbers.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Column to keep of each item, all if not given; repeat.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Entries of a vector to keep, the first ones.")] = None,
    approximate: Annotated[str | None, typer.Option(help="auto, always or never search approximately.")] = None,
    task: Task = None,
    device: Device = "auto",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Make an index of items that can be found by any of a model's inputs, or change one."""
    chosen = {
        "inputs": inputs, "id_column": id_column, "columns": keep, "width": width, "approximate": approximate,
        "task": task,
    }  # fmt: skip
    _check_index(items, add, remove, chosen)
    pm.Index.check_place(out_folder)
    with bars(as_json) as progress:
        if add or remove:
            found = pm.Index.load(out_folder, model=_model(model), device=device)
            found.remove(_ids(remove or [], found))
            if items is not None:
                found.add(items, strict=strict, progress=progress)
        else:
            given: Any = {name: value for name, value in chosen.items() if value is not None}
            found = pm.Index.create(_model(model), items, device=device, strict=strict, progress=progress, **given)
    found.save(out_folder)
    notes = found.added.warnings if found.added else []
    if as_json:
        told = {"added": found.added.count, "refused": found.added.refused} if found.added else {}
        print_json({"items": len(found), "width": found.note.width} | told | {"warnings": notes})
        return
    warn(notes)
    out.print(f"{len(found)} items in {out_folder}")


def _check_index(items: str | None, add: bool, remove: list[str] | None, chosen: dict[str, Any]) -> None:
    if items is None and (add or not remove):
        raise SpecError("ITEMS must be a table to make an index of or to add, got none. Name one, or give --remove.")
    if remove and items is not None and not add:
        raise SpecError("--remove changes an index that is there, and ITEMS makes a new one. Give --add with both.")
    named = {"inputs": "--input", "id_column": "--id", "columns": "--keep"}
    if (add or remove) and (set_here := [name for name, value in chosen.items() if value is not None]):
        raise SpecError(f"{named.get(set_here[0], f'--{set_here[0]}')} is settled when an index is made. Leave it out.")


def _ids(given: Sequence[str], found: pm.Index) -> list[str]:
    """Ids with commas between; an id that has commas itself is taken whole."""
    return [one for text in given for one in ([text] if text in found.items else text.split(","))]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def find(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="INDEX", help="Folder of an index.")],
    *,
    queries: Annotated[str | None, typer.Option(help="Table of queries, one a row.")] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Parquet, CSV or JSONL to write what is found.")
    ] = None,
    count: Annotated[int, typer.Option(help="Items for each query, at most.", min=1)] = 10,
    model: Annotated[str | None, typer.Option(help="Where the model is, if not where the index says.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the nearest items. Each input of the model is an option: --text "a red apple" --image x.jpg."""
    if folder.startswith("-"):
        raise SpecError(f"INDEX must stand before the options that are a query, got {folder!r} there.")
    if out_file is not None:
        pm.check_ending(out_file)
    found = pm.Index.load(folder)
    found.use(None if model is None else _model(model), device)
    row = cells(context.args, found.model.slots)
    if (queries is None) == (not row):
        flags = " or ".join(_flags(found))
        raise SpecError(f"a query must be given either by {flags} or as --queries, got {'both' if row else 'none'}.")
    hits = found.find(row if queries is None else queries, count)
    if out_file is not None:
        pm.write_table(_columns(hits), out_file)
    if as_json:
        print_json({"items": [[hit._asdict() for hit in some] for some in hits]})
    elif out_file is not None:
        out.print(f"{sum(map(len, hits))} items for {len(hits)} queries in {out_file}")
    else:
        _show(hits)


def _flags(found: pm.Index) -> list[str]:
    return [f"--{name}" for name in found.model.slots]


def _columns(hits: Sequence[Sequence[Hit]]) -> dict[str, list[Any]]:
    """Flat columns for a file: number of the query, rank from 1, id, score, and what is kept as ``item.`` columns."""
    flat = [(number, rank, hit) for number, some in enumerate(hits) for rank, hit in enumerate(some, 1)]
    kept = dict.fromkeys(name for _, _, hit in flat for name in hit.columns)
    return {
        "query": [number for number, _, _ in flat],
        "rank": [rank for _, rank, _ in flat],
        "id": [hit.id for _, _, hit in flat],
        "score": [hit.score for _, _, hit in flat],
        **{f"item.{name}": [hit.columns.get(name) for _, _, hit in flat] for name in kept},
    }


def _show(hits: Sequence[Sequence[Hit]]) -> None:
    kept = dict.fromkeys(name for some in hits for hit in some for name in hit.columns)
    head = (*(["query"] if len(hits) > 1 else []), "score", "id", *kept)
    rows = [
        (*([number] if len(hits) > 1 else []), f"{hit.score:.3f}", hit.id, *(_short(hit.columns.get(n)) for n in kept))
        for number, some in enumerate(hits)
        for hit in some
    ]
    print_table(head, rows)


def _short(cell: Any) -> str:
    text = "" if cell is None else " ".join(str(cell).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


@app.command()
def classify(  # noqa: PLR0913  (options of a command)
    model: Model,
    table: Annotated[str, typer.Argument(help="Table; columns and cells may be missing.")],
    *,
    labels: Annotated[str, typer.Option(help="Names with commas between: animal,food.")],
    template: Annotated[
        list[str] | None, typer.Option(help="Text with {} for the name; repeat to take the mean.")
    ] = None,
    text_input: Annotated[
        str | None, typer.Option(help="Input that names are given to, where several take text.")
    ] = None,
    inputs: Inputs = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Parquet, CSV or JSONL to write.")] = None,
    task: Task = None,
    device: Device = "auto",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Give every row the label whose name is nearest to it, without any example."""
    if out_file is not None:
        pm.check_ending(out_file)
    with bars(as_json) as progress:
        found = pm.zero_shot(
            _model(model), table, [name.strip() for name in labels.split(",")], templates=template or ("{}",),
            text_input=text_input, inputs=inputs, task=task, device=device, strict=strict, progress=progress,
        )  # fmt: skip
    if out_file is not None:
        pm.write_table(found.to_columns(), out_file)
    if as_json:
        print_json({"rows": found.rows(), "warnings": found.warnings})
        return
    warn(found.warnings)
    if out_file is not None:
        out.print(f"{len(found)} rows in {out_file}")
        return
    for number, row in enumerate(found.rows()):
        typer.echo(f"{number}\t{json.dumps(row, ensure_ascii=False)}")


def _model(text: str) -> Any:
    """A model as the command line gives it: JSON of a modality, or a name or folder."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"MODEL must be a folder, a modality or JSON of one, got {text!r}: {error}.") from None
