"""Gradients of several losses side by side, for methods that combine them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polymodal.model import Model
from polymodal.ranks import Ranks


class Gradients:
    """Gradients of several losses, one per row, over all parameters side by side, the shared ones first.

    Shared are the thawed backbones, the encoders and the fusion; heads, own heads and the alignment are not.
    """

    def __init__(self, model: Model, ranks: Ranks) -> None:
        groups = {name: [p for p in model.branch(name) if p.requires_grad] for name in model.names}
        shared = [p for group in groups.values() for p in group]
        shared += [p for p in model.fusion.parameters() if p.requires_grad]
        elsewhere = ("thawed.", "encoders.", "fusion.", "linear.")  # the linear models learn by themselves
        own = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(elsewhere)]
        self.parameters, self.ranks, self.sizes = shared + own, ranks, [p.numel() for p in shared + own]
        self.shared = sum(p.numel() for p in shared)
        self.encoders, start = dict[str, slice](), 0
        for name, group in groups.items():
            end = start + sum(p.numel() for p in group)
            self.encoders[name], start = slice(start, end), end
        self.used = torch.zeros(len(self.parameters), dtype=torch.int32)

    def of(self, losses: Sequence[Tensor | None]) -> Tensor:
        """Differentiate each loss, None being 0, and add up over ranks. (R, P)."""
        first = self.parameters[0]
        rows = torch.zeros(len(losses), sum(self.sizes), device=first.device)
        used = torch.zeros(len(self.parameters), dtype=torch.int32, device=first.device)
        blank = [torch.zeros(1, device=first.device).expand(size) for size in self.sizes]
        real = [(i, loss) for i, loss in enumerate(losses) if loss is not None and loss.requires_grad]
        for i, loss in real:
            found = torch.autograd.grad(loss, self.parameters, retain_graph=i < real[-1][0], allow_unused=True)
            used |= torch.tensor([g is not None for g in found], dtype=torch.int32).to(used)
            pieces = [zero if g is None else g.flatten().float() for zero, g in zip(blank, found, strict=True)]
            torch.cat(pieces, out=rows[i])
        self.used = self.ranks.add_up(used)
        return self.ranks.add_up(rows)

    def give(self, gradient: Tensor) -> None:
        """Let the parameters have their parts of (P,); those that no loss depends on get none."""
        parts = gradient.split(self.sizes)
        for p, part, used in zip(self.parameters, parts, self.used.tolist(), strict=True):
            p.grad = part.view_as(p).to(p.dtype) if used else None
