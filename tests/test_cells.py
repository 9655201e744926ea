import base64
import io

import fsspec
import numpy as np
import pytest
from PIL import Image

from polymodal.data.cells import content, digest
from polymodal.errors import DataError

DATA = b"\x89some bytes\x00"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "media" / "a b.bin"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


def test_every_way_to_give_bytes_is_the_same_content(file, tmp_path):
    fsspec.filesystem("memory").pipe("/box/a.bin", DATA)
    coded = base64.b64encode(DATA).decode()
    ways = [
        DATA,
        bytearray(DATA),
        memoryview(DATA),
        file,
        str(file),
        "media/a b.bin",
        file.as_uri(),
        "memory://box/a.bin",
        f"data:application/octet-stream;base64,{coded}",
        f"data:;base64,{coded.rstrip('=')}",
        "data:,%89some%20bytes%00",
        {"bytes": DATA, "path": "whatever"},
        {"bytes": None, "path": str(file)},
    ]
    cells = [content(way, True, tmp_path) for way in ways]
    assert {cell.content for cell in cells} == {DATA}
    assert {cell.digest for cell in cells} == {digest(DATA)}
    assert len(digest(DATA)) == 16
    assert not any("some" in cell.origin for cell in cells)
    assert content("a.bin", True, "memory://box").content == DATA


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "I;16", "P", "CMYK", "F", "LA"])
def test_pictures_in_memory_lose_nothing(mode):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).convert("L").convert(mode)
    back = Image.open(io.BytesIO(content(image, True).content))
    assert np.array_equal(np.asarray(back), np.asarray(image))
    assert back.size == (4, 4)


def test_orientation_survives():
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6
    assert Image.open(io.BytesIO(content(image, True).content)).getexif()[0x0112] == 6


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3), (3, 5, 4)])
def test_arrays_lose_nothing(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content(pixels, True).content))), pixels)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("media/a.bin", r"must be a file, but does not exist\. Did you mean 'a b.bin'"),
        ("nowhere/a.bin", "folder does not exist either: paths are relative"),
        ("media", "must be a file, got a folder"),
        ("media/a b.bin/c", "got a folder or a path through a file"),
        ("bad\0name", "must be readable"),
        ("data:image/png;base64,!!!!", "valid base64"),
        ("data:image/png", "must have a comma"),
        ("foo://a/b.png", "known protocol, got foo://"),
        ("s3://bucket/a.png", "pip install s3fs"),
        ("gs://bucket/a.png", "pip install gcsfs"),
        ("", "must be a path"),
        (3.5, "must be a path.*got 3.5"),
        (np.zeros((2, 2, 3)), "must be uint8 of shape"),
        (np.zeros((0, 2, 3), np.uint8), "at least one pixel"),
        (object(), "got object"),
    ],
)
def test_what_is_no_medium(value, words, file, tmp_path):
    with pytest.raises(DataError, match=words):
        content(value, True, tmp_path)


def test_a_truncated_picture_in_memory():
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(sink, "PNG")
    image = Image.open(io.BytesIO(sink.getvalue()[:2000]))
    with pytest.raises(DataError, match="must be complete"):
        content(image, True)


@pytest.mark.parametrize("place", ["media/a b.bin", "file:///etc/hostname", "s3://a/b", {"path": "/etc/hostname"}])
def test_strangers_may_not_name_places(place, file, tmp_path):
    with pytest.raises(DataError, match="sent as bytes or a data URL"):
        content(place, True, tmp_path, allow_paths=False)
    assert content(DATA, True, tmp_path, allow_paths=False).content == DATA
    assert content("data:,x", True, tmp_path, allow_paths=False).content == b"x"


def test_a_long_value_is_not_dumped():
    with pytest.raises(DataError) as caught:
        content("x" * 10_000, True)
    assert len(str(caught.value)) < 400
    assert len(content("y" * 10_000, False).origin) <= 60


def test_digests_tell_values_and_types_apart():
    values = ["1", 1, 1.5, True, None, [1, 2], [2, 1], {"a": 1}, {"a": "1"}, b"1", "true", np.arange(3)]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(np.float64(1.5)) == digest(1.5)
    assert content("1", False).content == "1"
    with pytest.raises(DataError, match="got object"):
        digest(object())
    with pytest.raises(DataError, match="must hold"):
        digest({1: 2, "a": 3})
