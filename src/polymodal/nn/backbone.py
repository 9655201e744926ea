"""Backbone: a pretrained network with masks outside and plain tensors inside, so that any runtime can run it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from polymodal.types import Masked


class Backbone(nn.Module, ABC):
    """Masked values -> Masked tokens (B, T, W), around a ``net`` of plain tensors.

    ``net`` is what an inference runtime replaces: every tensor it takes and returns starts with the same batch axis.

    Attributes:
        net: module from the tensors of `tensors` to one tensor.
        width: W.
        digest: hash that names the weights (and how they are used): part of every cache key.
        packaged: names in `polymodal.nn.weights.PACKAGED` of the files it is made of.
        hub: name of the hub model it is made of.
    """

    net: nn.Module
    width: int
    digest: str
    packaged: tuple[str, ...] = ()
    hub: str | None = None

    @abstractmethod
    def tensors(self, x: Masked) -> tuple[Tensor, ...]:
        """What ``net`` takes for collated values. Every row is present."""

    @abstractmethod
    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """Turn ``net``'s result for ``x`` into tokens (B, T, W) with mask and positions."""

    def dynamic(self) -> list[dict[int, str]]:
        """Axes beside the batch whose length varies, per tensor of `tensors`: [{1: "length"}, ...]."""
        return []

    def forward(self, x: Masked) -> Masked:
        """Tokens of collated values. Every row must be present."""
        return self.tokens(self.net(*self.tensors(x)), x)
