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


def computes_in_half(precision: str, device: torch.device) -> bool:
    """Whether training in a precision of a spec means bfloat16 on a device; ``auto`` does where it is native."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 by itself; one that only converts them is slower than float32."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))
