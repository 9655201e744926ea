"""How each input learned: its share of the gradient, its speed, and whether training gave it its due.

The figures come from the history of a fit (`train.Epoch`): ``gradients`` (norm of the gradient of each input's encoder,
mean over an epoch's steps) and ``valid_terms`` ("label from image": loss of an input's own head on validation rows).

The rule of ``use``, ours: an input's *worth* is its share of what all inputs could give (the score of its ceiling above
chance). It is **under**-used if its share of the gradient is less than half of its worth, **over**-used if it is more
than twice its worth, **even** otherwise, and **unknown** if the history has no gradients, or no input is worth anything
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FALLEN = 0.9
"""Share of the fall of a head's loss that counts as having learned."""

FACTOR = 2.0
"""How far a share of the gradient may lie from the worth."""

LEAST = 0.01
"""Fall of a head's loss, in nats for likelihoods, below which it learned nothing and has no speed."""


def learning(
    history: Sequence[Mapping[str, Any]], tasks: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, dict[str, Any]]] | None:
    """Describe how each input learned.

    Args:
        history: epochs of a fit, as in its report.
        tasks: task name -> input name -> what the input could give: its ceiling's score above chance.

    Returns:
        Task name -> input name -> ``gradient_share``, ``speed`` in epochs, ``fall`` in units of the loss, ``use``. None
        where the history holds neither gradients nor the heads' losses (models of older versions).
    """
    known = [epoch for epoch in history if epoch.get("gradients") or epoch.get("valid_terms")]
    if not known:
        return None
    return {n: _task(known, n, potential) for n, potential in tasks.items()}


def _task(history: Sequence[Mapping[str, Any]], task: str, potential: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    shares = gradient_shares(history, list(potential))
    curves = {name: own_losses(history, task, name) for name in potential}
    # Every head starts from about the same ignorance, and a fast one has left it behind when its first epoch ends.
    start = max((curve[0] for curve in curves.values() if curve), default=math.nan)
    worths = _shares({name: max(0.0, value) for name, value in potential.items()})
    found = {}
    for name, curve in curves.items():
        fall = start - min(curve) if curve else None
        found[name] = {
            "gradient_share": shares.get(name),
            "speed": speed(curve, start),
            "fall": fall,
            "use": use(shares, worths, name),
        }
    return found


def gradient_shares(history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Each input's share of the gradients' norms, summed over epochs; empty where none were kept."""
    totals = dict.fromkeys(names, 0.0)
    for epoch in history:
        for name, norm in (epoch.get("gradients") or {}).items():
            if name in totals and math.isfinite(norm):
                totals[name] += norm
    return _shares(totals)


def own_losses(history: Sequence[Mapping[str, Any]], task: str, name: str) -> list[float]:
    """Loss of an input's own head on the validation rows, epoch by epoch; empty where it was not kept."""
    losses = [(epoch.get("valid_terms") or {}).get(f"{task} from {name}") for epoch in history]
    return [loss for loss in losses if loss is not None and math.isfinite(loss)]


def speed(curve: Sequence[float], start: float) -> int | None:
    """Epochs, from 1, until a loss has done 90 % of its fall from ``start`` to its lowest; None if it hardly fell."""
    fall = start - min(curve, default=start)
    if not fall >= LEAST:
        return None
    return 1 + next(epoch for epoch, loss in enumerate(curve) if start - loss >= FALLEN * fall)


def use(shares: Mapping[str, float], worths: Mapping[str, float], name: str) -> str:
    """Compare the share of the gradient with the worth, by the rule above."""
    if not shares or not worths:
        return "unknown"
    if shares[name] * FACTOR < worths[name]:
        return "under"
    return "over" if shares[name] > FACTOR * worths[name] else "even"


def _shares(values: Mapping[str, float]) -> dict[str, float]:
    """Scale values so that they sum to 1; empty where they are all 0."""
    total = sum(values.values())
    return {name: value / total for name, value in values.items()} if total > 0 else {}
