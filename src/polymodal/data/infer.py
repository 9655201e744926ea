"""What is each column? Kinds from sampled cells, and from them the inputs and tasks of a spec."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from PIL import Image

from polymodal.data.listed import aligned, are_tags, are_words, vocabulary
from polymodal.errors import DataError
from polymodal.values import MISSING_VALUE, is_missing, parse_boolean, parse_category, parse_date, parse_number

Kind = Literal["text", "words", "image", "audio", "number", "category", "boolean", "date", "ignored"]

MOST = 0.9  # share of cells that must parse for a column to be of a kind
ASKED = 32  # cells of a column that are looked up as files: a look-up may go over a network
CLASSES = 20  # most values for which whole numbers are classes, and for which repetition alone makes a category

_EXTENSIONS: dict[str, str] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"), "image"),
    **dict.fromkeys(("wav", "mp3", "ogg", "oga", "opus", "flac", "m4a", "aac", "wma", "aif", "aiff"), "audio"),
    **dict.fromkeys(("mp4", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "m4v"), "video"),
}
_MAGIC = (
    (re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP", re.DOTALL), "image"),
    (re.compile(rb"RIFF.{4}WAVE|fLaC|OggS|ID3|\xff[\xf1-\xff]|FORM.{4}AIF|.{4}ftypM4A", re.DOTALL), "audio"),
    (re.compile(rb"\x1aE\xdf\xa3|.{4}ftyp|RIFF.{4}AVI ", re.DOTALL), "video"),
)
_PATH = re.compile(r"[^\n\r]{0,1000}\.([A-Za-z][A-Za-z0-9]{1,4})")
_ID_NAME = re.compile(r"(.*[_\W])?(id|ids|index|idx|key|uid|uuid|guid)|unnamed: ?\d+|", re.IGNORECASE)
_CODE = re.compile(r"(?=.*\d)[!-~]+")
_ZERO_LED = re.compile(r"0\d+")


@dataclass(frozen=True, slots=True)
class Guess:
    """What a column seems to be.

    Attributes:
        kind: how to use it.
        reason: why, for the reader of a report.
    """

    kind: Kind
    reason: str


def infer_kinds(columns: Mapping[str, Sequence[Any]], exists: Callable[[str], bool]) -> dict[str, Guess]:
    """Guess what each column holds.

    Args:
        columns: column name -> sampled cells as Python objects.
        exists: whether a cell, taken as a path or URL, leads to a file.
    """

    def found(path: str) -> bool:
        try:
            return exists(path)
        except OSError:  # a text too long for a path
            return False

    return _unaligned(columns, {name: infer_kind(name, cells, found) for name, cells in columns.items()})


def _unaligned(columns: Mapping[str, Sequence[Any]], guesses: Mapping[str, Guess]) -> dict[str, Guess]:
    """Guesses without the columns of lists that annotate another one's words: of like length, with fewer texts."""
    kept = dict(guesses)
    lists = sorted((n for n in kept if kept[n].kind == "words"), key=lambda n: -vocabulary(columns[n]))
    for name in lists:
        if kept[name].kind == "words":
            for other in (n for n in lists if n != name and kept[n].kind == "words"):
                if aligned(columns[name], columns[other]):
                    kept[other] = Guess("ignored", f"one for each word of {name}: it may be a target, but is no input")
    return kept


def infer_kind(name: str, cells: Sequence[Any], exists: Callable[[str], bool]) -> Guess:
    """Guess what one column holds: the first rule that speaks decides."""
    cells = [bare for cell in cells if not is_missing(bare := _bare(cell))]
    if not cells:
        return Guess("ignored", "every cell is empty")
    if guess := _media(cells, exists):
        return guess
    if guess := _lists(cells):
        return guess
    keys = [parse_category(cell) or "" for cell in cells if not isinstance(cell, bytes)]
    counts = Counter(keys)
    if len(keys) > 1 and len(counts) == 1:
        return Guess("ignored", f"constant: every cell is {keys[0]!r:.60}")
    return _plain(name, cells, counts) or _words(name, keys, counts)


def _bare(cell: Any) -> Any:
    """A cell without its wrapping: {"bytes": ..., "path": ...}, path objects, buffers, numpy scalars."""
    if isinstance(cell, Mapping) and cell and set(cell) <= {"bytes", "path"}:
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, np.generic):
        return cell.item()
    if isinstance(cell, bytearray | memoryview):
        return bytes(cell)
    return str(cell) if isinstance(cell, PurePath) else cell


