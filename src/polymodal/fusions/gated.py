"""Gated multimodal unit: every input has a say in how much each counts, feature by feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from polymodal.nn.fuse import PerInput, VectorFusion, present_softmax
from polymodal.part import Fusion


class Gated(Fusion):
    """Mix the inputs' features by gates which all inputs decide together, per sample and feature.

    Source: Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion", section 3: h_i = tanh(W_i x_i),
    h = z * h_1 + (1 - z) * h_2 with z = sigmoid(W_z [x_1, x_2]). Two inputs give exactly that, as a sigmoid is the
    softmax of two scores. For more, the paper (figure 2a) has a free sigmoid per input; ours is a softmax, so that
    gates stay comparable and renormalise over the present inputs. `Fused.weights` is the mean gate over features.
    """

    type: Literal["gated"] = "gated"

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Gated unit over the inputs' vectors."""
        return GatedFusion(names, dim)


class GatedFusion(VectorFusion):
    """Gates one vector per input."""

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__(names, dim)
        self.hidden = PerInput(len(names), dim, dim, bias=False)
        self.gate = nn.Linear(len(names) * dim, len(names) * dim, bias=False)

    def join(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Mix (B, M, D) to (B, D), with the mean gates (B, M)."""
        gates = present_softmax(self.gate(vectors.flatten(1)).view_as(vectors), present[..., None])
        return (gates * self.hidden(vectors).tanh()).sum(1), gates.mean(-1)
