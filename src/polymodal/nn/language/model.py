"""Language: a causal language model with its vocabulary."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from polymodal.errors import SpecError
from polymodal.nn.language.vocabulary import Vocabulary

WINDOW = 1024
"""Positions that a network must see where several texts stand in one sequence."""


class Step(NamedTuple):
    """What a model says of what comes next.

    Attributes:
        logits: (B, V) of the last position.
        cache: keys and values so far; transformers' own.
    """

    logits: Tensor
    cache: Any


@dataclass(frozen=True)
class Language:
    """A causal language model of transformers.

    Attributes:
        name: as in a spec.
        net: the model, in evaluation mode.
        vocabulary: its tokenizer.
        context: most positions.
        digest: of weights and tokenizer.
    """

    name: str
    net: Any
    vocabulary: Vocabulary
    context: int
    digest: str

    @property
    def width(self) -> int:
        """W, of its embeddings."""
        return int(self.net.get_input_embeddings().weight.shape[1])

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids, (..., W)."""
        return self.net.get_input_embeddings()(ids)

    def with_net(self, net: nn.Module) -> Self:
        """The same with another network."""
        return replace(self, net=net)

    def private(self) -> Self:
        """The same with modules of its own, whose frozen weights are shared."""
        memo: dict[int, Any] = {id(tensor): tensor for tensor in (*self.net.parameters(), *self.net.buffers())}
        return self.with_net(copy.deepcopy(self.net, memo))

    def in_half(self) -> Self:
        """The same with frozen weights in bfloat16; what is trained stays the same tensors."""
        memo, net = dict[int, Any](), self.net
        for p in net.parameters():
            memo[id(p)] = p if p.requires_grad else nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False)
        memo |= {id(buffer): buffer for buffer in net.buffers()}
        return self.with_net(copy.deepcopy(net, memo))

    def check_masks(self) -> None:
        """Refuse a network that cannot be told which position sees which, as packing and reading classes need it.

        Raises:
            SpecError: it cannot, or it sees fewer positions than are packed.
        """
        config = self.net.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if window and getattr(config, "use_sliding_window", True) and window < WINDOW:
            raise SpecError(f"{self.name}: must see {WINDOW} positions or more to be packed or to read classes, "
                            f"got a window of {window}. Choose another model.")  # fmt: skip
        values, places = self.embed(torch.arange(4)[None]), torch.arange(4)[None]
        seen = torch.ones(1, 4, 4, dtype=torch.bool)
        with torch.no_grad():
            plain = self.logits(values, seen[:, 0], places, places[0], False)
            try:
                masked = self.logits(values, seen.tril(), places, places[0], False)
            except (RuntimeError, ValueError, TypeError, IndexError):
                masked = None
        if masked is None or not torch.allclose(plain, masked, atol=1e-3, rtol=1e-3):
            raise SpecError(f"{self.name}: must take a mask of which position sees which to be packed or to read "
                            "classes. Choose another model.")  # fmt: skip

    def logits(self, values: Tensor, seen: Tensor, positions: Tensor, keep: Tensor, checkpointing: bool) -> Tensor:
        """Logits (B, len(keep), V) at some places, with gradient.

        Args:
            values: (B, S, W) embeddings.
            seen: (B, S) which are real; or (B, S, S) bool, which each position (row) sees.
            positions: (B, S) int64.
            keep: places in 0..S-1.
            checkpointing: compute layers again for the gradient instead of keeping what they give.
        """
        dtype, net = self.embed(keep[:0]).dtype, self.net
        mask: Tensor = seen.long()
        if seen.ndim == 3:
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
            mask = mask[:, None]
        checkpointing = checkpointing and torch.is_grad_enabled()
        if checkpointing:
            _spoken(net, "enable")({"use_reentrant": False})
        net.train(checkpointing)  # layers are computed again only in training mode
        try:
            return net(
                inputs_embeds=values.to(dtype), attention_mask=mask, position_ids=positions, use_cache=False,
                logits_to_keep=keep,
            ).logits  # fmt: skip
        finally:
            net.eval()
            if checkpointing:
                _spoken(net, "disable")()
                net.disable_input_require_grads()  # which transformers has turned on

    @torch.inference_mode()
    def step(self, values: Tensor, real: Tensor, positions: Tensor, cache: Any = None) -> Step:
        """Read on, and tell what comes next.

        Args:
            values: (B, S, W) embeddings of what is new.
            real: (B, before + S) which of all positions so far are real.
            positions: (B, S) int64 of what is new.
            cache: of what was read before; None at the beginning.
        """
        values = values.to(self.embed(positions[:0, 0]).dtype)
        found = self.net(
            inputs_embeds=values, attention_mask=real.long(), position_ids=positions, use_cache=True, logits_to_keep=1,
            **{_cache_word(type(self.net)): cache},
        )  # fmt: skip
        return Step(found.logits[:, -1].float(), getattr(found, _cache_word(type(self.net))))


def _spoken(net: Any, what: str) -> Any:
    """A method of checkpointing under the name that the installed transformers has for it."""
    return getattr(net, f"activation_checkpointing_{what}", None) or getattr(net, f"gradient_checkpointing_{what}")


_WORDS = dict[type, str]()


def _cache_word(net: type) -> str:
    """What the installed transformers calls the cache."""
    if net not in _WORDS:
        known = inspect.signature(net.forward).parameters  # pyright: ignore[reportAttributeAccessIssue]
        _WORDS[net] = "cache" if "cache" in known else "past_key_values"
    return _WORDS[net]
