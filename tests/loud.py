"""A modality with a small pretrained network and a made-up example, for tests of runtimes and int8."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import polymodal as pm
from polymodal.nn.backbone import Backbone
from polymodal.reading import Field
from polymodal.types import Masked
from toys import Vectors

WIDTH = 16


class LoudBackbone(Backbone):
    """Two linear layers, the second of which narrows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.requires_grad_(False).eval()
        self.width, self.digest = WIDTH, "loud-1"

    def tensors(self, x: Masked) -> tuple[torch.Tensor, ...]:
        return (x.values,)

    def tokens(self, y: torch.Tensor, x: Masked) -> Masked:
        return Masked(y.masked_fill(~x.mask.unsqueeze(2), 0.0), x.mask)

    def dynamic(self) -> list[dict[int, str]]:
        return [{1: "length"}]


@cache
def backbone() -> LoudBackbone:
    return LoudBackbone()


class Loud(Vectors):
    """Vectors through that network."""

    type: Literal["test-loud"] = "test-loud"  # pyright: ignore[reportIncompatibleVariableOverride]
    width: int = WIDTH
    example: bool = True

    def fields(self, name: str) -> tuple[Field, ...]:
        cell = np.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH).round(3).tolist()
        return (Field(*self.columns(name), "vectors", cell if self.example else None),)

    def backbone(self) -> Backbone | None:
        return backbone()


def table(rows: int = 60, seed: int = 0) -> dict[str, list[Any]]:
    """Two vectors a cell in ``a`` tell the label, one number in ``b`` does not."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    a = rng.normal(size=(rows, 2, WIDTH))
    a[:, :, 0] += 4.0 * label[:, None] - 2
    b = rng.normal(size=(rows, 2))
    return {"a": a.round(3).tolist(), "b": b.round(3).tolist(), "y": label.tolist()}


def fitted(**more: Any) -> pm.Bundle:
    """A bundle fitted to such rows, with nothing kept on disk."""
    spec = {"inputs": {"a": {"type": "test-loud", **more}, "b": "test-vectors"}, "outputs": {"y": "classify"}, "dim": 8}
    return pm.fit(spec | {"training": {"epochs": 4, "batch_size": 16}}, table(), cache=False)
