"""Conversation: what was said before a question, besides the user's own turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said besides the user's turns.

    Attributes:
        system: what the model is told first; as its decoder has it when None.
        answers: between the user's turns, one fewer than those.
    """

    system: str | None = None
    answers: tuple[str, ...] = ()

    def messages(self, usual: str | None) -> list[tuple[str, str | None]]:
        """Role and content of each message, None for what is laid between the template's words.

        Args:
            usual: what the decoder is told first.
        """
        told = [] if self.system is None and usual is None else [("system", usual if self.system is None else None)]
        return [*told, ("user", None), *[(role, None) for _ in self.answers for role in ("assistant", "user")]]

    def woven(self, frames: Sequence[T], turns: Sequence[T], say: Callable[[str], T]) -> list[T]:
        """All in its order.

        Args:
            frames: what the template has around the messages.
            turns: the user's.
            say: from a text to what stands for it.
        """
        told = [] if self.system is None else [say(self.system)]
        for turn, answer in zip_longest(turns, self.answers):
            told += [turn] if answer is None else [turn, say(answer)]
        return [frames[0], *chain(*zip(told, frames[1:], strict=True))]
