"""Permuted inputs: how much of the score rests on each input's being the row's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polymodal.data.gather import Progress, Rows, silent
from polymodal.data.loader import Prepared
from polymodal.diagnose.scores import Scorer
from polymodal.evaluate import BATCH, answers
from polymodal.model import Model
from polymodal.types import Masked

PERMUTATIONS = 5
"""Permutations whose scores are averaged."""


@dataclass(frozen=True, slots=True)
class PermutedRows:
    """Rows of one input in another order.

    Attributes:
        rows: in their own order.
        order: (rows,) which row stands where.
    """

    rows: Rows
    order: Tensor

    def batch(self, indices: Tensor) -> Masked:
        """Gather the rows that stand at some places (B,)."""
        return self.rows.batch(self.order[indices])


def presence(prepared: Prepared) -> dict[str, Tensor]:
    """Input name -> (rows,) bool, whether each of the prepared rows has it."""
    here: dict[str, list[Tensor]] = {name: [] for name in prepared.inputs}
    for rows in torch.arange(len(prepared)).split(BATCH):
        for name, x in prepared.batch(rows).inputs.items():
            here[name].append(x.present)
    return {name: torch.cat(parts) for name, parts in here.items()}


def permute(prepared: Prepared, name: str, present: Tensor, rng: np.random.Generator) -> Prepared:
    """The same rows with one input dealt out anew among those that have it; where it is absent, it stays absent.

    Args:
        prepared: rows with features.
        name: of the input.
        present: (rows,) bool, which of them have it.
        rng: of the order.
    """
    places = prepared.rows[present]
    order = torch.arange(int(prepared.rows.max()) + 1)
    order[places] = places[torch.from_numpy(rng.permutation(len(places)))]
    shuffled = PermutedRows(prepared.inputs[name], order)
    return replace(prepared, inputs={**prepared.inputs, name: shuffled})


@torch.no_grad()
def permuted(
    model: Model,
    prepared: Prepared,
    device: torch.device,
    scorers: Mapping[str, Scorer],
    present: Mapping[str, Tensor],
    seed: int,
    progress: Progress = silent,
) -> dict[str, dict[str, NDArray[Any] | None]]:
    """Score the model with each input permuted: the other half of the perceptual score.

    Source: Gat, Schwartz and Schwing 2021, "Perceptual Score" (arXiv:2110.14375), definition 1: the score on the rows
    less the expected score after permuting the input. Not divided by the score on the rows; and an absent cell stays
    where it is, so that presence is not permuted.

    Args:
        model: in evaluation mode.
        prepared: rows with features.
        device: of the model.
        scorers: task name -> what scores its outputs.
        present: input name -> (rows,) bool.
        seed: of the permutations.
        progress: told how many inputs are done.

    Returns:
        Task name -> input name -> sample (1 + R,) of the mean score over permutations; None where fewer than two rows
        have the input.
    """
    found: dict[str, dict[str, NDArray[Any] | None]] = {n: {} for n in scorers}
    for number, name in enumerate(model.names):
        rng = np.random.default_rng((seed, number))
        parts: dict[str, list[NDArray[Any]]] = {n: [] for n in scorers}
        for _ in range(PERMUTATIONS if int(present[name].sum()) > 1 else 0):
            seen = answers(model, permute(prepared, name, present[name], rng), device)
            for n, scorer in scorers.items():
                parts[n].append(scorer(seen.outputs[n]))
        for n, samples in parts.items():
            found[n][name] = np.mean(samples, axis=0) if samples else None
        progress("permuted inputs", number + 1, len(model.names))
    return found
