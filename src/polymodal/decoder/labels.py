"""LabelHead: reads how probable each of several labels is as an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polymodal.decoder.head import DecoderHead
from polymodal.decoder.settings import Decoder
from polymodal.errors import SpecError
from polymodal.nn.language.decode import TOGETHER, check_room
from polymodal.nn.language.tree import Tree
from polymodal.types import Fused, Masked


class LabelHead(DecoderHead):
    """`Fused` -> log-likelihood of each of K labels, their end token included (B, K).

    Args:
        plan: of the decoder.
        dim: D.
        verbatim: inputs whose very words stand in the prompt.
        labels: the K texts.

    Raises:
        SpecError: a label has no token or too many, or two have the same; answers are to be packed.
    """

    def __init__(self, plan: Decoder, dim: int, verbatim: tuple[str, ...], labels: Sequence[str]) -> None:
        super().__init__(plan, dim, verbatim)
        if plan.packed:
            raise SpecError("decoder.packed has no effect where classes are read. Leave it out.")
        self.language.check_masks()
        self.tree = Tree(label_ids(self.language.vocabulary.ids, labels), self.language.vocabulary.end)
        if self.tree.longest >= self.language.context:
            raise SpecError(
                f"classes must be shorter than the language model's context of {self.language.context} tokens, got one "
                f"of {self.tree.longest}. Rename it."
            )

    @property
    def room(self) -> int:
        """Positions that the labels take."""
        return self.tree.longest

    def forward(self, fused: Fused) -> Tensor:
        """Score the labels; no target is needed to learn from the scores.

        Raises:
            DataError: a prompt leaves no room for the labels.
        """
        prompts, learns = self.prompts(fused), torch.is_grad_enabled()
        check_room(self.language, prompts, self.tree.longest)
        size = (self.size if learns else TOGETHER) or len(prompts)
        parts = list(zip(prompts.values.split(size), prompts.mask.split(size), strict=True))
        if not learns or not self.size:
            return torch.cat([self._scores(*part) for part in parts])
        return torch.cat([checkpoint(self._scores, *part, use_reentrant=False) for part in parts])  # pyright: ignore

    def _scores(self, values: Tensor, mask: Tensor) -> Tensor:
        language = self.language if torch.is_grad_enabled() else self.answering
        return self.tree.scores(language, Masked(values, mask), self.plan.checkpointing)


def label_ids(ids_of: Callable[[str], list[int]], labels: Sequence[str]) -> list[list[int]]:
    """Token ids of labels.

    Args:
        ids_of: from a text to its token ids.
        labels: texts.

    Raises:
        SpecError: a label has none, or two have the same.
    """
    found = [ids_of(label) for label in labels]
    for label, ids in zip(labels, found, strict=True):
        if not ids:
            raise SpecError(f"classes must be made of tokens of the language model, got {label!r}, which has none.")
    for i, ids in enumerate(found):
        if ids in found[:i]:
            first = labels[found.index(ids)]
            raise SpecError(
                f"classes must differ in the tokens of the language model, got {first!r} and {labels[i]!r}. Rename one."
            )
    return found
