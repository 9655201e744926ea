"""The state of an unfinished fit, in one safetensors file that is always whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where resume state lies, and which fit it belongs to.

    Attributes:
        path: of the file.
        fingerprint: of the spec and the rows; state of another fit is ignored.
    """

    path: Path
    fingerprint: str

    def write(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the file by a new one; a kill at any moment leaves the old or the new."""
        header = {"fingerprint": self.fingerprint, "state": json.dumps(state)}
        beside = self.path.with_name(f"{self.path.name}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, header))
            os.replace(beside, self.path)
        except OSError:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the state, or None where there is no state of this very fit."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                header = file.metadata() or {}
                if header.get("fingerprint") != self.fingerprint:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["state"])  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError):
            return None

    def clear(self) -> None:
        """Forget the state, once the fit is done."""
        with suppress(OSError):  # where it could not be written, there is nothing to remove
            self.path.unlink(missing_ok=True)


def pack(prefix: str, nested: Mapping[Any, Any], into: dict[str, Tensor]) -> None:
    """Flatten a nested mapping of tensors and numbers (an optimiser's state) into ``prefix/key/key`` tensors."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            pack(f"{prefix}/{key}", value, into)
        elif value is not None:
            into[f"{prefix}/{key}"] = torch.as_tensor(value)


def unpack(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a prefix, by the rest of their name."""
    start = f"{prefix}/"
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
