"""From the raw output of `tag` to sequences of tags, spans and their probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polymodal import metrics
from polymodal.metrics import Array, Spans
from polymodal.nn.chain import Chain, Passes

LOAD = 2**22
"""Numbers that one step of decoding holds at most, unless one row has more."""


class Split(NamedTuple):
    """A raw output (B, 2 + K + T, K + 1) in its parts: scores (B, T, K), gates (B, T), words per row (B,)."""

    chain: Chain
    emissions: Tensor
    gates: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, output: Tensor) -> Split:
        """Take the chain, which is the same in every row, from the first; there must be one."""
        k = output.shape[2] - 1
        scores, words = output[0, : 2 + k, :k], output[:, 2 + k :]
        here = (~words[..., k].isnan()).cumprod(1)
        return cls(Chain(scores[0], scores[1], scores[2:]), words[..., :k], words[..., k], here.sum(1))


def best(output: Tensor) -> tuple[Array, Array]:
    """The best sequence of tags of each row, and how many words it has.

    Args:
        output: (B, 2 + K + T, K + 1) on any device.

    Returns:
        (B, T) int, 0 behind the last word; (B,) int.
    """
    k = output.shape[2] - 1
    found = np.zeros((len(output), max(0, output.shape[1] - 2 - k)), np.int64)
    if not len(output):
        return found, np.zeros(0, np.int64)
    parts = Split.of(output.detach().cpu())
    for rows, longest in _alike(parts.lengths, k):
        tags = parts.chain.best(parts.emissions[rows, :longest], parts.lengths[rows])
        found[rows.numpy(), :longest] = tags.numpy()
    return found, parts.lengths.numpy()


def certainty(output: Tensor, tags: Array, spans: Spans, onward: Array) -> Array:
    """Probability of each span of the best sequences: that it is there, neither shorter nor longer. (S,).

    Args:
        output: (B, 2 + K + T, K + 1).
        tags: (B, T) the best sequences.
        spans: S of them.
        onward: (S,) the tag that would make each one longer, -1 where none would.
    """
    p = np.zeros(len(spans.row))
    if not len(p):
        return p
    parts = Split.of(output.detach().cpu())
    for rows, longest in _alike(parts.lengths, output.shape[2] - 1):
        place = np.full(len(output), -1)
        place[rows.numpy()] = np.arange(len(rows))
        mine = (place[spans.row] >= 0).nonzero()[0]
        if not len(mine):
            continue
        passes = Passes.of(parts.chain, parts.emissions[rows, :longest], parts.lengths[rows])
        chosen = torch.from_numpy(tags)[rows, :longest]
        where = (place[spans.row[mine]], spans.first[mine], spans.stop[mine], onward[mine])
        p[mine] = passes.runs(chosen, *(torch.from_numpy(x) for x in where)).numpy()
    return p


def spans_of(tags: Array, per_type: int) -> Spans:
    """Spans of sequences (N, T) of numbers of tags: 0 outside, then ``per_type`` tags a type, B I or B I E S.

    A sequence that breaks its scheme is read as `schemes.spans` does.
    """
    types, place = np.divmod(tags - 1, per_type)
    types = np.where(tags > 0, types, -1)
    ended = np.pad((place >= 2) & (tags > 0), ((0, 0), (1, 0)))[:, :-1]
    return metrics.spans_of(types, (place == 0) | (place == 3) | ended)


def _alike(lengths: Tensor, k: int) -> Iterator[tuple[Tensor, int]]:
    """Rows with words (R,) in groups of like lengths, each as large as the load allows, and the longest one's words."""
    rows = lengths.argsort(descending=True, stable=True)
    rows = rows[lengths[rows] > 0]
    while len(rows):
        longest = int(lengths[rows[0]])
        size = max(1, LOAD // (k * max(k, longest)))
        yield rows[:size], longest
        rows = rows[size:]


def marginals(output: Tensor) -> Tensor:
    """Probability of each word's tags by the chain (B, T, K) float64 on the CPU; 0 where there is no word."""
    k = output.shape[2] - 1
    found = torch.zeros(len(output), max(0, output.shape[1] - 2 - k), k, dtype=torch.double)
    if not len(output):
        return found
    parts = Split.of(output.detach().cpu())
    for rows, longest in _alike(parts.lengths, k):
        passes = Passes.of(parts.chain, parts.emissions[rows, :longest], parts.lengths[rows])
        found[rows, :longest] = passes.marginals().double()
    return found
