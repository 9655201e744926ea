"""Contrastive alignment of embeddings: the loss functions, and the term between the inputs of a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import SpecError
from polymodal.nn.blocks import Named
from polymodal.types import Masked

LARGEST = math.log(100)
"""Upper bound of the log scale of InfoNCE: the temperature stays at or above 0.01, as in CLIP."""

BIAS = -10.0
"""Where the bias of the sigmoid loss starts: nearly every pair of rows is a wrong one."""


NOTHING = -1e9
"""Logit of what is not there."""


def infonce(a: Tensor, b: Tensor, log_scale: Tensor, same: Tensor | None = None, hardness: float = 0.0) -> Tensor:
    """Cross-entropy of finding row i of one side among all rows of the other, the mean of both ways.

    Args:
        a: (R, D), rows of length 1; R at least 1.
        b: (R, D), row i the partner of row i of ``a``.
        log_scale: () log of the inverse temperature.
        same: (R, R) bool, which rows belong together besides partners, or None if no others do.
        hardness: of the negatives, see `contrast`.

    Returns:
        () nats; ln R where the embeddings say nothing and no other rows belong together.

    Source: van den Oord et al. 2018 (arXiv:1807.03748), equation 4, both ways as in Radford et al. 2021, "CLIP"
    (arXiv:2103.00020), figure 3.
    """
    logits = log_scale.exp() * a @ b.T
    if same is not None or hardness:
        same = torch.eye(len(a), dtype=torch.bool, device=a.device) if same is None else same
        return (contrast(logits, same, hardness) + contrast(logits.T, same.T, hardness)) / 2
    right = torch.arange(len(a), device=a.device)
    return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2


def contrast(logits: Tensor, same: Tensor, hardness: float = 0.0) -> Tensor:
    """Cross-entropy of telling each right partner from the wrong ones, the mean over each row's right partners.

    A right partner has the wrong ones against it and no other right one, so the least loss is 0 however many there are.

    Args:
        logits: (R, C), how well row i goes with each candidate.
        same: (R, C) bool, which candidates are right; at least one in each row.
        hardness: beta. A wrong candidate counts in proportion to e^(beta logit), the weights of a row having mean 1; 0
            counts all of them alike.

    Returns:
        () nats, the mean over rows; a row without a wrong candidate costs nothing.

    Source: Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv:2004.11362), equation 2, but for the other
    right partners, which are left out of the denominator here. Hardness: Robinson et al. 2021 (arXiv:2010.04592),
    section 3, with a class prior tau+ of 0, since it is known here which rows belong together.
    """
    wrong = (hardness * logits, (1 + hardness) * logits)
    tilt, whole = (x.masked_fill(same, NOTHING).logsumexp(1) for x in wrong)
    count = (~same).sum(1)
    against = torch.where(count > 0, whole - tilt + count.clamp(min=1).log(), NOTHING)
    each = functional.softplus(against[:, None] - logits).masked_fill(~same, 0.0)
    return (each.sum(1) / same.sum(1)).mean()


def sigmoid_loss(a: Tensor, b: Tensor, log_scale: Tensor, bias: Tensor, same: Tensor | None = None) -> Tensor:
    """Decide for every pair of rows, by itself, whether it belongs together.

    Args:
        a: (R, D), rows of length 1; R at least 1.
        b: (R, D), row i the partner of row i of ``a``.
        log_scale: () log of the inverse temperature.
        bias: () added to every logit.
        same: (R, R) bool, which rows belong together, partners included; None if only partners do.

    Returns:
        () nats per row: the sum over the R pairs of each row, averaged over rows.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv:2303.15343), section
    3.2 and algorithm 1.
    """
    logits = log_scale.exp() * a @ b.T + bias
    sign = 2 * (torch.eye(len(a), dtype=logits.dtype, device=a.device) if same is None else same.to(logits.dtype)) - 1
    return -functional.logsigmoid(sign * logits).sum() / len(a)


def shortened(x: Tensor, width: int | None) -> Tensor:
    """The first entries of embeddings (..., D), scaled to length 1 again; as they are where ``width`` is None.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv:2205.13147), section 3.
    """
    return x if width is None or width == x.shape[-1] else functional.normalize(x[..., :width], dim=-1)


class Alignment(nn.Module):
    """Draw the inputs' embeddings of one row together, and those of different rows apart, for every pair of inputs.

    An input's embedding is the mean of its encoded tokens, mapped linearly and scaled to length 1. Every pair of
    inputs has a temperature (and a bias) of its own, so each is exactly the published loss. Rows that lack one
    input of a pair have no say in it. Rows of the same content are told apart like any others: two copies of a row in
    one batch are false negatives for each other. Where several processes train, each compares the rows that it has.

    Source: see `infonce` and `sigmoid_loss`. The scale of InfoNCE is clipped at 100 after CLIP, section 2.5; bias and
    temperature of the sigmoid loss start at -10 and, by default, 0.1 after Zhai et al., algorithm 1.

    Attributes:
        names: the aligned inputs.
        pairs: of names, in the order of ``log_scale``.
    """

    def __init__(self, names: Sequence[str], dim: int, kind: str, temperature: float) -> None:
        super().__init__()
        self.names = tuple(names)
        self.pairs = tuple(itertools.combinations(self.names, 2))
        if not self.pairs:
            raise SpecError(f"alignment must have two or more inputs, got {list(names)}. Leave it out.")
        self.project = Named({name: nn.Linear(dim, dim, bias=False) for name in self.names})
        self.log_scale = nn.Parameter(torch.full((len(self.pairs),), -math.log(temperature)))
        self.bias = nn.Parameter(torch.full((len(self.pairs),), BIAS)) if kind == "sigmoid" else None

    def forward(self, encoded: Mapping[str, Masked]) -> tuple[Tensor, Tensor]:
        """Compare the rows of a batch.

        Args:
            encoded: input name -> (B, T, D), any rows absent. Inputs that are not aligned are passed over.

        Returns:
            () mean over the pairs of inputs that have enough rows (two for InfoNCE, one for the sigmoid loss), 0 with
            a gradient path where none has; () long, the number of rows in any of them.
        """
        if self.bias is None and self.training:
            with torch.no_grad():
                self.log_scale.clamp_(max=LARGEST)  # a clamp in the formula would stop the gradient for good
        embedded = {name: self.embed(name, encoded[name]) for name in self.names if name in encoded}
        losses, counted = [], torch.zeros_like(next(iter(encoded.values())).present)
        for i, (first, second) in enumerate(self.pairs):
            if first not in embedded or second not in embedded:
                continue
            rows = encoded[first].present & encoded[second].present
            if int(rows.sum()) >= (2 if self.bias is None else 1):
                losses.append(self._loss(i, embedded[first][rows], embedded[second][rows]))
                counted |= rows
        loss = torch.stack(losses).mean() if losses else self.log_scale.sum() * 0
        return loss, counted.sum()

    def embed(self, name: str, x: Masked) -> Tensor:
        """An input's tokens (B, T, D) as one vector of length 1 per row, zeros where it is absent. (B, D)."""
        return functional.normalize(self.project[name](x.mean()).float(), dim=-1)

    def _loss(self, pair: int, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):  # a cosine times 100 needs more than eight bits
            if self.bias is None:
                return infonce(a, b, self.log_scale[pair])
            return sigmoid_loss(a, b, self.log_scale[pair], self.bias[pair])
