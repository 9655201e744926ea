"""The command line: every verb of the library as a command."""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

import typer
from rich.markup import escape

from polymodal.cli import ask, deploy, find, learn, look, talk  # noqa: F401  (enters the commands)
from polymodal.cli.common import app, err, warn
from polymodal.errors import PolymodalError

ORDER = (
    "inspect", "fit", "evaluate", "predict", "diagnose", "improve", "search", "embed", "index", "find", "classify",
    "chat", "serve", "load", "verify", "export",
    "cache", "weights",
)  # fmt: skip
app.registered_commands.sort(key=lambda command: ORDER.index(getattr(command.callback, "__name__", "")))


def main() -> None:
    """Run the command line; bad use and bad input end with status 2 and the reason."""
    warnings.showwarning = lambda message, *_, **__: warn([str(message)])
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
