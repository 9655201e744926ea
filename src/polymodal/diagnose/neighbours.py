"""Neighbours: content that is in a table more than once, nearly or exactly, under other labels or in training too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from polymodal.data.leakage import leakage
from polymodal.data.loader import Prepared
from polymodal.diagnose.rows import Answered, comparable, contradict
from polymodal.evaluate import BATCH
from polymodal.model import Model

SIMILAR = 0.95
"""Similarity from which two contents count as nearly the same."""

PAIRED = 10_000
"""Rows of each side that are compared with one another; of more rows a random sample. The time is quadratic in it."""

EXACT = 4000
"""Pairs of so many rows are compared by all their features; of more rows, by directions first."""

DIRECTIONS = 64
"""Random directions that choose among more rows. A distance along them is right to about an eighth."""

BLOCK = 64
"""Rows that are compared with all others at once: memory is linear in the rows, and stays in a processor's cache."""

LISTED = 20
"""Pairs that are listed at most, per input and task."""


Allowed = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Features:
    """What the linear models see of one input, on one scale.

    Attributes:
        values: (n, F) float32, standardised over the present rows of all sides; (n, 0) where nothing varies.
        present: (n,) bool, which rows have the input and are compared.
        coarse: (n, at most `DIRECTIONS`) the same along random directions where there are many rows, else ``values``.
    """

    values: Tensor
    present: Tensor
    coarse: Tensor

    @classmethod
    def of(cls, raw: Tensor, present: Tensor, seed: int) -> Self:
        """Standardise (n, F) by the rows that are present, and leave out what is constant."""
        real = raw[present] if bool(present.any()) else raw
        spread = real.std(0, correction=0)
        varies = spread > 1e-6 * real.abs().amax(0).clamp(min=1e-12)
        values = ((raw - real.mean(0)) / spread)[:, varies]
        coarse = values
        if len(raw) > EXACT and values.shape[1] > DIRECTIONS:
            generator = torch.Generator().manual_seed(seed)
            coarse = values @ (torch.randn(values.shape[1], DIRECTIONS, generator=generator) / DIRECTIONS**0.5)
        return cls(values, present, coarse)

    @property
    def screened(self) -> bool:
        """Whether pairs are chosen along random directions."""
        return self.coarse is not self.values

    def similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """Similarity of rows (m,) to rows (m,), pair by pair. (m,)."""
        x, y = self.values[one].double(), self.values[other].double()
        return 2 * (x * y).sum(1) / (x.square().sum(1) + y.square().sum(1)).clamp(min=1e-12)

    def best(self, rows: Tensor, others: Tensor, allowed: Allowed) -> Iterator[tuple[int, int, float]]:
        """The most similar other of each row, where it is similar enough.

        Args:
            rows: (n,) indices.
            others: (m,) indices.
            allowed: from pairs of indices (p,) and (p,) to (p,) bool, which of them count.

        Yields:
            A row, its partner and their similarity.
        """
        if not len(others) or not self.values.shape[1]:
            return
        least = 1 - 3 * (1 - SIMILAR) if self.screened else SIMILAR - 1e-3
        y = self.coarse[others]
        size = y.square().sum(1)
        for some in rows.split(BLOCK):
            x = self.coarse[some]
            own = x.square().sum(1)
            above = torch.addmm(size, x, y.T, beta=-least, alpha=2) >= least * own[:, None]
            a, b = above.nonzero(as_tuple=True)
            one, two = some[a], others[b]
            chosen = allowed(one, two)
            one, two = one[chosen], two[chosen]
            alike = self.similarity(one, two)
            order = np.lexsort((two.numpy(), -alike.numpy(), one.numpy()))
            first = order[np.diff(one.numpy()[order], prepend=-1) != 0]
            yield from (
                (a, b, min(s, 1.0))
                for a, b, s in zip(one[first].tolist(), two[first].tolist(), alike[first].tolist(), strict=True)
                if s >= SIMILAR
            )


def features(model: Model, sides: Sequence[Prepared], device: torch.device, seed: int = 0) -> dict[str, Features]:
    """Input name -> features of all rows of all sides, one side after the other.

    Inputs made of several columns are left out: rows of a table may well be alike.
    """
    found: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        for prepared in sides:
            picked = np.random.default_rng(seed).permutation(len(prepared))[:PAIRED]
            compared = torch.zeros(len(prepared), 1, dtype=torch.bool)
            compared[picked] = True
            for rows in torch.arange(len(prepared)).split(BATCH):
                x, present = model.summaries(prepared.batch(rows).to(device).inputs)
                found.append((x.float().cpu(), present.cpu() & compared[rows]))
    whole, present = (torch.cat(parts) for parts in zip(*found, strict=True))
    columns = whole.split(list(model.widths.values()), 1)
    return {
        name: Features.of(columns[i], present[:, i], seed)
        for i, (name, part) in enumerate(model.spec.inputs.items())
        if not part.spans
    }


