"""The spec that a table's columns suggest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.data.cells import resolve
from polymodal.data.infer import Guess, infer_inputs, infer_kinds, infer_task
from polymodal.data.listed import numbered, spanned, tagged
from polymodal.data.table import Table
from polymodal.errors import DataError
from polymodal.spec import Spec

SAMPLE = 2000
"""Rows, evenly spread, that guesses are made from."""

TAGGING = {"dim": 256}
"""Settings of a spec that tags words: each is told from what its own vector says, so that one is wider."""


def guess_columns(table: Table) -> dict[str, Guess]:
    """What each column seems to hold."""
    return _guessed(table, _sampled(table))


def _sampled(table: Table) -> dict[str, list[Any]]:
    """Cells of rows, evenly spread."""
    sample = table.select(np.unique(np.linspace(0, len(table) - 1, min(SAMPLE, len(table))).astype(int)))
    return {name: list(sample.column(name)) for name in table.columns}


def _guessed(table: Table, sample: Mapping[str, Sequence[Any]]) -> dict[str, Guess]:
    def exists(value: str) -> bool:
        place = resolve(value, table.base)
        return not isinstance(place, Path) or place.exists()

    return infer_kinds(sample, exists)


def infer_spec(table: Table, targets: Sequence[str]) -> Spec:
    """The spec that predicts some columns from all the others.

    Args:
        table: to learn from.
        targets: columns to predict, each by a task of its own.

    Raises:
        DataError: a target is not there or cannot be learnt, or nothing is left to learn from.
    """
    outputs, sample = dict[str, dict[str, Any]](), _sampled(table)
    others = {name: cells for name, cells in sample.items() if name not in targets}
    for target in targets:
        cells = table.column(target)
        about = tagged(sample[target], others) or spanned(sample[target], others)
        if words := numbered(sample[target], others):
            raise DataError(
                f"{table.source}: target {target!r} must hold the names of tags, one for each of the {words}, as "
                "'B-person', got whole numbers. Put the names in their place."
            )
        try:
            outputs[target] = {"type": "tag", "input": about} if about else infer_task(list(cells))
        except DataError as error:
            raise DataError(f"{table.source}: target {target!r}: {error}") from None
    guesses = _guessed(table, sample)
    guesses |= {part["input"]: Guess("words", "what a target tags") for part in outputs.values() if "input" in part}
    try:
        inputs = infer_inputs(guesses, targets)
    except DataError as error:
        raise DataError(f"{table.source}: {error}") from None
    spec: dict[str, Any] = {"inputs": inputs, "outputs": outputs}
    if any(task["type"] == "tag" for task in outputs.values()):
        spec |= TAGGING
        if len(outputs) == 1:  # the loss of words rises while more and more spans are right
            spec["training"] = {"monitor": "entity_f1"}
    return Spec.parse(spec)
