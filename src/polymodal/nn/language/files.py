"""Files of a language model in a bundle, so that nothing else must be installed but this library."""

from __future__ import annotations

from pathlib import Path

from polymodal.nn import hub
from polymodal.nn.weights import PACKAGED, hub_place


def copy_language(name: str, folder: Path) -> None:
    """Copy a language model's files into a bundle's folder of backbones.

    Args:
        name: as in a spec.
        folder: of the backbones.
    """
    if name in PACKAGED:
        PACKAGED[name].copy(folder)
    elif not (folder / hub_place(name)).is_dir():
        hub.copy_model(name, folder)
