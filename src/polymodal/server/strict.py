"""JSON: strict reading of what strangers send, and how messages show it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection
from typing import Any, NoReturn

from polymodal.errors import suggest
from polymodal.server.errors import Refused

DEPTH = 32
"""Levels of lists and objects in each other."""

VALUES = 1_000_000
"""Commas and opening brackets of a body; more values would hold up every other request while they are read."""

_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> Any:
    """Read JSON as RFC 8259 has it, in UTF-8: no NaN, no infinity, no key twice, no half of a surrogate pair.

    Raises:
        Refused: 400; it is none, or lists and objects lie too deep in each other. 413; it holds too many values.
    """
    if len(body) > VALUES and sum(map(body.count, (b",", b"[", b"{"))) > VALUES:
        raise Refused(413, f"JSON must have at most {VALUES} commas and opening brackets, got more. Send fewer rows.")
    try:
        value = _DECODER.decode(body.decode("utf-8"))
        if _ESCAPED_HALF.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(400, "The body must be JSON of whole characters, got half of a surrogate pair.") from None
    except UnicodeDecodeError as error:
        raise Refused(400, f"The body must be JSON in UTF-8, got other bytes at {error.start}.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise Refused(400, f"The body must be JSON: {error}.") from None
    _check_depth(value)
    return value


def json_type(value: Any) -> str:
    """What JSON calls a list or an object; of anything else the value itself, short."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value) if value is None or isinstance(value, bool) else short(value)


def short(value: Any) -> str:
    """A value as a message shows it: in at most 60 characters."""
    text = repr(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def near(name: str, known: Collection[str]) -> str:
    """What a wrong name may have been meant for; nothing for long ones, for which the search is slow."""
    return suggest(name, known) if len(name) <= 100 else ""


def _check_depth(value: Any) -> None:
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise _too_deep()
        items = (item for x in level for item in (x.values() if isinstance(x, dict) else x))
        level = [item for item in items if isinstance(item, dict | list)]


def _too_deep() -> Refused:
    return Refused(400, f"The body must have at most {DEPTH} levels of lists and objects in each other, got more.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"every key may be there once, got {short(twice)} twice")
    return found


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"a number must be finite, got {short(text)}")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON. Send null, or leave the cell out")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)
