"""The head of `tag`: for every word a score of each tag, the scores of neighbours, and the gate of the other inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polymodal.nn.chain import FORBIDDEN
from polymodal.schemes import OUTSIDE, may_follow
from polymodal.types import Fused, Masked

CLOSED = -2.0
"""Bias of a new gate: it lets an eighth through."""


class TagHead(nn.Module):
    """`Fused` -> (B, 2 + K + T, K + 1): scores of starts, ends and steps, then of the tags of T words.

    The last column holds each word's gate, and 0 beside the scores of the chain. A word that is not there is all NaN.

    Args:
        name: of the input whose tokens are words.
        dim: D.
        tags: the K tags.
        scheme: whose rules they keep.
        learned: whether starts, ends and steps have scores of their own, beside what the scheme forbids.
        gated: whether there are other inputs.
    """

    rules: Tensor

    def __init__(self, name: str, dim: int, tags: Sequence[str], scheme: str, learned: bool, gated: bool) -> None:
        super().__init__()
        self.name = name
        self.emit = nn.Linear(dim, len(tags))
        self.gate = nn.Linear(dim, 1) if gated else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, CLOSED)
        self.chain = nn.Parameter(torch.zeros(2 + len(tags), len(tags))) if learned else None
        rows = [
            [may_follow(OUTSIDE, tag, scheme) for tag in tags],
            [may_follow(tag, OUTSIDE, scheme) for tag in tags],
            *([may_follow(before, tag, scheme) for tag in tags] for before in tags),
        ]
        self.register_buffer("rules", (~torch.tensor(rows)) * FORBIDDEN, persistent=False)

    def forward(self, fused: Fused) -> Tensor:
        """Score every word. Without the input, there is one word that is not there."""
        x = fused.tokens.get(self.name)
        if x is None:
            gone = torch.zeros_like(fused.pooled[:, :1], dtype=torch.bool)
            x = Masked(torch.zeros_like(fused.pooled)[:, None], gone)
        real = x.mask[..., None]
        clean = x.values.masked_fill(~real, 0.0)
        scores = self.emit(clean)
        words = torch.cat([scores, self._open(clean, fused).to(scores.dtype)], 2).masked_fill(~real, torch.nan)
        chain = self.rules if self.chain is None else self.rules + self.chain
        chain = nn.functional.pad(chain, (0, 1)).to(words.dtype)
        return torch.cat([chain.expand(words.shape[0], -1, -1), words], 1)

    def _open(self, clean: Tensor, fused: Fused) -> Tensor:
        """How far each word's gate is open (B, T, 1): 1 where there is no other input, 0 where the row has none."""
        if self.gate is None:
            return torch.ones_like(clean[..., :1])
        others = [x.present for name, x in fused.tokens.items() if name != self.name]
        if not others:
            return torch.zeros_like(clean[..., :1])
        known = torch.stack(others).any(0)[:, None, None]
        return self.gate(clean).sigmoid().nan_to_num(0.0) * known  # NaN is kept for words that are not there
