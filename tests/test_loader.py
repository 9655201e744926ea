"""From a table to batches: rows, targets, variation and what is refused."""

import numpy as np
import pytest
import torch

import radar  # noqa: F401  (a modality that varies)
import toys  # noqa: F401  (a modality of plain vectors)
from polymodal.data.embedding import Embedder
from polymodal.data.features import FeatureStore
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.errors import DataError
from polymodal.nn.weights import PACKAGED
from polymodal.spec import Spec

CPU = torch.device("cpu")
OUTPUTS = {
    "y": {"type": "classify", "classes": [0, 1]},
    "size": {"type": "regress", "targets": ["w", "h"], "mean": [0, 0], "scale": [1, 1]},
}
ROWS = {
    "sweep": [[[float(i), 0.1, 1.0]] * (i % 3 + 1) if i != 4 else None for i in range(8)],
    "v": [[float(i), 1.0] for i in range(8)],
    "y": [0, 1, None, 1, 0, None, 0, 1],
    "w": [1.0, None, None, 2, 2, None, 1, 1],
    "h": [1.0, 5.0, None, 2, 2, None, 1, 1],
    "more": list(range(8)),
}


def spec(jitter=0.0, seed=0) -> Spec:
    inputs = {"sweep": {"type": "radar", "jitter": jitter}, "v": {"type": "test-vectors"}}
    return Spec.parse({"inputs": inputs, "outputs": OUTPUTS, "seed": seed})


def made(table=None, jitter=0.0, seed=0, **options):
    plan = spec(jitter, seed)
    return prepare(plan, Table.read(table or ROWS), Embedder(plan, CPU), **options)


def test_batches_hold_the_asked_rows_and_their_targets():
    prepared = made()
    batch = prepared.batch(torch.tensor([6, 4, 1]))
    assert batch.inputs["v"].values[:, 0, 0].tolist() == [6, 4, 1]
    assert batch.inputs["sweep"].present.tolist() == [True, False, True]
    assert batch.targets["y"].values[:, 0].tolist() == [0, 0, 1]
    assert batch.targets["size"].mask.tolist() == [[True, True], [True, True], [False, True]]
    assert len(prepared) == 8


def test_select_and_labelled_are_views_of_the_same_rows():
    prepared = made()
    some = prepared.select(np.array([7, 2, 5, 3]))
    assert some.batch(torch.arange(4)).inputs["v"].values[:, 0, 0].tolist() == [7, 2, 5, 3]
    assert some.labelled().rows.tolist() == [7, 3]
    assert some.select(np.array([3, 0])).rows.tolist() == [3, 7]
    assert prepared.labelled().rows.tolist() == [0, 1, 3, 4, 6, 7]
    assert some.inputs is prepared.inputs


def test_the_report_names_targets_and_columns_that_nobody_uses():
    report = made().report
    assert report.unused == ("more",)
    assert report.targets["y"].balance == {"0": 3, "1": 3}
    assert (report.targets["size"].labelled, report.targets["size"].unlabelled) == (6, 2)


def test_variation_differs_between_epochs_rows_and_seeds_and_is_otherwise_fixed():
    rows = torch.arange(8)

    def seen(epoch, seed=0, order=rows):
        return made(jitter=1.0, seed=seed).batch(order, epoch).inputs["sweep"].values[:, 0, 0]

    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1), seen(2))
    assert not torch.equal(seen(1), seen(1, seed=1))
    assert torch.equal(seen(1, order=rows.flip(0)), seen(1).flip(0))
    shifts = (seen(1) - made().batch(rows).inputs["sweep"].values[:, 0, 0])[torch.tensor(ROWS["sweep"][4] is None)]
    assert len(set(shifts.flatten().tolist())) > 5


def test_nothing_varies_outside_of_training_or_without_augmentation():
    rows = torch.arange(8)
    plain = made().batch(rows).inputs["sweep"]
    assert torch.equal(made(jitter=1.0).batch(rows).inputs["sweep"].values, plain.values)
    assert torch.equal(made().batch(rows, 3).inputs["sweep"].values, plain.values)
    live = made(jitter=1.0).batch(rows, 3).inputs["sweep"]
    assert live.present.tolist() == plain.present.tolist()


def test_a_missing_input_column_is_absent_and_told_and_all_missing_is_an_error():
    table = {name: cells for name, cells in ROWS.items() if name != "v"}
    prepared = made(table)
    assert not prepared.batch(torch.arange(8)).inputs["v"].present.any()
    assert any("v: the table has no such column" in line for line in prepared.report.warnings())
    with pytest.raises(DataError, match=r"must have at least one of the columns \['sweep', 'v'\], got"):
        made({"y": [0], "w": [1], "h": [1]})


def test_a_missing_target_column_is_an_error_unless_targets_are_not_wanted():
    table = {name: cells for name, cells in ROWS.items() if name != "h"}
    with pytest.raises(DataError, match="'h'"):
        made(table)
    assert made(table, targets=False).targets == {}


def test_a_wrong_target_names_table_and_task():
    with pytest.raises(DataError, match="target 'y': row 0: class must be one of"):
        made({**ROWS, "y": [7] * 8})
    some = made({**ROWS, "y": [0, 1, 7, 1, 0, 1, 0, 1]})
    assert some.targets["y"].present.tolist() == [True, True, False] + [True] * 5
    assert some.report.targets["y"].refused == 1


def test_strict_stops_at_the_first_broken_cell():
    table = {**ROWS, "sweep": ["broken", *ROWS["sweep"][1:]]}
    assert len(made(table).report.quarantined) == 1
    with pytest.raises(DataError, match=r"row 0, column 'sweep'.*radar must be rows.*--strict"):
        made(table, strict=True)


@pytest.mark.slow
@pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged MiniLM is not installed")
@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_varied_texts_reach_a_model_through_a_frozen_backbone(fusion, tmp_path):
    from polymodal.model import Model

    plan = Spec.parse(
        {
            "inputs": {"t": {"type": "text", "backbone": "minilm", "augmentation": {"drop": 0.5}}},
            "outputs": {"y": OUTPUTS["y"]},
            "fusion": fusion,
        }
    )
    table = Table.read({"t": ["one two three four five", "some other words in here", None], "y": [0, 1, 1]})
    prepared = prepare(plan, table, Embedder(plan, CPU, FeatureStore(tmp_path)))
    first, second = (prepared.batch(torch.arange(3), epoch) for epoch in (0, 1))
    assert not torch.equal(first.inputs["t"].values.sum(1), second.inputs["t"].values.sum(1))
    decoded = Model(plan)(first.inputs).decoded["y"]
    plan.outputs["y"].loss(decoded, first.targets["y"]).backward()


def test_at_prediction_what_was_read_of_words_is_kept_for_their_answers(tmp_path):
    parts = {"words": {"type": "words", "backbone": "none", "vocabulary": ["red"]}, "sweep": {"type": "radar"}}
    plan = Spec.parse({"inputs": parts, "outputs": {"t": {"type": "tag", "types": ["x"]}}})
    table = Table.read({"words": ["red boats", None, "left"], "sweep": [None] * 3, "t": [["O", "O"], None, ["O"]]})
    kept = prepare(plan, table, Embedder(plan, CPU), targets=False).values
    assert {n: [v and v.words for v in values] for n, values in kept.items()} == {
        "words": [("red", "boats"), None, ("left",)]
    }
    assert not prepare(plan, table, Embedder(plan, CPU)).values
    assert not prepare(plan, table, Embedder(plan, CPU, FeatureStore(tmp_path)), targets=False).values
