"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all, also while other processes write the same one.

    Raises:
        OSError: it cannot be written. What was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def swap(new: Path, path: Path) -> None:
    """Put a finished folder, on the same disk, in the place of what is at ``path``, if anything is.

    Raises:
        OSError: it cannot be put there. What was there stays.
    """
    old = new.with_name(f".{path.name}.{os.getpid()}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    had = path.exists()
    if had:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if had:
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def cache_folder() -> Path:
    """The default folder: $POLYMODAL_CACHE, else $XDG_CACHE_HOME/polymodal, else ~/.cache/polymodal."""
    if chosen := os.environ.get("POLYMODAL_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "polymodal"
