"""What must not be installed is not."""

from importlib.metadata import distributions

import pytest
import torch

INSTALLED = {(found.metadata["Name"] or "").lower().replace("_", "-") for found in distributions()}


@pytest.mark.parametrize("package", ["torchvision", "torchaudio"])
def test_no_companion_of_torch_came_along(package):
    assert package not in INSTALLED


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_a_cpu_build_of_torch_brings_no_cuda():
    assert not [name for name in INSTALLED if name.startswith(("nvidia-", "cuda-")) or name == "triton"]
