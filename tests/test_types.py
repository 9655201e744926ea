"""Masked and its friends: one mask, the same meaning everywhere."""

import pytest
import torch

from polymodal.types import Batch, Masked


def ragged(seed=0, at=True, absent=(1,)):
    """Five rows of 0 to 4 vectors."""
    generator = torch.Generator().manual_seed(seed)
    rows = [None if i in absent else torch.randn(i % 4 + 1, 3, generator=generator) for i in range(5)]
    places = [None if row is None else torch.arange(len(row)).float()[:, None] for row in rows]
    return rows, Masked.pad(rows, torch.zeros(3), places if at else None)


def equal(x: Masked, y: Masked) -> bool:
    places = (x.at is None) == (y.at is None) and (x.at is None or y.at is None or torch.equal(x.at, y.at))
    return torch.equal(x.values, y.values) and torch.equal(x.mask, y.mask) and places


def test_pad_holds_every_row_and_zeros_behind_the_mask():
    rows, x = ragged()
    assert x.values.shape == (5, 4, 3)
    assert x.mask.sum(1).tolist() == [1, 0, 3, 4, 1]
    for i, row in enumerate(rows):
        if row is not None:
            assert torch.equal(x.values[i][x.mask[i]], row)
    assert not x.values[~x.mask].any()
    assert x.at is not None
    assert torch.equal(x.at[3, :, 0], torch.arange(4.0))


@pytest.mark.parametrize("rows", [[None], [None, None], [torch.zeros(0, 2)]])
def test_pad_of_nothing_has_one_masked_position_of_the_right_kind(rows):
    x = Masked.pad(rows, torch.zeros(2, dtype=torch.int64))
    assert x.values.shape == (len(rows), 1, 2)
    assert x.values.dtype == torch.int64
    assert not x.present.any()


def test_mask_and_positions_must_fit_the_values():
    values = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="mask must be bool"):
        Masked(values, torch.ones(2, 3))
    with pytest.raises(ValueError, match="mask must be bool of shape"):
        Masked(values, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="at must start"):
        Masked(values, torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 2, 1))


def test_mean_is_over_real_positions_only_and_zero_where_absent():
    rows, x = ragged()
    junk = Masked(x.values.masked_fill(~x.mask[..., None], float("nan")), x.mask)
    for i, row in enumerate(rows):
        expected = torch.zeros(3) if row is None else row.mean(0)
        torch.testing.assert_close(junk.mean()[i], expected)


def test_without_hides_rows_and_keeps_the_content():
    _, x = ragged()
    hidden = x.without(torch.tensor([True, False, False, True, False]))
    assert hidden.present.tolist() == [False, False, True, False, True]
    assert torch.equal(hidden.values, x.values)


@pytest.mark.parametrize("at", [True, False])
def test_spread_undoes_choosing_the_present_rows(at):
    _, x = ragged(at=at)
    assert equal(x[x.present].spread(x.present), x)
    everything = torch.ones(5, dtype=torch.bool)
    assert equal(x.spread(everything), x)


def test_spread_passes_gradients_to_the_rows_only():
    _, x = ragged()
    values = x[x.present].values.clone().requires_grad_()
    Masked(values, x[x.present].mask).spread(x.present).values.sum().backward()
    assert values.grad is not None
    assert values.grad.eq(1).all()


@pytest.mark.parametrize("at", [True, False])
def test_join_undoes_split(at):
    _, x = ragged(at=at)
    parts = x.split()
    assert [part.mask.shape[1] for part in parts] == [1, 1, 3, 4, 1]
    assert equal(Masked.join(parts), x)
    assert equal(Masked.join([x[:2], x[2:]]), x)


def test_split_keeps_gaps_in_the_middle():
    x = Masked(torch.arange(4.0).view(1, 4, 1), torch.tensor([[False, True, False, False]]))
    assert x.split()[0].mask.tolist() == [[False, True]]


def test_rows_by_mask_index_and_slice_agree():
    _, x = ragged()
    assert equal(x[torch.tensor([2, 3])], x[2:4])
    assert equal(x[torch.tensor([False, False, True, True, False])], x[2:4])


def test_a_batch_hides_whole_inputs_and_moves():
    _, x = ragged()
    batch = Batch({"a": x, "b": x}, {"y": Masked(torch.zeros(5, 1), torch.ones(5, 1, dtype=torch.bool))})
    hidden = batch.without("a")
    assert not hidden.inputs["a"].present.any()
    assert hidden.inputs["b"].present.sum() == 4
    assert batch.inputs["a"].present.sum() == 4
    assert len(hidden) == 5
    moved = batch.to("meta")
    assert moved.inputs["a"].values.device.type == moved.targets["y"].mask.device.type == "meta"


def test_join_keeps_positions_beside_rows_without_any():
    placed = Masked(torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), torch.full((1, 1, 3), 5.0))
    absent = Masked(torch.zeros(2, 1, 2), torch.zeros(2, 1, dtype=torch.bool))
    for parts in ([absent, placed], [placed, absent]):
        joined = Masked.join(parts)
        assert joined.at is not None
        assert torch.equal(joined.at[joined.mask], torch.full((1, 3), 5.0))


def test_join_puts_rows_where_they_are_wanted():
    _, x = ragged()
    order = torch.tensor([3, 0, 4, 2, 1])
    assert equal(Masked.join(x[order].split(), order), x)
    assert equal(Masked.join([x[order][:2], x[order][2:]], order), x)
