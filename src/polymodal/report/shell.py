"""The document around a page's content: one HTML file, offline, without scripts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from polymodal.errors import DataError
from polymodal.report.markup import Markup, tag

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, *main: Markup | None, sheets: tuple[str, ...] = ("style.css",)) -> str:
    """One HTML document with its style inside.

    Args:
        title: of the window, and above the content.
        *main: the content's sections; None is nothing.
        sheets: names of the style sheets beside this file, the later ones over the earlier ones.
    """
    folder = files("polymodal.report")
    head = [
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("title", title),
        tag("style", Markup("".join(folder.joinpath(name).read_text(encoding="utf-8") for name in sheets))),
    ]
    body = tag("body", tag("header", tag("h1", title)), tag("main", main))
    return f"<!doctype html>\n{tag('html', tag('head', head), body, lang='en')}\n"


def save(source: str, path: Path | str) -> Path:
    """Write a page.

    Args:
        source: the document.
        path: of the file; its folder is made.

    Returns:
        The path.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} must be writable, got {error.strerror or error}. Choose another place.") from error
    return path
