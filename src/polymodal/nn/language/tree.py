"""Tree: how probable each of several answers is, all of them in one pass through a language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polymodal.nn.language.model import Language
from polymodal.types import Masked


class Tree:
    """Several continuations of one prompt, side by side: each sees the prompt and itself.

    The prompt is read once per row, and a row's continuations do not see one another, so that their scores are those
    that each would have alone.

    Source: Cai et al. 2024, "Medusa" (arXiv:2401.10774), section 3.1.1, the mask of tree attention.

    Args:
        answers: token ids of each of K continuations, none empty.
        end: the token that follows each of them.
    """

    def __init__(self, answers: Sequence[Sequence[int]], end: int) -> None:
        sizes = [len(ids) for ids in answers]
        self.longest, self.count = max(sizes) + 1, len(answers)
        self._ids = torch.tensor([i for ids in answers for i in ids])
        self._own = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))  # (M,) whose token it is
        self._depth = torch.cat([torch.arange(size) for size in sizes])
        self._next = torch.tensor([i for ids in answers for i in (*ids[1:], end)])

    def scores(self, language: Language, prompts: Masked, checkpointing: bool = False) -> Tensor:
        """Log-likelihood of each continuation and the end behind it, in nats. (B, K) float32, with gradient.

        Args:
            language: that reads.
            prompts: (B, L, W) embeddings, real anywhere.
            checkpointing: compute layers again for the gradient.
        """
        device, x = prompts.mask.device, left_padded(prompts)
        ids, own, depth, following = (t.to(device) for t in (self._ids, self._own, self._depth, self._next))
        length, counts = x.mask.shape[1], x.mask.sum(1)
        values = torch.cat([x.values, language.embed(ids).to(x.values.dtype).expand(len(x), -1, -1)], 1)
        positions = torch.cat([(x.mask.cumsum(1) - 1).clamp(min=0), counts[:, None] + depth], 1)
        keep = torch.arange(length - 1, length + len(ids), device=device)
        logits = language.logits(values, self._seen(x.mask, own, depth), positions, keep, checkpointing)
        logs = logits.float().log_softmax(-1)
        first = logs[:, 0, ids[depth == 0]]  # (B, K)
        later = logs[:, 1:].gather(2, following.expand(len(x), -1)[..., None]).squeeze(2)  # (B, M)
        return first.index_add(1, own, later)

    @staticmethod
    def _seen(real: Tensor, own: Tensor, depth: Tensor) -> Tensor:
        """Which positions (L + M) each one sees, itself always. (B, L + M, L + M) bool."""
        rows, length, more = len(real), real.shape[1], len(own)
        seen = torch.zeros(rows, length + more, length + more, dtype=torch.bool, device=real.device)
        seen[:, :length, :length] = torch.ones_like(seen[0, :length, :length]).tril() & real[:, None]
        seen[:, length:, :length] = real[:, None]
        seen[:, length:, length:] = (own[:, None] == own) & (depth[:, None] >= depth)
        return seen | torch.eye(length + more, dtype=torch.bool, device=real.device)


def left_padded(x: Masked) -> Masked:
    """The real positions of each row at its right end, in their order."""
    order = torch.argsort(x.mask.long(), dim=1, stable=True)
    longest = max(1, int(x.mask.sum(1).max())) if len(x) else 1
    order = order[:, -longest:]
    return Masked(x.values.gather(1, order[..., None].expand(-1, -1, x.values.shape[2])), x.mask.gather(1, order))
