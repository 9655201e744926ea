"""Targets of `tag`: what a cell says of a sentence's words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from polymodal import schemes
from polymodal.errors import DataError
from polymodal.schemes import Span
from polymodal.sentence import Sentence
from polymodal.task import Labelled

SPANS = "spans"
"""How targets are written that are entities by their characters, and no tags."""


def cell(label: Any) -> list[Any]:
    """The list that a cell holds: as it stands, as JSON, or as tags with blanks between them.

    Raises:
        DataError: it holds none.
    """
    if isinstance(label, str):
        try:
            label = json.loads(label) if label.lstrip().startswith(("[", "{")) else label.split()
        except json.JSONDecodeError as error:
            raise DataError(f"target must be JSON where it starts as such, got {label!r:.60}: {error}.") from None
    label = label.tolist() if isinstance(label, np.ndarray) else label
    if not isinstance(label, list | tuple):
        raise DataError(
            f"target must be a list of tags, one per word, or of entities with start, end and type, "
            f"got {label!r:.60} ({type(label).__name__}). Mend the cell, or leave it empty."
        )
    return list(label)


def how_written(given: Sequence[Labelled]) -> str:
    """The scheme of the targets that are tags, or `SPANS`. Broken ones count nowhere.

    Raises:
        DataError: some are tags and some are entities, or the tags are of no one scheme.
    """
    rows, entities = list[list[Any]](), False
    for label, _ in given:
        try:
            row = cell(label)
            if row and not isinstance(row[0], str):
                entities = True
            else:
                for tag in row:
                    schemes.parts(tag)
                rows.append(row)
        except DataError:
            continue
    if entities and any(rows):
        raise DataError("targets must all be tags or all be entities with offsets, got both. Keep to one.")
    return SPANS if entities else schemes.detect(rows)


def read(target: Labelled, written: str) -> list[Span]:
    """The spans that a target names.

    What it says of words that are no longer in the sentence, since that was cut, is left out.

    Args:
        target: a cell, and the sentence that it is about.
        written: a scheme, or `SPANS`.

    Raises:
        DataError: it does not fit the sentence, or breaks the rules of how it is written.
    """
    row, sentence = cell(target.label), target.value
    if written == SPANS:
        return schemes.by_characters(row, sentence)
    if len(row) > len(sentence) and _was_cut(sentence):
        row = row[: len(sentence)]
    if len(row) != len(sentence):
        shown = " ".join(sentence.words)
        raise DataError(
            f"tags must be as many as the words, got {len(row)} tags and {len(sentence)} words ({shown!r:.60}). "
            f"Mend the row."
        )
    return schemes.spans(row, written)


def _was_cut(sentence: Sentence) -> bool:
    """Whether the text goes on behind the last word."""
    return bool(sentence.text[sentence.end(len(sentence) - 1) :].strip())