def _media(cells: Sequence[Any], exists: Callable[[str], bool]) -> Guess | None:
    """Bytes, data URLs and paths."""
    kinds = Counter(_medium(cell) for cell in cells)
    kind, count = kinds.most_common(1)[0]
    if any(isinstance(cell, bytes) for cell in cells) and kind is None:
        return Guess("ignored", "bytes of a format that is not supported yet")
    if kind is not None and 2 * count > len(cells):
        if kind not in ("image", "audio"):
            return Guess("ignored", f"{kind} is not supported yet")
        paths = [c for c in cells if _medium(c) == kind and isinstance(c, str) and not c.startswith("data:")][:ASKED]
        lost = sum(not exists(path) for path in paths)
        return Guess(kind, f"{kind} files" + (f"; {lost} of {len(paths)} looked up do not exist" if lost else ""))
    paths = [cell for cell in cells[:ASKED] if isinstance(cell, str) and _PATH.fullmatch(cell)]
    if paths and 2 * len(paths) > len(cells[:ASKED]) and all(exists(path) for path in paths):
        ends = sorted({path.rsplit(".", 1)[1].lower() for path in paths})
        return Guess("ignored", f"files of a kind that is not supported yet: {', '.join(ends)}")
    return None


def _medium(cell: Any) -> str | None:
    """The medium of one cell, by its first bytes, media type or extension."""
    if isinstance(cell, bytes):
        return next((kind for magic, kind in _MAGIC if magic.match(cell)), None)
    if isinstance(cell, Image.Image) or (isinstance(cell, np.ndarray) and cell.dtype == np.uint8 and cell.ndim > 1):
        return "image"
    if not isinstance(cell, str):
        return None
    if cell.startswith("data:"):
        return cell[5:].split("/", 1)[0]
    bare = cell.strip().split("?", 1)[0] if "://" in cell else cell.strip()
    path = _PATH.fullmatch(bare)
    return _EXTENSIONS.get(path[1].lower()) if path else None


def _lists(cells: Sequence[Any]) -> Guess | None:
    """Words of sentences, and other lists."""
    if are_words(cells):
        if are_tags(cells):
            return Guess("ignored", "tags of words, which may be a target, but are no input")
        return Guess("words", f"lists of words, {vocabulary(cells)} different ones")
    if any(isinstance(cell, list | tuple | dict | np.ndarray) for cell in cells):
        return Guess("ignored", "cells are lists, mappings or arrays, which no kind of input takes yet")
    return None


def _plain(name: str, cells: Sequence[Any], counts: Counter[str]) -> Guess | None:
    """Booleans, dates and numbers; None for words."""
    as_text = any(isinstance(cell, str) for cell in cells)
    if all(isinstance(cell, bool) for cell in cells) or (as_text and _share(parse_boolean, cells) == 1):
        return Guess("boolean", "yes or no")
    if _share(parse_date, cells) >= MOST:
        return Guess("date", "ISO 8601 dates" if as_text else "dates")
    return _numbers(name, cells, counts)


def _numbers(name: str, cells: Sequence[Any], counts: Counter[str]) -> Guess | None:
    """Quantities, codes written in digits, row numbers; None for words and for codes with leading zeros."""
    share, whole, as_text = (
        _share(parse_number, cells),
        all(map(_whole, counts)),
        any(isinstance(c, str) for c in cells),
    )
    if share < MOST or (as_text and whole and any(map(_ZERO_LED.fullmatch, counts))):
        return None
    if whole and _ID_NAME.fullmatch(name.strip()):
        if len(counts) == len(cells):
            return Guess("ignored", "numbers the rows: every value is different")
        return Guess("category", f"{len(counts)} different identifiers, which repeat")
    if whole and as_text and len(counts) <= 10 and 2 * len(counts) <= len(cells):
        return Guess("category", f"{len(counts)} different codes of digits, as text")
    return Guess("number", "numbers" if share == 1 else f"numbers in {share:.0%} of the cells")


def _words(name: str, keys: Sequence[str], counts: Counter[str]) -> Guess:
    """Identifiers, categories and text."""
    n, distinct = len(keys), len(counts)
    if n == distinct and n >= (2 if _ID_NAME.fullmatch(name.strip()) else 5) and all(map(_CODE.fullmatch, counts)):
        return Guess("ignored", "identifies the rows: every value is a different code")
    short = max(map(len, counts)) <= 64 and sum(len(key.split()) for key in counts) <= 5 * distinct
    if short and (distinct <= min(CLASSES, n / 2) or distinct <= min(1000, n / 5)):
        return Guess("category", f"{distinct} different values in {n} cells")
    return Guess("text", f"{distinct} different texts in {n} cells")


