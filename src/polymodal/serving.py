"""Serve: bundles over HTTP, until the process is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from polymodal.server.run import run
from polymodal.server.settings import Settings


def serve(*bundles: str | Path, tell: Callable[[str], None] = print, **options: Any) -> None:
    """Answer over HTTP until SIGTERM or SIGINT, then finish what was taken in.

    Args:
        bundles: folders, each perhaps as ``name=folder``; the first one answers where a request names none.
        tell: gets the lines that a person should see: addresses, a request that works, which runtime was chosen.
        options: of `polymodal.server.settings.Settings`, by name.

    Raises:
        SpecError: an option is not as it must be, the port is taken, or the extra ``serve`` is not installed.
        BundleError: a folder is no bundle.
    """
    run(Settings.make(*bundles, **options), tell)
