"""Words as an input: a token for each, from a pretrained encoder of texts or learned from scratch."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from polymodal.errors import SpecError, suggest
from polymodal.modalities.words.augment import WordsAugmentation
from polymodal.modalities.words.corrupt import corruptions
from polymodal.modalities.words.lexicon import Lexicon
from polymodal.modalities.words.pieces import pieces
from polymodal.modalities.words.split import sentence
from polymodal.nn import hub
from polymodal.nn.bert import MINILM_WIDTH, BertBackbone, Subwords, minilm_tokenizer
from polymodal.nn.segment import Cjk
from polymodal.nn.weights import PACKAGED
from polymodal.nn.worded import (
    BAG,
    SPELT,
    UNKNOWN,
    Pooling,
    SpeltEncoder,
    WordBackbone,
    WordedEncoder,
    bag_of_words,
)
from polymodal.part import Corruption, Modality, Pieces, Reading
from polymodal.reading import Field as FormField
from polymodal.sentence import Sentence
from polymodal.types import Masked

_SCRATCH_ONLY = ("lowercase", "vocabulary_size", "min_count", "layers")
_PRETRAINED_ONLY = ("window", "overlap", "pooling", "max_subwords")


class Words(Modality):
    """Sentences as words, for tasks that answer for each of them.

    A cell is a list of words, or a text, which is split into words and signs. Nothing is cleaned: places in the text
    are those of the cell.

    Attributes:
        pretrained: in a spec ``backbone``: "minilm" (English), "hf:org/name" or "hf:folder" for another encoder of
            texts, "none" for words learned from scratch, "auto" for minilm where its weights are installed, else none.
        spelling: whether the model also sees a word's case and characters.
        max_words: what lies behind so many words is cut off, and counted as a repair.
        max_subwords: what of one word (an address on the web, as a rule) lies behind so many sub-words is not seen by
            the backbone, and counted as a repair.
        window: sub-words that the backbone sees at once, special tokens included.
        overlap: sub-words that two windows share.
        pooling: the backbone's token of a word is that of its first sub-word, or the mean of all.
        cjk: a text in Chinese or Japanese is parted in characters or in words (extra ``cjk``).
        lowercase: the vocabulary folds case; from scratch only.
        vocabulary_size: words known at most; from scratch only.
        min_count: how often the training sentences must hold a word for it to be known; from scratch only.
        layers: transformer blocks of the encoder; from scratch only.
        augmentation: how training sentences are varied; not at all when not given.
        vocabulary: known words, most frequent first; learned by `fit`, from scratch only.
    """

    model_config = ConfigDict(serialize_by_alias=True)
    worded = True

    type: Literal["words"] = "words"
    pretrained: str = Field("auto", alias="backbone")
    spelling: bool = True
    max_words: int = Field(default=16_384, ge=1, le=1_000_000)
    max_subwords: int = Field(default=16, ge=1)
    window: int = Field(default=128, ge=3, le=8192)
    overlap: int = Field(default=32, ge=0)
    pooling: Pooling = "first"
    cjk: Cjk = "characters"
    lowercase: bool = True
    vocabulary_size: int = Field(default=20_000, ge=1, le=1_000_000)
    min_count: int = Field(default=2, ge=1)
    layers: int = Field(default=1, ge=1, le=12)
    augmentation: WordsAugmentation | None = None
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
        """A text or a list of words; the example is a text, of known words where they were learned from scratch."""
        known = " ".join((self.vocabulary or ())[:4])
        return (FormField(self.columns(name)[0], self.kind, known or "Two boats left Porto in May."),)

    def read(self, content: Any) -> Reading:
        """Check the words of a list or split a text, and beyond ``max_words`` cut it.

        Args:
            content: a sequence of words, a JSON list of them as text, or a text.

        Returns:
            The `Sentence`, None if it has no word; its words and characters.

        Raises:
            DataError: the content is none of these, or a word is no text or blank.
        """
        found, repairs = sentence(content, self.cjk)
        if not len(found):
            return Reading(None, (*repairs, "empty after cleaning"))
        facts = {"words": float(len(found)), "characters": float(len(found.text))}
        if len(found) > self.max_words:
            found = Sentence(found.text, found.words[: self.max_words], found.starts[: self.max_words])
            repairs = (*repairs, f"cut after {self.max_words} words")
        if self._cut(found.words):
            repairs = (*repairs, f"a word cut after {self.max_subwords} sub-words")
        return Reading(found, repairs, facts)

    def _cut(self, words: Sequence[str]) -> bool:
        """Whether the backbone does not see a word to its end."""
        long = [word for word in words if len(word) > self.max_subwords] if self.name != "none" else []
        return bool(long) and bool((_lexicon(self.name).look_up(long)[1] > self.max_subwords).any())

    def fit(self, values: Iterable[Sentence | None]) -> Self:
        """Name the backbone; from scratch, learn the vocabulary. Reads no value otherwise.

        Raises:
            SpecError: a setting has no effect with the backbone that "auto" stands for.
        """
        name = self.name
        self._check(name)
        if name != "none":
            return self.model_copy(update={"pretrained": name})
        counts = Counter(self._folded(word) for value in values if value is not None for word in value.words)
        known = sorted((word for word, n in counts.items() if n >= self.min_count), key=lambda w: (-counts[w], w))
        learned = {"backbone": name, "vocabulary": tuple(known[: self.vocabulary_size])}
        return type(self).model_validate(self.model_dump() | learned)

    def length(self, value: Sentence) -> int:
        """How many sub-words of a sentence the backbone sees."""
        return int(_lexicon(self.name).look_up(value.words, self.max_subwords)[1].sum())

    @property
    def augments(self) -> bool:
        """Whether training sentences are varied."""
        return self.augmentation is not None

    def augment(self, value: Sentence, rng: np.random.Generator) -> Sentence:
        """A varied copy of a sentence, word for word."""
        return value if self.augmentation is None else self.augmentation.apply(value, rng)

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """Typos, confusions of optical recognition, lost capitals."""
        return corruptions()

    def pieces(self, value: Sentence) -> Pieces | None:
        """Its words."""
        return pieces(value)

    def collate(self, values: Sequence[Sentence | None]) -> Masked:
        """Sub-words, from scratch whole words.

        Returns:
            (B, N, C) int64: the id, the number of the word it belongs to and, with ``spelling``, how that is spelt;
            positions (B, N, 1) in words.
        """
        sizes = np.array([0 if value is None else len(value) for value in values], np.int64)
        words = list(chain.from_iterable(value.words for value in values if value is not None))
        ids, counts, spelt = _lexicon(self.name).look_up(words, self.max_subwords)
        if self.name == "none":
            index = self._index
            ids = np.fromiter((index.get(self._folded(word), UNKNOWN) for word in words), np.int64, len(words))
        row = np.repeat(np.repeat(np.arange(len(values)), sizes), counts)  # (M,) of each sub-word
        number = np.repeat(np.arange(len(words)) - np.repeat(sizes.cumsum() - sizes, sizes), counts)
        lengths = np.bincount(row, minlength=len(values))
        place = np.arange(len(row)) - np.repeat(lengths.cumsum() - lengths, lengths)
        made = np.zeros((len(values), max(1, lengths.max(initial=1)), SPELT + self.spelling * spelt.shape[1]), np.int64)
        made[row, place, 0], made[row, place, 1] = ids, number
        if self.spelling:
            made[row, place, SPELT:] = np.repeat(spelt, counts, axis=0)
        mask = torch.from_numpy(np.arange(made.shape[1]) < lengths[:, None])
        x = torch.from_numpy(made)
        return Masked(x, mask, x[..., 1:2].float())

    def files(self) -> dict[str, bytes]:
        """The backbone's tokenizer, in the format of the ``tokenizers`` library."""
        found = _tokenizer(self.name)
        return {} if found is None else {"tokenizer.json": found.tokenizer.to_str().encode()}

    def backbone(self) -> WordBackbone | None:
        """The pretrained encoder from sub-words (B, N, C) to words (B, T, W).

        Raises:
            SpecError: it is not installed, or ``window`` is longer than it takes.
            BundleError: a hub model cannot be fetched.
        """
        if self.name == "none":
            return None
        return _backbone(self.name, self.window, self.overlap, self.spelling, self.pooling)

    def encoder(self, dim: int) -> nn.Module:
        """Project the backbone's tokens, or embed and mix words. -> (B, T, dim)."""
        if self.name == "none":
            return SpeltEncoder(len(self.vocabulary or ()) + 1, dim, self.layers, self.spelling)
        return WordedEncoder(self._width, dim, self.spelling)

    def summary(self, x: Masked) -> Tensor:
        """Mean over words of the network's columns (B, W), or a bag of the most frequent words (B, F)."""
        if x.values.is_floating_point():
            return Masked(x.values[..., : self._width], x.mask).mean()
        return bag_of_words(Masked(x.values[..., 0], x.mask), min(BAG, len(self.vocabulary or ()) + 1))

    @property
    def _width(self) -> int:
        """Columns of a token that come from the network; MiniLM's are known without loading it."""
        found = None if self.name == "minilm" else self.backbone()
        return MINILM_WIDTH if found is None else found.own

    def _folded(self, word: str) -> str:
        """A word as the vocabulary holds it."""
        word = word if word.isascii() else unicodedata.normalize("NFC", word)
        return word.lower() if self.lowercase else word

    @cached_property
    def _index(self) -> dict[str, int]:
        """Id of each known word."""
        return {word: i for i, word in enumerate(self.vocabulary or (), start=UNKNOWN + 1)}


@cache
def _lexicon(name: str) -> Lexicon:
    """One per process and backbone."""
    return Lexicon(_tokenizer(name))


def _tokenizer(name: str) -> Subwords | None:
    """A backbone's tokenizer, or None from scratch."""
    if name == "none":
        return None
    return minilm_tokenizer() if name == "minilm" else hub.text_tokenizer(name)


@cache
def _backbone(name: str, window: int, overlap: int, spelling: bool, pooling: Pooling) -> WordBackbone:
    """One per process and settings: copy it to train it."""
    text = BertBackbone(window, overlap) if name == "minilm" else hub.text_backbone(name, window, overlap)
    return WordBackbone(text, spelling, pooling)
