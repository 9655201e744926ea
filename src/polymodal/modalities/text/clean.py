"""Cleaning of text cells: one encoding, one Unicode form, no noise."""

from __future__ import annotations

import html
import re
import unicodedata
from html.parser import HTMLParser
from numbers import Number
from typing import Any

from polymodal.errors import DataError

# Zero-width joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji are spelt with them.
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u2064\u2066-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
_URL = re.compile(r"(?:\b(?:https?|ftp)://|\bwww\.)[^\s<>\"]*[^\s<>\"'.,;:!?)\]}]", re.IGNORECASE)
_NOT_A_TAG = re.compile(r"<(?!/?[a-zA-Z][^<>]*>|!--|![a-zA-Z][^<>]*>|\?[^<>]*>)")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[-*+][ \t]+|(?:[-*_][ \t]*){3,}$)", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3}|~~|`{1,2})(?=\S)(.+?)(?<=\S)\1(?!\w)")
_SILENT = {"script", "style", "head", "template"}
_INLINE = {"a", "abbr", "b", "code", "em", "font", "i", "mark", "q", "s", "small", "span", "strong", "sub", "sup", "u"}


class _Visible(HTMLParser):
    """Collects the text that a browser would show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self.silent.append(tag)
        elif tag not in _INLINE:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.silent:
            del self.silent[self.silent.index(tag) :]
        elif tag not in _INLINE:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data)


def decode(content: Any) -> str:
    """Text of one raw cell: a string, UTF-8 bytes or a number; empty for NaN.

    Raises:
        DataError: the cell is anything else.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, bytes | bytearray):
        try:
            return bytes(content).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"text must be UTF-8, got byte 0x{content[error.start]:02x} at offset {error.start}. "
                "Convert the file to UTF-8."
            ) from error
    if isinstance(content, Number):
        return "" if (text := str(content)).lower() == "nan" else text
    raise DataError(
        f"text must be a string, got {type(content).__name__} {str(content)[:40]!r}. "
        "Give the input the column that holds text."
    )


def clean(text: str, *, strip_markup: bool = False, strip_urls: bool = False) -> tuple[str, tuple[str, ...]]:
    """Bring a text to NFC without control characters and with single spaces.

    Args:
        text: as it was read.
        strip_markup: leave only what HTML or Markdown would show, with entities decoded.
        strip_urls: leave out web addresses.

    Returns:
        The text, and what had to be mended.
    """
    repairs = []
    shown = _CONTROLS.sub("", text)
    if shown != text:
        repairs.append("control characters removed")
    if not unicodedata.is_normalized("NFC", shown):
        shown = unicodedata.normalize("NFC", shown)
        repairs.append("Unicode composed")
    if strip_markup:
        shown = visible(shown)
    if strip_urls:
        shown = _URL.sub(" ", shown)
    return " ".join(shown.split()), tuple(repairs)


def visible(text: str) -> str:
    """What a reader sees of HTML or Markdown; a ``<`` that opens no tag stays."""
    parser = _Visible()
    parser.feed(_NOT_A_TAG.sub("&lt;", text))
    parser.close()
    shown = html.unescape("".join(parser.parts))  # entities that were escaped twice, as feeds and mails have them
    shown = _LINE_MARK.sub("", _FENCE.sub("", _LINK.sub(r"\1", shown)))
    for _ in range(3):  # bold inside italic inside code
        shown = _EMPHASIS.sub(r"\2", shown)
    return shown
