"""Targets of `tag`: what a cell says of a sentence's words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from polymodal import schemes
from polymodal.errors import DataError
from polymodal.schemes import Span
from polymodal.sentence import Sentence
from polymodal.task import Labelled


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


def are_entities(given: Sequence[Labelled], usual: bool) -> bool:
    """Whether an empty list among targets means no entity, and not that tags are missing.

    Args:
        given: targets of one table. Broken ones count nowhere.
        usual: what holds where all lists are empty.
    """
    firsts = list[Any]()
    for label, _ in given:
        with suppress(DataError):
            firsts += cell(label)[:1]
    return any(not isinstance(first, str) for first in firsts) if firsts else usual


def read(target: Labelled, entities: bool) -> list[Span] | None:
    """The spans that a target names by tags or by characters; None where there is neither a word nor a tag.

    What it says of words that are no longer in the sentence, since that was cut, is left out.

    Args:
        target: a cell, and the sentence that it is about.
        entities: whether an empty list means no entity.

    Raises:
        DataError: it does not fit the sentence, or breaks the rules of how it is written.
    """
    row, sentence = cell(target.label), target.value
    if sentence is None:
        if row:
            raise DataError(
                f"target must be of a row with words, got {len(row)} tags or entities and no word. Mend the row, or "
                "empty the target."
            )
        return None
    if not isinstance(row[0], str) if row else entities:
        return schemes.by_characters(row, sentence)
    if len(row) > len(sentence) and _was_cut(sentence):
        row = row[: len(sentence)]
    if len(row) != len(sentence):
        shown = " ".join(sentence.words)
        raise DataError(
            f"tags must be as many as the words, got {len(row)} tags and {len(sentence)} words ({shown!r:.60}). "
            f"Mend the row."
        )
    return schemes.spans(row)


def _was_cut(sentence: Sentence) -> bool:
    """Whether the text goes on behind the last word."""
    return bool(sentence.text[sentence.end(len(sentence) - 1) :].strip())
