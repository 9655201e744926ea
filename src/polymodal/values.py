"""What a raw cell says: missing, a number, yes or no, a date, a category. Nothing is guessed.

Every ``parse_*`` function returns None for a missing cell and raises ValueError for a broken one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import date, datetime
from typing import Any

MISSING = frozenset(("", "na", "n/a", "#n/a", "nan", "<na>", "null", "nil", "nat", "-", "--", "?"))
"""Words, in lower case, that stand for no value in any column of a table."""

MISSING_VALUE = MISSING | {"none"}
"""The same where a number, a date, yes or no is due; as a category, "none" may be an answer."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3}){2,}|[+-]?\d{1,3}(?:,\d{3})+\.\d+", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ].+)?", re.ASCII)
_BOOLEANS = {
    **dict.fromkeys(("yes", "y", "true", "t", "1"), True),
    **dict.fromkeys(("no", "n", "false", "f", "0"), False),
}


def is_missing(cell: Any, words: frozenset[str] = MISSING) -> bool:
    """Tell whether a cell holds nothing: None, NaN, NaT, blanks or a word that stands for it.

    Args:
        cell: any raw cell.
        words: in lower case, what stands for nothing.
    """
    if cell is None:
        return True
    if isinstance(cell, str):
        return (len(cell) < 16 and cell.strip().lower() in words) or not cell.strip()
    if isinstance(cell, int | bytes | list | tuple | dict):
        return False
    try:
        return bool(cell != cell)  # noqa: PLR0124 - NaN and NaT differ from themselves
    except (TypeError, ValueError):  # pandas' NA has no truth; neither has an array, which is no missing cell
        return type(cell).__name__ == "NAType"


def parse_number(cell: Any) -> float | None:
    """Read a finite number.

    Text may use a point for decimals, an exponent, and commas between thousands where they can mean nothing else:
    "1,234.5" and "1,234,567". "1,234" may be either and is refused, like "inf" and "12 kg".

    Raises:
        ValueError: the cell is no finite number.
    """
    if type(cell) is float and math.isfinite(cell):
        return cell
    if is_missing(cell, MISSING_VALUE):
        return None
    if isinstance(cell, str):
        text = cell.strip().replace("\u2212", "-")
        if _GROUPED.fullmatch(text):
            text = text.replace(",", "")
        elif not _NUMBER.fullmatch(text):
            raise ValueError(f"a number is expected, got {cell!r:.60}.")
        value = float(text)
    elif isinstance(cell, bytes | date):
        raise ValueError(f"a number is expected, got {type(cell).__name__}.")
    else:
        try:
            value = float(cell)
        except (TypeError, OverflowError):
            raise ValueError(f"a number is expected, got {type(cell).__name__}.") from None
    if not math.isfinite(value):
        raise ValueError(f"a finite number is expected, got {cell!r:.60}.")
    return value


def parse_boolean(cell: Any) -> bool | None:
    """Read yes/no, true/false, y/n, t/f or 1/0, in any case.

    Raises:
        ValueError: the cell is none of these.
    """
    if cell is True or cell is False:
        return cell
    if is_missing(cell, MISSING_VALUE):
        return None
    if isinstance(cell, str):
        answer = _BOOLEANS.get(cell.strip().lower())
        if answer is not None:
            return answer
    elif not isinstance(cell, bytes | list | tuple | dict) and cell in (0, 1):
        return bool(cell)
    raise ValueError(f"yes or no is expected, got {cell!r:.60}.")


def parse_date(cell: Any) -> date | None:
    """Read an ISO 8601 date or date and time; clock times stay as written, whatever their zone.

    Returns:
        A `datetime`, or a plain `date` where no time of day was given.

    Raises:
        ValueError: the cell is neither text in ISO 8601 (2024-02-29, 2024-02-29T13:30:00Z) nor a date object.
    """
    if is_missing(cell, MISSING_VALUE):
        return None
    if isinstance(cell, date):
        return cell
    text = str(cell).strip() if isinstance(cell, str) or type(cell).__name__ == "datetime64" else ""
    if not _DATE.fullmatch(text):
        raise ValueError(f"a date such as 2024-02-29 is expected, got {cell!r:.60}.")
    return date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text)


def parse_category(cell: Any) -> str | None:
    """Read a category's name: text without outer blanks, in Unicode's composed form; 1, 1.0 and "1" are the same.

    Raises:
        ValueError: the cell is a list, a mapping or bytes.
    """
    if is_missing(cell):
        return None
    if isinstance(cell, str):
        text = cell.strip()
        return text if text.isascii() else unicodedata.normalize("NFC", text)
    if isinstance(cell, bytes | list | tuple | dict):
        raise ValueError(f"a category is expected, got {type(cell).__name__}.")
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
