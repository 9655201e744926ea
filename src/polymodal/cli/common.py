"""What every command shares: the application, its options, progress bars, ways to print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from polymodal.errors import SpecError, suggest

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
BundleFolder = Annotated[Path, typer.Argument(help="A bundle's folder.")]


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


def print_json(value: Any) -> None:
    """One JSON document on standard output, with null for numbers that are not finite, which JSON does not have."""
    strict = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
    typer.echo(json.dumps(strict, ensure_ascii=False))


def warn(lines: list[str]) -> None:
    """Lines for a person, on standard error."""
    for line in lines:
        err.print(f"[yellow]note:[/] {escape(line)}")


def print_table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Columns under their heads."""
    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    out.print(table)


def cells(arguments: Sequence[str], slots: Mapping[str, str]) -> dict[str, str]:
    """Cells by column, from options that are named as a model's inputs or columns.

    Args:
        arguments: as they were typed.
        slots: name of an option -> column.

    Raises:
        SpecError: one is no such option, has no value or is there twice.
    """
    row, known, rest = dict[str, str](), [f"--{name}" for name in slots], list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or name not in slots:
            raise SpecError(f"a query must be of options {known}, got {flag!r}.{suggest(flag, known)}")
        if not equals and not rest:
            raise SpecError(f"{flag} must have a value, got none.")
        if slots[name] in row:
            raise SpecError(f"{flag} must be given once. Give many queries as a table.")
        row[slots[name]] = value if equals else rest.pop(0)
    return row
