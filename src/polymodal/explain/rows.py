"""Explain: for each row, what each input and each piece of it did to the answer.

Between inputs: exact Shapley values over all subsets of a row's inputs. Within an input: the answer minus the answer
without one piece of the content (a word, a region, a stretch, a column), which is read, embedded and answered anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polymodal.data.embedding import Embedder
from polymodal.data.gather import EMBED
from polymodal.data.loader import Prepared
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.errors import SpecError
from polymodal.evaluate import BATCH
from polymodal.explain.questions import Question, questions, scores
from polymodal.explain.shapley import shapley
from polymodal.model import Model
from polymodal.part import Modality
from polymodal.reading import Pieces, Reading
from polymodal.types import Batch, Masked

Answering = Callable[[Mapping[str, Masked]], Mapping[str, Tensor]]
"""From inputs, of which any may be left out but not all, to each task's raw answer."""


@torch.inference_mode()
def explain(
    model: Model,
    prepared: Prepared,
    table: Table,
    embedder: Embedder,
    device: torch.device,
    *,
    parts: bool = True,
    allow_paths: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Explain the answer to every row.

    ``inputs`` are Shapley values of the answer as a game of the row's present inputs, where a missing player's input is
    hidden by its mask: they sum to ``value`` - ``base``, the answer minus the answer with nothing. An absent input gets
    none. With more than 8 inputs they are means over random orders, which sum to the same; ``sampled`` says so.

    ``parts`` say for each piece of an input how much less the answer would be had the piece not been there, all else
    being equal (feature ablation, by captum). The piece is taken out of the content itself, and the rest is embedded
    again: a backbone's tokens know their neighbours, so that hiding the token of a word would leave what the others
    have learned of it. Two pieces that say the same therefore count little each, and parts need not sum to anything.
    They have the same unit as ``inputs``. Each costs one pass of the backbone; modalities bound their number.

    Source: Shapley 1953; Lundberg and Lee 2017, equation 4 (exact) and Castro et al. 2009 (sampled orders; in pairs
    with their reverse as Mitchell et al. 2022, section 4.1); Zeiler and Fergus 2014, section 4.2 (occlusion).

    Args:
        model: in evaluation mode.
        prepared: the rows.
        table: that they come from.
        embedder: of the model's backbones.
        device: of the model.
        parts: also explain within the inputs, which needs captum.
        allow_paths: whether cells may name files and URLs.
        seed: of random orders.

    Returns:
        Per row: task name (with several targets, ``task/target``) -> ``unit``, ``value``, ``base``, ``inputs`` and
        ``parts``: input name -> what `Modality.pieces` shows. Tasks of kinds that `questions` does not know
        are not in it.

    Raises:
        SpecError: captum is not installed.
    """
    sources = {n: Source(n, part, table, allow_paths) for n, part in model.spec.inputs.items()}
    ablate = _ablation() if parts else None
    found: list[dict[str, Any]] = []
    for rows in torch.arange(len(prepared)).split(BATCH):
        game = Game(model, Batch(prepared.batch(rows).inputs).to(device))
        told = explain_batch(game, seed)
        for i, row in enumerate(told):
            if ablate is None:
                continue
            one, place = game.row(i), int(prepared.rows[rows[i]])
            for answer in row.values():
                answer["parts"] = {}
            for name in game.present(i):
                for key, shown in _within(one, sources[name], place, embedder, ablate).items():
                    row[key]["parts"][name] = shown
        found += told
    return found


@torch.inference_mode()
def explain_batch(game: Game, seed: int = 0) -> list[dict[str, Any]]:
    """Say of every row of a batch what its inputs did to its answer: what `explain` gives, without ``parts``.

    An input that the batch leaves out is absent in every row. It makes no difference to the values.

    Args:
        game: the batch, on the model's device.
        seed: of random orders.
    """
    values, sampled = shapley(game.value, game.names, seed)
    whole, nothing = game.value(frozenset(game.names)), game.value(frozenset())
    return [
        {
            asked.key: {
                "unit": asked.units[i],
                "value": float(whole[i, q]),
                "base": float(nothing[i, q]),
                "inputs": {name: float(values[name][i, q]) for name in game.present(i)},
                **({"sampled": True} if sampled else {}),
            }
            for q, asked in enumerate(game.asked)
        }
        for i in range(len(game.batch))
    ]


class Game:
    """The answers to some rows, with any of their inputs hidden or changed.

    Args:
        model: in evaluation mode.
        batch: the rows; inputs may be left out.
        asked: Q questions about them; what there is to explain of the model's answers if None.
        answer: from inputs to raw answers by task, another way than the model's own.

    Attributes:
        names: the players: every input of the model, in the order of the spec.
    """

    def __init__(
        self, model: Model, batch: Batch, asked: Sequence[Question] | None = None, answer: Answering | None = None
    ) -> None:
        self.model, self.batch, self.names = model, batch, list(model.spec.inputs)
        self._answer = answer or (lambda inputs: model.answer(inputs).decoded)
        self._known: dict[frozenset[str], Tensor] = {}
        self._present = {name: x.present.tolist() for name, x in batch.inputs.items()}
        self.asked = self._questions() if asked is None else list(asked)

    def _questions(self) -> list[Question]:
        decoded = self._answer(self.batch.inputs)
        return [q for n, task in self.model.spec.outputs.items() for q in questions(task, n, decoded[n])]

    def present(self, i: int) -> list[str]:
        """Inputs that a row has."""
        return [name for name in self.names if name in self._present and self._present[name][i]]

    def row(self, i: int) -> Game:
        """The same for one row."""
        inputs = {name: x[i : i + 1] for name, x in self.batch.inputs.items()}
        return Game(self.model, Batch(inputs), [asked.row(i) for asked in self.asked], self._answer)

    def value(self, seen: frozenset[str]) -> Tensor:
        """Answers with only some inputs. (B, Q) float64."""
        seen = frozenset(name for name in seen if name in self._present and any(self._present[name]))
        if seen not in self._known:
            hidden = [name for name in self.batch.inputs if name not in seen]
            self._known[seen] = self.answer(self.batch.without(*hidden).inputs)
        return self._known[seen]

    def changed(self, name: str, x: Masked) -> Tensor:
        """Answers to the one row with another content of an input in each of x's b rows. (b, Q)."""
        same = torch.zeros(len(x), dtype=torch.long, device=x.mask.device)
        return self.answer({other: y[same] for other, y in self.batch.inputs.items()} | {name: x})

    def answer(self, inputs: Mapping[str, Masked]) -> Tensor:
        """Answers to the questions. (B, Q)."""
        columns, rows = [], len(next(iter(inputs.values())))
        wanted = {q.task: q.wanted[_each(q.wanted, rows)] for q in self.asked if q.wanted is not None}
        decoded = self.model.answer(inputs, wanted).decoded if wanted else self._answer(inputs)
        tasks = self.model.spec.outputs
        found = {n: scores(tasks[n], decoded[n]) for n in dict.fromkeys(asked.task for asked in self.asked)}
        for asked in self.asked:
            table = found[asked.task]
            if table is not None:
                columns.append(table.gather(1, asked.chosen.expand(len(table))[:, None])[:, 0])
        return torch.stack(columns, 1) if columns else torch.zeros(rows, 0).double()


def _each(x: Masked, rows: int) -> Tensor:
    """Numbers of rows: all, or the only one again and again."""
    numbers = torch.arange(rows, device=x.mask.device)
    return numbers if len(x) == rows else torch.zeros_like(numbers)


def _ablation() -> Any:
    try:
        from captum.attr import FeatureAblation
    except ImportError as error:
        raise SpecError(
            f"explanations within an input must have captum, got {error}. Run: pip install 'polymodal[diagnose]'"
        ) from error
    return FeatureAblation


def _within(one: Game, source: Source, row: int, embedder: Embedder, ablate: Any) -> dict[str, Any]:
    """Question -> what each piece of one input's content is worth; nothing where the content has no pieces."""
    reading = source.read(row, next(source.cells(row, row + 1)))
    pieces = source.modality.pieces(reading.value) if isinstance(reading, Reading) else None
    if pieces is None or not one.asked:
        return {}
    device = next(iter(one.batch.inputs.values())).mask.device

    def forward(kept: Tensor) -> Tensor:
        x = _embedded(source.name, source.modality, pieces, kept.bool().cpu().numpy(), embedder)
        return one.changed(source.name, x.to(device))

    # (1, count) presence of each piece -> (Q, count): the answer minus the answer without the piece
    worth = ablate(forward).attribute(torch.ones(1, pieces.count, dtype=torch.double), perturbations_per_eval=EMBED)
    return {asked.key: pieces.show(values) for asked, values in zip(one.asked, worth.tolist(), strict=True)}


def _embedded(name: str, modality: Modality, pieces: Pieces, kept: np.ndarray, embedder: Embedder) -> Masked:
    """What the model takes for the content with some pieces of it: (b, count) bool -> (b, N, ...)."""
    tokens = embedder.embed(name, modality.collate([pieces.keep(row) for row in kept]))
    return embedder.summary(name, tokens) if name in embedder.summarised else tokens
