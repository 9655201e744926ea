from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from polymodal.errors import DataError, SpecError
from polymodal.modalities.table import Scale, Tabular, TabularAugmentation
from polymodal.nn.numeric import LinearNumbers, PeriodicNumbers, PiecewiseNumbers
from polymodal.part import Modality
from polymodal.types import Masked

ALL = {"numbers": ("price", "size"), "categories": ("colour",), "booleans": ("sold",), "dates": ("day",)}
CELLS = [
    {
        "price": 1 + i,
        "size": i % 5,
        "colour": "red" if i % 2 else "blue",
        "sold": i % 3 == 0,
        "day": f"20{i + 10}-03-01",
    }
    for i in range(20)
] + [{"price": None, "size": "", "colour": "green", "sold": "yes", "day": "2024-06-01T18:00"}]


def values(part, rows):
    return [part.read(row).value for row in rows]


def fitted(rows=CELLS, **options):
    part = Tabular(**({**ALL, **options}))
    return part.fit(values(part, rows))


def test_is_known_by_its_type_and_reads_all_its_columns():
    part = Modality.parse({"type": "table", **ALL})
    assert isinstance(part, Tabular)
    assert part.columns("anything") == ("price", "size", "colour", "sold", "day")
    assert not part.media


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "at least one column"),
        ({"numbers": ["a"], "column": "b"}, "column must not be set"),
        ({"numbers": ["a"], "categories": ["a"]}, r"\['a'\] more than once"),
        ({"numbers": ["a", "a"]}, "more than once"),
        ({"numbers": [""]}, "at least 1 character"),
        ({"categories": ["a"], "number_embedding": "linear"}, "number_embedding has no effect"),
        ({"categories": ["a"], "clip": 3}, "clip has no effect"),
        ({"numbers": ["a"], "rare": 3}, "rare has no effect"),
        ({"numbers": ["a"], "max_categories": 3}, "max_categories has no effect"),
        ({"numbers": ["a"], "augmentation": {}}, "augmentation must have"),
        ({"booleans": ["a"], "augmentation": {"noise": 1}}, "augmentation must have"),
        ({"numbers": ["a"], "augmentation": {"dropout": 1}}, "less than 1"),
        ({"numbers": ["a"], "clip": 0}, "greater than 0"),
        ({"numbers": ["a"], "number_embedding": "cubic"}, "literal_error"),
        ({"numbers": ["a"], "nunbers": ["b"]}, "extra_forbidden"),
    ],
)
def test_refuses_bad_specs(options, message):
    with pytest.raises(ValidationError, match=message):
        Tabular(**options)


def test_json_round_trip_keeps_every_bit():
    part = fitted()
    again = Tabular.model_validate_json(part.model_dump_json())
    assert again == part
    rows = values(part, CELLS)
    assert torch.equal(again.collate(rows).values, part.collate(rows).values)


def test_reads_cells_and_tells_broken_ones():
    part = Tabular(**ALL)
    reading = part.read({"price": "1,234.5", "size": "inf", "colour": ["x"], "sold": "perhaps", "day": "soon"})
    assert reading.value == {"price": 1234.5}
    assert reading.repairs == ()
    assert list(reading.broken) == ["size", "colour", "sold", "day"]
    assert reading.broken["size"].startswith("a number is expected, got")
    assert part.read({"price": "NA", "colour": None, "other": 3}).value is None
    assert part.read({"price": "text"}).value is None
    with pytest.raises(DataError, match="mapping"):
        part.read([1, 2])


def test_tells_what_training_did_not_show():
    part = fitted([{**row, "size": None} for row in CELLS])
    assert part.read({"colour": "red"}).repairs == ()
    assert part.read({"colour": "green"}).repairs == ("colour: rare category",)
    assert part.read({"colour": "pink", "size": 1}).repairs == ("size: absent in training", "colour: unseen category")
    x = part.collate(values(part, [{"colour": "pink", "size": 1}, {"colour": "green"}, {"colour": "blue"}]))
    assert x.values[:, 2, 0].tolist() == [0, 1, 2]
    assert not x.mask[:, 1].any()


def test_fit_is_pure_and_reads_each_value_once():
    part = Tabular(**ALL)
    assert part.fit(iter(values(part, CELLS))) == fitted()
    assert part == Tabular(**ALL)
    again = fitted().fit(values(part, [{"colour": "pink"}, {"colour": "pink"}]))
    assert again.levels == {"colour": ("pink",)}
    assert again.read({"colour": "red"}).repairs == ("colour: unseen category",)
    assert part.fit([None, None]).collate([None]).present.tolist() == [False]


