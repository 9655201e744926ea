"""How a word is spelt: its case and characters as small integers, and the network that embeds them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

HEAD, TAIL = 10, 6
"""Characters of a word that are told: those at its beginning and, of a longer one, those at its end."""

COLUMNS = 1 + HEAD + TAIL
"""Integers per word: its shape, then its characters."""

KNOWN, SHARED = 1536, 509
CHARACTERS = KNOWN + SHARED
"""Numbers of characters. 0 is padding; Latin, Greek, Cyrillic, Armenian and Hebrew have one each; others share."""

SHAPES = 16
"""Numbers of shapes; 0 is padding."""


def spell(words: Sequence[str]) -> np.ndarray:
    """Shape and characters of words.

    Args:
        words: none empty.

    Returns:
        (n, COLUMNS) int16, zeros behind a word's end. All are below 2048, so that half precision holds them.
    """
    made = np.zeros((len(words), COLUMNS), np.int16)
    for row, word in zip(made, words, strict=True):
        told = word if len(word) <= HEAD + TAIL else word[:HEAD] + word[-TAIL:]
        row[0] = shape(word)
        row[1 : 1 + len(told)] = [_number(ord(sign)) for sign in told]
    return made


def _number(code: int) -> int:
    return max(1, code) if code < KNOWN else KNOWN + code % SHARED


def shape(word: str) -> int:
    """What case a word is in (none, lower, capital first, upper, mixed) and how many of its signs are digits.

    Source: Collobert et al. 2011, "Natural Language Processing (Almost) from Scratch" (JMLR 12), the feature of capital
        letters; the digits are added.

    Returns:
        1 to 15: 1 + 3 * case + 0, 1 or 2 for no digit, some, and nothing but digits and signs between them.
    """
    cased = [sign for sign in word if sign.lower() != sign.upper()]
    if not cased:
        case = 0
    elif all(sign.islower() for sign in cased):
        case = 1
    elif not any(sign.isupper() for sign in cased[1:]):
        case = 2
    else:
        case = 3 if all(sign.isupper() for sign in cased) else 4
    kinds = {unicodedata.category(sign)[0] for sign in word}
    digits = any(sign.isdigit() for sign in word)
    return 1 + 3 * case + (0 if not digits else 1 if "L" in kinds else 2)


class Spelling(nn.Module):
    """What `spell` made of words (..., COLUMNS) -> (..., dim): a convolution over the characters, and the shape.

    Source: Ma and Hovy 2016, "End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF" (arXiv:1603.01354),
        section 2.1: embedded characters are dropped out, pass a convolution of window 3, and the greatest value of each
        filter is kept; 30 coordinates and 30 filters (section 3). Here the result is projected, so that it can be
        added to a token, and dropout is 0.25.

    Args:
        dim: D.
        size: coordinates of a character, and filters.
        dropout: of embedded characters, while training.
    """

    def __init__(self, dim: int, size: int = 30, dropout: float = 0.25) -> None:
        super().__init__()
        self.characters, self.shapes = nn.Embedding(CHARACTERS, size, padding_idx=0), nn.Embedding(SHAPES, size)
        bound = math.sqrt(3 / size)  # section 3
        with torch.no_grad():
            nn.init.uniform_(self.characters.weight, -bound, bound)[0] = 0.0
        self.drop, self.convolve = nn.Dropout(dropout), nn.Conv1d(size, size, 3, padding=1)
        self.project = nn.Linear(2 * size, dim)

    def forward(self, spelt: Tensor) -> Tensor:
        """Embed words; any float or integer dtype, padding anywhere."""
        shape = spelt[..., 0].round().clamp(0, SHAPES - 1).long()
        signs = spelt[..., 1:].round().clamp(0, CHARACTERS - 1).long()
        flat = signs.flatten(0, -2)  # (words, HEAD + TAIL)
        found = self.convolve(self.drop(self.characters(flat)).transpose(1, 2))
        found = found.masked_fill((flat == 0)[:, None], -1e4).amax(2)
        found = found.masked_fill((flat == 0).all(1, keepdim=True), 0.0).unflatten(0, signs.shape[:-1])
        return self.project(torch.cat([found, self.shapes(shape)], -1))
