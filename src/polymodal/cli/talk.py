"""The command that talks with a bundle: chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer

import polymodal as pm
from polymodal.cli.common import BundleFolder, Device, app, cells
from polymodal.errors import SpecError


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def chat(
    context: typer.Context,
    bundle: BundleFolder,
    device: Device = "auto",
) -> None:
    """Answer in words. Each input of the model is an option: --image x.jpg; a question that is not given is read."""
    model = pm.load(bundle, device=device)
    known = _slots(model.spec)
    row = cells(context.args, known)
    words = [part.columns(name)[0] for name, part in model.spec.inputs.items() if part.verbatim]
    asked = [column for column in words if column not in row]
    if not row and not asked:
        raise SpecError(f"give one or more of {[f'--{name}' for name in known]}, got none.")
    for more in _questions(asked[0]) if asked else [{}]:
        for text in pm.talk(model, row | more):
            typer.echo(text, nl=False)
            sys.stdout.flush()
        typer.echo()


def _slots(spec: pm.Spec) -> dict[str, str]:
    """Name of an option -> its column: the columns, and inputs of one column."""
    columns = {name: part.columns(name) for name, part in spec.inputs.items()}
    found = {column: column for some in columns.values() for column in some}
    return {name: some[0] for name, some in columns.items() if len(some) == 1} | found


def _questions(column: str) -> Iterator[dict[str, str]]:
    """What is typed, line by line, until the end of the input or an empty line."""
    while True:
        if sys.stdin.isatty():
            typer.echo(f"{column}> ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield {column: line}
