"""Cells of one input: decoded on demand, what is broken kept apart with its row, column and path."""

import numpy as np
import pytest
import torch

import toys
from polymodal.data.cells import Cell
from polymodal.data.clean import Quarantined
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.modalities.image import Image
from polymodal.part import Modality, Reading


def picture(colour=90):
    return np.full((20, 20, 3), colour, np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Three good pictures, an absent one, a lost one, a text that calls itself a picture."""
    (tmp_path / "note.png").write_text("I am no picture")
    cells = [picture(10), None, str(tmp_path / "lost.png"), picture(20), str(tmp_path / "note.png"), picture(30)]
    return Source("photo", Image(backbone="none", size=16, grid=1), Table.read({"file": cells, "photo": cells}))


def test_broken_cells_are_absent_and_never_a_neighbours(photos):
    values = list(photos)
    assert [value is None for value in values] == [False, True, True, False, True, False]
    assert [int(value.float().mean()) for value in values if value is not None] == [10, 20, 30]


def test_broken_cells_are_told_with_row_column_path_and_reason(photos):
    found = [photos.read(row, cell) for row, cell in enumerate(photos.cells(0, 6))]
    broken = [cell for cell in found if isinstance(cell, Quarantined)]
    assert [(cell.row, cell.column) for cell in broken] == [(2, "photo"), (4, "photo")]
    assert broken[0].origin.endswith("lost.png")
    assert "does not exist" in broken[0].reason
    assert broken[1].origin.endswith("note.png")
    assert "row 4, column 'photo'" in str(broken[1])
    assert found[1] is None
    assert isinstance(found[0], Reading)


def test_rows_can_be_asked_for_in_any_order(photos):
    whole = list(photos.cells(0, 6))
    some = list(photos.some(np.array([5, 1, 3, 5])))
    for cell, row in zip(some, (5, 1, 3, 5), strict=True):
        expected = whole[row]
        assert (cell is None) == (expected is None)
        if isinstance(cell, Cell) and isinstance(expected, Cell):
            assert (cell.digest, cell.content) == (expected.digest, expected.content)
    part = list(photos.cells(3, 5))
    assert isinstance(part[1], Cell)
    assert part[1].origin.endswith("note.png")


def test_a_column_that_is_not_there_is_absent_in_every_row():
    source = Source("photo", Image(backbone="none"), Table.read({"x": [1, 2]}))
    assert source.missing_columns == ["photo"]
    assert list(source) == [None, None]
    several = Source("t", Modality.parse({"type": "table", "numbers": ["x", "y"]}), Table.read({"x": [1, None]}))
    assert several.missing_columns == ["y"]
    assert list(several) == [{"x": 1.0}, None]


def test_paths_can_be_refused(photos):
    closed = Source(photos.name, photos.modality, photos.table, allow_paths=False)
    reasons = [cell.reason for cell in closed.cells(0, 6) if isinstance(cell, Quarantined)]
    assert len(reasons) == 2
    assert all("must be sent as bytes or a data URL" in reason for reason in reasons)


def test_equal_content_has_equal_digests_and_other_content_has_not():
    table = Table.read({"v": [[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]]})
    cells = list(Source("v", toys.Vectors(), table).cells(0, 3))
    digests = [cell.digest for cell in cells if isinstance(cell, Cell)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(*[value for value in Source("v", toys.Vectors(), table)][:2])
