"""The spec that a table's columns suggest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polymodal.data.cells import resolve
from polymodal.data.infer import Guess, infer_inputs, infer_kinds, infer_task
from polymodal.data.table import Table
from polymodal.errors import DataError
from polymodal.spec import Spec

SAMPLE = 2000
"""Rows, evenly spread, that guesses are made from."""


def guess_columns(table: Table) -> dict[str, Guess]:
    """What each column seems to hold."""
    sample = table.select(np.unique(np.linspace(0, len(table) - 1, min(SAMPLE, len(table))).astype(int)))

    def exists(value: str) -> bool:
        place = resolve(value, table.base)
        return not isinstance(place, Path) or place.exists()

    return infer_kinds({name: list(sample.column(name)) for name in table.columns}, exists)


def infer_spec(table: Table, targets: Sequence[str]) -> Spec:
    """The spec that predicts some columns from all the others.

    Args:
        table: to learn from.
        targets: columns to predict, each by a task of its own.

    Raises:
        DataError: a target is not there or cannot be learnt, or nothing is left to learn from.
    """
    outputs = {}
    for target in targets:
        try:
            outputs[target] = infer_task(list(table.column(target)))
        except DataError as error:
            raise DataError(f"{table.source}: target {target!r}: {error}") from None
    try:
        inputs = infer_inputs(guess_columns(table), targets)
    except DataError as error:
        raise DataError(f"{table.source}: {error}") from None
    return Spec.parse({"inputs": inputs, "outputs": outputs})
