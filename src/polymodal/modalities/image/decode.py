"""Image files of any common format -> upright 8 bit RGB, with a record of what that took."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from polymodal.errors import DataError
from polymodal.modalities.image.jpeg import MOST_SCANS, count_scans

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
PILLOW_LIMIT = 178_956_970  # twice Image.MAX_IMAGE_PIXELS: Pillow itself opens nothing larger
_ADVICE = "The file is damaged or was cut off: replace it, or leave the cell empty."
# what decoders raise when they stumble over damaged files
_BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError)
_BROKEN = (*_BROKEN, struct.error, zlib.error, AttributeError, Warning)
_ALONE = threading.Lock()
_UPRIGHT: dict[int, Any] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


class Decoded(NamedTuple):
    """An upright image.

    Attributes:
        pixels: (h, w, 3) uint8; smaller than the file's where that was asked for.
        repairs: what had to be changed.
        width: of the upright image in the file, in pixels.
        height: likewise.
    """

    pixels: np.ndarray
    repairs: tuple[str, ...]
    width: int
    height: int


def decode(content: bytes, max_pixels: int, least: int | None = None) -> Decoded:
    """Decode the first frame of an image file.

    Args:
        content: the file.
        max_pixels: refuse, from the header alone, what is larger.
        least: sides of at least so many pixels will do, which lets a large JPEG be decoded at 1/2 to 1/8.

    Raises:
        DataError: not an image, damaged, too large, or made to take long.
    """
    image = _open(content, max_pixels)
    pixels = _fast_jpeg(content, image, least)
    if pixels is not None:
        turned, changes = _orientation(image), []
        size, upright = image.size, pixels
    else:
        upright, turned, changes = _load(content, image)
        size = (upright.shape[1], upright.shape[0])
    if turned > 1:
        changes = ["rotated by EXIF", *changes]
        if image.format != "TIFF":  # Pillow turns TIFF itself
            upright = np.ascontiguousarray(_UPRIGHT[turned](upright))
            size = size[::-1] if turned > 4 else size
    return Decoded(upright, tuple(changes), *size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Pillow's warnings of size and odd metadata: what matters is checked here.

    Only for work on headers: the filters of warnings belong to all threads, hence the lock.
    """
    with _ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(content: bytes, max_pixels: int) -> Image.Image:
    """Read the header."""
    if not content:
        raise DataError(f"image must not be empty, got 0 bytes. {_ADVICE}")
    try:
        with _quiet():
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large("more than " + str(PILLOW_LIMIT), max_pixels) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"image must be one of {', '.join(FORMATS)}, got {describe(content)}. Convert it, or correct the path."
        ) from error
    except _BROKEN as error:
        raise DataError(f"image must have a readable header, got {error}. {_ADVICE}") from error
    if image.width * image.height > max_pixels:
        raise _too_large(f"{image.width} x {image.height} = {image.width * image.height}", max_pixels)
    if image.format in ("JPEG", "MPO") and count_scans(content) > MOST_SCANS:
        raise DataError(
            f"image must have at most {MOST_SCANS} scans, got a JPEG with more. It may be a bomb: save it anew if you "
            "trust it."
        )
    return image


def _too_large(got: str, limit: int) -> DataError:
    return DataError(
        f"image must have at most {limit} pixels, got {got}. It may be a decompression bomb: scale it down, "
        f"or raise max_pixels (up to {PILLOW_LIMIT}) if you trust the file."
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        with _quiet():
            turned = image.getexif().get(0x0112, 1)
    except _BROKEN:
        return 1
    return turned if turned in _UPRIGHT else 1


def _load(content: bytes, image: Image.Image) -> tuple[np.ndarray, int, list[str]]:
    """Decode by Pillow: pixels, orientation, what changed."""
    turned = getattr(image, "tag_v2", {}).get(0x0112, 1)  # of a TIFF; loading forgets it
    try:
        several = image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)
        image.load()
        turned = _orientation(image) if image.format != "TIFF" else turned if turned in _UPRIGHT else 1
        rgb, changes = _to_rgb(image, content)
        return np.asarray(rgb), turned, ["first frame only", *changes] if several else changes
    except _BROKEN as error:
        raise DataError(f"image must be complete, got {image.format} that fails with {error}. {_ADVICE}") from error


def _fast_jpeg(content: bytes, image: Image.Image, least: int | None) -> np.ndarray | None:
    """Decode a plain JPEG by libjpeg-turbo; None where Pillow must look at it."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    try:
        return simplejpeg.decode_jpeg(content, "RGB", min_height=least or 0, min_width=least or 0, min_factor=2)
    except ValueError:
        return None  # damaged, or merely odd: Pillow can tell


def _to_rgb(image: Image.Image, content: bytes) -> tuple[Image.Image, list[str]]:
    """Convert a loaded image of any mode to RGB, and say what changed."""
    mode = image.mode
    if mode.startswith(("I", "F")):
        return _scaled(image)
    bits = {"PNG": lambda: content[24], "TIFF": lambda: _tiff_bits(image)}.get(image.format or "", lambda: 8)()
    repairs = ["16 bit to 8"] if bits == 16 else []  # Pillow has scaled these while it decoded
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, rgba).convert("RGB"), [*repairs, "alpha on white"]
        return rgba.convert("RGB"), repairs
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        repairs.append(f"{mode} to RGB")
    return image.convert("RGB"), repairs


def _tiff_bits(image: Image.Image) -> int:
    """Bits per channel of a TIFF."""
    bits = getattr(image, "tag_v2", {}).get(258, 8)
    return bits[0] if isinstance(bits, tuple) else bits


def _scaled(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Scale deep grey to 8 bits: 16 bits by their whole range, 32 bits and floats from least to greatest."""
    values = np.asarray(image).astype(np.float64)
    real = np.isfinite(values)
    low, high, note = 0.0, 65535.0, "16 bit to 8"
    if real.any() and (image.mode == "F" or values[real].min() < 0 or values[real].max() > 65535):
        low, high, note = values[real].min(), values[real].max(), "32 bit to 8"
    scaled = np.where(real, (values - low) / max(high - low, 1e-300), 0.0)
    grey = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB"), [note]


_MAGIC = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive or office document",
    b"\x1f\x8b": "a gzip archive",
    b"RIFF": "a WAV or AVI file",
    b"ID3": "an MP3 file",
    b"OggS": "an Ogg file",
    b"fLaC": "a FLAC file",
    b"8BPS": "a Photoshop document",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
}


def describe(content: bytes) -> str:
    """Say what bytes that are no image seem to be."""
    head = content[:64]
    if head[4:8] == b"ftyp":
        return f"an MP4, MOV or HEIC file (brand {head[8:12].decode('latin-1')!r})"
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    text = head.decode("utf-8", "ignore").strip()
    if text and all(c.isprintable() or c.isspace() for c in text):
        kind = "an SVG drawing or XML" if text.lower().startswith(("<svg", "<?xml")) else "text"
        return f"{kind} that starts with {text[:24]!r}"
    return f"{len(content)} bytes that start with {head[:8].hex(' ')}"
