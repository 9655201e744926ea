"""Noises natural to each kind of input: what all of them must do, and known answers for each."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import toys
from polymodal.modalities.audio import Audio
from polymodal.modalities.image import Image
from polymodal.modalities.table import Tabular
from polymodal.modalities.text import Text
from polymodal.part import Corruption

RATE = 16_000
TEXTS = [
    "The old lighthouse keeper walks along the harbour every morning, feeding seventeen hungry seagulls.",
    "Nobody knows why the 508 zeppelins left, but the mayor is said to be very pleased with the quiet sky.",
    "短い文です and then some plain English words follow it.",
    "A boxcar is used to carry livestock.",
]
CELLS = [{"x": i, "y": 100 * i, "c": "abcdefgh"[i % 8], "day": f"20{i + 10}-03-01"} for i in range(40)]
TABLE = Tabular(numbers=("x", "y"), categories=("c",), dates=("day",))
ROWS = [TABLE.read(cells).value for cells in CELLS]


def smooth(seed: int) -> torch.Tensor:
    """An image with fine and coarse structure. (3, 64, 64) uint8."""
    waves = gaussian_filter(np.random.default_rng(seed).normal(size=(3, 64, 64)), (0, 2, 2))
    return torch.from_numpy((127 + 60 * waves / waves.std()).clip(0, 255).astype(np.uint8))


def tone(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(round(RATE * seconds)) / RATE)


def speech(seed: int) -> torch.Tensor:
    """Noise that swells and falls. (n,)."""
    wave = torch.randn(8000 + 1111 * seed, generator=torch.Generator().manual_seed(seed))
    return 0.1 * wave * torch.linspace(0, 20, len(wave)).sin()


def edits(one: str, two: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[:], i
        for j, b in enumerate(two, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b))
    return row[-1]


def distance(kind: str, noise: str, before, after) -> float:
    """How far a corrupted value is from what it was."""
    if kind in ("image", "audio"):
        return float((after.float() - before.float()).square().mean())
    if noise == "shuffled":
        return sum(a != b for a, b in zip(before.split(), after.split(), strict=True))
    if kind == "text":
        return edits(before, after or "")
    after = after or {}
    if noise == "noise":
        return sum(abs(after[name] - before[name]) for name in "xy")
    return sum(after.get(name) != cell for name, cell in before.items())


PARTS = {
    "image": (Image(backbone="none", size=64), [smooth(seed) for seed in range(3)]),
    "audio": (Audio(backbone="none"), [speech(seed) for seed in range(3)]),
    "text": (Text(backbone="none"), [text.lower() for text in TEXTS]),
    "table": (TABLE.fit(ROWS), ROWS),
}
EVERY = [(kind, noise) for kind, (part, _) in PARTS.items() for noise in part.corruptions]
every = pytest.mark.parametrize(("kind", "noise"), EVERY)


def found(kind: str, noise: str) -> tuple[Corruption, list]:
    part, values = PARTS[kind]
    return part.corruptions[noise], values


def apply(kind: str, noise: str, severity: float, values=None, seed: int = 0) -> list:
    corruption, some = found(kind, noise)
    return corruption.apply(some if values is None else values, severity, np.random.default_rng(seed))


def same(one, two) -> bool:
    return torch.equal(one, two) if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) else one == two


def test_every_kind_of_input_has_its_noises():
    assert sorted(noise for kind, noise in EVERY if kind == "image") == [
        "blur",
        "contrast",
        "jpeg",
        "noise",
        "occlusion",
    ]
    assert sorted(noise for kind, noise in EVERY if kind == "audio") == ["dropouts", "low_pass", "noise", "reverb"]
    assert sorted(noise for kind, noise in EVERY if kind == "text") == ["dropped", "ocr", "shuffled", "typos"]
    assert sorted(noise for kind, noise in EVERY if kind == "table") == ["missing", "noise", "outliers", "swapped"]
    assert toys.Vectors().corruptions == {}, "a modality of a user needs none"


@every
def test_ten_severities_that_go_one_way(kind, noise):
    levels = found(kind, noise)[0].levels
    assert len(levels) == len(set(levels)) == 10
    assert list(levels) in (sorted(levels), sorted(levels, reverse=True))
    assert found(kind, noise)[0].unit


@every
def test_each_step_is_further_from_the_truth(kind, noise):
    corruption, values = found(kind, noise)
    steps = []
    for level in corruption.levels:
        worse = apply(kind, noise, level)
        steps.append(np.mean([distance(kind, noise, a, b) for a, b in zip(values, worse, strict=True)]))
    slack = 1.03 if noise in ("typos", "ocr", "jpeg") else 1 + 1e-6
    assert all(a <= b * slack + 1e-12 for a, b in pairwise(steps)), steps
    assert steps[-1] > 2 * steps[0]


@every
def test_a_noise_follows_its_generator_and_leaves_its_argument_alone(kind, noise):
    corruption, values = found(kind, noise)
    values = [values[0], None, *values[1:]]
    before, severity = copy.deepcopy(values), corruption.levels[5]
    one, two, other = (apply(kind, noise, severity, values, seed) for seed in (0, 0, 1))
    assert all(same(a, b) for a, b in zip(values, before, strict=True))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert one[1] is None
    if noise not in ("blur", "jpeg", "contrast", "low_pass"):
        assert not all(same(a, b) for a, b in zip(one, other, strict=True))


@every
def test_a_corrupted_value_is_still_one_of_its_kind(kind, noise):
    part, values = PARTS[kind]
    for level in found(kind, noise)[0].levels[::3]:
        worse = apply(kind, noise, level)
        assert len(worse) == len(values)
        for before, after in zip(values, worse, strict=True):
            assert after is None or type(after) is type(before)
            if isinstance(before, torch.Tensor):
                assert (after.shape, after.dtype) == (before.shape, before.dtype)
                assert after.float().isfinite().all()
                assert after.is_contiguous()
    if kind != "text":
        part.collate(worse)


# ---- images ----


@pytest.mark.parametrize("noise", ["blur", "contrast"])
def test_what_is_even_stays_so(noise):
    flat = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    for level in found("image", noise)[0].levels:
        assert torch.equal(apply("image", noise, level, [flat])[0], flat)


def test_blur_is_gaussian_and_as_wide_as_the_image_is_large():
    x = smooth(1)
    for sigma in (0.5, 1.5, 3.0):
        want = gaussian_filter(x.numpy().astype(float), (0, sigma, sigma), truncate=8)
        inner = (slice(None), slice(24, 40), slice(24, 40))
        got = apply("image", "blur", sigma, [x])[0]
        assert np.abs(got.numpy()[inner] - want[inner]).max() <= 0.51
    large = Image(backbone="none", size=128).corruptions["blur"].levels
    assert [b / a for a, b in zip(found("image", "blur")[0].levels, large, strict=True)] == pytest.approx(
        [2] * 10, 0.01
    )


def test_noise_has_the_deviation_that_was_asked_for():
    grey = torch.full((3, 64, 64), 127, dtype=torch.uint8)
    assert float(apply("image", "noise", 0.1, [grey])[0].float().std()) == pytest.approx(25.5, rel=0.03)


def test_contrast_keeps_the_mean_and_a_share_of_the_rest():
    x = smooth(2)
    (mean, deviation), (before, spread) = (
        (y.float().mean((1, 2)), y.float().std((1, 2))) for y in (apply("image", "contrast", 0.5, [x])[0], x)
    )
    torch.testing.assert_close(mean, before, atol=0.3, rtol=0)
    torch.testing.assert_close(deviation, 0.5 * spread, atol=0, rtol=0.01)


def test_jpeg_is_worse_at_lower_quality():
    errors = [distance("image", "jpeg", smooth(0), apply("image", "jpeg", q, [smooth(0)])[0]) for q in (90, 50, 20, 5)]
    assert errors == sorted(errors)
    assert errors[0] > 0


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_occlusion_covers_its_share_and_more_of_the_same(share):
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    hidden, less = (apply("image", "occlusion", s, [white])[0] != 255 for s in (share, share / 2))
    assert float(hidden.float().mean()) == pytest.approx(share, abs=0.02)
    assert bool(hidden[less].all())


# ---- sounds ----


@pytest.mark.parametrize("ratio", [20.0, 0.0, -10.0])
def test_noise_is_at_the_ratio_that_was_asked_for_and_pink(ratio):
    wave = speech(3)
    noise = apply("audio", "noise", ratio, [wave])[0] - wave
    assert 10 * torch.log10(wave.square().mean() / noise.square().mean()) == pytest.approx(ratio, abs=0.01)
    power = torch.fft.rfft(apply("audio", "noise", 0.0, [tone(50, 8)])[0] - tone(50, 8)).abs().square()
    low, high = (float(power[8 * a : 8 * 2 * a].mean()) for a in (200, 3200))  # an octave each
    assert 10 * math.log10(low / high) == pytest.approx(12, abs=1), "3 dB less power per octave"


def test_noise_and_reverb_of_silence_are_silence():
    silence = torch.zeros(4000)
    for noise in ("noise", "reverb", "dropouts", "low_pass"):
        assert torch.equal(apply("audio", noise, 1.0, [silence])[0], silence)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_dropouts_silence_their_share_and_leave_the_rest(share):
    wave = torch.full((RATE,), 0.5)
    gone = apply("audio", "dropouts", share, [wave])[0]
    assert float((gone == 0).float().mean()) == pytest.approx(share)
    assert set(gone.tolist()) == {0.0, 0.5}
    assert apply("audio", "dropouts", 0.8, [wave[:30]])[0].all(), "one stretch always stays"


def test_reverb_decays_by_60_db_in_its_time_and_keeps_the_level():
    click = torch.zeros(RATE)
    click[0] = 1.0
    tail = apply("audio", "reverb", 0.5, [click])[0].double()
    decibels = [10 * math.log10(float(tail[a : a + 1600].square().mean())) for a in (800, 4000)]  # 0.2 s apart
    assert decibels[0] - decibels[1] == pytest.approx(24, abs=1.5)
    wave = speech(1)
    assert apply("audio", "reverb", 2.0, [wave])[0].square().mean() == pytest.approx(float(wave.square().mean()), 1e-4)


def test_low_pass_removes_a_high_tone_and_keeps_a_low_one():
    low, high = tone(300), tone(4000)
    left = apply("audio", "low_pass", 1000, [low + high])[0][800:-800]
    assert float((left - low[800:-800]).square().mean()) < 1e-3 * float(low.square().mean())
    assert max(Audio(backbone="none", sample_rate=8000).corruptions["low_pass"].levels) < 4000


# ---- texts ----


def test_typos_hit_their_share_of_letters_and_nothing_else():
    text = "abcdefgh, 12345 " * 300
    worse = apply("text", "typos", 0.1, [text])[0]
    pairs = zip(text.split(), worse.split(), strict=True)
    words = np.mean([a != b for a, b in pairs if a[0].isalpha()])  # of eight letters, one or more of which were hit
    assert words == pytest.approx(1 - 0.9**8, abs=0.05)
    for signs in ("12345", ",  "):
        assert [x for x in worse if x in signs] == [x for x in text.strip() if x in signs]
    assert apply("text", "typos", 0.0, [text])[0] == text


def test_a_mistyped_letter_is_left_out_doubled_swapped_or_hit_beside_its_key():
    seen = {apply("text", "typos", 0.99, ["a"], seed)[0] for seed in range(40)} | {
        apply("text", "typos", 0.99, ["p"], seed)[0] for seed in range(40)
    }
    assert seen == {None, "aa", "s", "a", "pp", "o", "p"}
    assert "b7" not in {apply("text", "typos", 0.99, ["7b"], seed)[0] for seed in range(40)}, "only a letter is hit"
    assert "7b" in {apply("text", "typos", 0.99, ["b7"], seed)[0] for seed in range(40)}


def test_ocr_takes_characters_for_what_they_look_like():
    assert apply("text", "ocr", 1.0, ["dim"])[0] == "cljrn"
    assert apply("text", "ocr", 1.0, ["短い"])[0] == "短い", "nothing looks like it"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_dropped_words_are_a_share_and_the_rest_keeps_its_order(share):
    words = [f"w{i}" for i in range(20)]
    left = apply("text", "dropped", share, [" ".join(words)])[0].split()
    assert len(left) == 20 - round(share * 20)
    assert left == sorted(left, key=words.index)
    assert apply("text", "dropped", 1.0, [" ".join(words)]) == [None], "nothing is left"


def test_shuffled_words_are_all_there():
    words = [f"w{i}" for i in range(20)]
    for share in (0.3, 1.0):
        moved = apply("text", "shuffled", share, [" ".join(words)])[0].split()
        assert sorted(moved) == sorted(words)
        assert sum(a != b for a, b in zip(words, moved, strict=True)) == share * 20


def test_a_corrupted_text_is_what_a_cell_with_it_would_be():
    part = Text(backbone="none", max_tokens=3)
    assert part.corruptions["ocr"].apply(["s one two"], 1.0, np.random.default_rng(0))[0] == "5 0ric fvv0"
    many = Text(backbone="none", max_tokens=3).corruptions["typos"]
    assert all(len(x.split()) <= 3 for x in many.apply(["one two three"] * 50, 0.4, np.random.default_rng(0)) if x)
    lower = Text(backbone="none").corruptions["ocr"].apply(["5 8 2"], 1.0, np.random.default_rng(0))[0]
    assert lower == "s b z", "case is folded for words learned from scratch"


# ---- tables ----


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_missing_cells_are_a_share_of_all(share):
    left = sum(len(row or {}) for row in apply("table", "missing", share))
    assert left == round((1 - share) * 4 * len(ROWS))
    if share == 1:
        assert apply("table", "missing", share) == [None] * len(ROWS), "a row without a cell is absent"


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_swapped_cells_stay_in_their_column(share):
    worse = apply("table", "swapped", share)
    for name in ROWS[0]:
        before, after = [row[name] for row in ROWS], [row[name] for row in worse]
        assert sorted(before) == sorted(after)
        if name != "c":
            assert sum(a != b for a, b in zip(before, after, strict=True)) == round(share * len(ROWS))


def test_noise_is_in_units_of_a_columns_scale():
    part = PARTS["table"][0]
    rows = [{"x": 0.0, "y": 0.0, "c": "a"}] * 3000
    worse = apply("table", "noise", 0.5, rows)
    for name in "xy":
        assert np.std([row[name] for row in worse]) == pytest.approx(0.5 * part.scales[name].scale, rel=0.05)
    assert {row["c"] for row in worse} == {"a"}


def test_outliers_are_a_share_of_the_numbers_ten_scales_away():
    part, worse = PARTS["table"][0], apply("table", "outliers", 0.3)
    far = [
        abs(row[name] - part.scales[name].center) / part.scales[name].scale
        for row, before in zip(worse, ROWS, strict=True)
        for name in "xy"
        if row[name] != before[name]
    ]
    assert len(far) == round(0.3 * 2 * len(ROWS))
    assert far == pytest.approx([10] * len(far))


def test_a_table_without_numbers_has_no_noise_of_numbers():
    part = Tabular(categories=("c",)).fit([{"c": "a"}])
    assert sorted(part.corruptions) == ["missing", "swapped"]
