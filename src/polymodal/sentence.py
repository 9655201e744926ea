"""Sentence: words in a row, and where each of them stands in a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from polymodal.errors import DataError


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text in words.

    Attributes:
        text: what the words are taken from.
        words: in order; none is empty.
        starts: offset of each word's first character in the text.
    """

    text: str
    words: tuple[str, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Reject words that are not where they are said to be."""
        if len(self.words) != len(self.starts):
            raise DataError(f"starts must be as many as words, got {len(self.starts)} and {len(self.words)}.")
        end = 0
        for word, start in zip(self.words, self.starts, strict=True):
            if not word or start < end or not self.text.startswith(word, start):
                raise DataError(f"words must stand in the text one behind the other, got {word!r} at {start}.")
            end = start + len(word)

    def __len__(self) -> int:
        """Return how many words there are."""
        return len(self.words)

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """Words that were given one by one, with a space between them in the text."""
        starts, end = [], 0
        for word in words:
            starts.append(end)
            end += len(word) + 1
        return cls(" ".join(words), tuple(words), tuple(starts))

    def end(self, word: int) -> int:
        """Offset behind the last character of a word, by its number."""
        return self.starts[word] + len(self.words[word])
