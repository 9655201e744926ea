"""How probable labels are as answers, where no gradient is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from polymodal.errors import DataError
from polymodal.nn.language.cache import growing_cache
from polymodal.nn.language.decode import check_room, positions
from polymodal.nn.language.model import Language
from polymodal.nn.language.tree import left_padded
from polymodal.types import Masked

TOGETHER = 256
"""Rows of labels that go through the model together."""


@torch.inference_mode()
def label_scores(language: Language, prompts: Masked, labels: Sequence[Sequence[int]]) -> Tensor:
    """Log-likelihood of each label's tokens and the end behind them, in nats. (B, K) float32.

    Each prompt is read once; its keys and values serve all labels, `TOGETHER` at a time, so that memory does not grow
    with their number. `tree.Tree` gives the same with gradient, and reads all labels at once.

    Args:
        language: that reads.
        prompts: (B, L, W) embeddings, real anywhere.
        labels: token ids of each of K labels, none empty.

    Raises:
        DataError: a label has no token, or a prompt and a label do not fit the model's context.
    """
    for number, ids in enumerate(labels):
        if not len(ids):
            raise DataError(f"label {number} must have one token or more, got none. Mend the label.")
    check_room(language, prompts, max(len(ids) for ids in labels))
    x = left_padded(prompts)
    return torch.cat([torch.cat(list(_row(language, row, labels))) for row in _apart(x)]).view(len(x), len(labels))


def _apart(x: Masked) -> Iterator[Masked]:
    """Rows without their padding."""
    for i in range(len(x)):
        yield Masked(x.values[i : i + 1, x.mask[i]], x.mask[i : i + 1, x.mask[i]])


def _row(language: Language, x: Masked, labels: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Scores (k,) of a row's labels, some at a time."""
    device, end = x.mask.device, language.vocabulary.end
    held = growing_cache()
    first = language.step(x.values, x.mask, positions(x.mask), held).logits.log_softmax(-1)
    prompt = [(layer.keys, layer.values) for layer in held.layers]
    for some in (labels[i : i + TOGETHER] for i in range(0, len(labels), TOGETHER)):
        wanted = torch.nn.utils.rnn.pad_sequence([torch.tensor([*ids, end], device=device) for ids in some], True, -1)
        real = torch.cat([x.mask.expand(len(some), -1), wanted[:, :-1] >= 0], 1)
        for layer, (keys, values) in zip(held.layers, prompt, strict=True):
            layer.put(keys.expand(len(some), -1, -1, -1), values.expand(len(some), -1, -1, -1))
        score = first[0, wanted[:, 0]]
        for place in range(wanted.shape[1] - 1):
            seen = real[:, : x.mask.shape[1] + place + 1]
            words = language.embed(wanted[:, place : place + 1].clamp(min=0))
            logs = language.step(words, seen, positions(seen)[:, -1:], held).logits.log_softmax(-1)
            following = wanted[:, place + 1]
            score = score + logs.gather(1, following.clamp(min=0)[:, None])[:, 0].masked_fill(following < 0, 0.0)
        yield score
