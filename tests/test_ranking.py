"""Retrieval scores: equal to scikit-learn and to a slow reference, with ties, several right items and none."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from polymodal import metrics
from polymodal.metrics.base import higher_is_better
from polymodal.metrics.ranking import Ranking, ranked


def case(seed=0, n=30, m=40, width=4, kinds=12):
    """Random queries and items of some kinds; coarse coordinates make many ties."""
    rng = np.random.default_rng(seed)
    points = [rng.integers(-1, 2, (size, width)).astype(np.float32) for size in (n, m)]
    return *points, rng.integers(0, kinds, n), rng.integers(0, kinds, m)


def slow(queries, gallery, wanted, items):
    """One query at a time, from the definitions."""
    found = []
    for q, kind in zip(queries, wanted, strict=True):
        scores, right = gallery @ q, items == kind
        if not right.any():
            found.append((math.nan,) * 3)
            continue
        rank = 1 + int((scores[~right] >= scores[right].max()).sum())
        found.append((rank, average_precision_score(right, scores), ndcg_score([right.astype(float)], [scores])))
    return np.array(found).T


@pytest.mark.parametrize("kinds", [3, 12, 60])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_precision_and_gain_are_the_references(kinds, seed):
    """With 3 kinds a query has more right items than are counted one by one; with 60 many have none."""
    some = case(seed, kinds=kinds, m=80)
    got, want = ranked(*some), slow(*some)
    assert np.isnan(want[0]).any() == (kinds == 60)
    np.testing.assert_allclose(np.stack([got.rank, got.precision, got.gain]), want, rtol=1e-12)


def test_a_ranking_does_not_depend_on_the_pieces_it_is_made_in(monkeypatch):
    some = case()
    before = ranked(*some)
    monkeypatch.setattr("polymodal.metrics.ranking.CELLS", 1)
    monkeypatch.setattr("polymodal.metrics.ranking.FEW", 2)
    after = ranked(*some)
    for name in ("rank", "precision", "gain"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_embeddings_that_are_all_the_same_find_nothing():
    ids, same = np.arange(20), np.full((20, 3), 0.57735026, np.float32)
    found = ranked(same, same, ids, ids)
    assert (found.rank == 20).all()
    assert found.scores()["recall_at_10"] == 0
    noise = same + np.random.default_rng(0).normal(0, 3e-8, same.shape).astype(np.float32)
    assert (ranked(noise, same, ids, ids).rank == 20).all()


def test_scores_by_hand():
    eye, ids = np.eye(4, dtype=np.float32), np.arange(4)
    scores = ranked(eye, eye, ids, ids).scores()
    assert scores == {
        "recall_at_1": 1, "recall_at_5": 1, "recall_at_10": 1, "median_rank": 1, "map": 1, "ndcg": 1,
    }  # fmt: skip
    queries = np.array([[1, 0.5, 0.2, 0]], np.float32)
    found = ranked(queries, eye, np.array([2]), ids)
    assert found.rank.tolist() == [3]
    assert found.precision.tolist() == [1 / 3]
    assert found.gain.tolist() == pytest.approx([0.5])
    assert [found.recall(k) for k in (2, 3)] == [0, 1]


def test_a_query_without_a_right_item_has_no_rank():
    eye = np.eye(3, dtype=np.float32)
    found = ranked(eye, eye[:2], np.arange(3), np.arange(2))
    assert found.rank.tolist()[:2] == [1, 1]
    assert np.isnan([found.rank[2], found.precision[2], found.gain[2]]).all()
    assert found.scores()["recall_at_1"] == 1
    nothing = ranked(eye, eye, np.arange(3), np.arange(5, 8)).scores()
    assert all(math.isnan(score) for score in nothing.values())
    assert len(ranked(eye[:0], eye, np.arange(0), np.arange(3)).rank) == 0


def test_spreading_keeps_queries_in_their_rows():
    found = Ranking(np.array([2.0, 1.0]), np.array([0.5, 1.0]), np.array([0.6, 1.0])).spread(np.array([1, 3]), 4)
    np.testing.assert_array_equal(found.rank, [np.nan, 2, np.nan, 1])
    assert found.recall(1) == 0.5


def test_a_lower_median_rank_is_better():
    assert metrics.ranked is ranked
    assert not higher_is_better("median_rank")
    assert not higher_is_better("match.median_rank")
    assert higher_is_better("recall_at_1")


def test_fifty_thousand_take_pieces(monkeypatch):
    """No piece holds more than asked for, here with a smaller gallery."""
    rng, sizes = np.random.default_rng(0), []
    points, ids = rng.normal(size=(3000, 8)).astype(np.float32), np.arange(3000)
    rint = np.rint
    monkeypatch.setattr(np, "rint", lambda x, out: sizes.append(x.size) or rint(x, out=out))
    monkeypatch.setattr("polymodal.metrics.ranking.CELLS", 100_000)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert ranked(points, points, ids, ids).scores()["recall_at_1"] == 1
    assert max(sizes) <= 100_000
    assert sum(sizes) == 3000**2
