"""match: draw the inputs of a row together in one space, for retrieval and answers without training rows."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from polymodal import metrics
from polymodal.errors import DataError, SpecError, suggest
from polymodal.nn.align import LARGEST, infonce, shortened, sigmoid_loss
from polymodal.part import Modality
from polymodal.task import Task
from polymodal.tasks.match.head import MatchHead
from polymodal.tasks.match.locked import check_locked, faults_beside
from polymodal.tasks.match.retrieval import Direction, composed, directions, means, share
from polymodal.types import Masked
from polymodal.values import is_missing, parse_category

Group = Annotated[tuple[str, ...], Field(min_length=1)]


class Match(Task):
    """Embed two or more sides of a row, so that those of one row are near and those of different rows are far.

    Output (B, S + 1, W): an embedding of length 1 per side, NaN where it is absent, and as the last row the learned log
    scale and bias. Target (B, 1): a number that is the same for rows that belong together. A side is an input, or a
    group of inputs of which any may be absent.

    Attributes:
        sides: names of inputs or lists of them; every input by itself when not given.
        column: rows of equal value belong together: each is a right answer for the others, and never a wrong one. Not
            given: a row belongs to itself alone.
        criterion: in a spec ``loss``. ``infonce`` finds the right partner among all of a batch, both ways; ``sigmoid``
            decides on every pair of rows for itself, which is kinder to small batches.
        temperature: where the learned temperature starts.
        width: W, length of an embedding; the model's own width when not given.
        matryoshka: shorter lengths, rising, to which embeddings can be cut: so many first entries of one are trained to
            be an embedding, too.
        hard_negatives: how much more the likeliest wrong partners count in ``infonce``; 0 counts all alike.
        compose: learn, too, that all other sides of a row together belong to each side. For three sides or more.
        locked: inputs whose pretrained features are kept as they are: centred by their mean over the training rows,
            brought to length 1, and passed through no learned layer, so that the others learn to meet them in a space
            that few rows cannot spoil. One of a group has a learned weight in it, and the rest of the group starts
            small and without a norm, to correct it. ``width`` and the spec's ``dim`` must be that of their features.

    Source: locked: Zhai et al. 2022, "LiT" (arXiv:2111.07991), section 3.
    """

    model_config = ConfigDict(serialize_by_alias=True)
    foretells: ClassVar[bool] = False

    type: Literal["match"] = "match"
    sides: tuple[str | Group, ...] = ()
    criterion: Literal["infonce", "sigmoid"] = Field(default="infonce", alias="loss")
    temperature: float = Field(default=0.1, gt=0, le=10)
    width: int | None = Field(default=None, ge=2)
    matryoshka: tuple[Annotated[int, Field(ge=2)], ...] = ()
    hard_negatives: float = Field(default=0.0, ge=0, le=10)
    compose: bool = False
    locked: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _effective(self) -> Self:
        """Reject settings that contradict one another or have no effect."""
        if self.sides:
            self._check_sides()
        if self.matryoshka and self.width is None:
            raise ValueError(f"width must be given with matryoshka, got None beside {list(self.matryoshka)}.")
        if list(self.matryoshka) != sorted(set(self.matryoshka)) or max(self.matryoshka, default=0) >= (
            self.width or 1
        ):
            raise ValueError(f"matryoshka must rise and stay below width {self.width}, got {list(self.matryoshka)}.")
        if self.criterion == "sigmoid" and self.hard_negatives:
            raise ValueError(f"hard_negatives has no effect with loss=sigmoid, got {self.hard_negatives}.")
        if self.criterion == "infonce" and self.temperature < math.exp(-LARGEST):
            raise ValueError(f"temperature must be at least 0.01 for infonce, got {self.temperature}.")
        return self

    def _check_sides(self) -> None:
        named = [name for side in self.groups for name in side]
        if len(self.sides) < 2:
            raise ValueError(f"sides must be two or more, got {list(self.names)}. Name more inputs.")
        if repeated := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"sides must have each input once, got {repeated[0]!r} twice.")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"sides must have different names, got {list(self.names)}. Rename an input.")
        if self.compose and len(self.sides) < 3:
            raise ValueError(f"compose must have three sides or more, got {list(self.names)}. Leave it out.")

    @property
    def unfused(self) -> bool:
        """Sides meet in the space, not before."""
        return True

    @property
    def fixed(self) -> tuple[str, ...]:
        """The locked inputs."""
        return self.locked

    def unfit(self, dim: int, summaries: Mapping[str, int], finetuned: Collection[str]) -> list[str]:
        """What locked inputs need: summaries, which are as wide as the model and never change."""
        return faults_beside(self.locked, self.width, dim, summaries, finetuned)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The inputs of each side."""
        if not self.sides:
            raise SpecError("match must know its sides before it is used, got none. Put it in a spec, or give sides.")
        return tuple((side,) if isinstance(side, str) else side for side in self.sides)

    @property
    def names(self) -> tuple[str, ...]:
        """What each side is called: ``image``, ``text+voice``."""
        return tuple("+".join(group) for group in self.groups)

    def columns(self, name: str) -> tuple[str, ...]:
        """The column that says which rows belong together, if there is one."""
        return () if self.column is None else (self.column,)

    def within(self, inputs: Mapping[str, Modality], alone: bool = True) -> Self:
        """A copy that knows its sides.

        Raises:
            ValueError: there are fewer than two, or one names no input.
        """
        task = self if self.sides else self.model_copy(update={"sides": tuple(inputs)})
        task._check_sides()
        for name in itertools.chain(*task.groups):
            if name not in inputs:
                raise ValueError(f"sides must name inputs among {list(inputs)}, got {name!r}.{suggest(name, inputs)}")
        check_locked(task.locked, list(itertools.chain(*task.groups)), inputs)
        return task

    def asks(self, name: str) -> bool:
        """No input can be matched by itself."""
        return False

    def _number(self, value: Any) -> int | None:
        """What a row is, as a number that depends on its cell alone."""
        value = value.item() if isinstance(value, np.generic) else value
        if is_missing(value):
            return None
        if self.column is None and type(value) is int:
            return value
        try:
            text = parse_category(value) or ""
        except ValueError as error:
            raise DataError(f"target: {error} Mend the cell, or leave it empty.") from None
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def fit(self, values: Sequence[Any | None]) -> Self:
        """The same task: it learns nothing outside the weights.

        Raises:
            DataError: there are no two rows to tell apart.
        """
        different = {number for value in values if (number := self._number(value)) is not None}
        if len(different) < 2:
            raise DataError(
                f"target must have two or more different rows, got {len(different)}. There is nothing to tell apart: "
                "choose another column, or add rows."
            )
        return self

    def collate(self, values: Sequence[Any | None]) -> Masked:
        """Cells, or row numbers, -> (B, 1) int64, equal where rows belong together. An empty cell is unlabelled."""
        found = [self._number(value) for value in values]
        mask = torch.tensor([number is not None for number in found], dtype=torch.bool)
        return Masked(torch.tensor([number or 0 for number in found], dtype=torch.long)[:, None], mask[:, None])

    def head(self, dim: int) -> nn.Module:
        """A `MatchHead` of the sides."""
        biased = self.criterion == "sigmoid"
        return MatchHead(self.groups, dim, self.width or dim, self.temperature, biased, self.locked)

    def loss(self, output: Tensor, target: Masked) -> Tensor:
        """Mean loss in nats over the pairs of sides that have rows to tell apart, added up over the widths.

        With `compose`, each side and all others together, in rows that have two of those, is a further pair.

        Source: see `infonce` and `sigmoid_loss`; widths: Kusupati et al. 2022 (arXiv:2205.13147), equation 1, with
        equal weights.
        """
        rows = target.present
        with torch.autocast(output.device.type, enabled=False):  # a cosine times 100 needs more than eight bits
            raw = output[rows].to(torch.promote_types(output.dtype, torch.float32))
            ids, embedded, learned = target.values[rows, 0], raw[:, :-1], raw[:, -1]
            present = ~embedded.isnan().any(-1)
            embedded = embedded.masked_fill(~present[..., None], 0.0)  # NaN would make NaN of gradients of 0
            widths = [self._loss(shortened(embedded, n), present, learned, ids) for n in (*self.matryoshka, None)]
            return torch.stack(widths).sum()

    def _loss(self, embedded: Tensor, present: Tensor, learned: Tensor, ids: Tensor) -> Tensor:
        count = len(self.groups)
        pairs = [(embedded[:, i], embedded[:, j], present[:, i] & present[:, j])
                 for i, j in itertools.combinations(range(count), 2)]  # fmt: skip
        for i in range(count) if self.compose else ():
            rest = [j for j in range(count) if j != i]
            whole = functional.normalize(embedded[:, rest].sum(1), dim=-1)
            pairs.append((whole, embedded[:, i], present[:, i] & (present[:, rest].sum(1) > 1)))
        least = 2 if self.criterion == "infonce" else 1
        losses = [self._pair(a[rows], b[rows], learned[rows].mean(0), ids[rows])
                  for a, b, rows in pairs if int(rows.sum()) >= least]  # fmt: skip
        return torch.stack(losses).mean() if losses else learned.sum() * 0

    def _pair(self, a: Tensor, b: Tensor, learned: Tensor, ids: Tensor) -> Tensor:
        same = ids[:, None] == ids
        if self.criterion == "sigmoid":
            return sigmoid_loss(a, b, learned[0], learned[1], same)
        return infonce(a, b, learned[0], same, self.hard_negatives)

    def embed(self, output: Tensor, sides: Sequence[str] | None = None, width: int | None = None) -> Tensor:
        """One embedding per row: the sum of those of its sides, scaled to length 1. (B, W), NaN where it has none.

        Args:
            output: raw.
            sides: by name, which to take; all when not given.
            width: how many first entries of each embedding to take; all when not given.

        Raises:
            SpecError: no side is called so, or embeddings are shorter.
        """
        chosen = list(self.names) if sides is None else list(sides)
        for name in chosen:
            if name not in self.names:
                raise SpecError(f"sides must be among {list(self.names)}, got {name!r}.{suggest(name, self.names)}")
        if not chosen:
            raise SpecError("sides must name at least one, got none. Leave them out to take all.")
        if width is not None and not 2 <= width <= output.shape[-1]:
            raise SpecError(f"width must be from 2 to {output.shape[-1]}, got {width}. Choose another.")
        return composed(shortened(output[:, [self.names.index(name) for name in chosen]].float(), width))

    def scores(self, query: Tensor, labels: Tensor, log_scale: Tensor) -> Tensor:
        """How probable each of K labels is for each query: the softmax of their scaled cosines.

        Args:
            query: (B, W) as from `embed`; NaN where nothing is known, and then so is the answer.
            labels: (K, W) likewise; one that is NaN gets 0.
            log_scale: () learned, the first entry of a raw output's last row.

        Returns:
            (B, K).

        Source: Radford et al. 2021, "CLIP" (arXiv:2103.00020), section 3.1.2.
        """
        logits = log_scale.exp() * query.float() @ labels.float().nan_to_num().T
        return logits.masked_fill(labels.isnan().any(1), -torch.inf).softmax(-1)

    def predict(self, output: Tensor) -> list[dict[str, Any]]:
        """Per row the cosine of each pair of sides that it has, and their mean; None where it has no pair."""
        sides = output[:, :-1].detach().cpu().double()
        pairs = list(itertools.combinations(range(len(self.names)), 2))
        found = torch.stack([functional.cosine_similarity(sides[:, i], sides[:, j], dim=-1) for i, j in pairs], 1)
        names = [f"{self.names[i]}-{self.names[j]}" for i, j in pairs]
        rows = [{n: x for n, x in zip(names, row, strict=True) if not math.isnan(x)} for row in found.tolist()]
        return [{"similarity": sum(row.values()) / len(row) if row else None, "pairs": row} for row in rows]

    def metrics(self, output: Tensor, target: Masked) -> dict[str, float]:
        """Scores of retrieval among all labelled rows, the means over the ordered pairs of sides: recall at 1 first.

        Rows are queries in every side that they have; a row of the gallery is right if it belongs together with the
        query's. Pairs of sides with fewer than two different rows in the gallery, or no query, are left out.
        """
        return means(self._directions(output, target))

    def _directions(self, output: Tensor, target: Masked, width: int | None = None) -> list[Direction]:
        sides = {name: self.embed(output, [name], width) for name in self.names}
        return directions(sides, target)

    def headline(self, output: Tensor, target: Masked) -> Callable[[np.ndarray], float] | None:
        """Recall at 1 of any choice of queries; the gallery stays whole."""
        if not (found := self._directions(output, target)):
            return None
        ranks = np.stack([direction.ranking.rank for direction in found])
        hit, known = ranks <= 1, ~np.isnan(ranks)
        return lambda rows: metrics.mean(share(hit[:, rows], known[:, rows]))

    def details(self, output: Tensor, target: Masked) -> dict[str, Any]:
        """JSON-able tables: scores of each query and gallery, of all other sides as a query, and of each width."""
        tables: dict[str, Any] = {"directions": [x.to_dict() for x in self._directions(output, target)]}
        if len(self.names) > 2:
            rest = {name: [other for other in self.names if other != name] for name in self.names}
            pairs = [({"+".join(others): self.embed(output, others)}, {name: self.embed(output, [name])})
                     for name, others in rest.items()]  # fmt: skip
            tables["composed"] = [x.to_dict() for pair in pairs for x in directions(pair[0], target, pair[1])]
        if self.matryoshka:
            widths = (*self.matryoshka, output.shape[-1])
            tables["widths"] = [{"width": n, **means(self._directions(output, target, n))} for n in widths]
        return tables
