"""Problems of the data: rows, labels, copies, leaks and groups of rows that a person should look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from polymodal.data.loader import Prepared
from polymodal.data.table import Table
from polymodal.diagnose import neighbours
from polymodal.diagnose.labels import label_errors
from polymodal.diagnose.rows import Answered
from polymodal.diagnose.slices import SMALLEST, slices
from polymodal.evaluate import answers
from polymodal.model import Model

MOST = 50_000
"""Rows that are looked at; of a larger table, or larger training data, a random sample."""

WORST = 20
"""Rows that are listed as the worst, per task."""


def problems(
    model: Model,
    prepared: Prepared,
    table: Table,
    device: torch.device,
    *,
    train: Prepared | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What is wrong with the rows of a table, as far as a model's answers to them can tell.

    Row numbers are those of the table. Time is linear in the rows but for near copies, whose time is
    quadratic up to 10,000 rows.

    Args:
        model: in evaluation mode.
        prepared: rows of the table, which the model should not have learned from.
        table: that ``prepared`` was made from.
        device: of the model.
        train: the rows that the model learned from, to look for leaks.
        seed: of samples, random directions and permutations.

    Returns:
        ``worst``, ``labels`` and ``slices`` by task; ``conflicts`` and ``leakage`` of all; ``notes``: what was sampled,
        how much was tested, in words. All of it JSON.
    """
    notes: list[str] = []
    prepared = _sample(prepared, "rows", seed, notes)
    sides = [prepared] if train is None else [prepared, _sample(train, "training rows", seed, notes)]
    seen = neighbours.features(model, sides, device, seed)
    if max(map(len, sides)) > neighbours.PAIRED:
        notes.append(f"near copies: sought among a random sample of {neighbours.PAIRED} rows")
    if any(one.screened for one in seen.values()):
        notes.append(f"near copies: sought along {neighbours.DIRECTIONS} random directions, which may miss a few")
    full = answers(model, prepared, device)
    found: dict[str, Any] = {"worst": {}, "labels": {}, "conflicts": [], "leakage": [], "slices": {}, "notes": notes}
    for name in model.spec.outputs:
        answered = Answered.of(name, model.spec, full, prepared, table)
        found["worst"][name] = worst(model, prepared, answered, device)
        found["labels"][name] = label_errors(answered, seed)
        found["conflicts"] += neighbours.conflicts(seen, answered, prepared)
        found["slices"][name] = _slices(model, prepared, answered, table, seed, notes)
    if train is not None:
        found["leakage"] = neighbours.leaks(seen, *sides)
    return found


def _sample(prepared: Prepared, what: str, seed: int, notes: list[str]) -> Prepared:
    """At most `MOST` rows, in order, and a note where that is not all of them."""
    if len(prepared) <= MOST:
        return prepared
    notes.append(f"{what}: a random sample of {MOST} of {len(prepared)}")
    picked = np.random.default_rng(seed).choice(len(prepared), MOST, replace=False)
    return prepared.select(np.sort(picked))


def worst(model: Model, prepared: Prepared, answered: Answered, device: torch.device) -> list[dict[str, Any]]:
    """The rows of largest loss, and the loss of each with only one of its inputs.

    Returns:
        ``row``, ``loss`` (in the task's unit), ``truth`` and ``predicted`` as a person writes them, ``by_input``: the
        loss where everything but that input is hidden, for inputs that are present. Largest loss first.
    """
    losses = answered.losses()
    order = np.argsort(-losses, kind="stable")  # NaN comes last
    some = order[np.isfinite(losses[order])][:WORST]
    if not len(some):
        return []
    picked, names = prepared.select(answered.place[some]), list(model.spec.inputs)
    present = _present(picked, names)
    alone = {}
    for name in names:
        seen = answers(model, picked, device, [other for other in names if other != name])
        one = Answered(
            answered.name, answered.task, some, answered.rows[some], seen.outputs[answered.name],
            seen.targets[answered.name], answered.given,
        )  # fmt: skip
        alone[name] = one.losses()
    return [
        {
            "row": int(answered.rows[i]),
            "loss": float(losses[i]),
            "truth": answered.truth(i),
            "predicted": answered.predicted(i),
            "by_input": {n: float(alone[n][j]) for n in names if present[n][j] and np.isfinite(alone[n][j])},
        }
        for j, i in enumerate(some.tolist())
    ]


def _present(prepared: Prepared, names: list[str]) -> dict[str, np.ndarray]:
    """Input name -> (n,) bool, which rows have it."""
    batches = [prepared.batch(rows).inputs for rows in torch.arange(len(prepared)).split(256)]
    return {name: torch.cat([batch[name].present for batch in batches]).numpy() for name in names}


def _slices(
    model: Model, prepared: Prepared, answered: Answered, table: Table, seed: int, notes: list[str]
) -> list[dict[str, Any]]:
    parts = model.spec.inputs
    present = _present(prepared.select(answered.place), list(parts)) if len(answered) else {}
    media = [column for name, part in parts.items() if part.media for column in part.columns(name)]
    found, tested = slices(answered, table, present, media, seed)
    notes.append(f"slices of {answered.name}: {tested} of at least {SMALLEST} rows were tested")
    return found
