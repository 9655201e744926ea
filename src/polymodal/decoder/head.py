"""The heads that a language model is: what it is asked about a row, and what it says of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from polymodal.decoder.conversation import Conversation
from polymodal.decoder.settings import COUNTS, RANK, Decoder
from polymodal.decoder.template import FUSED
from polymodal.errors import SpecError
from polymodal.nn.blocks import Named
from polymodal.nn.language.memory import Memory
from polymodal.nn.language.model import Language
from polymodal.nn.lowrank import add_low_rank, merge_low_rank
from polymodal.nn.project import Projector
from polymodal.settings import Trained
from polymodal.types import Fused, Masked

ALPHA = 16.0


class Held:
    """A language model that is no part of a module's state: its frozen weights are shared, also by copies.

    Attributes:
        exact: with weights in float32.
        fast: with frozen weights in bfloat16, while that is wanted.
    """

    def __init__(self, exact: Language, fast: Language | None = None) -> None:
        self.exact, self.fast = exact, fast
        self._state, self._merged, self._memory = self._changes(), None, Memory()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with modules of its own, frozen weights shared; what is trained is copied once, with its owner."""
        return type(self)(_copied(self.exact, memo), None if self.fast is None else _copied(self.fast, memo))

    def merged(self) -> Language:
        """With low-rank changes added into weights of its own."""
        self._renew()
        if self._merged is None:
            net = self.exact.private().net
            merge_low_rank(net)
            self._merged = self.exact.with_net(net)
        return self._merged

    def memory(self) -> Memory:
        """Of prompts that were read."""
        self._renew()
        return self._memory

    def _renew(self) -> None:
        """Forget what was made with other changes than those that are there now."""
        if (state := self._changes()) != self._state:
            self._state, self._merged, self._memory = state, None, Memory()

    def _changes(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self.exact.net.parameters() if p.requires_grad]


