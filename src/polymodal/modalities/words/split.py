"""From a cell to a sentence: words as they are given, or those of a text, each with its place in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from polymodal.errors import DataError
from polymodal.nn.segment import Cjk, split_words
from polymodal.sentence import Sentence

_BROKEN = re.compile("[\ud800-\udfff]")
# Nothing is seen of these, and words end at them: control signs, zero-width spaces, marks of direction.
_GAP = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2061-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
_JOINERS = "\xad\u200c\u200d\u2060\ufe0e\ufe0f"
"""Nothing is seen of these either, but words are spelt with them."""

_SIGN = "[\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
_TONE = "[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"
_WHOLE = re.compile(
    r"(?:https?|ftp)://[^\s<>\"]*[^\s<>\"'.,;:!?)\]}]"  # web addresses
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}"  # mail addresses
    r"|(?<!\w)[@#]\w+"  # names and topics of social networks
    r"|(?<!\w)(?:[^\W\d_]\.){2,}"  # U.S.
    r"|(?<!\w)\d+(?:[.,:]\d+)+(?!\w)"  # 3.5, 10:30, 1,000
    "|[\U0001f1e6-\U0001f1ff]{2}"  # flags
    "|[0-9#*]\ufe0f?\u20e3"  # keys
    f"|{_SIGN}{_TONE}(?:\u200d{_SIGN}{_TONE})*"  # emoji with their tones, and several that are joined to one
)


def sentence(content: Any, cjk: Cjk) -> tuple[Sentence, tuple[str, ...]]:
    """The words of a cell, perhaps none.

    Args:
        content: a sequence of words, a JSON list of them as text, or a text, which is split.
        cjk: how a text in Chinese or Japanese is parted.

    Returns:
        The sentence, and what had to be mended.

    Raises:
        DataError: the content is nothing of that kind, or a word is no text or blank.
    """
    if isinstance(content, str):
        mended = _BROKEN.sub("\ufffd", content)
        repairs = ("broken characters replaced",) if mended != content else ()
        given = _listed(mended)
        return _split(mended, cjk) if given is None else Sentence.of(_checked(given)), repairs
    if isinstance(content, np.ndarray) and content.ndim == 1:
        content = content.tolist()
    if not isinstance(content, list | tuple):
        raise DataError(
            f"words must be a list of texts, or one text, got {type(content).__name__} {content!r:.40}. "
            "Give the input the column that holds the words."
        )
    words = _checked(content)
    mended = [_BROKEN.sub("\ufffd", word) for word in words]
    return Sentence.of(mended), ("broken characters replaced",) if mended != words else ()


def _listed(text: str) -> list[Any] | None:
    """The JSON list that a text is, if it holds texts; None for any other text."""
    if not (text.startswith("[") and text.rstrip().endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and (not found or any(isinstance(x, str) for x in found)) else None


def _checked(words: Sequence[Any]) -> list[str]:
    """Words that were given one by one."""
    for i, word in enumerate(words):
        if isinstance(word, list | tuple | dict):
            raise DataError(
                f"word {i} must be a text, got a {type(word).__name__}. Give each sentence a row of its own."
            )
        if not isinstance(word, str):
            raise DataError(
                f"word {i} must be a text, got {word!r:.40}. Mend the row, or leave the word and its tag out."
            )
        if not word.strip():
            raise DataError(f"word {i} must not be blank, got {word!r}. Leave it and its tag out.")
    return [str(word) for word in words]


def _split(text: str, cjk: Cjk) -> Sentence:
    """The words and signs of a text, where they stand in it."""
    shown = _GAP.sub(" ", text).replace("\xad", "\u200c")  # a soft hyphen counts as no sign
    spans = [(start, end) for start, end in _spans(shown, cjk) if shown[start:end].strip(_JOINERS)]
    return Sentence(text, tuple(text[start:end] for start, end in spans), tuple(start for start, _ in spans))


def _spans(text: str, cjk: Cjk) -> Iterator[tuple[int, int]]:
    """Where each word of a text starts and ends."""
    done = 0
    for whole in [*_WHOLE.finditer(text), None]:
        before = len(text) if whole is None else whole.start()
        for word, end in split_words(text[done:before], cjk):
            yield done + end - len(word), done + end
        if whole is not None:
            yield whole.span()
            done = whole.end()