def _share(parse: Callable[[Any], Any], cells: Sequence[Any]) -> float:
    """Share of the cells that hold something which can be parsed."""
    good = total = 0
    for cell in cells:
        if not is_missing(cell, MISSING_VALUE):
            total += 1
            good += _parses(parse, cell)
            if total - good > len(cells) * (1 - MOST):
                return 0.0
    return good / total if total else 0.0


def _parses(parse: Callable[[Any], Any], cell: Any) -> bool:
    try:
        return parse(cell) is not None
    except ValueError:
        return False


def _whole(key: str) -> bool:
    return not _parses(parse_number, key) or float(parse_number(key) or 0).is_integer()


def infer_inputs(guesses: Mapping[str, Guess], targets: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Inputs of a spec: one per column of texts, words, images or sounds, and one table of all the rest.

    Args:
        guesses: column -> its kind.
        targets: columns to learn, which are no inputs.

    Returns:
        Input name -> its part as a mapping. The table is called "table", or "table_2" ... where a column has that name.

    Raises:
        DataError: no column is left to learn from.
    """
    targets = set(targets)
    left = {name: guess for name, guess in guesses.items() if name not in targets}
    inputs: dict[str, dict[str, Any]] = {
        name: {"type": guess.kind} for name, guess in left.items() if guess.kind in ("text", "words", "image", "audio")
    }
    table: dict[str, Any] = {}
    for kind, field in (
        ("number", "numbers"), ("category", "categories"), ("boolean", "booleans"), ("date", "dates"),
    ):  # fmt: skip
        if names := [name for name, guess in left.items() if guess.kind == kind]:
            table[field] = names
    if table:
        tries = ("table" if i == 1 else f"table_{i}" for i in range(1, len(guesses) + 2))
        inputs[next(name for name in tries if name not in guesses)] = {"type": "table", **table}
    if not inputs:
        why = "; ".join(f"{name}: {guess.reason}" for name, guess in left.items()) or "there is no other column"
        raise DataError(f"a table must have a column to learn from besides its targets, got none ({why:.500}).")
    return inputs


def infer_task(values: Iterable[Any]) -> dict[str, Any]:
    """The task that learns a target column by itself: classify, multilabel or regress.

    Args:
        values: the column's cells as Python objects.

    Raises:
        DataError: the cells are nothing that can be learnt.
    """
    cells = [cell for cell in values if not is_missing(cell)]
    if not cells:
        raise DataError("a target must have labelled rows, got a column of empty cells. Check the column's name.")
    if are_words(cells) and are_tags(cells):
        raise DataError(
            "a target of tags must have as many as a column has words, row by row, got none. Mend the rows."
        )
    if all(isinstance(cell, list | tuple) and all(type(x) in (str, int) for x in cell) for cell in cells):
        return {"type": "multilabel"}
    if any(isinstance(cell, list | tuple) and any(isinstance(x, dict) for x in cell) for cell in cells):
        raise DataError(
            "a target of entities must hold {'start', 'end', 'type'} by the characters of a text column, in nine rows "
            "of ten at least, got others. Mend the rows, or give a spec."
        )
    if bad := [type(cell).__name__ for cell in cells if isinstance(cell, bytes | list | tuple | dict | date)]:
        raise DataError(f"a target must be a class, classes or a number, got {bad[0]}. Convert the column.")
    if separator := _separator(cells):
        return {"type": "multilabel"} | ({} if separator == "|" else {"separator": separator})
    counts = Counter(parse_category(cell) or "" for cell in cells)
    repeated = 2 * len(counts) <= len(cells)
    if _share(parse_number, cells) >= MOST and not all(isinstance(cell, bool) for cell in cells):
        whole = all(_whole(key) for key in counts)
        return {"type": "classify" if whole and repeated and len(counts) <= CLASSES else "regress"}
    if len(counts) == len(cells) > CLASSES:
        raise DataError("a target must repeat to be learnt as classes, got a different value in every row.")
    return {"type": "classify"}


def _separator(cells: Sequence[Any]) -> str | None:
    """The sign that joins labels, if splitting by it finds parts that repeat."""
    if not all(isinstance(cell, str) for cell in cells):
        return None
    for sign in "|;":
        parts = Counter(part.strip() for cell in cells for part in cell.split(sign))
        total = sum(parts.values())
        if total > len(cells) and 2 * len(parts) <= total and len(parts) <= len(set(cells)) * 2:
            return sign
    return None
