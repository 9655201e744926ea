"""Words: where they begin and end, in spaced languages and in Chinese and Japanese."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal

from polymodal.errors import SpecError

Cjk = Literal["words", "characters"]

KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f" + KANA
# What is no letter, digit or mark. \w would do but for the vowel signs of Indic scripts, which it leaves out.
_SIGNS = (
    r"!-/:-@\[-`{-~\u00a1-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u055a-\u055f\u0589\u05be\u05c0"
    r"\u05c3\u05f3\u05f4\u060c\u061b\u061e\u061f\u066a-\u066d\u06d4\u0964\u0965\u0e2f\u0e5a\u0e5b\u2010-\u2027\u2030-\u205e"
    r"\u20a0-\u20cf\u2190-\u2bff\u3001-\u3004\u3008-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
    r"\U0001f000-\U0001faff"
)
_LETTERS = rf"[^\s{_SIGNS}{HAN}]"
_PIECE = re.compile(rf"[{HAN}]+|{_LETTERS}+(?:['’]{_LETTERS}+)*|[{_SIGNS}](?:[\ufe0e\ufe0f\u200d]+[{_SIGNS}]?)*")
_HAN, _KANA = re.compile(f"[{HAN}]"), re.compile(f"[{KANA}]")

_ENGLISH = """
a about above after again all also am an and any are as at be because been before being below between both but
by can could did do does doing down during each few for from further had has have having he her here hers him
his how i if in into is it its itself just me more most my of off on once only or other our ours out over own
same she should so some such than that the their theirs them then there these they this those through to too
under until up very was we were what when where which while who whom why will with would you your yours
"""
ENGLISH_STOP_WORDS = frozenset(_ENGLISH.split())


def split_words(text: str, cjk: Cjk = "words") -> Iterator[tuple[str, int]]:
    """Yield each word or sign of a text and where it ends.

    Spaces and signs part words; a run of Chinese or Japanese characters is segmented by jieba, or by janome if the
    text has kana. Thai, Lao and Khmer, which are written without spaces, are not segmented.

    Raises:
        SpecError: the segmenter is not installed and ``cjk`` is "words".
    """
    segment: Callable[[str], list[str]] | None = None
    for piece in _PIECE.finditer(text):
        if not _HAN.match(piece[0]):
            yield piece[0], piece.end()
            continue
        if segment is None:
            segment = list if cjk == "characters" else japanese() if _KANA.search(text) else chinese()
        end = piece.start()
        for word in segment(piece[0]):
            end += len(word)
            yield word, end


@cache
def chinese() -> Callable[[str], list[str]]:
    """Load the Chinese segmenter, once per process.

    Raises:
        SpecError: jieba is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # its source has escapes that Python deprecates, and it asks for pkg_resources
            import jieba
    except ImportError as error:
        raise _missing("Chinese", "jieba") from error
    jieba.setLogLevel(logging.WARNING)
    segmenter: Any = jieba.Tokenizer()
    # Its own way reads a cache that any user of the machine may have written in the shared temporary folder.
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter.lcut


@cache
def japanese() -> Callable[[str], list[str]]:
    """Load the Japanese segmenter, once per process.

    Raises:
        SpecError: janome is not installed.
    """
    try:
        from janome.tokenizer import Tokenizer
    except ImportError as error:
        raise _missing("Japanese", "janome") from error
    segmenter = Tokenizer(wakati=True)
    return lambda text: [str(word) for word in segmenter.tokenize(text)]


def _missing(language: str, package: str) -> SpecError:
    return SpecError(
        f"{language} words must be segmented by {package}, which is not installed. "
        "Run: pip install 'polymodal[cjk]', or set cjk to 'characters'."
    )
