"""Scores of spans equal seqeval's in mode "strict"; scores of tags equal scikit-learn's."""

import warnings

import numpy as np
import pytest
from seqeval.metrics import classification_report as seqeval_report
from seqeval.scheme import IOB2, IOBES
from sklearn.metrics import classification_report

from polymodal import metrics, schemes
from polymodal.metrics import Counts, Spans

TYPES = ("loc", "org", "per")
EDGES = {
    "nothing there and nothing found": ([["O", "O"]], [["O", "O"]]),
    "nothing found": ([["B-per", "I-per"], ["O"]], [["O", "O"], ["O"]]),
    "nothing there": ([["O", "O"], ["O"]], [["B-per", "I-per"], ["B-loc"]]),
    "all right": ([["B-per", "I-per", "B-per"], ["B-loc"]], [["B-per", "I-per", "B-per"], ["B-loc"]]),
    "wrong type": ([["B-per", "I-per", "O"]], [["B-loc", "I-loc", "O"]]),
    "wrong end": ([["B-per", "I-per", "O"]], [["B-per", "I-per", "I-per"]]),
    "wrong start": ([["B-per", "I-per", "O"]], [["O", "B-per", "O"]]),
    "split": ([["B-per", "I-per"]], [["B-per", "B-per"]]),
    "a type that is only found": ([["B-per", "O"]], [["B-per", "B-org"]]),
}


def written(seed, scheme):
    """Random rows of true and found tags of different lengths, half of the words alike."""
    rng = np.random.default_rng(seed)

    def row(n):
        return schemes.spans([rng.choice(["O", "B-per", "I-per", "B-loc", "I-loc", "I-org"]) for _ in range(n)])

    true, found = [], []
    for n in rng.integers(1, 9, 40):
        spans = row(n)
        true.append(schemes.tags(spans, n, scheme))
        found.append(schemes.tags(spans if rng.random() < 0.4 else row(n), n, scheme))
    return true, found


def marked(rows, scheme):
    """Rows of tags as `Spans`, by the marks of each word."""
    width = max(len(row) for row in rows)
    types, begins = np.full((len(rows), width), -1), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        for span in schemes.spans(row):
            types[i, span.first : span.stop] = TYPES.index(span.type)
            begins[i, span.first] = True
    return metrics.spans_of(types, begins)


def strict(true, found, scheme):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not defined, which both give as 0
        return seqeval_report(true, found, mode="strict", scheme=scheme, output_dict=True)


@pytest.mark.parametrize("case", [*EDGES, *range(6)])
def test_spans_score_as_in_seqeval(case):
    scheme = "IOBES" if case in (3, 4, 5) else "IOB2"
    true, found = EDGES[case] if case in EDGES else written(case, scheme)
    counts = metrics.span_counts(marked(true, scheme), marked(found, scheme), len(TYPES))
    theirs = strict(true, found, {"IOB2": IOB2, "IOBES": IOBES}[scheme]) if case != next(iter(EDGES)) else {}
    each = metrics.of_counts(counts)
    for i, name in enumerate(TYPES):
        if name in theirs:
            assert each["precision"][i] == pytest.approx(theirs[name]["precision"])
            assert each["recall"][i] == pytest.approx(theirs[name]["recall"])
            assert each["f1"][i] == pytest.approx(theirs[name]["f1-score"])
            assert each["support"][i] == theirs[name]["support"]
        else:
            assert counts.found[i] + counts.there[i] == 0
    for name, ours in metrics.averages(counts).items():
        other = theirs.get(f"{name} avg", {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        assert [ours["precision"], ours["recall"], ours["f1"], ours["support"]] == pytest.approx(
            [other["precision"], other["recall"], other["f1-score"], other["support"]]
        )


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_tags_score_as_in_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    true, found = rng.integers(0, 5, 60), np.where(rng.random(60) < 0.3, 0, rng.integers(0, 5, 60))
    matrix = metrics.confusion(true, found, 7)
    counts = Counts(matrix.diagonal(), matrix.sum(0), matrix.sum(1))
    theirs = classification_report(true, found, output_dict=True, zero_division=0)
    each, means = metrics.of_counts(counts), metrics.averages(counts)
    for i in range(5):
        row = theirs[str(i)]
        assert [each[x][i] for x in ("precision", "recall", "f1", "support")] == pytest.approx(
            [row["precision"], row["recall"], row["f1-score"], row["support"]]
        )
    assert means["micro"]["f1"] == pytest.approx(theirs["accuracy"])
    for name in ("macro", "weighted"):
        row = theirs[f"{name} avg"]
        assert [means[name][x] for x in ("precision", "recall", "f1", "support")] == pytest.approx(
            [row["precision"], row["recall"], row["f1-score"], row["support"]]
        )


def test_spans_end_where_another_begins_and_at_the_rows_end():
    types = np.array([[0, 0, 0, 1, -1], [-1, 2, 2, 2, 2]])
    begins = np.array([[1, 0, 1, 0, 1], [1, 1, 0, 0, 1]], bool)
    found = metrics.spans_of(types, begins)
    listed = list(zip(*(x.tolist() for x in found), strict=True))
    assert listed == [(0, 0, 2, 0), (0, 2, 3, 0), (0, 3, 4, 1), (1, 1, 4, 2), (1, 4, 5, 2)]


def test_a_span_is_right_only_in_its_own_row():
    one = Spans(*(np.array([x]) for x in (0, 2, 4, 1)))
    for row, first, stop, kind in ((1, 2, 4, 1), (0, 1, 4, 1), (0, 2, 5, 1), (0, 2, 4, 0)):
        assert not metrics.right(one, Spans(*(np.array([x]) for x in (row, first, stop, kind)))).any()
    assert metrics.right(one, one).all()
    none = Spans(*(np.zeros(0, int) for _ in range(4)))
    assert metrics.right(none, one).tolist() == [False]
    assert metrics.right(one, none).tolist() == []
