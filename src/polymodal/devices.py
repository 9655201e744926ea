"""Choice of the device a model runs on."""

from __future__ import annotations

import torch

from polymodal.errors import SpecError


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        SpecError: there is no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(
            f"device must be auto, cpu, cuda or another device of this machine, got {name!r}: {reason}"
        ) from None
    return device
