"""CoNLL files: a word in each line, its tags in columns beside it, a blank line behind each sentence."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from polymodal.data.listed import TAG
from polymodal.data.spool import BATCH, Opener, is_small, spool, text_lines
from polymodal.errors import DataError

ENDINGS = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".bioes")
WORDS, TAGS = "words", "tags"

_LOOK, _HEAD = 2000, 1 << 16  # lines that a layout is found in; bytes that a file's kind is found in
_CONLLU, _UPOS = 10, 3  # columns of CoNLL-U, and the place of its universal part of speech
_DOCUMENT = "-DOCSTART-"
_BLANKS = re.compile(r"[ \t]+")
_NOTE = re.compile(r"#(\s*[\w:.-]+\s*=(\s|$)|(begin|end) document)")  # "# sent_id = 1" of CoNLL-U; of CoNLL-2012
_INSERTED = re.compile(r"\d+[-.]\d+")  # CoNLL-U: a contraction of words that follow, and a word that is not said
_CELLS = pa.list_(pa.large_string())

Lines = Iterable[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand in the lines of a CoNLL file.

    Attributes:
        count: columns of each line.
        tabbed: whether tabs part them; else tabs or spaces.
        numbered: whether the first one numbers the words of each sentence.
        line: number of a line that is so.
        words: column of the words, from 0.
        tags: column of the tags; None where there is no column but the words.
    """

    count: int
    tabbed: bool
    numbered: bool
    line: int
    words: int
    tags: int | None

    @property
    def names(self) -> list[str]:
        """What the columns are called: words, tags, and by their place, from 1, column_2 ... ."""
        found = [f"column_{i + 1}" for i in range(self.count)]
        found[self.words] = WORDS
        if self.tags is not None:
            found[self.tags] = TAGS
        return found

    def cells(self, line: str) -> list[str]:
        """The cells of a line, as many as there are."""
        found = _parted(line, self.tabbed)
        return found if len(found) == self.count else _parted(line, False)

    def is_comment(self, line: str) -> bool:
        """Whether a line that begins with # is no row: ``#`` may be a word."""
        if self.tabbed:
            return len(_parted(line, True)) != self.count
        return bool(_NOTE.match(line)) or len(self.cells(line)) != self.count


def _parted(line: str, tabbed: bool) -> list[str]:
    return [cell.strip(" ") for cell in line.split("\t")] if tabbed else _BLANKS.split(line.lstrip(" \t"))


def read(opener: Opener, place: str | Path, words: int | None = None, tags: int | None = None) -> pa.Table:
    """Read a CoNLL file: a row for each sentence, in each column a list as long as it has words.

    Args:
        opener: opens the file, which is read twice.
        place: of the file, for messages.
        words: column of the words, as for `find_layout`.
        tags: column of the tags, likewise.

    Raises:
        DataError: lines have different numbers of columns, a word is missing, or there is no such column.
    """
    layout = find_layout(islice(_lines(opener, place), _LOOK), place, words, tags)
    if layout is None:
        return pa.table({WORDS: pa.array([], _CELLS)})
    schema = pa.schema([(name, _CELLS) for name in layout.names])
    return spool(schema, _batches(sentences(_lines(opener, place), layout, place), schema), is_small(place))


def looks_like(opener: Opener, place: str | Path) -> bool:
    """Whether a file begins like a CoNLL file of entities: in each line a word, perhaps more, and O, B-x, I-x ..."""
    with opener() as raw:
        head = raw.read(_HEAD)
    if len(head) == _HEAD:
        head = head[: head.rfind(b"\n") + 1]
    try:
        lines = list(_lines(lambda: io.BytesIO(head), place))
        layout = find_layout(lines, place)
        if layout is None or layout.tags is None:
            return False
        return all(TAG.fullmatch(tag) for row in sentences(lines, layout, place) for tag in row[layout.tags])
    except DataError:
        return False


