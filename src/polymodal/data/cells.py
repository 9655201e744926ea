"""Cells: what a table holds in one place, as content with a name for messages and a digest for caches."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any

import fsspec
import numpy as np
from PIL import Image

from polymodal.errors import DataError, suggest

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_EXTRAS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
}
_EXTRAS["https"] = "aiohttp"


@dataclass(frozen=True, slots=True)
class Cell:
    """A present cell, ready for `Modality.read`.

    Attributes:
        content: bytes for media, else the value as it stands in the table.
        origin: where it came from, for messages; never the bytes themselves.
        digest: 16 bytes that name the content: equal content, equal digest.
    """

    content: Any
    origin: str
    digest: bytes


def is_url(text: str) -> bool:
    """Whether ``text`` starts like ``s3://``."""
    return bool(_SCHEME.match(text))


def content(value: Any, media: bool, base: Path | str | None = None, allow_paths: bool = True) -> Cell:
    """Fetch what a present cell stands for.

    Args:
        value: for media a path, ``file://`` or other URL, data URL, bytes, {"bytes": ..., "path": ...}, PIL
            image or uint8 array (H, W), (H, W, 3) or (H, W, 4); anything JSON-like otherwise.
        media: whether the modality takes bytes.
        base: folder or URL that relative paths start from; the working directory if None.
        allow_paths: False refuses paths and URLs, for values that strangers send.

    Raises:
        DataError: there is nothing readable at that place, or the value is of no usable type.
    """
    if not media:
        return Cell(value, _short(value), digest(value))
    data, origin = _media(value, base, allow_paths)
    return Cell(data, origin, digest(data))


def digest(value: Any) -> bytes:
    """Name a value by 16 bytes: BLAKE2b of bytes as they are, of anything else as canonical JSON.

    Raises:
        DataError: the value has no JSON-like form.
    """
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).digest()
    try:
        text = _CANONICAL.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the cell must hold a text, number, date, list or mapping: {error}") from None
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"json").digest()


def _plain(value: Any) -> Any:
    """Give JSON a form, marked with its type, of what it does not know."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return ["array", str(value.dtype), value.shape, digest(value.tobytes()).hex()]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":  # words
        return value.tolist()
    if isinstance(value, (datetime, date, time, timedelta, Decimal)):
        return [type(value).__name__, str(value)]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ["bytes", digest(bytes(value)).hex()]
    raise TypeError(f"got {type(value).__name__}.")


_CANONICAL = json.JSONEncoder(sort_keys=True, default=_plain, separators=(",", ":"))


def _short(value: Any) -> str:
    """A value in at most 60 characters."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value)} bytes"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _media(value: Any, base: Path | str | None, allow_paths: bool) -> tuple[bytes, str]:
    """Bytes of a media cell, and their origin."""
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path"} and value:
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), f"{len(value)} bytes"
    if isinstance(value, Image.Image):
        return _encode(value), f"picture of {value.width} x {value.height} in memory"
    if isinstance(value, np.ndarray):
        return _encode(_picture(value)), f"array of shape {value.shape}"
    if isinstance(value, str) and value[:5].lower() == "data:":
        return _data_url(value)
    if isinstance(value, (str, PurePath)) and str(value).strip():
        if not allow_paths:
            raise DataError(
                f"a media cell must be sent as bytes or a data URL here, got the path {_short(str(value))}."
            )
        return _fetch(str(value), base)
    raise DataError(
        f"a media cell must be a path, URL, data URL, bytes, PIL image or uint8 array, "
        f"got {_short(value) if isinstance(value, (str, int, float, bool)) else type(value).__name__}."
    )


def _picture(pixels: np.ndarray) -> Image.Image:
    """View a uint8 array as a picture."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise DataError(
            f"an image array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), got {pixels.dtype} of shape "
            f"{pixels.shape}. Convert it, for example (255 * x).astype('uint8')."
        )
    if pixels.size == 0:
        raise DataError(f"an image array must hold at least one pixel, got shape {pixels.shape}.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _encode(image: Image.Image) -> bytes:
    """Losslessly, as PNG, or TIFF for what PNG cannot hold; the orientation tag stays."""
    sink = io.BytesIO()
    try:
        exif = image.getexif()
        extra: dict[str, Any] = {"exif": exif} if exif else {}
        if image.mode in ("CMYK", "YCbCr", "LAB", "F"):
            image.save(sink, "TIFF", **extra)
        else:
            image.save(sink, "PNG", compress_level=1, **extra)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"the picture in memory must be complete, got mode {image.mode}: {error}") from None
    return sink.getvalue()


def _data_url(url: str) -> tuple[bytes, str]:
    """Decode ``data:[type][;base64],...`` (RFC 2397)."""
    head, comma, body = url.partition(",")
    if not comma or len(head) > 200:
        raise DataError(f"a data URL must have a comma after its type, got {_short(url[:40])}.")
    data = urllib.parse.unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        try:
            data = b"".join(data.split())
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except binascii.Error as error:
            raise DataError(f"a data URL must hold valid base64, got {_short(url[:40])}: {error}.") from None
    return data, f"data URL ({head[5:].split(';')[0] or 'text/plain'}, {len(data)} bytes)"


def resolve(place: str, base: Path | str | None) -> str | Path:
    """Join a cell's path or URL to its base: a URL as text, a local file as an absolute Path."""
    if place[:7].lower() == "file://":
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(place).path))
    if is_url(place):
        return place
    if isinstance(base, str) and is_url(base) and not Path(place).is_absolute():
        return f"{base.rstrip('/')}/{place}"
    return Path(base or ".", place).expanduser().absolute()


def _fetch(place: str, base: Path | str | None) -> tuple[bytes, str]:
    """Read a path or URL."""
    where = resolve(place, base)
    try:
        if isinstance(where, str):
            return read_url(where), where
        return where.read_bytes(), str(where)
    except FileNotFoundError:
        raise DataError(_missing(where)) from None
    except (IsADirectoryError, NotADirectoryError):
        raise DataError(f"{where} must be a file, got a folder or a path through a file.") from None
    except PermissionError:
        raise DataError(f"{where} must be readable, got permission denied. Check its owner and mode.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{str(where)[:200]} must be readable: {getattr(error, 'strerror', None) or error}.") from None


def _missing(where: str | Path) -> str:
    """Say that a file is not there, and what is the likely cause."""
    text = f"{where} must be a file, but does not exist."
    if isinstance(where, Path):
        if not where.parent.is_dir():
            return f"{text} Its folder does not exist either: paths are relative to the table's own folder."
        text += suggest(where.name, (f.name for f in where.parent.iterdir()))
    return text


def read_url(url: str) -> bytes:
    """Read a remote file through fsspec.

    Raises:
        DataError: no file system is known or installed for the protocol.
        OSError: the file system could not read it.
    """
    with open_url(url) as file:
        return file.read()


def open_url(url: str) -> Any:
    """Open a remote file through fsspec, for reading bytes; raises as `read_url`."""
    scheme = url.split("://", 1)[0].lower()
    try:
        return fsspec.open(url, "rb").open()  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        package = _EXTRAS.get(scheme)
        advice = f"Run: pip install {package}" if package else str(error)
        raise DataError(f"{url} must be reachable, but nothing installed reads {scheme}://. {advice}") from None
    except ValueError as error:
        known = [*fsspec.available_protocols()]
        if scheme not in known:
            raise DataError(f"{url} must use a known protocol, got {scheme}://.{suggest(scheme, known)}") from None
        raise DataError(f"{url} must be readable: {error}") from None
