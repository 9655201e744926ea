"""TextHead: answers in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polymodal.decoder.head import DecoderHead
from polymodal.decoder.settings import Decoder
from polymodal.errors import SpecError
from polymodal.nn.language.decode import Decoding, say
from polymodal.nn.language.losses import answer_loss
from polymodal.types import Fused, Masked

NOTHING = -1
"""Stands in a raw output behind the end of an answer."""


class TextHead(DecoderHead):
    """`Fused` -> what is said of each row, as token ids (B, L) behind their score; with targets, what these cost (B,).

    Args:
        plan: of the decoder.
        dim: D.
        verbatim: inputs whose very words stand in the prompt.
        decoding: how answers are made.

    Raises:
        SpecError: an answer may fill the model's context, or the model cannot be packed.
    """

    def __init__(self, plan: Decoder, dim: int, verbatim: tuple[str, ...], decoding: Decoding) -> None:
        super().__init__(plan, dim, verbatim)
        self.decoding = decoding
        if plan.packed:
            self.language.check_masks()
        if decoding.tokens >= self.language.context:
            raise SpecError(
                f"decoding.tokens must be below the language model's context of {self.language.context}, got "
                f"{decoding.tokens}. Ask for a shorter answer."
            )

    @property
    def room(self) -> int:
        """Positions that are kept free for the answer."""
        return self.decoding.tokens

    def forward(self, fused: Fused, target: Masked | None = None) -> Tensor:
        """Answer, or tell what the wanted answers cost.

        Args:
            fused: of B rows.
            target: (B, N) token ids of wanted answers, an end token behind each, as `Generate.collate` makes them; the
                first of each row counts.

        Returns:
            Without targets (B, 1 + L) float64: the log-probability of what is said, and its token ids, the end where
            it was reached, `NOTHING` behind. With targets (B,): negative log-likelihood of each row's answer in nats, 0
            where there is none.
        """
        if target is None:
            return self._said(self.prompts(fused))
        answers = [self._first(ids[real]) for ids, real in zip(target.values, target.mask, strict=True)]
        prompts = self.prompts(fused, max(map(len, answers), default=0))
        rows = target.present.nonzero().flatten()
        costs = prompts.values.new_zeros(len(prompts), dtype=torch.float32)
        if not len(rows):
            return costs + 0 * prompts.values.float().sum()
        size = self.size or len(rows)
        parts = [self._costs(prompts, answers, some) for some in rows.split(size)]
        return costs.index_put((rows,), torch.cat(parts).float())

    def _costs(self, prompts: Masked, every: Sequence[Tensor], rows: Tensor) -> Tensor:
        """What the answers of some rows cost; with a ``size``, all is computed again for the gradient."""
        answers = [every[row] for row in rows.tolist()]

        def run(values: Tensor) -> Tensor:
            asked = Masked(values, prompts.mask[rows])
            return answer_loss(
                self.language, asked, answers, packed=self.plan.packed, checkpointing=self.plan.checkpointing
            )

        if self.size and torch.is_grad_enabled():
            return checkpoint(run, prompts.values[rows], use_reentrant=False)  # pyright: ignore[reportReturnType]
        return run(prompts.values[rows])

    def _first(self, ids: Tensor) -> Tensor:
        """The first of several right answers, its end token included."""
        return ids[: int((ids == self.language.vocabulary.end).long().argmax()) + 1] if len(ids) else ids

    def _said(self, prompts: Masked) -> Tensor:
        said, end = say(self.answering, prompts, self.decoding), self.language.vocabulary.end
        ids = [[*one.ids, end] if one.ended else list(one.ids) for one in said]
        found = torch.full((len(said), 1 + max(map(len, ids), default=0)), float(NOTHING), dtype=torch.float64)
        for row, one, own in zip(found, said, ids, strict=True):
            row[0] = one.score
            row[1 : 1 + len(own)] = torch.tensor(own, dtype=torch.float64)
        return found.to(prompts.mask.device)