def find_layout(lines: Lines, place: str | Path, words: int | None = None, tags: int | None = None) -> Layout | None:
    """The layout of a file, from its first lines; None if they are blank.

    Args:
        lines: their numbers and texts.
        place: of the file, for messages.
        words: column of the words, from 0 or, below 0, from the last one's. If None the first, or the second where the
            first one numbers the words.
        tags: column of the tags, likewise. If None the last; in CoNLL-U (ten columns) that of the universal parts of
            speech.

    Raises:
        DataError: there is no such column, or both are the same.
    """
    told = [(number, line) for number, line in lines if not line.startswith(_DOCUMENT)]
    rows = [(number, line) for number, line in told if line and not line.startswith("#")]
    rows = rows or [(number, line) for number, line in told if line and not _NOTE.match(line)]
    if not rows:
        return None
    line, first = rows[0]
    tabbed = "\t" in first
    count = len(_parted(first, tabbed))
    numbered = count > 2 and _is_numbered([_parted(text, tabbed)[0] for _, text in rows])
    place_of = {
        WORDS: _column(WORDS, int(numbered) if words is None else words, count, place),
        TAGS: _column(TAGS, (_UPOS if numbered and count == _CONLLU else -1) if tags is None else tags, count, place),
    }
    if count == 1 and tags is None:
        return Layout(count, tabbed, numbered, line, place_of[WORDS], None)
    if place_of[WORDS] == place_of[TAGS]:
        raise DataError(f"{place}: words and tags must be different columns, got {place_of[WORDS]} for both.")
    return Layout(count, tabbed, numbered, line, place_of[WORDS], place_of[TAGS])


def _column(name: str, column: int, count: int, place: str | Path) -> int:
    if not -count <= column < count:
        raise DataError(f"{place}: {name} must be a column in {-count}..{count - 1}, got {column}. Count from 0.")
    return column % count


def _is_numbered(first: list[str]) -> bool:
    """Whether cells count 1, 2, ... again and again, and beyond 1 at least once."""
    last, most = 0, 0
    for cell in first:
        if _INSERTED.fullmatch(cell):
            continue
        if cell not in (str(last + 1), "1"):
            return False
        last = int(cell)
        most = max(most, last)
    return most > 1


def sentences(lines: Lines, layout: Layout, place: str | Path) -> Iterator[list[list[str]]]:
    """Yield the columns of each sentence, as many lists as ``layout`` has columns.

    Raises:
        DataError: a line has another number of columns, or no word.
    """
    row: list[list[str]] = []
    for number, line in lines:
        if not line or line.startswith(_DOCUMENT):
            if row:
                yield [list(column) for column in zip(*row, strict=True)]
            row = []
            continue
        if line.startswith("#") and layout.is_comment(line):
            continue
        cells = layout.cells(line)
        if len(cells) != layout.count:
            raise DataError(
                f"{place}: line {number} must have {layout.count} columns, as line {layout.line} has, got "
                f"{len(cells)}: {line!r:.60}. Mend the line; sentences are parted by blank lines."
            )
        if not cells[layout.words]:
            raise DataError(f"{place}: line {number} must have a word in column {layout.words}, got {line!r:.60}.")
        if not (layout.numbered and _INSERTED.fullmatch(cells[0])):
            row.append(cells)
    if row:
        yield [list(column) for column in zip(*row, strict=True)]


def _lines(opener: Opener, place: str | Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of lines, without the blanks at their end."""
    return ((number, line.rstrip(" \t\r\n\v\f")) for number, line in text_lines(opener, place))


def _batches(rows: Iterable[list[list[str]]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Sentences in batches of bounded size."""
    held: list[list[list[str]]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += sum(len(cell) for column in row for cell in column)
        if size > BATCH or len(held) == 65536:
            yield _batch(held, schema)
            held, size = [], 0
    if held:
        yield _batch(held, schema)


def _batch(rows: list[list[list[str]]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays([pa.array(list(column), _CELLS) for column in columns], schema=schema)
