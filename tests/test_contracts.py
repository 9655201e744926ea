"""What every part must do, whoever wrote it: run over all modalities and tasks that are known.

The fusions' own battery is in test_fusions. A new modality or task enters by a line in `CELLS` or `TARGETS`.
"""

import io
import json
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import polymodal as pm
import polymodal.spec
import radar
from polymodal.errors import SpecError
from polymodal.model import summary_width
from polymodal.part import Fusion, Modality
from polymodal.sentence import Sentence
from polymodal.task import Labelled, Task
from polymodal.types import Fused, Masked
from talker import tiny_language

DIM = 16


def picture(seed: int, side: int = 40) -> bytes:
    rng, file = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (side, side + 7 * seed, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def sound(seed: int, seconds: float = 0.4) -> bytes:
    file, time = io.BytesIO(), np.arange(int(16000 * (seconds + 0.2 * seed))) / 16000
    samples = (9000 * np.sin(2 * np.pi * (200 + 150 * seed) * time)).astype("<i2")
    with wave.open(file, "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(16000)
        out.writeframes(samples.tobytes())
    return file.getvalue()


LANGUAGE = tiny_language(Path(tempfile.mkdtemp(prefix="polymodal-talker-")))
CELLS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "text": ({"backbone": "none"}, ["one red apple", "a long red text about an apple and more", "apple"]),
    "image": ({"backbone": "none", "size": 32}, [picture(0), picture(1), picture(2)]),
    "audio": ({"backbone": "none"}, [sound(0), sound(1), sound(2)]),
    "table": (
        {"numbers": ["x"], "categories": ["c"], "booleans": ["b"], "dates": ["d"]},
        [
            {"x": 1, "c": "u", "b": True, "d": "2024-01-31"},
            {"x": 2.5, "c": "u", "b": None, "d": None},
            {"x": None, "c": "v", "b": False, "d": "2025-07-01"},
        ],
    ),
    "words": ({"backbone": "none"}, [["One", "red", "apple"], "A long RED text: an apple and more", ["apple"]]),
    "prompt": ({"backbone": LANGUAGE}, ["what is it", "is it an old bridge or a red apple", "no"]),
    "radar": ({}, [[[10, 0.1, 3], [20, 0.2, -1]], [[5, 0, 0]], [[50, 1, 2], [60, 1, 2], [70, -1, 9]]]),
}
SENTENCE = Sentence.of(["Ada", "met", "Bob"])
TAGS = [["B-a", "O", "B-b"], ["O", "B-a", "I-a"], None, ["O", "O", "O"], ["B-b", "I-b", "O"]]
TARGETS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "classify": ({}, ["a", "b", None, "a", "c"]),
    "generate": (
        {
            "decoder": {"backbone": LANGUAGE, "prompt": "<a> <b> what is it", "projector": "linear"},
            "decoding": {"tokens": 4},
        },
        ["red apple", "old bridge", None, "pear", ["no", "yes"]],
    ),
    "match": ({"sides": ["a", "b"], "column": "id"}, ["u", "v", None, "u", "w"]),
    "multilabel": ({}, [["a"], ["a", "b"], None, [], ["b"]]),
    "regress": ({}, [1.0, 2.5, None, -1, 7]),
    "tag": ({"input": "a"}, [None if tags is None else Labelled(tags, SENTENCE) for tags in TAGS]),
}
MODALITIES = sorted(name for name in Modality.known if not name.startswith("test-"))
every_modality = pytest.mark.parametrize("name", MODALITIES)
every_task = pytest.mark.parametrize("name", sorted(Task.known))


def test_every_known_part_is_in_the_battery():
    assert sorted(CELLS) == MODALITIES
    assert sorted(Task.known) == sorted(TARGETS)
    assert all(issubclass(part, Fusion) for part in Fusion.known.values())


@pytest.fixture
def modality(name):
    """A fitted modality and three values, read from cells."""
    settings, cells = CELLS[name]
    part = Modality.parse({"type": name, **settings})
    values = [part.read(cell).value for cell in cells]
    return part.fit(values), [part.fit(values).read(cell).value for cell in cells]


def encoder_of(part) -> Any:
    torch.manual_seed(0)
    return part.encoder(DIM).eval()


def close(x, y, tolerance=1e-5):
    torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


@every_modality
def test_modalities_survive_json_before_and_after_fitting(name, modality):
    part, _ = modality
    plain = Modality.parse({"type": name, **CELLS[name][0]})
    for some in (part, plain):
        assert Modality.parse(json.loads(some.model_dump_json())) == some
        assert some.kind == name
    with pytest.raises((ValidationError, SpecError)):
        Modality.parse({"type": name, **CELLS[name][0], "unheard": 1})


