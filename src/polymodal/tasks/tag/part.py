"""tag: a label for every word, and the spans that the labels stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from polymodal import schemes
from polymodal.errors import DataError, SpecError, suggest
from polymodal.part import Modality
from polymodal.schemes import Span
from polymodal.sentence import Sentence
from polymodal.task import Labelled, Task
from polymodal.tasks.tag import decode
from polymodal.tasks.tag.head import TagHead
from polymodal.tasks.tag.scores import Seen
from polymodal.tasks.tag.target import are_entities, read
from polymodal.types import Masked


class Tag(Task):
    """A tag for every word, and so spans of words with a type: named entities, slots.

    A target is a list of tags in any of the schemes IOB1, IOB2, IOBES and BILOU (as a list, as JSON or with blanks
    between them), or a list of entities ``{"start", "end", "type"}`` by characters. Tags that break their scheme are
    read as conlleval does, so that no span is lost.

    Raw output (B, 2 + K + T, K + 1) of K tags and T words: scores of each tag as a first, as a last, of each tag (row)
    before each other (column), and of the tags of each word; last in a word's row is its gate, NaN where there is no
    word. What the scheme forbids scores -1e4 or less. Target (B, T) int16: number of each word's tag.

    With other inputs beside the words, the answer is that of the words alone, from a head of its own, plus that of all
    inputs times the gate: a number in 0..1 per word, almost closed at first, and 0 in rows that have no other input.

    Source: Lample et al. 2016 (arXiv:1603.01360), section 2, the chain over the scores of a network's vectors; Moon et
    al. 2018 (arXiv:1802.07862), section 3.3, attenuates whole modalities per word, ours all but the words by one gate.

    Attributes:
        input: name of the input whose words are tagged; the only one with words when not given.
        scoring: in a spec ``head``. "crf" learns scores of neighbours and the likelihood of whole sequences; "linear"
            learns each word's tag by itself, and keeps the scheme's rules only where it answers.
        scheme: in which the model thinks. Targets and predictions are converted.
        types: of spans. Found by `fit` (sorted) when not given; give them to fix their order or to allow for a type
            that the training rows lack.
        gate_cost: what an open gate adds to the loss, in nats, so that it opens only where the other inputs tell
            something that the words do not. Without other inputs there is no gate.
        entities: whether the targets were entities and no tags, so that an empty list means that there is none. Found
            by `fit`.
        words: number of words in a labelled row, on average. Set by `fit`; the loss is divided by it.
        gated: whether there are other inputs. Set by the spec, which knows; it is not written down.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["tag"] = "tag"
    input: str | None = None
    scoring: Literal["crf", "linear"] = Field(default="crf", alias="head")
    scheme: Literal["IOB2", "IOBES"] = "IOB2"
    types: tuple[str, ...] = ()
    gate_cost: float = Field(default=0.03, ge=0, allow_inf_nan=False)
    entities: bool = False
    words: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    gated: bool = Field(default=False, exclude=True)

    @field_validator("types")
    @classmethod
    def _distinct(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(types)) < len(types) or any(not kind or kind != kind.strip() for kind in types):
            raise ValueError(f"types must be different texts without space around them, got {list(types)}.")
        return types

    @property
    def about(self) -> str | None:
        """The input whose words are tagged."""
        return self.input

    @property
    def tags(self) -> list[str]:
        """The K tags, "O" first."""
        if not self.types:
            raise SpecError("tag must know its types before it is used, got none. Call fit, or give types.")
        return schemes.names(self.types, self.scheme)

    def within(self, inputs: Mapping[str, Modality], alone: bool = True) -> Self:
        """A copy that knows its input, and whether there are others."""
        worded = [name for name, part in inputs.items() if part.worded]
        if self.input is None and len(worded) != 1:
            raise ValueError(
                f"input must be given unless just one input is made of words, got {worded or 'none'}. "
                + ("Choose one of them." if worded else "Give an input of the type words.")
            )
        if self.input is not None and self.input not in worded:
            hint = suggest(self.input, worded)
            raise ValueError(f"input must be one made of words among {worded}, got {self.input!r}.{hint}")
        return self.model_copy(update={"input": self.input or worded[0], "gated": len(inputs) > 1})

    def asks(self, name: str) -> bool:
        """Only the words themselves can answer alone."""
        return name == self.input

    def fit(self, values: Sequence[Any | None]) -> Self:
        """A copy that knows its types. Rows with a broken target count nowhere.

        Raises:
            DataError: there is no usable target, no span, or a type that is not in the given ``types``.
        """
        given = [value for value in values if value is not None]
        entities = are_entities(given, False)
        rows, faults = list[list[Span]](), list[DataError]()
        lengths = list[int]()
        for value in given:
            try:
                if (spans := read(value, entities)) is not None:
                    rows.append(spans)
                    lengths.append(len(value.value))
            except DataError as fault:
                faults.append(fault)
        if faults and not rows:
            raise faults[0]
        found = sorted({span.type for row in rows for span in row})
        if not found and not self.types:
            raise DataError(
                f"target must have at least one span, got none in {len(rows)} labelled rows. "
                f"Check the column, or choose another target."
            )
        types = self.types or tuple(found)
        for kind in found:
            self._known(kind, types)
        words = max(1.0, float(np.mean(lengths))) if lengths else 1.0
        return self.model_copy(update={"entities": entities, "types": types, "words": words})

    def collate(self, values: Sequence[Labelled | None]) -> Masked:
        """Targets -> number of each word's tag (B, T) int16; masked where there is no word, or no target."""
        place, given = {tag: i for i, tag in enumerate(self.tags)}, [value for value in values if value is not None]
        entities = are_entities(given, self.entities)
        rows = list[Tensor | None]()
        for value in values:
            if value is None:
                rows.append(None)
                continue
            spans = read(value, entities)
            if spans is None:
                rows.append(None)
                continue
            for span in spans:
                self._known(span.type, self.types)
            row = [place[tag] for tag in schemes.tags(spans, len(value.value), self.scheme)]
            rows.append(torch.tensor(row, dtype=torch.int16))
        return Masked.pad(rows, torch.zeros((), dtype=torch.int16))

    @staticmethod
    def _known(kind: str, types: Sequence[str]) -> None:
        if kind not in types:
            raise DataError(
                f"type must be one of {list(types[:20])}{' ...' if len(types) > 20 else ''}, got {kind!r}."
                f"{suggest(kind, types)} Mend the tag, leave the cell empty, or train again with this type."
            )

    def head(self, dim: int) -> nn.Module:
        """Scores of each word's tags from its token, with the chain's."""
        if self.input is None:
            raise SpecError("tag must know its input before it has a head, got none. Give input, or ask a spec.")
        return TagHead(self.input, dim, self.tags, self.scheme, self.scoring == "crf", self.gated)

    def combine(self, output: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """What the words say alone, plus what all inputs say times the gate; the chain's scores are added."""
        alone = own.get(self.input or "")
        if alone is None:
            return output
        k = len(self.tags)
        gate = output[:, 2 + k :, k:]
        words = alone[:, 2 + k :, :k] + gate * output[:, 2 + k :, :k]
        chain = alone[:, : 2 + k] + output[:, : 2 + k]
        return torch.cat([chain, torch.cat([words, gate], 2)], 1)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Raw outputs of several batches as one, with words that are not there behind the shorter rows."""
        longest = max(output.shape[1] for output in outputs)
        pads = ((0, 0, 0, longest - output.shape[1]) for output in outputs)
        return torch.cat([functional.pad(x, pad, value=torch.nan) for x, pad in zip(outputs, pads, strict=True)])

    def loss(self, output: Tensor, target: Masked) -> Tensor:
        """Negative log-likelihood of a row's tags, mean over labelled rows, divided by ``words``: nats per word.

        With "linear", each word's tag is one draw. Words that the model did not see cost nothing. The mean gate of a
        row's words is added, times ``gate_cost``.
        """
        rows = target.present
        output, goal = output[rows], target[rows]
        if not len(output):
            return output.sum()
        parts = decode.Split.of(output.to(torch.promote_types(output.dtype, torch.float32)))
        width = min(parts.emissions.shape[1], goal.values.shape[1])
        scores, tags = parts.emissions[:, :width], goal.values[:, :width].long()
        lengths = torch.minimum(parts.lengths, goal.mask.cumprod(1).sum(1)).clamp(max=width)
        real = torch.arange(width, device=lengths.device) < lengths[:, None]
        if self.scoring == "crf":
            total = parts.chain.loss(scores, tags, lengths)
        else:
            total = functional.cross_entropy(scores[real], tags[real], reduction="sum")
        total = total / self.words
        if self.gated:
            total = total + self.gate_cost * Masked(parts.gates[:, :width, None], real).mean().sum()
        return (total / len(output)).to(scores.dtype)

    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        """Per sample: entities by their words (first..stop-1), the tag of each word, and the gates of gated tasks.

        An entity's probability is that of all sequences which hold just this span, by the model's chain; a "linear"
        head's words are independent, but for the rules of the scheme.
        """
        tags, lengths = decode.best(output)
        names, per_type = self.tags, len(self.tags) // len(self.types)
        spans = decode.spans_of(tags, per_type)
        inside = 2 + spans.type * per_type
        p = decode.certainty(output, tags, spans, inside if self.scheme == "IOB2" else np.full_like(inside, -1))
        gates = output[:, 2 + len(names) :, len(names)].detach().cpu().double().numpy()
        rows: list[dict[str, Any]] = [{"entities": []} for _ in range(len(output))]
        for row, first, stop, kind, probability in zip(*(x.tolist() for x in (*spans, p)), strict=True):
            entity = {"type": self.types[kind], "first": first, "stop": stop, "probability": probability}
            gate = {"gate": float(gates[row, first:stop].mean())} if self.gated else {}
            rows[row]["entities"].append(entity | gate)
        for answer, found, values, n in zip(rows, tags, gates, lengths, strict=True):
            answer["tags"] = [names[tag] for tag in found[:n]]
            if self.gated:
                answer["gates"] = values[:n].tolist()
        return rows

    def locate(self, answer: dict[str, Any], value: Sentence | None) -> dict[str, Any]:
        """The answer with the words, and each entity's text and characters: start..end-1 in the sentence's text."""
        if value is None:
            return answer | {"words": []}
        entities = []
        for entity in answer["entities"]:
            start, end = value.starts[entity["first"]], value.end(entity["stop"] - 1)
            place = {"type": entity["type"], "text": value.text[start:end], "start": start, "end": end}
            entities.append(place | entity)
        return answer | {"entities": entities, "words": list(value.words)}

    def metrics(self, output: Tensor, target: Masked) -> dict[str, float]:
        """Entity F1 first, as seqeval's in mode "strict"; scores of words as scikit-learn's.

        ``token_accuracy`` is the micro F1 of all tags, ``token_micro_f1`` that of all but "O"; ``token_macro_f1`` is
        the mean over all tags that occur. All tags are in the task's ``scheme``.
        """
        return self._seen(output, target).scores()

    def headline(self, output: Tensor, target: Masked) -> Callable[[np.ndarray], float] | None:
        """Entity F1 of any rows, put together from counts per row."""
        return self._seen(output, target).headline()

    def balance(self, target: Masked) -> dict[str, int]:
        """How many spans of each type the labelled rows have."""
        per_type = len(self.tags) // len(self.types)
        spans = decode.spans_of(target.values.cpu().numpy().astype(np.int64) * target.mask.cpu().numpy(), per_type)
        return dict(zip(self.types, np.bincount(spans.type, minlength=len(self.types)).tolist(), strict=True))

    def details(self, output: Tensor, target: Masked) -> dict[str, Any]:
        """JSON-able tables: scores of each type (as seqeval) and of each tag (as scikit-learn), with averages."""
        return self._seen(output, target).details()

    def _seen(self, output: Tensor, target: Masked) -> Seen:
        return Seen.of(output, target, self.types, self.tags)