def test_scale_is_median_and_interquartile_range():
    scale = Scale.of([1, 2, 3, 4, 5, 1000], 8)
    assert scale.center == 3.5
    assert scale.scale == 2.5
    assert Scale.of([0, 0, 0, 0, 8], 8).scale == pytest.approx(3.2)  # standard deviation where quartiles agree
    assert Scale.of([5, 5], 8) == Scale(center=5, scale=1, edges=(0, 1))
    assert Scale.of([-1.7e308, 1.7e308] * 2, 8).scale == 1.0
    assert all(math.isfinite(e) for e in Scale.of([-1.7e308, 1.7e308], 8).edges)


def test_bins_hold_equal_shares():
    x = np.random.default_rng(0).lognormal(size=1600)
    scale = Scale.of(x.tolist(), 1000)
    counts, _ = np.histogram((x - scale.center) / scale.scale, scale.edges)
    assert len(counts) == 16
    assert counts.min() >= 99


def test_collated_values():
    part = fitted()
    x = part.collate([*values(part, CELLS[:1]), None, *values(part, [{"price": 1e9, "sold": False}])])
    assert x.values.shape == (3, 5, 7)
    assert x.values.dtype == torch.float32
    scale = part.scales["price"]
    assert x.values[0, 0, 0] == pytest.approx((1 - scale.center) / scale.scale)
    assert x.values[2, 0, 0] == 8
    assert x.mask.tolist() == [[True] * 5, [False] * 5, [True, False, False, True, False]]
    assert x.values[0, 3, 0] == 1
    assert fitted(dates=()).collate([]).values.shape == (0, 4, 1)
    assert part.collate([]).values.shape == (0, 5, 7)


def test_unfitted_part_does_not_collate():
    with pytest.raises(SpecError, match="fitted"):
        Tabular(**ALL).collate([None])


def test_date_features():
    part = Tabular(dates=("day",))
    new_year, evening = values(part, [{"day": "2024-01-01"}, {"day": "2024-01-01T18:00:00"}])
    assert new_year["day"] == (2024, 0, 1, 0, 1, 0, 0)  # a Monday without a time of day
    assert evening["day"] == pytest.approx((2024, 0, 1, 0, 1, -1, 0))
    assert values(part, [{"day": "2024-07-01"}])[0]["day"][2] == pytest.approx(-1, abs=0.01)


def test_same_cells_in_other_forms_are_the_same():
    part = fitted()
    plain = {"price": 3, "colour": "red", "sold": True, "day": "2024-01-01"}
    forms = {"price": " 3.0", "colour": " red ", "sold": "Y", "day": np.datetime64("2024-01-01")}
    assert part.read(plain) == part.read(forms)


def test_rare_sets_the_least_count():
    assert fitted(rare=1).levels["colour"] == ("blue", "red", "green")
    assert fitted().levels["colour"] == ("blue", "red")
    assert fitted().rares == {"colour": ("green",)}
    assert fitted(rare=100).levels["colour"] == ()


def test_max_categories_limits_levels():
    part = fitted(max_categories=1)
    assert part.levels["colour"] == ("blue",)
    assert part.read({"colour": "red"}).repairs == ("colour: rare category",)


def test_clip_limits_scaled_numbers():
    part = fitted(clip=0.5)
    assert part.collate(values(part, CELLS)).values[:, 0].abs().max() == 0.5


def test_piecewise_code_by_hand():
    layer = PiecewiseNumbers([(0.0, 1.0, 3.0), (0.0, 2.0)], 4)
    code = layer.encode(torch.tensor([[2.0, 1.0], [0.5, 2.0], [-0.5, -9.0], [99.0, 99.0]]))
    assert code[:, 0].tolist() == [[1, 0.5], [0.5, 0], [-0.5, 0], [1, 2]]
    assert code[:, 1].tolist() == [[0.5, 0], [1, 0], [-1, 0], [2, 0]]


def test_periodic_is_linear_of_waves_with_relu():
    layer = PeriodicNumbers(2, 3, waves=5)
    x = torch.tensor([[0.3, -1.2]])
    for j in range(2):
        angle = 2 * math.pi * layer.frequencies[j] * x[0, j]
        expected = torch.relu(torch.cat([angle.sin(), angle.cos()]) @ layer.weight[j] + layer.bias[j])
        assert torch.allclose(layer(x)[0, j], expected, atol=1e-6)


def test_linear_is_linear():
    layer = LinearNumbers(2, 3)
    x = torch.tensor([[1.0, 2.0]])
    assert torch.allclose(layer(3 * x), 3 * layer(x))


@pytest.mark.parametrize("kind", ["linear", "periodic", "piecewise"])
def test_each_column_is_a_token_of_its_own(kind):
    part = fitted(number_embedding=kind)
    encoder = part.encoder(8)
    base = {"price": 3, "size": 2, "colour": "red", "sold": True, "day": "2020-01-01"}
    other = {"price": 9, "size": 4, "colour": "blue", "sold": False, "day": "2022-05-03"}
    x = encoder(part.collate(values(part, [base, *({**base, name: other[name]} for name in part.order)])))
    assert x.values.shape == (6, 5, 8)
    changed = (x.values[1:] != x.values[:1]).any(2)
    assert torch.equal(changed, torch.eye(5, dtype=torch.bool))