@every_modality
def test_modality_fit_is_pure_and_repeatable(name, modality):
    part, values = modality
    plain = Modality.parse({"type": name, **CELLS[name][0]})
    before = plain.model_dump_json()
    assert plain.fit(values) == plain.fit(iter(values))
    assert plain.model_dump_json() == before
    assert plain.fit([*values, None]) == plain.fit(values)
    assert part.fit(values) == part
    assert plain.fit([]) is not None, "a modality that is absent from every row must still fit"


@every_modality
def test_collate_marks_absent_rows_and_takes_only_absent_ones(name, modality):
    part, values = modality
    x = part.collate([None, values[0], None, values[1]])
    assert x.present.tolist() == [False, True, False, True]
    nothing = part.collate([None])
    assert len(nothing) == 1
    assert not nothing.present.any()
    assert nothing.values.dtype == x.values.dtype
    assert nothing.values.shape[2:] == x.values.shape[2:]


@every_modality
def test_encoders_give_tokens_of_the_asked_width_for_every_row(name, modality):
    part, values = modality
    y = encoder_of(part)(part.collate(values))
    assert y.values.shape[0] == 3
    assert y.values.shape[2] == DIM
    assert y.present.all()
    assert y.values.isfinite().all()


@every_modality
def test_a_row_alone_is_encoded_as_in_a_mixed_batch(name, modality):
    part, values = modality
    net = encoder_of(part)
    mixed = part.collate([values[0], None, values[1], values[2]])
    y = net(mixed[mixed.present]).spread(mixed.present)
    for value, row in zip(values, (0, 2, 3), strict=True):
        close(net(part.collate([value])).mean()[0], y.mean()[row])
    assert not y.present[1]


@every_modality
def test_padding_and_what_lies_in_it_change_nothing(name, modality):
    part, values = modality
    net, x = encoder_of(part), part.collate(values)
    if name in ("table", "image"):
        pytest.skip("its rows are of fixed length: they have no padding")
    more = x.values.new_full((3, 4, *x.values.shape[2:]), 1)
    at = None if x.at is None else torch.cat([x.at, torch.zeros(3, 4, x.at.shape[2])], 1)
    wide = Masked(torch.cat([x.values, more], 1), torch.cat([x.mask, torch.zeros(3, 4, dtype=torch.bool)], 1), at)
    close(net(wide).mean(), net(x).mean())
    close(part.summary(wide), part.summary(x))


@every_modality
def test_what_lies_behind_the_mask_is_never_read(name, modality):
    part, values = modality
    net, x = encoder_of(part), part.collate(values)
    hidden = ~x.mask.view(*x.mask.shape, *[1] * (x.values.ndim - 2))
    dirty = Masked(x.values.masked_fill(hidden, 3), x.mask, x.at)
    close(net(dirty).mean(), net(x).mean())
    close(part.summary(dirty), part.summary(x))


@every_modality
def test_a_summary_is_of_fixed_width_and_finite_also_where_absent(name, modality):
    part, values = modality
    width = summary_width(part)
    for some in (values, values[:1], [None, values[2]], [None]):
        summary = part.summary(part.collate(some))
        assert summary.shape == (len(some), width)
        assert summary.isfinite().all()
    close(part.summary(part.collate(values))[1], part.summary(part.collate([values[1]]))[0])


@every_modality
def test_encoders_can_learn_everything_they_hold(name, modality):
    part, values = modality
    net = part.encoder(DIM).train()
    net(part.collate(values)).values.square().sum().backward()
    silent = [path for path, p in net.named_parameters() if p.grad is None]
    assert not silent


@every_modality
def test_augment_leaves_its_argument_alone_and_follows_its_generator(name, modality):
    part, values = modality
    if name == "prompt":
        assert not part.augments
        return
    options = {
        "text": {"augmentation": {"drop": 0.5}},
        "image": {"augmentation": {"flip": 0.5}},
        "audio": {"augmentation": {"gain": [-6.0, 6.0]}},
        "table": {"augmentation": {"dropout": 0.5}},
        "words": {"augmentation": {"typo": 0.5}},
        "radar": {"jitter": 1.0},
    }[name]
    assert not part.augments
    part = Modality.parse({**part.model_dump(), **options})
    assert part.augments
    before = part.collate(values)
    one, two, three = (
        part.collate([part.augment(value, np.random.default_rng((seed, 0))) for value in values for _ in range(4)])
        for seed in (1, 1, 2)
    )
    after = part.collate(values)
    assert torch.equal(after.values, before.values)
    assert torch.equal(after.mask, before.mask)
    assert torch.equal(one.values, two.values)
    assert one.values.shape != three.values.shape or not (
        torch.equal(one.values, three.values) and torch.equal(one.mask, three.mask)
    )


