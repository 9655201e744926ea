"""Variation of training sentences, word by word, so that each word keeps its place and its label."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from polymodal.nn.noise import misspell
from polymodal.sentence import Sentence


class WordsAugmentation(BaseModel):
    """How often a word is changed. None is left out or moved.

    Source: Belinkov and Bisk 2018, "Synthetic and Natural Noise Both Break Neural Machine Translation", section 3.2
        (letters); Mayhew et al. 2019, "ner and pos when nothing is capitalized" (arXiv:1903.11222), train on
        both cased and lowercased text.

    Attributes:
        typo: chance that a letter of a word is left out, doubled, replaced or swapped with the next one.
        lower: chance that a whole sentence is in lower case.
        upper: chance that a whole sentence is in capitals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    typo: float = Field(default=0.05, ge=0, le=1)
    lower: float = Field(default=0.1, ge=0, le=1)
    upper: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if not (self.typo or self.lower or self.upper):
            raise ValueError("augmentation must change something, got typo, lower and upper 0. Leave it out instead.")
        if self.lower + self.upper > 1:
            raise ValueError(f"lower and upper must add up to at most 1, got {self.lower + self.upper:g}.")
        return self

    def apply(self, value: Sentence, rng: np.random.Generator) -> Sentence:
        """A varied copy of a sentence, with as many words."""
        words, case, typos = list(value.words), rng.random(), rng.random(len(value)) < self.typo
        if case < self.lower:
            words = [word.lower() for word in words]
        elif case < self.lower + self.upper:
            words = [word.upper() for word in words]
        for i in np.flatnonzero(typos):
            words[i] = misspell(words[i], rng)
        return Sentence.of(words)