def test_number_embedding_changes_the_tokens():
    kinds = {
        kind: type(fitted(number_embedding=kind).encoder(4).numbers) for kind in ("linear", "periodic", "piecewise")
    }
    assert list(kinds.values()) == [LinearNumbers, PeriodicNumbers, PiecewiseNumbers]


@pytest.mark.parametrize("kind", ["linear", "periodic", "piecewise"])
def test_content_behind_the_mask_and_padding_do_not_matter(kind):
    part = fitted(number_embedding=kind)
    encoder, rows = part.encoder(8), [{"price": 1, "sold": True}, {"price": 5}, {"colour": "red"}]
    x = part.collate(values(part, rows))
    dirty = Masked(x.values.masked_fill(~x.mask[..., None], torch.nan), x.mask)
    cut = Masked.join(dirty.split())
    extra = torch.full((3, 2, 7), torch.nan)
    padded = Masked(torch.cat([dirty.values, extra], 1), torch.cat([x.mask, torch.zeros(3, 2, dtype=torch.bool)], 1))
    assert cut.mask.shape[1] < 5
    for form in (dirty, cut, padded):
        assert torch.equal(encoder(form).values[x.mask], encoder(x).values[x.mask])
        assert torch.equal(encoder(form).mask, x.mask)
        assert torch.equal(part.summary(form), part.summary(x))


def test_unseen_and_rare_start_as_their_column_alone():
    part = fitted()
    encoder = part.encoder(8)
    x = encoder(part.collate(values(part, [{"colour": "pink"}, {"colour": "green"}, {"colour": "red"}])))
    column = encoder.get_parameter("columns")[2]
    assert [torch.equal(x.values[i, 2], column) for i in range(3)] == [True, True, False]


def test_summary_by_hand():
    part = fitted(dates=(), numbers=("price",))
    x = part.collate(
        values(part, [{"price": 10.5, "colour": "red", "sold": False}, {"colour": "pink"}, {"colour": "green"}])
    )
    z = float(x.values[0, 0, 0])
    # price | unseen rare blue red | sold | present: price colour sold
    assert part.summary(x).tolist() == [
        [z, 0, 0, 0, 1, -1, 1, 1, 1],
        [0, 1, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 0, 0, 1, 0],
    ]


def test_summary_shows_the_64_most_frequent_levels():
    part = Tabular(categories=("c",), rare=1)
    part = part.fit([{"c": str(i)} for i in range(100) for _ in range(100 - i)])
    s = part.summary(part.collate([{"c": "0"}, {"c": "63"}, {"c": "64"}, {"c": "99"}]))
    assert s.shape == (4, 67)
    assert s[:, :66].argmax(1).tolist() == [2, 65, 1, 1]


def test_augmentation():
    rows = values(fitted(), CELLS)
    rng = np.random.default_rng(0)
    assert fitted().augment(rows[0], rng) is rows[0]
    assert not fitted().augments
    part = fitted(augmentation=TabularAugmentation(dropout=0.9))
    sizes = [len(part.augment(row, rng)) for row in rows * 20]
    assert part.augments
    assert min(sizes) == 1
    assert 1 <= np.mean(sizes) < 1.5
    part = fitted(augmentation=TabularAugmentation(noise=0.1))
    shift = [part.augment(rows[0], rng)["price"] - rows[0]["price"] for _ in range(500)]
    assert np.std(shift) == pytest.approx(0.1 * part.scales["price"].scale, rel=0.15)
    assert {k: v for k, v in part.augment(rows[0], rng).items() if k not in part.numbers} == {
        k: v for k, v in rows[0].items() if k not in part.numbers
    }
    assert rows[0] == values(part, CELLS[:1])[0]


def test_piecewise_learns_a_step_that_linear_cannot():
    """Label = x in the middle third: no line tells it, a sum over bins does."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=300)
    y = torch.tensor([float(abs(v) < 0.43) for v in x])
    scores = {}
    for kind in ("linear", "piecewise", "periodic"):
        torch.manual_seed(0)
        part = Tabular(numbers=("x",), number_embedding=kind)
        rows = [{"x": float(v)} for v in x]
        part = part.fit(rows)
        batch, encoder, head = part.collate(rows), part.encoder(8), torch.nn.Linear(8, 1)
        optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 0.05)
        for _ in range(100):
            output = head(encoder(batch).values[:, 0])[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(output, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        scores[kind] = float(output.gt(0).eq(y.bool()).float().mean())
    assert scores["linear"] < 0.75
    assert scores["piecewise"] > 0.9
    assert scores["periodic"] > 0.9
