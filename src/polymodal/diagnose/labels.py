"""Labels that are probably wrong, by confident learning."""

from __future__ import annotations

import warnings
from functools import singledispatch
from typing import Any

import numpy as np

from polymodal.diagnose.rows import Answered
from polymodal.task import Task
from polymodal.tasks.classify import Classify
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.tasks.tag import Tag
from polymodal.tasks.tag.decode import marginals

LISTED = 50
"""Rows that are listed at most, worst first."""

DOUBT = 0.05
"""A number whose quality is under this share of the median quality is doubted: cleanlab's own default."""

FEWEST = 20
"""Rows below which nothing is said about numbers."""

BLOCK = 2000
"""Rows whose numbers are compared together: time and memory are quadratic in it."""

MISSING = "Run: pip install 'polymodal[diagnose]'"


def label_errors(answered: Answered, seed: int = 0) -> list[dict[str, Any]] | dict[str, str]:
    """Rows whose label is probably wrong, worst first.

    Answers must be to rows that the model did not learn from: on its own rows it repeats their errors.

    Source: Northcutt, Jiang and Chuang 2021, "Confident Learning" (classes; prune by noise rate, section 3.2);
    Thyagarajan et al. 2022, "Identifying Incorrect Annotations in Multi-Label Classification Data"; for numbers the
    score "outre" of the library cleanlab, which does all four; Wang and Mueller 2022, "Detecting Label Errors in Token
    Classification Data" (words; a sentence is as good as its worst one).

    Args:
        answered: labelled rows.
        seed: of the order in which numbers are compared, `BLOCK` rows at a time.

    Returns:
        ``row``, ``given``, ``suggested`` (the model's answer) and ``quality`` (0 worst, 1 best) of each, at most
        `LISTED`; or ``unavailable`` with the reason.
    """
    try:
        import cleanlab  # noqa: F401  (an extra)
    except ImportError:
        return {"unavailable": MISSING}
    found = find(answered.task, answered, seed)
    if isinstance(found, str):
        return {"unavailable": found}
    rows, quality = found
    return [
        {
            "row": int(answered.rows[i]),
            "given": answered.truth(i),
            "suggested": answered.predicted(i),
            "quality": float(quality[i]),
        }
        for i in rows[:LISTED].tolist()
    ]


@singledispatch
def find(task: Task, answered: Answered, seed: int) -> tuple[np.ndarray, np.ndarray] | str:
    """Doubted rows (m,), worst first, and the quality (n,) of every row's label; or why there are none to be had."""
    return f"Label errors can be found for classify, multilabel, regress and tag, not for {task.kind}."


@find.register
def _(task: Classify, answered: Answered, seed: int) -> tuple[np.ndarray, np.ndarray] | str:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    index = answered.target.values[:, 0].cpu().numpy()
    if len(np.unique(index)) < 2:
        return "Label errors must be sought among rows of at least two classes; these have one or none."
    p = task.probabilities(answered.output).numpy()
    with warnings.catch_warnings():  # a rare class is left alone, which is what is wanted here
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        rows = find_label_issues(index, p, return_indices_ranked_by="self_confidence", n_jobs=1)
    return np.asarray(rows, np.int64), get_label_quality_scores(index, p)


@find.register
def _(task: Multilabel, answered: Answered, seed: int) -> tuple[np.ndarray, np.ndarray] | str:
    from cleanlab.multilabel_classification.filter import find_label_issues
    from cleanlab.multilabel_classification.rank import get_label_quality_scores

    holds = answered.target.values.cpu().numpy() > 0.5
    if not holds.any():
        return "Label errors must be sought among rows with labels; these have none."
    given, p = [np.flatnonzero(row).tolist() for row in holds], task.probabilities(answered.output).numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        rows = find_label_issues(given, p, return_indices_ranked_by="self_confidence", n_jobs=1)
    return np.asarray(rows, np.int64), np.asarray(get_label_quality_scores(given, p))


@find.register
def _(task: Tag, answered: Answered, seed: int) -> tuple[np.ndarray, np.ndarray] | str:
    from cleanlab.token_classification.filter import find_label_issues
    from cleanlab.token_classification.rank import get_label_quality_scores

    p, mask = marginals(answered.output).numpy(), answered.target.mask.cpu().numpy()
    seen = [mask[i, : p.shape[1]].nonzero()[0] for i in range(len(p))]
    judged = [i for i, words in enumerate(seen) if len(words) and (p[i, words].sum(1) > 0).all()]
    if not judged:
        return "Wrong tags must be sought among rows whose words were seen; there are none."
    tags = answered.target.values.cpu().numpy()
    given, likely = [tags[i, seen[i]].tolist() for i in judged], [p[i, seen[i]] for i in judged]
    if len({tag for row in given for tag in row}) < 2:
        return "Wrong tags must be sought among words of at least two tags; these have one."
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        words = find_label_issues(given, likely, n_jobs=1)
    quality = np.ones(len(p))
    quality[judged] = get_label_quality_scores(given, likely)[0]
    rows = dict.fromkeys(judged[row] for row, _ in words)
    return np.array(list(rows), np.int64), quality


@find.register
def _(task: Regress, answered: Answered, seed: int) -> tuple[np.ndarray, np.ndarray] | str:
    from cleanlab.regression.rank import get_label_quality_scores

    if task.count > 1:
        return f"Label errors can be found for one number per row, not for {task.count} together."
    if len(answered) < FEWEST:
        return f"Label errors of numbers must be sought among at least {FEWEST} rows, got {len(answered)}."
    truth, value = task.truth(answered.target).numpy()[:, 0], task.answers(answered.output).numpy()[:, 0]
    if not (np.isfinite(truth).all() and np.isfinite(value).all()):
        return "Label errors of numbers must be sought among finite numbers and answers; these are not."
    quality, order = np.ones(len(truth)), np.random.default_rng(seed).permutation(len(truth))
    for rows in np.array_split(order, -(-len(order) // BLOCK)):  # each row is compared with half of the others
        quality[rows] = get_label_quality_scores(truth[rows], value[rows])
    doubted = np.flatnonzero(quality < DOUBT * np.median(quality))
    return doubted[np.argsort(quality[doubted], kind="stable")], quality
