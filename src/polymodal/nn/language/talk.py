"""Talk: answers to prompts that come at any time, made together, a token of each at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polymodal.errors import SpecError
from polymodal.nn.language.cache import join, keep
from polymodal.nn.language.decode import Decoding, Reason, Row, check_room, choose, positions
from polymodal.nn.language.memory import Memory
from polymodal.nn.language.model import Language
from polymodal.nn.language.vocabulary import Spelling
from polymodal.types import Masked


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to an answer.

    Attributes:
        ticket: of the answer.
        text: that is certain now and was not before; perhaps "".
        reason: why the answer ended; None while it goes on.
        tokens: of the answer so far, without the end.
        known: positions of the prompt that were remembered.
    """

    ticket: int
    text: str
    reason: Reason | None
    tokens: int
    known: int = 0


@dataclass(slots=True)
class _Answer:
    """An answer while it is made."""

    ticket: int
    how: Decoding
    row: Row
    spelling: Spelling
    told: int = 0  # characters
    token: int = -1  # chosen, and not read yet
    known: int = 0  # positions of the prompt

    def certain(self) -> str:
        """What is certain of the text: what may be the beginning of a stop text is held back."""
        text = self.spelling.text
        stops = [(stop, min(len(stop), len(text) + 1)) for stop in self.how.stop]
        held = (n for stop, end in stops for n in range(1, end) if text.endswith(stop[:n]))
        return text[: len(text) - max(held, default=0)]


@dataclass(slots=True)
class _Batch:
    """Answers that are made together, and what was read of each."""

    answers: list[_Answer] = field(default_factory=list)
    cache: Any = None
    real: Tensor | None = None  # (B, L) bool


class Talk:
    """Answers that are made together although their prompts come and go; each is what `say` answers to it alone.

    Only one thread may use it.

    Source: Yu et al. 2022, "Orca" (OSDI 2022), section 3.2: rows join and leave between steps.

    Args:
        language: that answers.
        most: answers that are made together; others wait.
        memory: of prompts; a new one when not given.
    """

    def __init__(self, language: Language, most: int = 8, memory: Memory | None = None) -> None:
        self.language, self.most, self.memory = language, most, Memory() if memory is None else memory
        self._batch, self._waiting, self._last = _Batch(), deque[tuple[_Answer, Tensor]](), 0

    def __len__(self) -> int:
        """Answers that are made or wait."""
        return len(self._batch.answers) + len(self._waiting)

    def start(self, prompt: Tensor, how: Decoding) -> int:
        """Ask for an answer; the next step with a free place reads the prompt.

        Args:
            prompt: (L, W) embeddings.
            how: the answer is made.

        Returns:
            Ticket of the answer.

        Raises:
            SpecError: beams are wanted.
            DataError: prompt and answer do not fit the model's context.
        """
        if how.beams > 1:
            raise SpecError(f"beams must be 1 where answers are streamed, got {how.beams}. Leave them out.")
        check_room(self.language, Masked(prompt[None], _real(prompt)), how.tokens)
        self._last += 1
        answer = _Answer(self._last, how, Row.of(how.seed), Spelling(self.language.vocabulary))
        self._waiting.append((answer, prompt))
        return self._last

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Go on by one token in each answer that is made. Empty where there is none."""
        logits = [self._read()] if self._batch.answers else []
        logits += self._admit()
        if not logits:
            return []
        scores = torch.cat(logits)
        logs = scores.log_softmax(-1)
        for answer, score, log in zip(self._batch.answers, scores, logs, strict=True):
            answer.token = choose(score, answer.how, answer.row)
            answer.row.add(log, answer.token, self.language, answer.how)
        pieces = [self._piece(answer) for answer in self._batch.answers]
        self._leave([i for i, answer in enumerate(self._batch.answers) if answer.row.reason is not None])
        return pieces

    @torch.inference_mode()
    def drop(self, ticket: int) -> None:
        """Give up an answer. One that has ended, or never was, is none to give up."""
        self._waiting = deque(pair for pair in self._waiting if pair[0].ticket != ticket)
        self._leave([i for i, answer in enumerate(self._batch.answers) if answer.ticket == ticket])

    def _read(self) -> Tensor:
        """Read the chosen token of each answer. (B, V) logits of the next one."""
        batch = self._batch
        if batch.real is None:
            raise RuntimeError("There is nothing to read.")
        batch.real = torch.cat([batch.real, batch.real.new_ones(len(batch.real), 1)], 1)
        tokens = torch.tensor([answer.token for answer in batch.answers], device=batch.real.device)
        place = positions(batch.real)[:, -1:]
        return self.language.step(self.language.embed(tokens[:, None]), batch.real, place, batch.cache).logits

    def _admit(self) -> list[Tensor]:
        """Read the prompts of those who wait, as far as there are places. (1, V) logits of each."""
        found, batch = list[Tensor](), self._batch
        caches, reals = ([], []) if batch.real is None else ([batch.cache], [batch.real])
        while self._waiting and len(batch.answers) < self.most:
            answer, prompt = self._waiting.popleft()
            real = _real(prompt)
            answer.known, held = self.memory.recall(prompt)
            places = positions(real)[:, answer.known :]
            found.append(self.language.step(prompt[None, answer.known :], real, places, held).logits)
            self.memory.keep(prompt, held)
            batch.answers.append(answer)
            caches.append(held)
            reals.append(real)
        if len(caches) > 1:
            batch.cache, batch.real = join(caches, reals)
        elif found:
            batch.cache, batch.real = caches[0], reals[0]
        return found

    def _leave(self, gone: list[int]) -> None:
        """Let answers leave the batch."""
        batch = self._batch
        stay = [i for i in range(len(batch.answers)) if i not in gone]
        if not stay:
            self._batch = _Batch()
        elif gone and batch.real is not None:
            batch.real = keep(batch.cache, batch.real, stay)
            batch.answers = [batch.answers[i] for i in stay]

    def _piece(self, answer: _Answer) -> Piece:
        """What the newest token adds."""
        row = answer.row
        if row.reason is None:
            answer.spelling.add(answer.token)
            text = answer.certain()
        else:
            text = row.said(self.language, answer.how).text
        start, answer.told = answer.told, len(text)
        return Piece(answer.ticket, text[start:], row.reason, len(row.ids), answer.known)


def stream(language: Language, prompt: Tensor, how: Decoding, memory: Memory | None = None) -> Iterator[str]:
    """One answer, text by text as it becomes certain.

    Args:
        language: that answers.
        prompt: (L, W) embeddings.
        how: the answer is made, without beams.
        memory: of prompts; none that lasts when not given.

    Raises:
        SpecError: beams are wanted.
        DataError: prompt and answer do not fit the model's context.
    """
    talk = Talk(language, 1, memory)
    talk.start(prompt, how)
    while len(talk):
        yield from (piece.text for piece in talk.step() if piece.text)


def _real(prompt: Tensor) -> Tensor:
    return torch.ones(1, len(prompt), dtype=torch.bool, device=prompt.device)
