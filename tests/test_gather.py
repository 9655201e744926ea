"""Gathering: kept equals fresh, equal content is computed once, chunks do not matter, reports agree."""

import numpy as np
import pytest
import torch

from polymodal.data import gather
from polymodal.data.embedding import Embedder
from polymodal.data.features import FeatureStore
from polymodal.data.gather import Gathering, MemoryRows, Survey
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.modalities.image import Image
from polymodal.nn.weights import PACKAGED
from polymodal.spec import Spec
from polymodal.types import Masked

CPU = torch.device("cpu")


def table(tmp_path) -> Table:
    """Nine pictures: two alike, one absent, one lost, one broken; one has an alpha channel."""
    rng = np.random.default_rng(0)
    cells = [rng.integers(0, 255, (18 + i, 20, 3), dtype=np.uint8) for i in range(9)]
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    cells[2], cells[3], cells[5], cells[7] = None, cells[0], str(tmp_path / "lost.png"), str(tmp_path / "bad.png")
    cells[8] = rng.integers(0, 255, (20, 20, 4), dtype=np.uint8)
    return Table.read({"photo": cells})


def gathered(rows, store=None, part=None):
    spec = Spec.parse(
        {"inputs": {"photo": part or Image(backbone="none", size=16, grid=1)}, "outputs": {"y": "classify"}}
    )
    gathering = Gathering(Source("photo", spec.inputs["photo"], rows), Embedder(spec, CPU, store))
    return gathering.rows(), gathering


def everything(rows) -> Masked:
    return rows.batch(torch.arange(9))


def same(x: Masked, y: Masked) -> bool:
    places = x.at is y.at is None or (x.at is not None and y.at is not None and torch.equal(x.at, y.at))
    return torch.equal(x.mask, y.mask) and torch.equal(x.values[x.mask], y.values[y.mask]) and places


def test_kept_fresh_and_uncached_rows_are_bit_for_bit_the_same_and_so_are_their_reports(tmp_path):
    cells = table(tmp_path)
    plain, one = gathered(cells)
    fresh, two = gathered(cells, FeatureStore(tmp_path / "store"))
    kept, three = gathered(cells, FeatureStore(tmp_path / "store"))
    assert same(everything(fresh), everything(plain))
    assert same(everything(kept), everything(plain))
    assert one.report.to_dict() == two.report.to_dict() == three.report.to_dict()
    assert np.array_equal(one.digests, three.digests)
    assert np.array_equal(one.absent, three.absent)


def test_the_report_counts_what_there_is(tmp_path):
    rows, gathering = gathered(table(tmp_path), FeatureStore(tmp_path / "store"))
    report = gathering.report
    assert (report.present, report.absent, report.duplicates) == (6, 3, 1)
    assert [cell.row for cell in report.quarantined] == [5, 7]
    assert report.to_dict()["ranges"]["height"]["max"] == 24
    absent = [2, 5, 7]
    batch = everything(rows)
    assert (~batch.present).nonzero().flatten().tolist() == absent
    assert gathering.absent.nonzero()[0].tolist() == absent
    assert torch.equal(batch.values[3], batch.values[0])


def test_equal_content_is_decoded_once_and_kept_content_never_again(tmp_path, monkeypatch):
    decoded = []
    plain = Image.read
    monkeypatch.setattr(Image, "read", lambda self, content: decoded.append(content) or plain(self, content))
    cells = table(tmp_path)
    gathered(cells, FeatureStore(tmp_path / "store"))
    assert len(decoded) == 6  # five different pictures and the broken one
    decoded.clear()
    gathered(cells, FeatureStore(tmp_path / "store"))
    assert len(decoded) == 1  # what is broken is tried again


@pytest.mark.parametrize("keep", [True, False])
def test_chunks_do_not_matter(keep, tmp_path, monkeypatch):
    cells = table(tmp_path)
    whole, one = gathered(cells)
    monkeypatch.setattr(gather, "CHUNK", 2)
    parts, two = gathered(cells, FeatureStore(tmp_path / "store") if keep else None)
    assert same(everything(parts), everything(whole))
    assert one.report.to_dict() == two.report.to_dict()


def test_a_survey_reports_the_same_and_keeps_nothing(tmp_path):
    cells = table(tmp_path)
    _, gathering = gathered(cells)
    told = []
    survey = Survey(gathering.source, lambda *args: told.append(args))
    assert survey.run().to_dict() == gathering.report.to_dict()
    assert told == [("read photo", 9, 9)]


def test_another_part_has_rows_of_its_own(tmp_path):
    store, cells = FeatureStore(tmp_path / "store"), table(tmp_path)
    small, _ = gathered(cells, store)
    large, _ = gathered(cells, store, Image(backbone="none", size=32, grid=1))
    assert everything(small).values.shape[-1] == 16
    assert everything(large).values.shape[-1] == 32
    assert len(store.usage()) == 2


def test_memory_rows_cut_padding_that_none_needs():
    mask = torch.tensor([[True, True, True], [True, False, False], [False] * 3])
    rows = MemoryRows(Masked(torch.randn(3, 3, 2), mask, torch.randn(3, 3, 1)))
    assert rows.batch(torch.tensor([1, 2])).values.shape == (2, 1, 2)
    assert rows.batch(torch.tensor([2])).values.shape == (1, 1, 2)
    assert rows.batch(torch.tensor([0, 1])).values.shape == (2, 3, 2)


@pytest.mark.slow
@pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged MiniLM is not installed")
def test_a_pretrained_backbones_tokens_are_the_same_kept_and_fresh_whatever_the_chunks(tmp_path, monkeypatch):
    texts = ["one", "a red apple", None, "a red apple", "quite a long note about apples " * 6, "", "two", "x", "y"]
    rows = Table.read({"photo": texts})
    part = {"type": "text", "backbone": "minilm"}
    plain, one = gathered(rows, None, part)
    fresh, two = gathered(rows, FeatureStore(tmp_path / "store"), part)
    monkeypatch.setattr(gather, "CHUNK", 9)
    kept, three = gathered(rows, FeatureStore(tmp_path / "store"), part)
    assert same(everything(fresh), everything(kept))
    assert same(everything(plain), everything(kept))
    assert one.report.to_dict() == two.report.to_dict() == three.report.to_dict()
    assert one.report.present == 7
