"""Networks with a token for each word: a text backbone's sub-words joined, and words learned from scratch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from polymodal.nn.bert import TextBackbone
from polymodal.nn.blocks import Block, Positions, TokenEncoder
from polymodal.nn.spelling import COLUMNS, Spelling
from polymodal.types import Masked

BAG = 2000
"""Ids in a bag of words."""

UNKNOWN = 0
"""Id of every word outside a vocabulary."""

SPELT = 2
"""Column from which on a collated word tells its spelling; before it stand the sub-word's id and the word's number."""

Pooling = Literal["first", "mean"]


class WordBackbone(TextBackbone):
    """Sub-words (B, N, C) -> one token (B, T, W) for each word, around a backbone of texts.

    A row of a collated input is a sub-word: its id, the number of the word it belongs to, and perhaps the columns of
    `polymodal.nn.spelling.spell`. They are passed on behind the network's own columns, since a network that folds
    case does not see them. Special tokens frame the windows and are left out. Positions are the words' numbers.

    Source: Devlin et al. 2019, "BERT", section 5.3 (a word's first sub-word stands for it).

    Args:
        text: whose net, windows and special tokens are used; its net is shared, not copied.
        spelling: whether words bring their spelling.
        pooling: a word's token is that of its first sub-word, or the mean of them all.

    Attributes:
        own: columns of a token that come from the network.
    """

    def __init__(self, text: TextBackbone, spelling: bool = True, pooling: Pooling = "first") -> None:
        nn.Module.__init__(self)
        self.begin, self.end, self.pad = text.begin, text.end, text.pad
        self.room, self.overlap = text.room, text.overlap
        self.net, self.spelling, self.pooling = text.net, spelling, pooling
        self.own, self.width = text.width, text.width + COLUMNS * spelling
        self.packaged, self.hub = text.packaged, text.hub
        self.digest = f"{text.digest}-{pooling}{'-spelt' * spelling}"

    def tensors(self, x: Masked) -> tuple[Tensor, Tensor]:
        """Ids and mask of all windows of all rows, in order: (S, L), (S, L)."""
        return super().tensors(Masked(x.values[..., 0], x.mask))

    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """Join windows, then sub-words. Spelling stays exact: it is handed on in float32."""
        order = torch.argsort(~x.mask, dim=1, stable=True)  # real sub-words first, in order
        real, words = x.mask.gather(1, order), x.values[..., 1].gather(1, order)
        opens = torch.cat([real[:, :1], real[:, 1:] & (words[:, 1:] != words[:, :-1])], 1)
        counts = opens.sum(1)
        index = torch.arange(int(counts.max()), device=y.device)
        mask = index < counts[:, None]
        first = torch.argsort(~opens, dim=1, stable=True)[:, : len(index)]  # (B, T) each word's first sub-word
        found = super().tokens(y, Masked(x.values[..., 0], x.mask)).values[:, len(self.begin) :].float()
        values = self._pooled(found, real, opens, first)
        if self.spelling:
            spelt = x.values[..., SPELT:].gather(1, order.gather(1, first)[..., None].expand(-1, -1, COLUMNS))
            values = torch.cat([values, spelt.to(values.dtype)], 2)
        at = index.float().expand(len(counts), -1).unsqueeze(2)
        return Masked(values.masked_fill(~mask[..., None], 0.0), mask, at)

    def _pooled(self, values: Tensor, real: Tensor, opens: Tensor, first: Tensor) -> Tensor:
        """Tokens of words from those of sub-words.

        Args:
            values: (B, N, W) of sub-words.
            real: (B, N) which of them are.
            opens: (B, N) which of them begin a word.
            first: (B, T) where each word begins.
        """
        if self.pooling == "first":
            place = first.clamp(max=values.shape[1] - 1)
            return values.gather(1, place[..., None].expand(-1, -1, values.shape[2]))
        size = min(values.shape[1], real.shape[1])
        share, word = real[:, :size].to(values.dtype), (opens.cumsum(1) - 1).clamp(min=0)[:, :size]
        total = values.new_zeros(*first.shape, values.shape[2])
        total = total.scatter_add(
            1, word[..., None].expand(-1, -1, values.shape[2]), values[:, :size] * share[..., None]
        )
        count = values.new_zeros(first.shape).scatter_add(1, word, share)
        return total / count.clamp(min=1)[..., None]


class WordedEncoder(nn.Module):
    """A `WordBackbone`'s tokens (B, T, W) -> (B, T, dim): projected, with the embedded spelling added.

    Args:
        width: of the backbone's tokens, their spelling not counted.
        dim: D.
        spelling: whether they bring their spelling.
    """

    def __init__(self, width: int, dim: int, spelling: bool) -> None:
        super().__init__()
        self.width = width
        self.embed = TokenEncoder(width, dim, coordinates=1)
        self.spelling = Spelling(dim) if spelling else None

    def forward(self, x: Masked) -> Masked:
        """Encode tokens; mask and positions stay."""
        y = self.embed(Masked(x.values[..., : self.width], x.mask, x.at))
        if self.spelling is None:
            return y
        spelt = x.values[..., self.width :].masked_fill(~x.mask[..., None], 0.0)
        return Masked(y.values + self.spelling(spelt), y.mask, y.at)


class WordEncoder(nn.Module):
    """Word ids (B, N) -> tokens (B, N, dim): embeddings, positions, transformer blocks.

    Args:
        size: ids, the unknown word included.
        dim: D.
        layers: transformer blocks.
        dropout: of embeddings and in blocks, while training.
    """

    def __init__(self, size: int, dim: int, layers: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        heads = next(heads for heads in (4, 2, 1) if dim % heads == 0)
        self.words, self.positions = nn.Embedding(size, dim), Positions(1, dim)
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))

    def forward(self, x: Masked) -> Masked:
        """Encode ids; mask and positions stay."""
        return self.mixed(self.words(x.values.masked_fill(~x.mask, UNKNOWN)), x)

    def mixed(self, values: Tensor, x: Masked) -> Masked:
        """Embedded words (B, N, dim), placed and mixed as those of ``x``."""
        values = values if x.at is None else values + self.positions(x.at)
        y = Masked(self.drop(values), x.mask, x.at)
        for block in self.blocks:
            y = block(y)
        return Masked(self.norm(y.values), y.mask, y.at)


class SpeltEncoder(WordEncoder):
    """Collated words (B, N, C) -> tokens (B, N, dim): as `WordEncoder`, with the embedded spelling added to each.

    Args:
        size: ids, the unknown word included.
        dim: D.
        layers: transformer blocks.
        spelling: whether words bring their spelling.
    """

    def __init__(self, size: int, dim: int, layers: int, spelling: bool) -> None:
        super().__init__(size, dim, layers)
        self.spelling = Spelling(dim) if spelling else None

    def forward(self, x: Masked) -> Masked:
        """Encode words; mask and positions stay."""
        clean = x.values.masked_fill(~x.mask[..., None], UNKNOWN)
        values = self.words(clean[..., 0])
        return self.mixed(values if self.spelling is None else values + self.spelling(clean[..., SPELT:]), x)


def bag_of_words(x: Masked, size: int) -> Tensor:
    """How often each of the first ``size`` ids stands in a row (B, N), damped, as unit vectors (B, size)."""
    counted = (x.mask & (x.values < size)).float()
    bag = torch.zeros(x.mask.shape[0], size, device=x.values.device)
    bag.scatter_add_(1, x.values.clamp(max=size - 1), counted)
    return nn.functional.normalize(bag.log1p(), dim=1)
