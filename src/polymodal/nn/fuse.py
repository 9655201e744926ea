"""What the modules of several fusions share: inputs in a fixed order, pooled vectors, the way back to the tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import DataError, SpecError, suggest
from polymodal.nn.blocks import Block
from polymodal.types import Fused, Masked


class FusionModule(nn.Module, ABC):
    """{name: Masked (B, T, dim)} -> `Fused`, whatever the order of the names and whichever of them are given.

    Attributes:
        names: of the inputs as they were given: the order of `Fused.weights`.
        order: the names sorted: the order of every parameter with an axis over inputs, and of all lists inside.
        dim: D.
    """

    def __init__(self, names: Sequence[str], dim: int, heads: int = 1) -> None:
        super().__init__()
        self.names, self.order, self.dim = tuple(names), tuple(sorted(names)), dim
        if not names or len(set(names)) != len(names):
            raise SpecError(f"inputs must be one or more different names, got {list(names)}. Rename or add an input.")
        if dim % heads:
            raise SpecError(
                f"fusion.heads must divide the model width {dim}, got {heads}. Choose another number of heads or width."
            )

    def arrange(self, inputs: Mapping[str, Masked]) -> list[Masked]:
        """Each input's tokens in sorted order of names, with zeros behind the mask; one absent token where not given.

        Raises:
            DataError: there is no input at all, or one that the fusion was not built for.
        """
        if unknown := sorted(set(inputs) - set(self.order)):
            hint = suggest(unknown[0], self.order)
            raise DataError(f"inputs must be among {list(self.order)}, got {unknown[0]!r}.{hint} Take it out.")
        if not inputs:
            raise DataError(f"inputs must hold at least one of {list(self.order)}, got none. Give one, all masked.")
        some = next(iter(inputs.values()))
        nothing = Masked(torch.zeros_like(some.values[:, :1]), torch.zeros_like(some.mask[:, :1]))
        return [blank(inputs[name]) if name in inputs else nothing for name in self.order]

    def fused(self, pooled: Tensor, tokens: Sequence[Masked], weights: Tensor | None = None) -> Fused:
        """Put names on tokens in sorted order, and weights (B, M) in sorted order into the order of `names`."""
        if weights is not None and self.names != self.order:
            weights = torch.stack([weights[:, self.order.index(name)] for name in self.names], 1)
        return Fused(pooled, dict(zip(self.order, tokens, strict=True)), weights)

    @abstractmethod
    def forward(self, inputs: Mapping[str, Masked]) -> Fused:
        """Fuse the inputs."""


class VectorFusion(FusionModule):
    """A fusion of one vector per input. Its result is handed back to the tokens, for heads that need tokens."""

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__(names, dim)
        self.hand_back = HandBack(len(names), dim)

    def vectors(self, tokens: Sequence[Masked]) -> Tensor:
        """One vector per input, zeros where absent. (B, M, D)."""
        return means(tokens)

    @abstractmethod
    def join(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Fuse one vector per input.

        Args:
            vectors: (B, M, D), zeros where absent.
            present: (B, M) bool.

        Returns:
            The pooled vector (B, D), and the weights (B, M) of a fusion that weighs.
        """

    def forward(self, inputs: Mapping[str, Masked]) -> Fused:
        """Fuse the inputs' vectors, and add a map of the result to their tokens."""
        tokens = self.arrange(inputs)
        pooled, weights = self.join(self.vectors(tokens), presence(tokens))
        return self.fused(pooled, self.hand_back(pooled, tokens), weights)


class HandBack(nn.Module):
    """Adds a linear map of the pooled vector (B, D) to each input's tokens. Starts at zero: tokens as they came."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, inputs * dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, pooled: Tensor, tokens: Sequence[Masked]) -> list[Masked]:
        """Tell the tokens what the inputs say together; masks and positions stay, zeros stay behind the mask."""
        news = self.project(pooled).unsqueeze(1).chunk(len(tokens), -1)
        return [blank(Masked(x.values + new, x.mask, x.at)) for x, new in zip(tokens, news, strict=True)]


class PerInput(nn.Module):
    """A linear map for each input, in one multiplication: (B, M, D) -> (B, M, size)."""

    def __init__(self, inputs: int, dim: int, size: int, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(dim)
        self.weight = nn.Parameter(torch.empty(inputs, dim, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(inputs, size).uniform_(-bound, bound)) if bias else None

    def forward(self, vectors: Tensor) -> Tensor:
        """Map each input's vector."""
        y = torch.bmm(vectors.transpose(0, 1), self.weight).transpose(0, 1)
        return y if self.bias is None else y + self.bias


class Joint(nn.Module):
    """Normalised vectors (B, M, D), side by side, through a perceptron with one hidden layer of width D. (B, D).

    A learned vector stands in for an absent input, so that absent differs from any real content.
    """

    def __init__(self, inputs: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.absent = nn.Parameter(torch.randn(inputs, dim) * 0.02)
        hidden = nn.Linear(inputs * dim, dim)
        self.mlp = nn.Sequential(hidden, nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Join the vectors (B, M, D) of inputs, present (B, M) or not."""
        return self.mlp(torch.where(present[..., None], normalise(vectors), self.absent).flatten(1))


def blocks(count: int, dim: int, heads: int, dropout: float) -> nn.ModuleList:
    """``count`` transformer blocks, each with its own weights."""
    return nn.ModuleList(Block(dim, heads, dropout) for _ in range(count))


def blank(x: Masked) -> Masked:
    """The same tokens with zeros behind the mask, where no gradient passes either."""
    return Masked(x.values.masked_fill(~x.mask[..., None], 0.0), x.mask, x.at)


def means(tokens: Sequence[Masked]) -> Tensor:
    """Mean over the real tokens of each input, zeros where absent. (B, M, D)."""
    return torch.stack([x.mean() for x in tokens], 1)


def presence(tokens: Sequence[Masked]) -> Tensor:
    """Which inputs have anything real, per row. (B, M) bool."""
    return torch.stack([x.present for x in tokens], 1)


def normalise(vectors: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last axis; zeros stay zeros. A linear layer behind it makes a scale needless."""
    return functional.layer_norm(vectors, [int(vectors.shape[-1])])


def present_mean(vectors: Tensor, present: Tensor) -> Tensor:
    """Mean of (B, M, D) over present inputs (B, M); zeros where there is none. (B, D)."""
    total = vectors.masked_fill(~present[..., None], 0.0).sum(1)
    return total / present.sum(1, keepdim=True).clamp(min=1).to(total.dtype)


def present_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax of (B, M, ...) over the present inputs (B, M, ...): absent ones 0, all 0 where there is none."""
    scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
    return scores.softmax(1) * present