def conflicts(seen: Mapping[str, Features], answered: Answered, prepared: Prepared) -> list[dict[str, Any]]:
    """Rows with nearly the same content in one input, or the same in all, whose labels contradict each other.

    The similarity of two rows is 2 x.y / (x.x + y.y) of their standardised features: their cosine, lowered where their
    lengths differ; 1 only for the same. Each row is paired with the most similar row that contradicts it; of rows with
    equal content and label the first stands for all.

    Args:
        seen: features of the rows that were answered.
        answered: labelled rows of one task.
        prepared: the rows that were answered.

    Returns:
        ``input`` (None: all of them), ``task``, ``rows``, ``similarity`` and ``labels`` of each pair, most similar
        first.
    """
    found = _same_rows(answered, prepared)
    place = torch.from_numpy(answered.place)
    back = torch.full((len(prepared),), -1)
    back[place] = torch.arange(len(place))
    values, tolerance = comparable(answered.task, answered.target)
    for name, one in seen.items():
        there = place[one.present[place]]
        there = there[_firsts(prepared, name, there, values[back[there]])]
        pairs = {
            (min(a, b), max(a, b)): alike
            for a, b, alike in one.best(
                there, there, lambda a, b: contradict(values[back[a]], values[back[b]], tolerance)
            )
        }
        ranked = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:LISTED]
        found += [_pair(name, answered, back[[a, b]].tolist(), alike) for (a, b), alike in ranked]
    return found


def _firsts(prepared: Prepared, name: str, places: Tensor, labels: Tensor) -> Tensor:
    """Which of some rows (m,) are the first of their content and label: (k,). All of them where content has no name."""
    if name not in prepared.digests:
        return torch.arange(len(places))
    digests = prepared.digests[name][0][prepared.rows[places].numpy()]
    keys = np.concatenate([digests, labels.contiguous().numpy().view(np.uint8)], 1)
    return torch.from_numpy(np.sort(np.unique(keys, axis=0, return_index=True)[1]))


def _pair(name: str | None, answered: Answered, rows: Sequence[int], alike: float) -> dict[str, Any]:
    return {
        "input": name,
        "task": answered.name,
        "rows": [int(answered.rows[i]) for i in rows],
        "similarity": min(alike, 1.0),
        "labels": [answered.truth(i) for i in rows],
    }


def _same_rows(answered: Answered, prepared: Prepared) -> list[dict[str, Any]]:
    """Rows that are identical in every input, and the first row of the same content that contradicts each."""
    if not prepared.digests or not len(answered):
        return []
    parts = [np.where(absent[:, None], 0, digests)[answered.rows] for digests, absent in prepared.digests.values()]
    group = np.unique(np.concatenate(parts, 1), axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    (values, tolerance), found = comparable(answered.task, answered.target), list[dict[str, Any]]()
    for rows in np.split(order, starts[1:]):
        against = contradict(values[rows[1:]], values[rows[:1]], tolerance).numpy()
        found += [_pair(None, answered, [int(rows[0]), int(i)], 1.0) for i in rows[1:][against]]
    return found[:LISTED]


def leaks(seen: Mapping[str, Features], prepared: Prepared, train: Prepared) -> list[str]:
    """Content of the diagnosed rows that training rows hold too, exactly or nearly, in words.

    Args:
        seen: features of the diagnosed rows, then of the training rows.
        prepared: the diagnosed rows.
        train: the training rows.
    """
    rows = {"train": train.rows.numpy(), "test": prepared.rows.numpy()}
    sides = {"train": train, "test": prepared}
    size, found = len(train), []
    if prepared.digests and train.digests:
        digests = {
            name: tuple(np.concatenate([sides[s].digests[name][i][rows[s]] for s in sides]) for i in (0, 1))
            for name in prepared.digests
        }
        places = {"train": np.arange(size), "test": np.arange(size, size + len(prepared))}
        for leak in leakage(digests, places, list(seen)):  # pyright: ignore[reportArgumentType]
            what = "whole rows" if leak.input is None else leak.input
            pairs = [(int(rows["test"][b - size]), int(rows["train"][a]), 1.0) for a, b in leak.rows.tolist()]
            found.append(_leak(what, pairs, "in training too"))
    for name, one in seen.items():
        pairs = _near(one, prepared, train, rows, name)
        if pairs:
            found.append(_leak(name, pairs, f"nearly in training (similarity {SIMILAR} or more)"))
    return found


def _near(
    one: Features, prepared: Prepared, train: Prepared, rows: Mapping[str, np.ndarray], name: str
) -> list[tuple[int, int, float]]:
    """Diagnosed rows whose content is nearly, but not exactly, in training: [(row, training row, similarity)]."""
    n = len(prepared)
    own, theirs = (index[one.present[index]] for index in torch.arange(n + len(train)).tensor_split([n]))
    if name in prepared.digests and name in train.digests:
        keys = [s.digests[name][0][rows[k]] for k, s in (("test", prepared), ("train", train))]
        codes = np.unique(np.concatenate(keys), axis=0, return_inverse=True)[1].ravel()
        own = own[torch.from_numpy(~np.isin(codes[own], codes[theirs]))]
        theirs = theirs[torch.from_numpy(np.sort(np.unique(codes[theirs], return_index=True)[1]))]
    found = one.best(own, theirs, lambda a, _: torch.ones(len(a), dtype=torch.bool))
    pairs = [(int(rows["test"][a]), int(rows["train"][b - n]), alike) for a, b, alike in found]
    return sorted(pairs, key=lambda pair: -pair[2])


def _leak(what: str, pairs: Sequence[tuple[int, int, float]], how: str) -> str:
    """One line: how many rows, and the first of them."""
    shown = ", ".join(f"row {a} = training row {b}" + (f" ({s:.3f})" if s < 1 else "") for a, b, s in pairs[:3])
    return f"{what}: {len(pairs)} rows are {how} ({shown}{', ...' if len(pairs) > 3 else ''})"
