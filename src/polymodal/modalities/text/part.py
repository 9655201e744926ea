"""Text as an input: sub-words of a pretrained encoder, or words learned from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from polymodal.errors import SpecError, suggest
from polymodal.modalities.text.augment import TextAugmentation
from polymodal.modalities.text.clean import clean, decode
from polymodal.modalities.text.corrupt import corruptions
from polymodal.nn import hub
from polymodal.nn.backbone import Backbone
from polymodal.nn.bert import MINILM_WIDTH, BertBackbone, Subwords, minilm_tokenizer
from polymodal.nn.blocks import TokenEncoder
from polymodal.nn.pieces import pieces
from polymodal.nn.segment import ENGLISH_STOP_WORDS, Cjk, split_words
from polymodal.nn.weights import PACKAGED
from polymodal.nn.worded import BAG, UNKNOWN, WordEncoder, bag_of_words
from polymodal.part import Corruption, Modality, Pieces, Reading
from polymodal.reading import Field as FormField
from polymodal.types import Masked

_SCRATCH_ONLY = ("cjk", "stop_words", "vocabulary_size", "min_count", "layers")
_PRETRAINED_ONLY = ("window", "overlap")


class Text(Modality):
    """Texts of any length; numbers are taken as they are written.

    Attributes:
        pretrained: in a spec ``backbone``: "minilm" (English), "hf:org/name" or "hf:folder" for another encoder, "none"
            for words learned from scratch, "auto" for minilm where its weights are installed, else none.
        strip_markup: leave only what HTML or Markdown would show.
        strip_urls: leave out web addresses.
        lowercase: fold case; by default only for words learned from scratch.
        max_tokens: what lies behind so many tokens is cut off, and counted as a repair.
        window: tokens that the backbone sees at once, special tokens included.
        overlap: tokens that two windows share.
        cjk: Chinese and Japanese in words (extra ``cjk``) or in characters; from scratch only.
        stop_words: words that do not count, or "english" for a list of function words; from scratch only.
        vocabulary_size: words known at most; from scratch only.
        min_count: how often the training texts must hold a word for it to be known; from scratch only.
        layers: transformer blocks of the encoder; from scratch only.
        augmentation: how training texts are varied; not at all when not given.
        vocabulary: known words, most frequent first; learned by `fit`, from scratch only.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["text"] = "text"
    pretrained: str = Field("auto", alias="backbone")
    strip_markup: bool = False
    strip_urls: bool = False
    lowercase: bool | None = None
    max_tokens: int = Field(default=2048, ge=1, le=1_000_000)
    window: int = Field(default=128, ge=3, le=8192)
    overlap: int = Field(default=16, ge=0)
    cjk: Cjk = "words"
    stop_words: tuple[str, ...] | Literal["english"] = ()
    vocabulary_size: int = Field(default=20_000, ge=1, le=1_000_000)
    min_count: int = Field(default=2, ge=1)
    layers: int = Field(default=1, ge=1, le=12)
    augmentation: TextAugmentation | None = None
    vocabulary: tuple[str, ...] | None = None

    @field_validator("pretrained")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        known = ("auto", "minilm", "none", "hf:org/name")
        if value not in known[:3] and not (value.startswith("hf:") and len(value) > 3):
            raise ValueError(f"backbone must be one of {list(known)}, got {value!r}.{suggest(value, known)}")
        return value

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        self._check(self.pretrained)
        return self

    def _check(self, name: str) -> None:
        """Refuse settings that ``name`` does not use."""
        idle = {"none": _PRETRAINED_ONLY, "auto": ()}.get(name, (*_SCRATCH_ONLY, "vocabulary"))
        idle = (*idle, "lowercase") if name == "minilm" else idle  # its tokenizer folds case itself
        fields = type(self).model_fields
        if wrong := [field for field in idle if getattr(self, field) != fields[field].default]:
            raise SpecError(f"{wrong[0]} must not be set with backbone {name!r}, where it has no effect. Leave it out.")
        if self.overlap >= self.window:
            raise SpecError(f"overlap must be less than window {self.window}, got {self.overlap}.")

    @property
    def name(self) -> str:
        """The backbone that is used: "auto" resolved by what is installed."""
        if self.pretrained != "auto":
            return self.pretrained
        return "none" if PACKAGED["minilm"].locate() is None else "minilm"

    def fields(self, name: str) -> tuple[FormField, ...]:
        """A text; the example has known words where they were learned from scratch."""
        known = " ".join((self.vocabulary or ())[:4])
        return (FormField(self.columns(name)[0], "text", known or "Two boats in the harbour."),)

    def read(self, content: Any) -> Reading:
        """Decode, clean and, beyond ``max_tokens``, cut one text.

        Args:
            content: a string, UTF-8 bytes or a number.

        Returns:
            The text, None if nothing is left of it; its words and characters.

        Raises:
            DataError: the content is none of these.
        """
        text, repairs = clean(decode(content), strip_markup=self.strip_markup, strip_urls=self.strip_urls)
        if not text:
            return Reading(None, (*repairs, "empty after cleaning"))
        fold = self.name == "none" if self.lowercase is None else self.lowercase
        text = text.lower() if fold else text
        words = sum(word[0].isalnum() for word, _ in split_words(text, "characters"))
        facts = {"words": float(words), "characters": float(len(text))}
        # A character is at most four tokens (its bytes, or the letters of a Hangul syllable).
        if 4 * len(text) > self.max_tokens and (kept := self._cut(text)) != text:
            return Reading(kept, (*repairs, f"cut after {self.max_tokens} tokens"), facts)
        return Reading(text, repairs, facts)

    def _cut(self, text: str) -> str:
        """The text up to its last token that counts."""
        if (tokenizer := self._tokenizer()) is not None:
            return tokenizer.cut(text, self.max_tokens)
        count, kept, stop = 0, 0, self._stop
        for word, end in split_words(text, self.cjk):
            if count == self.max_tokens and word.lower() not in stop:
                return text[:kept]
            if word.lower() not in stop:
                count, kept = count + 1, end
        return text

    def fit(self, values: Iterable[Any | None]) -> Self:
        """Name the backbone; from scratch, learn the vocabulary. Reads no value otherwise.

        Raises:
            SpecError: a setting has no effect with the backbone that "auto" stands for.
        """
        name = self.name
        self._check(name)
        if name != "none":
            return self.model_copy(update={"pretrained": name})
        counts = Counter(word for text in values if text is not None for word in self._words(text))
        known = sorted((word for word, n in counts.items() if n >= self.min_count), key=lambda w: (-counts[w], w))
        learned = {"backbone": name, "vocabulary": tuple(known[: self.vocabulary_size])}
        return type(self).model_validate(self.model_dump() | learned)

    def length(self, value: str) -> int:
        """How many tokens a text has: characters say too little of what is padded."""
        tokenizer = self._tokenizer()
        return len(tokenizer.ids([value])[0] if tokenizer is not None else self._ids(value))

    @property
    def augments(self) -> bool:
        """Whether training texts are varied."""
        return self.augmentation is not None

    def augment(self, value: str, rng: np.random.Generator) -> str:
        """A varied copy of a text."""
        return value if self.augmentation is None else self.augmentation.apply(value, rng)

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """Typos, confusions of optical recognition, dropped and shuffled words."""
        return corruptions(lambda text: self.read(text).value)

    def pieces(self, value: str) -> Pieces | None:
        """Its words."""
        return pieces(value, self.cjk if self.name == "none" else "characters")

    def collate(self, values: Sequence[str | None]) -> Masked:
        """Token ids of whole texts, without special tokens. (B, N) int64, positions (B, N, 1) in tokens."""
        present = [text for text in values if text is not None]
        tokenizer = self._tokenizer()
        ids = tokenizer.ids(present) if tokenizer is not None else [self._ids(text) for text in present]
        made = iter(ids)
        rows = [None if text is None else torch.tensor(next(made)) for text in values]
        x = Masked.pad(rows, torch.zeros((), dtype=torch.int64))
        at = torch.arange(x.mask.shape[1], dtype=torch.float32)
        return Masked(x.values, x.mask, at.expand(x.mask.shape).unsqueeze(2))

    def files(self) -> dict[str, bytes]:
        """The backbone's tokenizer, in the format of the ``tokenizers`` library."""
        found = self._tokenizer()
        return {} if found is None else {"tokenizer.json": found.tokenizer.to_str().encode()}

    def backbone(self) -> Backbone | None:
        """The pretrained encoder from token ids (B, N) to tokens (B, T, W).

        Raises:
            SpecError: it is not installed, or ``window`` is longer than it takes.
            BundleError: a hub model cannot be fetched.
        """
        if self.name == "none":
            return None
        if self.name == "minilm":
            return _minilm(self.window, self.overlap)
        return _hub(self.name, self.window, self.overlap)

    def encoder(self, dim: int) -> nn.Module:
        """Project the backbone's tokens, or embed and mix words. -> (B, T, dim)."""
        if self.name == "none":
            return WordEncoder(len(self.vocabulary or ()) + 1, dim, self.layers)
        if self.name == "minilm":  # known without loading it
            return TokenEncoder(MINILM_WIDTH, dim, coordinates=1)
        return TokenEncoder(_hub(self.name, self.window, self.overlap).width, dim, coordinates=1)

    def summary(self, x: Masked) -> Tensor:
        """Mean of the backbone's tokens (B, W), or a bag of the most frequent words as unit vectors (B, F)."""
        if x.values.is_floating_point():
            return x.mean()
        return bag_of_words(x, min(BAG, len(self.vocabulary or ()) + 1))

    def _tokenizer(self) -> Subwords | None:
        """The backbone's tokenizer, or None from scratch."""
        if self.name == "none":
            return None
        return minilm_tokenizer() if self.name == "minilm" else hub.text_tokenizer(self.name)

    def _words(self, text: str) -> list[str]:
        """The words of a text that count."""
        return [word for word, _ in split_words(text, self.cjk) if word.lower() not in self._stop]

    def _ids(self, text: str) -> list[int]:
        """Vocabulary ids of a text, one `UNKNOWN` if no word counts."""
        return [self._index.get(word, UNKNOWN) for word in self._words(text)] or [UNKNOWN]

    @property
    def _stop(self) -> frozenset[str]:
        """Words that do not count, in lower case."""
        if self.stop_words == "english":
            return ENGLISH_STOP_WORDS
        return frozenset(word.lower() for word in self.stop_words)

    @cached_property
    def _index(self) -> dict[str, int]:
        """Id of each known word."""
        return {word: i for i, word in enumerate(self.vocabulary or (), start=UNKNOWN + 1)}


@cache
def _minilm(window: int, overlap: int) -> Backbone:
    """One per process and window: copy it to train it."""
    return BertBackbone(window, overlap)


@cache
def _hub(name: str, window: int, overlap: int) -> Backbone:
    """One per process, name and window: copy it to train it."""
    return hub.text_backbone(name, window, overlap)
