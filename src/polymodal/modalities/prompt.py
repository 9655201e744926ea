"""Prompt as an input: a text that a language model reads word for word, as a question to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from polymodal.errors import DataError
from polymodal.nn.language.loading import load_language
from polymodal.nn.language.model import Language
from polymodal.nn.language.vocabulary import BROKEN
from polymodal.nn.pieces import pieces
from polymodal.nn.worded import WordEncoder, bag_of_words
from polymodal.part import Modality, Reading
from polymodal.reading import Field as FormField
from polymodal.reading import Pieces
from polymodal.types import Masked

NUMBERS = 4096
"""Numbers of sub-words for whoever is no language model: its own ids share them."""

BAG = 1024
"""Width of the summary, a bag of such numbers."""


class Prompt(Modality):
    """A text in the tokens of a language model, which are put into its prompt as they are.

    A task whose decoder is that language model reads it at the place that its prompt names. All others see its
    sub-words through a small encoder that is learned from scratch.

    Attributes:
        pretrained: in a spec ``backbone``: the language model that reads it, as the task's decoder names it.
        max_tokens: what lies behind so many tokens is cut off, and counted as a repair.
    """

    model_config = ConfigDict(serialize_by_alias=True)
    verbatim: ClassVar[bool] = True

    type: Literal["prompt"] = "prompt"
    pretrained: str = Field("smollm2", alias="backbone")
    max_tokens: int = Field(default=256, ge=1, le=100_000)

    @property
    def language(self) -> Language:
        """The language model whose tokens these are."""
        return load_language(self.pretrained)

    def fields(self, name: str) -> tuple[FormField, ...]:
        """A text."""
        return (FormField(self.columns(name)[0], "text", "What is this?"),)

    def read(self, content: Any) -> Reading:
        """Take a text as it stands, without the space around it, and beyond ``max_tokens`` cut it.

        Raises:
            DataError: it is no text.
        """
        if not isinstance(content, str):
            raise DataError(f"prompt must be a text, got {type(content).__name__} {content!r:.40}. Mend the cell.")
        text = content.strip()
        if not text:
            return Reading(None, ("empty after cleaning",))
        facts = {"characters": float(len(text))}
        words = self.language.vocabulary
        if len(text.encode()) > self.max_tokens and len(ids := words.ids(text)) > self.max_tokens:
            cut = words.text(ids[: self.max_tokens])
            cut = cut if text.startswith(cut) else cut.rstrip(BROKEN)  # half of a character is none
            return Reading(cut, (f"cut after {self.max_tokens} tokens",), facts)
        return Reading(text, (), facts)

    def length(self, value: str) -> int:
        """How many tokens it has."""
        return len(self.language.vocabulary.ids(value))

    def pieces(self, value: str) -> Pieces | None:
        """Its words."""
        return pieces(value, "characters")

    def collate(self, values: Sequence[str | None]) -> Masked:
        """Token ids (B, N) int64, positions (B, N, 1) in tokens."""
        words = self.language.vocabulary if any(value is not None for value in values) else None
        rows = [None if value is None or words is None else torch.tensor(words.ids(value)) for value in values]
        x = Masked.pad(rows, torch.zeros((), dtype=torch.int64))
        at = torch.arange(x.mask.shape[1], dtype=torch.float32)
        return Masked(x.values, x.mask, at.expand(x.mask.shape).unsqueeze(2))

    def encoder(self, dim: int) -> nn.Module:
        """Embedded sub-words, mixed by one transformer block."""
        return _SharedNumbers(dim)

    def summary(self, x: Masked) -> Tensor:
        """A bag of sub-words. (B, BAG)."""
        return bag_of_words(Masked(x.values % BAG, x.mask), BAG)


class _SharedNumbers(WordEncoder):
    """A `WordEncoder` of ids that are brought below `NUMBERS`."""

    def __init__(self, dim: int) -> None:
        super().__init__(NUMBERS, dim)

    def forward(self, x: Masked) -> Masked:
        """Encode ids; mask and positions stay."""
        return super().forward(Masked(x.values % NUMBERS, x.mask, x.at))
