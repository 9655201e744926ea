"""Adapting a pretrained network: low-rank updates (LoRA) or thawed layers, kept apart from it and merged into it."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from polymodal.errors import BundleError, SpecError
from polymodal.nn.backbone import Backbone

Method = Literal["lora", "last", "all"]
METHODS: tuple[Method, ...] = get_args(Method)

DEPTH: Mapping[Method, float] = {"lora": 0.5, "last": 0.25, "all": 1.0}
"""Share of a network's blocks, from the last one down, that a method changes. Nothing is computed backwards below."""

RANK, ALPHA = 8, 16.0


class LowRank(nn.Module):
    """A weight (out, ...) -> weight + alpha / rank * up @ down, reshaped like it. Starts as the identity.

    A convolution's kernel counts as a matrix (out, in * height * width), so ``down`` is a convolution with ``rank``
    filters and ``up`` one of size 1.

    Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685), equation 3; down drawn like a linear layer, as in the authors'
    code, without dropout. A rank above the matrix's own is lowered to it.

    Args:
        weight: to be changed.
        rank: of the change.
        alpha: its scale.
        generator: of the first values.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        out, inner = weight.shape[0], weight[0].numel()
        self.scale, rank = alpha / rank, min(rank, out, inner)
        bound = 1 / math.sqrt(inner)
        down = torch.rand(rank, inner, generator=generator) * 2 * bound - bound
        self.down, self.up = nn.Parameter(down.to(weight)), nn.Parameter(weight.new_zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Merge the change into the weight."""
        return low_rank(weight, self.down, self.up, self.scale)


