"""Media: what a text in a request stands for, and what its sender says it is."""

from __future__ import annotations

import binascii
import re
import urllib.parse

ESCAPES = 1 << 18
"""Characters of a data URL that may be written as %XX; each takes a hundred times its size while it is read."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OTHERS = {"image": ("audio/", "video/"), "audio": ("image/",)}
"""Kind of a column -> what nothing for it may say that it is. A sound may lie in a video's container."""


def is_url(text: str) -> bool:
    """Whether a text starts like ``https://``."""
    return bool(_URL.match(text))


def media_type_fits(media_type: str, kind: str) -> bool:
    """Whether content that says it is of a type may be meant for a kind of column; what it is, decoding shows."""
    return not media_type.lower().startswith(_OTHERS.get(kind, ("image/", "audio/", "video/")))


def decode_text(text: str) -> tuple[str, bytes | None]:
    """Decode base64 or a data URL (RFC 2397).

    Returns:
        The media type that it says it is, empty where it says nothing; the content, None where there is none.

    Raises:
        ValueError: it is neither.
    """
    if text[:5].lower() != "data:":
        return "", _base64(text)
    head, comma, body = text.partition(",")
    if not comma or len(head) > 200:
        raise ValueError("a data URL needs a comma after its type")
    if body.count("%") > ESCAPES:
        raise ValueError(f"a data URL may have {ESCAPES} escaped characters at most: send it as plain base64")
    media_type, *options = head[5:].split(";")
    if options and options[-1].strip().lower() == "base64":
        return media_type, _base64(urllib.parse.unquote(body) if "%" in body else body)
    return media_type, urllib.parse.unquote_to_bytes(body) or None


def _base64(text: str) -> bytes | None:
    """Decode base64 with or without line breaks and padding; None where there is nothing."""
    try:
        return binascii.a2b_base64(text, strict_mode=True) or None
    except ValueError:
        text = "".join(text.split()).rstrip("=")
    return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True) or None
