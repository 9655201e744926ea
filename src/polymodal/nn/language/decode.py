"""Decoding: what a language model says to prompts, a batch at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from polymodal.errors import DataError
from polymodal.nn.language.model import Language
from polymodal.nn.language.tree import left_padded
from polymodal.types import Masked

TOGETHER = 32
"""Prompts that are answered together."""

Reason = Literal["stop", "length"]


@settings(frozen=True, config={"extra": "forbid"})
class Decoding:
    """How answers are made.

    Attributes:
        tokens: of an answer, at most.
        temperature: of sampling; 0 takes the likeliest token.
        top_k: sample among so many likeliest tokens; 0 among all.
        top_p: sample among the likeliest tokens that have this share together.
        beams: beginnings that are followed at once; said is the one whose tokens have the highest mean log-probability.
        stop: texts at which an answer ends; they are left out.
        seed: of sampling.
    """

    tokens: int = Field(default=64, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=10)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    beams: int = Field(default=1, ge=1, le=32)
    stop: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0, lt=1 << 64)

    def __post_init__(self) -> None:
        """Reject settings that have no effect or contradict one another."""
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p have no effect with temperature 0. Leave them out, or raise it.")
        if self.beams > 1 and self.temperature:
            raise ValueError(f"beams must be 1 with temperature {self.temperature}, got {self.beams}. Leave out one.")
        if any(not text for text in self.stop):
            raise ValueError("stop must hold texts, got an empty one. Leave it out.")


@dataclass(frozen=True, slots=True)
class Said:
    """One answer.

    Attributes:
        ids: its tokens, without the end, but with a text at which it stopped.
        text: what they say.
        score: sum of the log-probabilities of its tokens, of the end too where it was reached.
        reason: it came to an end, or to the most tokens.
        ended: whether the end was an end token.
    """

    ids: tuple[int, ...]
    text: str
    score: float
    reason: Reason
    ended: bool


@dataclass(slots=True)
class Row:
    """An answer while it is made.

    Attributes:
        generator: of sampling, of this row alone, so that no answer depends on its neighbours.
        ids: tokens so far.
        score: log-probability so far.
        reason: why it ended; None while it goes on.
        ended: whether that was an end token, whose log-probability is in the score.
    """

    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    score: float = 0.0
    reason: Reason | None = None
    ended: bool = False

    @classmethod
    def of(cls, seed: int) -> Row:
        """A row of a seed, wherever it stands among others."""
        digest = hashlib.sha256(str(seed).encode()).digest()
        return cls(torch.Generator().manual_seed(int.from_bytes(digest[:4])))  # of more, a CPU's would use as much

    def add(self, logs: Tensor, token: int, language: Language, how: Decoding) -> None:
        """Take a token in, of log-probabilities (V,), and see whether it is the last one."""
        self.score += float(logs[token])
        if token in language.vocabulary.ends:
            self.reason, self.ended = "stop", True
            return
        self.ids.append(token)
        text = language.vocabulary.text(self.ids) if how.stop else ""
        if any(end in text for end in how.stop):
            self.reason = "stop"
        elif len(self.ids) >= how.tokens:
            self.reason = "length"

    def said(self, language: Language, how: Decoding) -> Said:
        """The answer."""
        text = stopped(language.vocabulary.text(self.ids), how.stop)
        return Said(tuple(self.ids), text, self.score, self.reason or "length", self.ended)


def stopped(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the texts at which it ends."""
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))]


@torch.inference_mode()
def say(language: Language, prompts: Masked, how: Decoding) -> list[Said]:
    """Answer prompts; what one row is answered does not depend on the others but for rounding.

    Args:
        language: that answers.
        prompts: (B, L, W) embeddings, real anywhere; every row has something real.
        how: answers are made.

    Raises:
        DataError: a prompt and its answer do not fit the model's context.
    """
    check_room(language, prompts, how.tokens)
    found = list[Said]()
    for rows in torch.arange(len(prompts)).split(TOGETHER if how.beams == 1 else 1):
        some = prompts[rows.to(prompts.mask.device)]
        if how.beams > 1:
            found.append(_search(language, left_padded(some), how))
        else:
            found += _follow(language, left_padded(some), how)
    return found


