"""What embeddings of several sides are worth: each side's rows looked for by another's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polymodal import metrics
from polymodal.types import Masked


def composed(sides: Tensor) -> Tensor:
    """Embeddings of several sides (B, S, W) as one, the sum scaled to length 1. (B, W), NaN where no side is there."""
    absent = sides.isnan().any(-1)
    whole = functional.normalize(sides.masked_fill(absent[..., None], 0.0).sum(1), dim=-1)
    return whole.masked_fill(absent.all(1)[:, None], torch.nan)


@dataclass(frozen=True, slots=True)
class Direction:
    """All rows that have one side as queries, and all that have another as the gallery.

    Attributes:
        query: name of a side.
        gallery: name of another.
        items: rows in the gallery.
        ranking: of all B rows, NaN where one is no query.
    """

    query: str
    gallery: str
    items: int
    ranking: metrics.Ranking

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-able mapping: names, sizes, scores."""
        queries = int((~np.isnan(self.ranking.rank)).sum())
        sizes = {"query": self.query, "gallery": self.gallery, "queries": queries, "items": self.items}
        return sizes | metrics.defined(self.ranking.scores())


def directions(
    queries: Mapping[str, Tensor], target: Masked, galleries: Mapping[str, Tensor] | None = None
) -> list[Direction]:
    """Rank every gallery for every query of another name, over the labelled rows.

    Those without a query, or without two different rows in the gallery, are left out: nothing can go wrong there.

    Args:
        queries: name -> (B, W), NaN where absent.
        target: (B, 1), equal where rows belong together.
        galleries: the same; the queries when not given.
    """
    galleries, found = queries if galleries is None else galleries, list[Direction]()
    labelled, ids = target.present.cpu().numpy(), target.values[:, 0].cpu().numpy()
    for (query, a), (gallery, b) in itertools.product(queries.items(), galleries.items()):
        if query == gallery:
            continue
        asked, asking = _rows(a, labelled)
        items, held = _rows(b, labelled)
        if len(np.unique(ids[held])) < 2 or not np.isin(ids[asking], ids[held]).any():
            continue
        ranking = metrics.ranked(asked, items, ids[asking], ids[held])
        found.append(Direction(query, gallery, len(items), ranking.spread(asking, len(ids))))
    return found


def _rows(side: Tensor, labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings of the labelled rows that have any, and their numbers."""
    table = side.detach().cpu().numpy()
    rows = np.flatnonzero(labelled & ~np.isnan(table).any(1))
    return table[rows], rows


def means(found: Sequence[Direction]) -> dict[str, float]:
    """Each score's mean over the directions, where there are any."""
    scores = [direction.ranking.scores() for direction in found]
    names = scores[0] if scores else ()
    return metrics.defined({name: metrics.mean(np.array([score[name] for score in scores])) for name in names})


def share(hit: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Share of the known cells of each row (D, n) that are hits, NaN where none is known. (D,)."""
    count = known.sum(1)
    return np.where(count > 0, metrics.divide(hit.sum(1), count), np.nan)
