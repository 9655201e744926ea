"""Histograms of oriented gradients."""

import numpy as np
import pytest
import torch

import polymodal as pm
from polymodal.modalities.image import Image
from polymodal.nn.hog import ORIENTATIONS, Hog
from polymodal.nn.runtime import accelerate
from polymodal.types import Masked


def stripes(size, upright):
    line = (torch.arange(size) // 4 % 2 * 255).to(torch.uint8)
    grey = line.expand(size, size) if upright else line[:, None].expand(size, size)
    return grey.expand(3, size, size)


@pytest.mark.parametrize(("upright", "direction"), [(True, 0), (False, ORIENTATIONS // 2)])
def test_stripes_run_in_one_direction(upright, direction):
    found = Hog(32, 4)(stripes(32, upright)[None]).view(1, 16, ORIENTATIONS)[0]
    assert (found.argmax(1) == direction).all()
    assert found[:, direction].min() > 10 * found[:, (direction + 2) % ORIENTATIONS].max()


def test_light_does_not_matter_but_place_does():
    x = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    x[0, :, 4:12, 4:12], x[1, :, 20:28, 20:28] = 200, 200
    first, moved = Hog(32, 4)(x)[:, 0]
    bright, inverted = Hog(32, 4)(torch.stack([x[0] // 2, 255 - x[0]]))[:, 0]
    assert torch.allclose(first, bright, atol=1e-3)
    assert torch.allclose(first, inverted, atol=3e-3)
    assert first @ moved < 0.1
    assert first.norm() == pytest.approx(first.square().sum().sqrt())


def test_a_plain_image_has_no_shape_and_is_no_fault():
    found = Hog(32, 4)(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8))
    assert found.isfinite().all()
    assert found.max() < 0.2


def test_it_runs_in_onnx(tmp_path):
    backbone = Image.model_validate({"backbone": "hog"}).fit([]).backbone()
    x = Masked(torch.randint(0, 256, (3, 1, 3, 64, 64), dtype=torch.uint8), torch.ones(3, 1, dtype=torch.bool))
    x.values[0] = 90  # plain
    assert torch.allclose(accelerate(backbone, tmp_path, x)(x).values, backbone(x).values, atol=1e-4)


def test_settings_show_and_survive_json():
    part = Image.model_validate({"backbone": "hog", "grid": 4})
    assert part.fit([]).backbone().width == 4 * 4 * ORIENTATIONS
    assert (part.fit([]).size, Image.model_validate({"backbone": "hog"}).fit([]).grid) == (64, 8)
    assert Image.model_validate_json(part.fit([]).model_dump_json()) == part.fit([])
    with pytest.raises(ValueError, match="size must be at least 34 for a grid of 16"):
        Image.model_validate({"backbone": "hog", "grid": 16, "size": 32})


def test_shapes_are_learned_from_few_rows():
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        upright = bool(i % 2)
        x = stripes(48, upright).numpy().transpose(1, 2, 0)
        rows.append({"image": np.clip(x + rng.normal(0, 30, x.shape), 0, 255).astype(np.uint8), "label": str(upright)})
    spec = {"inputs": {"image": {"type": "image", "backbone": "hog"}}, "outputs": {"label": "classify"},
            "training": {"epochs": 5}}  # fmt: skip
    model = pm.fit(spec, rows[:30], cache=False)
    assert model.evaluate(rows[30:])["label"]["accuracy"] == 1.0