def low_rank(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The weight (out, ...) with scale * up (out, r) @ down (r, inner) added."""
    return weight + (scale * (up @ down)).view(weight.shape)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What was changed in a backbone, to be merged into a copy of it.

    Attributes:
        method: ``lora`` holds ``down`` and ``up`` of each layer; ``last`` and ``all`` hold the new weights whole.
        rank: of LoRA's changes; 0 for other methods.
        alpha: their scale; 0 for other methods.
        tensors: by their name in the backbone's ``net``.
    """

    method: Method
    rank: int
    alpha: float
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Reject what no version of this class wrote.

        Raises:
            BundleError: the method is unknown, or a number makes no sense.
        """
        if self.method not in METHODS:
            raise BundleError(f"adapter: method must be one of {list(METHODS)}, got {self.method!r}.")
        whole = isinstance(self.rank, int) and isinstance(self.alpha, int | float)
        if not whole or (self.method == "lora" and (self.rank < 1 or not 0 < self.alpha < math.inf)):
            raise BundleError(f"adapter: rank and alpha must be above 0, got {self.rank!r} and {self.alpha!r}.")

    @property
    def layers(self) -> list[str]:
        """Names of the changed modules, in order."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name in self.tensors))

    def digest(self, base: str) -> str:
        """Name of the changed weights, from that of the unchanged ones."""
        found = hashlib.sha256(f"{base} {self.method} {self.rank} {self.alpha:g}".encode())
        for name, tensor in sorted(self.tensors.items()):
            found.update(f" {name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def apply(self, base: Backbone) -> Backbone:
        """A frozen copy of a backbone with the changes merged, under a digest of its own.

        Raises:
            BundleError: the changes are not of this backbone.
        """
        backbone = frozen_copy(base)
        weights = dict(backbone.net.named_parameters())
        try:
            if self.method == "lora":
                for layer in self.layers:
                    down, up = (self.tensors[_inside(layer, part)] for part in ("down", "up"))
                    weight = weights[_inside(layer, "weight")]
                    weight.copy_(low_rank(weight, down.to(weight), up.to(weight), self.alpha / self.rank))
            else:
                for name, tensor in self.tensors.items():
                    _same_shape(weights[name], tensor)
                    weights[name].copy_(tensor)
        except (KeyError, RuntimeError, ValueError) as error:
            raise BundleError(f"adapter must be of this backbone, which has no such layers: {error}") from None
        backbone.digest = self.digest(base.digest)
        return backbone


def _inside(layer: str, part: str) -> str:
    return f"{layer}.{part}" if layer else part


def _same_shape(weight: Tensor, tensor: Tensor) -> None:
    if weight.shape != tensor.shape:
        raise ValueError(f"shape {tuple(tensor.shape)} instead of {tuple(weight.shape)}")


def adapted(base: Backbone, adapters: Sequence[Adapter]) -> Backbone:
    """A backbone with several changes merged, one after the other."""
    for adapter in adapters:
        base = adapter.apply(base)
    return base


def frozen_copy(base: Backbone) -> Backbone:
    """A copy whose weights are its own, without gradient, in evaluation mode; a graph it brought is left behind."""
    backbone = copy.deepcopy(base).requires_grad_(False).eval()
    if getattr(backbone, "graph", None) is not None:
        setattr(backbone, "graph", None)  # noqa: B010  (it is of the unchanged weights)
    return backbone


def blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks of a network, first to last: the members of its longest list of modules with weights.

    A transformer's layers, a convolutional network's stages: what pretrained networks repeat stands in one
    `torch.nn.ModuleList` or `torch.nn.Sequential`. Without any list, the modules that hold weights themselves.
    """
    lists = [m for m in net.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    chains = [[m for m in chain if any(True for _ in m.parameters())] for chain in lists]
    chain = max(reversed(chains), key=len, default=[])
    return chain if len(chain) > 1 else [m for m in net.modules() if _own(m)]


def upper(net: nn.Module, share: float) -> list[str]:
    """Names of the modules with weights of their own in the last ``share`` of the blocks and in all that follow.

    Modules are taken to run in the order in which they were registered. With a share of 1, all of them.
    """
    named, chain = list(net.named_modules()), blocks(net)
    start = 0
    if share < 1 and chain:
        first = chain[len(chain) - max(1, round(share * len(chain)))]
        start = next(i for i, (_, module) in enumerate(named) if module is first)
    return [name for name, module in named[start:] if _own(module)]


def depths(net: nn.Module) -> dict[nn.Parameter, int]:
    """How many blocks lie above the one that each parameter is in; 0 also for what follows the last block.

    Modules are taken to run in the order in which they were registered.
    """
    chain, found = blocks(net), dict[nn.Parameter, int]()
    level, places = len(chain), {block: len(chain) - 1 - i for i, block in enumerate(chain)}
    for module in net.modules():
        level = places.get(module, level)
        found.update((p, level) for p in module.parameters(recurse=False))
    return found


def _own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _takes_low_rank(module: nn.Module) -> bool:
    """Whether LoRA changes a layer: linear ones and convolutions that mix channels.

    A depthwise or grouped convolution is left as it is: its weights are few, and its kernel is no one matrix.
    """
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1)


class Thawed:
    """A copy of a backbone whose upper layers can be trained.

    It stays in evaluation mode: batch normalisation keeps its statistics, which a small table would spoil, and
    nothing is dropped. Below the first changed layer no gradient is computed.

    Args:
        base: never changed.
        method: ``lora``: low-rank changes of the linear layers and the convolutions that mix channels in the upper half
            of the blocks; ``last``: all weights in the upper quarter; ``all``: all weights.
        rank: of LoRA's changes.
        alpha: scale of LoRA's changes.
        seed: of their first values.
        tables: whether embedding tables are thawed too: many weights, of which a step changes few.

    Raises:
        SpecError: the backbone has no layer that the method could change.

    Attributes:
        backbone: the copy.
        parameters: what is to be trained.
    """

    def __init__(
        self,
        base: Backbone,
        method: Method,
        rank: int = RANK,
        alpha: float = ALPHA,
        seed: int = 0,
        tables: bool = True,
    ) -> None:
        self.method: Method = method
        self.rank, self.alpha = (rank, alpha) if method == "lora" else (0, 0.0)
        self.backbone, names = frozen_copy(base), upper(base.net, DEPTH[method])
        if method == "lora":
            generator = torch.Generator().manual_seed(seed)
            for layer in (self.backbone.net.get_submodule(name) for name in names):
                if _takes_low_rank(layer):
                    change = LowRank(layer.weight, rank, alpha, generator)  # pyright: ignore[reportArgumentType]
                    parametrize.register_parametrization(layer, "weight", change)
        else:
            for layer in (self.backbone.net.get_submodule(name) for name in names):
                for parameter in layer.parameters(recurse=False):
                    parameter.requires_grad_(tables or not isinstance(layer, nn.Embedding))
        self.parameters = [p for p in self.backbone.parameters() if p.requires_grad]
        if not self.parameters:
            raise SpecError(f"backbone must have layers that {method} can change, got none. Take another method.")

    def adapter(self) -> Adapter:
        """What has been trained so far, as a copy on the CPU."""
        found = {name: p for name, p in self.backbone.net.named_parameters() if p.requires_grad}
        short = {name.replace(".parametrizations.weight.0.", "."): p for name, p in found.items()}
        tensors = {name.removeprefix("parametrizations.weight.0."): _held(p) for name, p in short.items()}
        return Adapter(self.method, self.rank, self.alpha, tensors)


def _held(parameter: Tensor) -> Tensor:
    return parameter.detach().cpu().clone(memory_format=torch.contiguous_format)
