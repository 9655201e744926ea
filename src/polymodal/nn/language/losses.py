"""What answers cost a language model, with gradient: to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from polymodal.errors import DataError
from polymodal.nn.language.decode import positions
from polymodal.nn.language.model import WINDOW, Language
from polymodal.nn.language.tree import left_padded
from polymodal.types import Masked


def answer_loss(
    language: Language,
    prompts: Masked,
    answers: Sequence[Tensor],
    *,
    packed: bool = False,
    checkpointing: bool = False,
) -> Tensor:
    """Negative log-likelihood of each row's answer, in nats. (B,) float32, with gradient.

    Only the tokens of answers count, and logits are computed only where they are needed.

    Args:
        language: that learns, or through which something learns.
        prompts: (B, L, W) embeddings, real anywhere.
        answers: token ids of each row, the end included.
        packed: put rows behind one another, each seeing itself alone, instead of padding them to one length.
        checkpointing: compute layers again for the gradient instead of keeping what they give.

    Raises:
        DataError: an answer has no token, or a row does not fit the model's context.
    """
    for row, ids in enumerate(answers):
        if not len(ids):
            raise DataError(
                f"row {row}: answer must have a token to learn from, got none. Mend the target, or empty it."
            )
        longest = int(prompts.mask[row].sum()) + len(ids)
        if longest > language.context:
            raise DataError(
                f"row {row} of a batch: prompt and answer must fit a context of {language.context} tokens, got "
                f"{longest}. Shorten the inputs, or set the decoder's truncate to left."
            )
    if packed:
        parts = [_packed(language, prompts, answers, rows, checkpointing) for rows in _bins(prompts, answers)]
        return torch.cat(parts)
    x = left_padded(prompts)
    ids = torch.nn.utils.rnn.pad_sequence(list(answers), batch_first=True).to(x.mask.device)
    sizes = torch.tensor([len(one) for one in answers], device=x.mask.device)
    wanted = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]
    length = x.mask.shape[1]
    values = torch.cat([x.values, language.embed(ids[:, :-1]).to(x.values.dtype)], 1)
    real = torch.cat([x.mask, wanted[:, 1:]], 1)
    keep = torch.arange(length - 1, values.shape[1], device=ids.device)
    logits = language.logits(values, real, positions(real), keep, checkpointing)
    costs = functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
    return costs.masked_fill(~wanted, 0.0).sum(1)


def _bins(prompts: Masked, answers: Sequence[Tensor]) -> Iterator[list[int]]:
    """Rows that go together, in their order, as many as fit."""
    rows, used = list[int](), 0
    for row, ids in enumerate(answers):
        size = int(prompts.mask[row].sum()) + len(ids) - 1
        if rows and used + size > WINDOW:
            yield rows
            rows, used = [], 0
        rows.append(row)
        used += size
    yield rows


def _packed(
    language: Language, prompts: Masked, answers: Sequence[Tensor], rows: Sequence[int], checkpointing: bool
) -> Tensor:
    """Costs of some rows, read as one sequence in which none sees another.

    Source: Krell et al. 2021 (arXiv:2107.02027), section 3.2.4, the mask and the positions of packed sequences.
    """
    device, values, own, keep, ids = prompts.mask.device, list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    start = 0
    for number, row in enumerate(rows):
        asked, answer = prompts.values[row, prompts.mask[row]], answers[row].to(device)
        values += [asked, language.embed(answer[:-1]).to(asked.dtype)]
        size = len(asked) + len(answer) - 1
        own.append(torch.full((size,), number, device=device))
        keep.append(torch.arange(start + len(asked) - 1, start + size, device=device))
        ids.append(answer)
        start += size
    row_of = torch.cat(own)
    place = torch.cat([torch.arange(len(one), device=device) for one in own])
    seen = (row_of[:, None] == row_of) & (place[:, None] >= place)
    logits = language.logits(torch.cat(values)[None], seen[None], place[None], torch.cat(keep), checkpointing)
    costs = functional.cross_entropy(logits[0].float(), torch.cat(ids), reduction="none")
    return torch.stack([part.sum() for part in costs.split([len(one) for one in ids])])