def check_room(language: Language, prompts: Masked, tokens: int) -> None:
    """Refuse prompts that leave no room for an answer.

    Raises:
        DataError: one does not; both lengths are told.
    """
    longest = int(prompts.mask.sum(1).max()) if len(prompts) else 0
    if longest + tokens > language.context:
        raise DataError(
            f"prompt must leave room for {tokens} tokens in a context of {language.context}, got {longest} tokens. "
            "Shorten the inputs or the answer, or set the decoder's truncate to left."
        )


def choose(logits: Tensor, how: Decoding, row: Row) -> int:
    """The next token of a row, by logits (V,).

    Source: top_p: Holtzman et al. 2020 (arXiv:1904.09751), section 3.1; top_k: Fan et al. 2018 (arXiv:1805.04833).
    """
    if not how.temperature:
        return int(logits.argmax())
    x = logits.double()
    p = ((x - x.max()) / how.temperature).softmax(-1).cpu()  # the largest is 0, so that nothing overflows
    order = p.argsort(descending=True, stable=True)
    kept = p[order]
    if how.top_k:
        kept[how.top_k :] = 0
    kept[kept.cumsum(0) - kept >= how.top_p * kept.sum()] = 0
    return int(order[torch.multinomial(kept, 1, generator=row.generator)])


def _follow(language: Language, x: Masked, how: Decoding) -> list[Said]:
    """Answers by the likeliest tokens or by sampling; rows that have ended leave the batch."""
    rows = [Row.of(how.seed) for _ in range(len(x))]
    alive, real = torch.arange(len(rows), device=x.mask.device), x.mask
    step = language.step(x.values, real, positions(real))
    while True:
        logs = step.logits.log_softmax(-1)
        tokens = [choose(step.logits[i], how, rows[row]) for i, row in enumerate(alive.tolist())]
        for i, (row, token) in enumerate(zip(alive.tolist(), tokens, strict=True)):
            rows[row].add(logs[i], token, language, how)
        goes = torch.tensor([rows[row].reason is None for row in alive.tolist()], device=alive.device)
        if not bool(goes.any()):
            return [row.said(language, how) for row in rows]
        keep = goes.nonzero().flatten()
        if len(keep) < len(alive):
            step.cache.batch_select_indices(keep)
            alive, real = alive[keep], real[keep]
        following = torch.tensor(tokens, device=alive.device)[keep]
        step, real = _next(language, following, real, step.cache)


def _next(language: Language, tokens: Tensor, real: Tensor, cache: Any) -> tuple[Any, Tensor]:
    """Read one token in each row."""
    real = torch.cat([real, real.new_ones(len(real), 1)], 1)
    return language.step(language.embed(tokens[:, None]), real, positions(real)[:, -1:], cache), real


def positions(real: Tensor) -> Tensor:
    """Number of each real position among the real ones of its row. (B, L)."""
    return (real.cumsum(1) - 1).clamp(min=0)


def _search(language: Language, x: Masked, how: Decoding) -> Said:
    """The best of several beginnings that are followed at once, for one row.

    Ended answers compete by the mean log-probability of their tokens, the end included (Wu et al. 2016,
    arXiv:1609.08144, equation 14, with alpha 1 and without its constant).
    """
    step, real, device = language.step(x.values, x.mask, positions(x.mask)), x.mask, x.mask.device
    scores, beams, ended = torch.zeros(1, device=device), [Row.of(0)], list[Row]()
    for _ in range(how.tokens):
        total = scores[:, None] + step.logits.log_softmax(-1)
        best, places = total.flatten().topk(min(2 * how.beams, total.numel()))
        chosen, source, tokens = list[Row](), list[int](), list[int]()
        for score, place in zip(best.tolist(), places.tolist(), strict=True):
            origin, token = divmod(place, total.shape[1])
            row = Row(beams[origin].generator, list(beams[origin].ids), beams[origin].score)
            row.add(total[origin] - scores[origin], token, language, how)
            row.score = score
            if row.reason is not None:
                ended.append(row)
            elif len(chosen) < how.beams:
                chosen.append(row)
                source.append(origin)
                tokens.append(token)
        enough = len(ended) >= how.beams and max(map(_mean, ended)) >= max(map(_mean, chosen), default=-math.inf)
        if enough or not chosen:
            break
        beams, keep = chosen, torch.tensor(source, device=device)
        scores = torch.tensor([row.score for row in beams], device=device)
        step.cache.batch_select_indices(keep)
        step, real = _next(language, torch.tensor(tokens, device=device), real[keep], step.cache)
    return max(ended or beams, key=_mean).said(language, how)


def _mean(row: Row) -> float:
    return row.score / (len(row.ids) + row.ended)
