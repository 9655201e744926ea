"""Data-parallel training on several processes started by ``torchrun``; one process is the case of one rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of the processes this is.

    Gradients are summed by hand rather than by DistributedDataParallel: a modality may be absent from all
    rows of one rank, and that rank then has no gradient for it while the others wait for one.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Join the group that ``torchrun`` describes in the environment; alone without it."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), world)

    @classmethod
    def current(cls) -> Ranks:
        """This process's place in a group that was joined before; alone without one."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def mine(self, rows: Tensor) -> Tensor:
        """This rank's share of a batch of row numbers, or of anything else along its last axis."""
        return rows[..., self.rank :: self.world]

    def batches(self, order: Tensor, size: int) -> list[Tensor]:
        """Cut rows into batches over all ranks; a last one too short for every rank joins the one before."""
        parts = list(order.split(size))
        if len(parts) > 1 and len(parts[-1]) < self.world:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def shares(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """For each term, this rank's part of all the samples that the term is a mean over."""
        if self.world == 1:
            return dict.fromkeys(counts, 1.0)
        local = torch.stack([count.double() for count in counts.values()])
        total = local.clone()
        dist.all_reduce(total)
        return dict(zip(counts, (local / total.clamp(min=1)).float().unbind(), strict=True))

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of values (n,) over ranks."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up gradients over ranks. A parameter without one counts as zero unless no rank has one."""
        if self.world == 1:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(used)
        parameters = [p for p, n in zip(parameters, used.tolist(), strict=True) if n]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p)

    def agree(self, value: float | None, device: torch.device) -> float | None:
        """The first rank's value, so that every rank takes the same decision."""
        if self.world == 1:
            return value
        shared = torch.tensor([float("nan") if value is None else value], dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return None if shared.isnan().item() else shared.item()

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()