@pytest.fixture
def task(name):
    """A fitted task and its targets."""
    settings, values = TARGETS[name]
    part = Task.parse({"type": name, **settings})
    return part.fit(values), values


def raw(part: Task, target: Masked | None = None) -> torch.Tensor:
    """What a new head says of five rows that have three tokens of each input; what a target costs, if it must know."""
    torch.manual_seed(0)
    tokens = {n: Masked(torch.randn(5, 3, DIM), torch.ones(5, 3, dtype=torch.bool)) for n in "ab"}
    seen = Fused(torch.randn(5, DIM), tokens)
    told = (target,) if part.forced and target is not None else ()
    return part.head(DIM)(seen, *told).detach()


@every_task
def test_tasks_survive_json_and_fit_is_pure(name, task):
    part, values = task
    plain = Task.parse({"type": name, **TARGETS[name][0]})
    before = plain.model_dump_json()
    assert plain.fit(values) == part
    assert plain.model_dump_json() == before
    assert Task.parse(json.loads(part.model_dump_json())) == part


@every_task
def test_unlabelled_rows_are_masked_and_teach_nothing(name, task):
    part, values = task
    target = part.collate(values)
    assert target.present.tolist() == [True, True, False, True, True]
    assert not part.collate([None]).present.any()
    output = raw(part, target).requires_grad_()
    known = target.present
    close(part.loss(output, target), part.loss(output[known], target[known]))
    part.loss(output, target).backward()
    assert output.grad is not None
    assert not output.grad[2].any()
    nothing = part.loss(output, target.without(torch.ones(5, dtype=torch.bool)))
    assert nothing.item() == 0
    nothing.backward()


@every_task
def test_predictions_are_json_one_per_row(name, task):
    part, values = task
    output = raw(part)
    answers = part.predict(output)
    assert len(answers) == 5
    assert json.loads(json.dumps(answers)) == answers
    scores = part.metrics(output, part.collate(values))
    assert scores
    assert all(isinstance(score, float) for score in scores.values())
    headline = part.headline(output, part.collate(values))
    assert headline is not None
    assert headline(np.array([0, 1, 3, 4])) == next(iter(scores.values()))


@every_task
def test_outputs_of_several_batches_are_joined_in_order(name, task):
    part, values = task
    output, target = raw(part), part.collate(values)
    joined = part.join([output[:2], output[2:]])
    assert part.predict(joined) == part.predict(output)
    assert part.metrics(joined, target) == part.metrics(output, target)


def sweeps(rows: int = 90, seed: int = 0) -> dict[str, list[Any]]:
    """Approaching or not: the sign of the velocity, in one to four returns; some sweeps are missing."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    cells: list[Any] = []
    for y in label:
        count = rng.integers(1, 5)
        sweep = np.stack([rng.uniform(1, 90, count), rng.uniform(-1, 1, count), rng.normal(6 * y - 3, 1, count)], 1)
        cells.append(sweep.tolist() if rng.random() > 0.1 else None)
    return {"sweep": cells, "speed": rng.normal(size=rows).tolist(), "approaching": label.tolist()}


def test_a_users_own_modality_goes_all_the_way(tmp_path):
    assert Modality.known["radar"] is radar.Radar
    table = sweeps()
    table["sweep"][3] = "broken"
    spec = {
        "inputs": {"sweep": {"type": "radar", "jitter": 0.5}, "rest": {"type": "table", "numbers": ["speed"]}},
        "outputs": {"approaching": "classify"},
        "dim": 16,
        "training": {"epochs": 12, "batch_size": 16},
        "split": {"test": 0.3},
    }
    model = pm.fit(spec, table, cache=False)
    scores = model.report["test"]["tasks"]["approaching"]
    assert scores["scores"]["accuracy"] > 0.75
    assert any("radar must be rows" in line for line in model.warnings)
    rows = [{"sweep": [[10, 0, -3], [20, 0, -2]]}, {"sweep": None, "speed": 0.1}, {"speed": 1.0}]
    before = model.predict(rows)
    assert before[0]["approaching"]["class"] == 0
    assert before.absent == [["rest"], ["sweep"], ["sweep"]]
    again = pm.load(model.save(tmp_path / "model"))
    assert again.spec == model.spec
    assert list(again.predict(rows)) == list(before)
