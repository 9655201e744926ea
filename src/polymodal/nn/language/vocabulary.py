"""Vocabulary: the tokenizer of a language model, and how it is spoken to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from polymodal.errors import SpecError

MARK = "\ufffc"
"""Stands for what a user says while a chat template is laid around it."""

BROKEN = "\ufffd"
"""What the bytes of a character become before all of them are there."""


class Vocabulary:
    """A fast tokenizer of transformers with the tokens that frame what is said.

    Args:
        tokenizer: loaded with its model.
        ends: ids that end an answer, by the model's own settings.

    Attributes:
        ends: every id that ends an answer.
        end: the one that closes an answer in training: that of the chat template, where there is one.
        pad: fills what is not real; an end token where the model has none of its own.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        self._tokenizer, self._plain = tokenizer, copy.deepcopy(tokenizer.backend_tokenizer)
        self._plain.no_padding()
        self._plain.no_truncation()
        self._framed = copy.deepcopy(self._plain)
        self._plain.encode_special_tokens = True  # what a user writes is never taken for a special token
        self.end = self._closing(int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else ends[0]))
        self.ends = frozenset({self.end, *ends})
        self.pad = int(self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text as it is written."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, special tokens left out."""
        return self._plain.decode(list(ids), skip_special_tokens=True)

    def around(self, system: str | None, chat: bool) -> tuple[list[int], list[int]]:
        """Token ids that stand before and behind what a user says.

        Args:
            system: what the model is told first; None for what its template says by itself.
            chat: whether the chat template is used, if there is one.
        """
        if chat and self.talks:
            told = [] if system is None else [("system", system)]
            before, after = self.frames([*told, ("user", None)])
            return before, after
        first = self._tokenizer.bos_token_id
        return [self.end if first is None else int(first)], []  # something is always read, also where all is absent

    def _closing(self, usual: int) -> int:
        """The token that the chat template has behind an answer, if that is a special one."""
        if not self.talks:
            return usual
        try:
            said = [("user", None), ("assistant", None)]
            behind = self.frames(said, goes_on=False)[-1]
        except SpecError:  # it takes no answers
            return usual
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return behind[0] if behind and behind[0] in special else usual

    @property
    def talks(self) -> bool:
        """Whether there is a chat template."""
        return bool(self._tokenizer.chat_template)

    def frames(self, messages: Sequence[tuple[str, str | None]], goes_on: bool = True) -> list[list[int]]:
        """Token ids that the chat template has before, between and behind messages.

        Args:
            messages: role and content of each; None for one that is laid between the ids, of which there is one stretch
                more than of those.
            goes_on: whether the beginning of an answer stands behind them.

        Raises:
            SpecError: the template refuses such messages, or does not say each once.
        """
        asked = [{"role": role, "content": MARK if content is None else content} for role, content in messages]
        try:
            framed = self._tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=goes_on)
        except Exception as error:  # noqa: BLE001  (what a template raises is its own)
            raise SpecError(f"the chat template must take {[role for role, _ in messages]}: {error}") from None
        stretches = framed.split(MARK)
        if len(stretches) != 1 + sum(content is None for _, content in messages):
            raise SpecError(f"the chat template must say each of {[role for role, _ in messages]} once.")
        return [list(self._framed.encode(text, add_special_tokens=False).ids) for text in stretches]


class Spelling:
    """Text of tokens that come one by one; what the next token may still change is held back.

    Args:
        vocabulary: of the tokens.

    Attributes:
        text: all that is certain so far.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.text = vocabulary, ""
        self._ids = list[int]()

    def add(self, token: int) -> str:
        """What is certain now and was not before."""
        self._ids.append(token)
        whole = self.vocabulary.text(self._ids)
        return "" if whole.endswith(BROKEN) else self._grow(whole)

    def finish(self) -> str:
        """The rest, also of a character that stays incomplete."""
        return self._grow(self.vocabulary.text(self._ids))

    def _grow(self, whole: str) -> str:
        new, self.text = whole[len(self.text) :], whole
        return new
