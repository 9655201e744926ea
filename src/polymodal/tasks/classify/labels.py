"""Labels of classes: what counts as one, and in which order they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr

from polymodal.errors import DataError
from polymodal.values import parse_category

Label = StrictBool | StrictInt | StrictFloat | StrictStr


def label_text(value: Any) -> str:
    """Text by which labels are compared: 1, 1.0 and "1" are one class, and so are true, "true" and "True".

    Other texts are compared as they stand, without the space around them ("01" is not "1").

    Raises:
        DataError: the value cannot be a label.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if (isinstance(value, float) and not math.isfinite(value)) or not isinstance(value, str | bool | int | float):
        raise DataError(
            f"label must be a text, a finite number or a boolean, got {value!r} ({type(value).__name__}). "
            f"Mend the cell, or choose another task for this column."
        )
    text = parse_category(value) or ""
    return text.lower() if text.lower() in ("true", "false") else text


def text_keys(value: Any) -> Any:
    """A mapping by labels, by their texts; anything else as it is."""
    return {label_text(key): weight for key, weight in value.items()} if isinstance(value, Mapping) else value


def _order(label: Label) -> tuple[bool, float, bool, str]:
    """Numbers and booleans by value, whole ones first, then texts."""
    if isinstance(label, str):
        return (True, 0.0, False, label)
    return (False, float(label), isinstance(label, float), "")


def distinct(labels: Sequence[Any]) -> tuple[Label, ...]:
    """Distinct labels, sorted; of equal ones (1, 1.0, "1") the first in sorting order."""
    found: dict[str, Label] = {}
    for raw in labels:
        label = raw.item() if isinstance(raw, np.generic) else raw
        label = label.strip() if isinstance(label, str) else label
        text = label_text(label)
        if text not in found or _order(label) < _order(found[text]):
            found[text] = label
    return tuple(sorted(found.values(), key=_order))
