"""generate: an answer in words, by a language model that reads the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from polymodal import metrics
from polymodal.decoder.settings import Decoder
from polymodal.decoder.spoken import Spoken
from polymodal.decoder.text import NOTHING, TextHead
from polymodal.errors import DataError
from polymodal.nn.language.decode import Decoding, stopped
from polymodal.nn.language.vocabulary import Vocabulary
from polymodal.types import Masked
from polymodal.values import is_missing

LONGEST = 2048
"""Tokens of a target, at most."""

SHOWN = 12
"""Answers that a report shows."""


class Generate(Spoken):
    """Free text for each row. Target: a text, or a list of texts (perhaps as JSON) that are all right.

    Raw output (B, 1 + L) float64: the log-probability of an answer, then its token ids, the end where it was reached,
    -1 behind. While the model learns, and wherever a target is known, (B,): what the wanted answer costs in nats.
    Target (B, N) int64: token ids, each right answer with an end token behind it; the first one is learned.

    Attributes:
        decoder: the language model, its prompt and what is trained of it.
        decoding: how answers are made: ``tokens`` at most, ``temperature`` (0 takes the likeliest), ``top_k``,
            ``top_p``, ``beams``, ``stop`` strings and the ``seed``.
        verbatim: inputs whose very words the language model reads. Set by the spec; it is not written down.
        words: tokens of a target on average. Set by `fit`; the loss is divided by it.
    """

    forced: ClassVar[bool] = True

    type: Literal["generate"] = "generate"
    decoder: Decoder = Decoder.model_validate({})
    decoding: Decoding = Decoding()
    words: float = Field(default=1.0, ge=1, allow_inf_nan=False)

    @property
    def vocabulary(self) -> Vocabulary:
        """The language model's."""
        return self.decoder.language().vocabulary

    def _ids(self, value: Any) -> list[int]:
        """Token ids of a target's right answers, an end token behind each.

        Raises:
            DataError: it is no text, or one that says nothing.
        """
        found, words = list[int](), self.vocabulary
        for text in _texts(value):
            if not (ids := words.ids(text.strip())):
                raise DataError(f"target must be a text of one word or more, got {text!r}. Mend the cell, or empty it.")
            if len(ids) > LONGEST:
                raise DataError(f"target must have at most {LONGEST} tokens, got {len(ids)}. Shorten the cell.")
            found += [*ids, words.end]
        return found

    def fit(self, values: Sequence[Any | None]) -> Self:
        """A copy that is bound to the language model, and knows how long answers are.

        Raises:
            DataError: there is no target that can be used.
            SpecError: the language model is not there.
        """
        lengths, faults = list[int](), list[DataError]()
        for value in (value for value in values if not is_missing(value)):
            try:
                lengths.append(self._ids(value).index(self.vocabulary.end) + 1)
            except DataError as fault:
                faults.append(fault)
        if not lengths:
            raise (
                faults[0]
                if faults
                else DataError("target must have at least one text, got none. Choose another target column.")
            )
        fitted = self.decoder.fitted()
        return self.model_copy(update={"decoder": fitted, "words": float(np.mean(lengths))})

    def collate(self, values: Sequence[Any | None]) -> Masked:
        """Texts -> token ids (B, N) int64; masked where there is none."""
        rows = [None if is_missing(value) else torch.tensor(self._ids(value)) for value in values]
        return Masked.pad(rows, torch.zeros((), dtype=torch.int64))

    def head(self, dim: int) -> nn.Module:
        """A `TextHead`."""
        return TextHead(self.decoder, dim, self.verbatim, self.decoding)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Raw outputs of several batches as one."""
        if outputs[0].ndim == 1:
            return torch.cat(list(outputs))
        longest = max(output.shape[1] for output in outputs)
        return torch.cat([functional.pad(x, (0, longest - x.shape[1]), value=NOTHING) for x in outputs])

    def loss(self, output: Tensor, target: Masked) -> Tensor:
        """What the wanted answers cost, in nats, mean over labelled rows, divided by ``words``.

        Of an answer that was made without knowing the target, the share of its words that it shares with none is taken
        instead: 1 - token F1.
        """
        rows = target.present
        if output.ndim == 1:
            costs = output[rows]
            return costs.sum() / max(len(costs), 1) / self.words
        said, wanted = self.said(output, target)
        return output.new_tensor(1 - metrics.mean(metrics.token_f1(said, wanted)) if said else 0.0)

    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        """Per sample: the text, and how probable each of its tokens was (their geometric mean)."""
        rows = []
        for score, *ids in output.detach().cpu().tolist():
            real = [int(i) for i in ids if i != NOTHING]
            said = [i for i in real if i not in self.vocabulary.ends]
            text = stopped(self.vocabulary.text(said), self.decoding.stop)
            rows.append({"text": text, "probability": float(np.exp(score / max(1, len(real))))})
        return rows

    def wanted(self, output: Tensor) -> Masked:
        """What was said as targets, an end token behind each answer."""
        end = output.new_tensor([self.vocabulary.end])
        output = output.masked_fill(output == end, NOTHING)
        return Masked.pad(
            [torch.cat([row[row != NOTHING], end]).long() for row in output[:, 1:]], output.new_zeros(()).long()
        )

    def said(self, output: Tensor, target: Masked) -> tuple[list[str], list[list[str]]]:
        """What is said in labelled rows, and the right answers of each."""
        rows = target.present
        said = [answer["text"] for answer in self.predict(output[rows])]
        return said, [
            self._right(ids[real].tolist()) for ids, real in zip(target.values[rows], target.mask[rows], strict=True)
        ]

    def _right(self, ids: Sequence[int]) -> list[str]:
        found, start, words = list[str](), 0, self.vocabulary
        for place, token in enumerate(ids):
            if token == words.end:
                found.append(words.text(ids[start:place]))
                start = place + 1
        return found

    def metrics(self, output: Tensor, target: Masked) -> dict[str, float]:
        """CIDEr first, then ROUGE-L, BLEU, token F1 and exact match, against all right answers.

        Where a row has several, also the accuracy of VQA, by how many of them agree.
        """
        if output.ndim == 1:
            return {}
        said, wanted = self.said(output, target)
        several = any(len(right) > 1 for right in wanted)
        more = {"vqa_accuracy": metrics.mean(metrics.vqa_accuracy(said, wanted))} if several else {}
        return metrics.text_scores(said, wanted) | more if said else {}

    def headline(self, output: Tensor, target: Masked) -> Callable[[np.ndarray], float] | None:
        """CIDEr of any labelled rows, by the frequencies of words in all of them."""
        if output.ndim == 1 or not bool(target.present.any()):
            return None
        each = np.full(len(target), np.nan)
        each[target.present.cpu().numpy()] = metrics.cider(*self.said(output, target))
        return lambda rows: metrics.mean(each[rows][~np.isnan(each[rows])])

    def details(self, output: Tensor, target: Masked) -> dict[str, Any]:
        """JSON-able: some answers beside the right ones."""
        if output.ndim == 1:
            return {}
        said, wanted = self.said(output, target)
        pairs = list(zip(said, wanted, strict=True))[:SHOWN]
        return {"answers": [{"said": one, "right": right} for one, right in pairs]}


def _number(value: float) -> str:
    """A number as it is written; whole ones of a column with gaps without a point."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _texts(value: Any) -> list[str]:
    """The right answers that a cell holds.

    Raises:
        DataError: it holds no text.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            listed = json.loads(value)
            value = listed if all(isinstance(text, str) for text in listed) else value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    texts = value if isinstance(value, list | tuple) else [value]
    texts = [_number(text) if isinstance(text, int | float) else text for text in texts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"target must be a text or a list of texts, got {value!r:.60}. Mend the cell.")
    return texts