class DecoderHead(nn.Module):
    """A language model that is asked about each row by a prompt of words and soft tokens.

    Args:
        plan: of the decoder, its prompt known.
        dim: D.
        verbatim: inputs whose very words stand in the prompt.

    Attributes:
        size: rows that go through the language model together where gradients are wanted; 0 for all.
    """

    def __init__(self, plan: Decoder, dim: int, verbatim: tuple[str, ...]) -> None:
        super().__init__()
        self.plan, self.verbatim, self.size = plan, frozenset(verbatim), 0
        language = plan.language().private()
        soft = [piece.input for piece in plan.pieces if piece.input and piece.input not in self.verbatim]
        count = plan.count or COUNTS[plan.projector]
        norm = math.sqrt(language.width) * float(language.net.get_input_embeddings().weight.detach().float().std())
        self.projectors = Named({n: Projector(_kind(plan, n), dim, language.width, count, norm) for n in soft})
        if plan.adapt == "lora":
            seed = torch.initial_seed() % 2**63  # of whoever makes the model
            if not add_low_rank(language.net, plan.rank or RANK, ALPHA, seed):
                raise SpecError(
                    f"decoder.adapt must be all or none: {plan.pretrained!r} has no linear layers in its blocks."
                )
        if plan.adapt == "all":
            language = language.with_net(copy.deepcopy(language.net).requires_grad_(True))
        learned = [p for p in language.net.parameters() if p.requires_grad]
        self.changes = nn.ParameterDict({str(i): p for i, p in enumerate(learned)})
        self._held = Held(language)
        before, after = language.vocabulary.around(plan.system, plan.chat)
        self._before, self._after = tuple(before), tuple(after)

    @property
    def language(self) -> Language:
        """The language model, with what was changed in it."""
        return self._held.fast or self._held.exact

    @property
    def answering(self) -> Language:
        """The same where no gradient is wanted: with merged changes, if they are to be."""
        return self._held.merged() if self.plan.merge else self.language

    @property
    def memory(self) -> Memory:
        """What it has read of prompts, as long as it stays what it is."""
        return self._held.memory()

    @property
    def parts(self) -> dict[Trained, list[nn.Parameter]]:
        """What is trained, by the parts that a stage can name."""
        return {"projector": list(self.projectors.parameters()), "language": list(self.changes.values())}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the language model, too: what is frozen is shared, and stays where it is for the others."""
        super()._apply(fn, recurse)
        fast = self._held.fast
        self._held = Held(_moved(self._held.exact, fn), None if fast is None else _moved(fast, fn))
        return self

    def in_half(self, wanted: bool) -> None:
        """Let the frozen weights of the language model be bfloat16, or float32; what is trained stays float32."""
        if self.plan.adapt != "all":
            self._held.fast = self._held.exact.in_half() if wanted else None

    def prompts(self, fused: Fused, room: int = 0) -> Masked:
        """What the language model is asked, as embeddings (B, L, W); real where there is something to read.

        Args:
            fused: with the inputs' tokens, and as ``given`` the words of those that are read word for word.
            room: positions that are kept free; as many as an answer that is made may take, at least.
        """
        whole = _joined([self._words(self._before, fused), *self._asked(fused), self._words(self._after, fused)])
        return self._fitting(whole, room)

    def conversation(self, fused: Fused, other: Conversation) -> Masked:
        """What it is asked in a conversation, as embeddings (1, L, W).

        Args:
            fused: of the user's turns, a row each, in their order.
            other: what else was said.

        Raises:
            SpecError: it is not spoken to by a chat template that takes such a conversation.
        """
        words = self.language.vocabulary
        if not self.plan.chat or not words.talks:
            raise SpecError("a conversation of several messages needs a language model with a chat template.")
        asked, one = _joined(self._asked(fused)), Fused(fused.pooled[:1], {})
        turns = [Masked(x[real][None], real[real][None]) for x, real in zip(asked.values, asked.mask, strict=True)]
        frames = [self._words(ids, one) for ids in words.frames(other.messages(self.plan.system))]
        return self._fitting(_joined(other.woven(frames, turns, lambda text: self._words(words.ids(text), one))))

    def _asked(self, fused: Fused) -> list[Masked]:
        """The prompt, without what the chat template lays around it."""
        rows, parts = len(fused.pooled), list[Masked]()
        for piece in self.plan.pieces:
            if piece.text:
                parts.append(self._words(self.language.vocabulary.ids(piece.text), fused))
            elif piece.input == FUSED:
                whole = torch.ones(rows, 1, dtype=torch.bool, device=fused.pooled.device)
                parts.append(self.projectors[FUSED](Masked(fused.pooled[:, None], whole)))
            elif piece.input in self.verbatim:
                x = fused.given.get(piece.input)
                parts += [] if x is None else [Masked(self.language.embed(x.values.masked_fill(~x.mask, 0)), x.mask)]
            elif piece.input in fused.tokens:
                parts.append(self.projectors[piece.input](fused.tokens[piece.input]))
        return parts

    def _fitting(self, whole: Masked, room: int = 0) -> Masked:
        return whole if self.plan.truncate == "error" else _newest(whole, self.language.context - max(self.room, room))

    @property
    def room(self) -> int:
        """Positions that are kept free for the answer."""
        return 1

    def _words(self, ids: list[int] | tuple[int, ...], fused: Fused) -> Masked:
        """The same words in each row."""
        rows, device = len(fused.pooled), fused.pooled.device
        told = self.language.embed(torch.tensor([list(ids)], dtype=torch.long, device=device))
        return Masked(told.expand(rows, -1, -1), torch.ones(rows, len(ids), dtype=torch.bool, device=device))


def _copied(language: Language, memo: dict[int, Any]) -> Language:
    for tensor in (*language.net.parameters(), *language.net.buffers()):
        if not tensor.requires_grad:
            memo.setdefault(id(tensor), tensor)
    return language.with_net(copy.deepcopy(language.net, memo))


def _moved(language: Language, fn: Callable[[Tensor], Tensor]) -> Language:
    """The same with other frozen tensors; those that are trained have been changed in place."""
    memo = dict[int, Any]()
    for tensor in (*language.net.parameters(), *language.net.buffers()):
        new = tensor if tensor.requires_grad else fn(tensor.detach())
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            new = tensor if new.data_ptr() == tensor.data_ptr() else nn.Parameter(new, requires_grad=False)
        memo[id(tensor)] = new
    return language.with_net(copy.deepcopy(language.net, memo))


def _kind(plan: Decoder, name: str) -> Any:
    """The projector of a place: one vector needs no choice or rearrangement of tokens."""
    return "mlp" if name == FUSED and plan.projector in ("resampler", "shuffle") else plan.projector


def _joined(parts: Sequence[Masked]) -> Masked:
    """One behind the other."""
    dtype = parts[0].values.dtype
    return Masked(torch.cat([x.values.to(dtype) for x in parts], 1), torch.cat([x.mask for x in parts], 1))


def _newest(x: Masked, most: int) -> Masked:
    """No more than ``most`` real positions of each row, the last ones."""
    behind = x.mask.flip(1).cumsum(1).flip(1)
    return Masked(x.values, x.mask & (behind <= most))
