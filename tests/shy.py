"""A modality with a tiny pretrained network that hides what the first coordinate says, until it is thawed."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import polymodal as pm
from polymodal.nn.backbone import Backbone
from polymodal.types import Masked
from toys import Vectors

WIDTH = 4


class Deaf(Backbone):
    """Two linear layers, of which the second drops the first coordinate."""

    packaged = ()

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False))
        with torch.no_grad():
            self.net[0].weight.copy_(torch.eye(WIDTH))  # pyright: ignore[reportCallIssue, reportArgumentType]
            self.net[1].weight.copy_(torch.eye(WIDTH))  # pyright: ignore[reportCallIssue, reportArgumentType]
            self.net[1].weight[:, 0] = 0  # pyright: ignore[reportIndexIssue, reportOperatorIssue]
        self.requires_grad_(False).eval()
        self.width, self.digest = WIDTH, "deaf-1"

    def tensors(self, x: Masked) -> tuple[torch.Tensor, ...]:
        return (x.values,)

    def tokens(self, y: torch.Tensor, x: Masked) -> Masked:
        return Masked(y, x.mask)

    def dynamic(self) -> list[dict[int, str]]:
        return [{1: "length"}]


@cache
def deaf() -> Deaf:
    return Deaf()


class Shy(Vectors):
    """Vectors through that network."""

    type: Literal["test-shy"] = "test-shy"  # pyright: ignore[reportIncompatibleVariableOverride]
    width: int = WIDTH

    def backbone(self) -> Backbone | None:
        return deaf()


def table(rows: int = 240, seed: int = 0, useless: bool = False) -> dict[str, list[Any]]:
    """``a`` tells the label by its first coordinate (not if useless); ``b`` tells it in four rows of five."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    a, b = rng.normal(size=(rows, WIDTH)), 0.3 * rng.normal(size=(rows, 2))
    if not useless:
        a[:, 0] = 2.0 * label - 1 + 0.2 * rng.normal(size=rows)
    b[:, 0] += np.where(rng.random(rows) < 0.8, 1, -1) * (2.0 * label - 1)
    return {"a": a.round(3).tolist(), "b": b.round(3).tolist(), "y": label.tolist()}


def spec(**more: Any) -> dict[str, Any]:
    """``a`` through the network, ``b`` without one."""
    more.setdefault("training", {"epochs": 8, "batch_size": 32})
    return {"inputs": {"a": "test-shy", "b": "test-vectors"}, "outputs": {"y": "classify"}, "dim": 8, **more}


def fitted(rows: dict[str, list[Any]], cache: bool = False, **more: Any) -> pm.Bundle:
    """A bundle fitted to such rows."""
    return pm.fit(spec(**more), rows, cache=cache)
