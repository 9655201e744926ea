"""Small parts and data for tests of the core: a modality without randomness, and rows made from tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polymodal.data.clean import DataReport, InputReport
from polymodal.data.gather import MemoryRows
from polymodal.data.loader import Prepared
from polymodal.part import Modality, Reading
from polymodal.spec import Spec
from polymodal.types import Masked

BINARY = {"type": "classify", "classes": [0, 1], "label_smoothing": 0.0}


class Vectors(Modality):
    """Cells of one or more vectors of fixed width, mapped linearly: no dropout, nothing fitted."""

    type: Literal["test-vectors"] = "test-vectors"
    width: int = 2

    def read(self, content: Any) -> Reading:
        return Reading(torch.tensor(content, dtype=torch.float32).reshape(-1, self.width))

    def collate(self, values: Sequence[Tensor | None]) -> Masked:
        return Masked.pad(values, torch.zeros(self.width))

    def encoder(self, dim: int) -> nn.Module:
        return PerToken(self.width, dim)

    def summary(self, x: Masked) -> Tensor:
        return x.mean()


class PerToken(nn.Module):
    """A perceptron on each vector. Keeps count of the rows that it saw."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))
        self.seen: list[Masked] = []

    def forward(self, x: Masked) -> Masked:
        self.seen.append(x)
        return Masked(self.net(x.values), x.mask, x.at)


def spec(inputs: Sequence[str] = ("a", "b"), outputs: Mapping[str, Any] | None = None, **settings: Any) -> Spec:
    """A fitted spec of vector inputs, without dropout in the fusion unless another fusion is given."""
    outputs = outputs or {"y": BINARY}
    settings.setdefault("fusion", {"type": "concat", "dropout": 0.0})
    settings.setdefault("dim", 16)
    return Spec.parse({"inputs": dict.fromkeys(inputs, "test-vectors"), "outputs": outputs, **settings})


def prepared(inputs: Mapping[str, Masked], targets: Mapping[str, Masked]) -> Prepared:
    """Rows as `prepare` gives them."""
    count = len(next(iter(inputs.values())))
    report = DataReport("test", count, {name: InputReport(name, "test-vectors") for name in inputs})
    rows = {name: MemoryRows(x) for name, x in inputs.items()}
    return Prepared(rows, dict(targets), report, {}, torch.arange(count))


def xor(rows: int, seed: int = 0, noise: float = 0.1, absent: float = 0.0) -> Prepared:
    """Label = a XOR b, one in each input; some cells absent, never both of a row."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (rows, 2), generator=generator)
    gone = torch.rand(rows, 2, generator=generator) < absent
    gone[gone.all(1)] = False
    inputs = {}
    for i, name in enumerate("ab"):
        values = torch.randn(rows, 1, 2, generator=generator) * noise
        values[:, 0, 0] += 2.0 * bits[:, i] - 1
        inputs[name] = Masked(values, ~gone[:, i : i + 1])
    label = bits.sum(1, keepdim=True) % 2
    return prepared(inputs, {"y": Masked(label, torch.ones_like(label, dtype=torch.bool))})


def same(x: nn.Module | Mapping[str, Tensor], y: nn.Module | Mapping[str, Tensor]) -> bool:
    """Whether all weights are equal bit for bit."""
    one, two = (z.state_dict() if isinstance(z, nn.Module) else z for z in (x, y))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
