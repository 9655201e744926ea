"""The errors a user can cause, and how they read.

Every message says *what, with its path, must be what is expected, got the value. What to do.*
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolymodalError(ValueError):
    """Something the user gave is not usable. The command line exits with 2, a server answers 422."""


class SpecError(PolymodalError):
    """A spec asks for something that does not exist, does not fit or has no effect."""


class DataError(PolymodalError):
    """A table, a column or a cell cannot be read as what it should be."""


class BundleError(PolymodalError):
    """A saved model is incomplete, damaged or from an unknown version."""


def suggest(name: object, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for a near miss among ``known``, else an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
