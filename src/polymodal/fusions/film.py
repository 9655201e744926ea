"""Feature-wise linear modulation: one input sets the scale and shift of the others' features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from polymodal.errors import SpecError, suggest
from polymodal.nn.fuse import FusionModule, HandBack, blank, means, presence, present_mean
from polymodal.part import Fusion
from polymodal.types import Fused, Masked


class Film(Fusion):
    """Read the other inputs in the light of one: a question over an image, a machine's type over its sensors.

    Only the condition interacts with the others: what two other inputs mean together cannot be learned.

    Source: Perez et al. 2018, "FiLM: Visual Reasoning with a General Conditioning Layer", eqs. 1-2: FiLM(F) =
    gamma F + beta, with gamma = 1 + delta as in the paper's networks. Ours modulates the tokens once, by a perceptron
    over the condition's mean token, and pools the mean of the present inputs, the condition among them. It starts as
    the identity, and is the identity where the condition is absent.

    Attributes:
        condition: name of the input that modulates the others; the first in alphabetical order where not given.
        dropout: share of the perceptron's hidden units dropped in training.
    """

    type: Literal["film"] = "film"
    condition: str | None = None
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, names: Sequence[str], dim: int) -> nn.Module:
        """Modulation of every other input by the condition.

        Raises:
            SpecError: the condition is none of the inputs.
        """
        if self.condition is not None and self.condition not in names:
            raise SpecError(
                f"fusion.condition must be one of {sorted(names)}, got {self.condition!r}."
                f"{suggest(self.condition, names)} Name an input."
            )
        return FilmFusion(names, dim, self.condition, self.dropout)


class FilmFusion(FusionModule):
    """Modulates all inputs but one, and averages."""

    def __init__(self, names: Sequence[str], dim: int, condition: str | None, dropout: float) -> None:
        super().__init__(names, dim)
        self.which = self.order.index(condition) if condition is not None else 0
        last = nn.Linear(dim, 2 * (len(names) - 1) * dim) if len(names) > 1 else None
        self.modulate = None
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(dim, dim)
            self.modulate = nn.Sequential(nn.LayerNorm(dim), first, nn.GELU(), nn.Dropout(dropout), last)
        self.hand_back = HandBack(len(names), dim)

    def forward(self, inputs: Mapping[str, Masked]) -> Fused:
        """Modulate the tokens, pool them, and hand the result back."""
        tokens = self.arrange(inputs)
        if self.modulate is not None:
            tokens = self.film(tokens, self.modulate)
        pooled = present_mean(means(tokens), presence(tokens))
        return self.fused(pooled, self.hand_back(pooled, tokens))

    def film(self, tokens: Sequence[Masked], modulate: nn.Module) -> list[Masked]:
        """Scale and shift every input's tokens but the condition's; zeros stay behind the mask."""
        condition = tokens[self.which]
        change: Tensor = modulate(condition.mean()).masked_fill(~condition.present[:, None], 0.0)
        pieces = iter(change.unsqueeze(1).chunk(2 * (len(tokens) - 1), -1))
        seen = []
        for i, x in enumerate(tokens):
            values = x.values if i == self.which else x.values * (1 + next(pieces)) + next(pieces)
            seen.append(blank(Masked(values, x.mask, x.at)))
        return seen
