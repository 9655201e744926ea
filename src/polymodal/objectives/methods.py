"""How the losses of several tasks become one step: with learned weights, or by combining their gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from polymodal.errors import SpecError
from polymodal.nn.optimise import AdamW
from polymodal.objectives.terms import Losses
from polymodal.spec import Spec
from polymodal.tasks import Regress

TEMPERATURE = 2.0
"""Of the weights in `DynamicAverage`; Liu et al. 2019, section 3.3."""

RESTORING = 1.5
"""alpha of `GradNorm`; Chen et al. 2018, section 5 (NYUv2)."""

WEIGHT_RATE = 0.025
"""Learning rate of the weights of `GradNorm`; Chen et al. 2018, section 5 (NYUv2)."""

AVERSION = 0.4
"""c of CAGrad: how far its step may leave the mean gradient; Liu et al. 2021, section 5 (NYUv2)."""


class Joint:
    """``joint``: the tasks' losses are added up. What the others change of that, they override.

    Attributes:
        by_gradient: whether a step needs the gradient of each task's loss by itself.
        penalty: what is minimised beside the terms.
    """

    by_gradient: ClassVar[bool] = False

    def __init__(self, spec: Spec, generator: torch.Generator) -> None:
        self.count, self.generator, self.penalty = len(spec.outputs), generator, 0.0

    def start(self) -> None:
        """Begin an epoch."""

    def weigh(self, losses: Losses) -> Tensor:
        """Factor of each task's loss in this step. (T,)."""
        return torch.ones(self.count)

    def combine(self, rows: Tensor, shared: int, losses: Losses) -> Tensor:
        """Gradients of the tasks' losses (T, P), the shared parameters' ``shared`` columns first -> one (P,)."""
        return self.weigh(losses).to(rows) @ rows

    def step(self, rate: float) -> None:
        """Learn what is learned, at the model's learning rate, after `weigh` or `combine`."""

    def tensors(self) -> dict[str, Tensor]:
        """The state, to keep at the end of an epoch and to `load`."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a kept state."""


class Uncertainty(Joint):
    """``uncertainty``: one learned log variance s per task, minimising exp(-s) L + s / 2, for squared errors half of L.

    A task's own weight is a part of its L, so it only says where the task starts. Tasks that no row of a step is
    labelled for leave their s alone.

    Source: Kendall et al. 2018 (arXiv:1705.07115), equations 7 (squared error) and 10 (classes).
    """

    def __init__(self, spec: Spec, generator: torch.Generator) -> None:
        super().__init__(spec, generator)
        squared = (isinstance(task, Regress) and task.objective == "squared" for task in spec.outputs.values())
        self.half = torch.tensor([0.5 if one else 1.0 for one in squared])
        self.log_variance, self.known = torch.zeros(self.count), torch.ones(self.count, dtype=torch.bool)
        self.optimizer = AdamW([{"params": [self.log_variance], "weight_decay": 0.0}])

    def weigh(self, losses: Losses) -> Tensor:
        """exp(-s), or half of it. (T,)."""
        weights = self.half * (-self.log_variance).exp()
        self.log_variance.grad = torch.where(losses.known, 0.5 - weights * losses.tasks, 0.0)
        self.known = losses.known
        self.penalty = float(self.log_variance[losses.known].sum()) / 2
        return weights

    def step(self, rate: float) -> None:
        """Move the log variances along the slope that `weigh` found."""
        before = self.log_variance.clone()
        self.optimizer.step(rate)
        self.log_variance.copy_(torch.where(self.known, self.log_variance, before))  # momentum moves the unknown too

    def tensors(self) -> dict[str, Tensor]:
        """The log variances and their moments."""
        return {"log_variance": self.log_variance, **self.optimizer.tensors()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a kept state."""
        self.log_variance.copy_(tensors["log_variance"])
        self.optimizer.load(tensors)


class DynamicAverage(Joint):
    """``dwa``: a task counts the more, the slower its mean loss fell between the two epochs before.

    Source: Liu et al. 2019 (arXiv:1803.10704), equation 7.
    """

    def __init__(self, spec: Spec, generator: torch.Generator) -> None:
        super().__init__(spec, generator)
        self.sums, self.steps = torch.zeros(self.count), torch.zeros(self.count)
        self.epochs = torch.zeros(0, self.count)

    def start(self) -> None:
        """Remember the mean losses of the epoch that is over."""
        if bool(self.steps.any()):
            mean = self.sums / self.steps.clamp(min=1)
            self.epochs = torch.cat([self.epochs, mean[None]])[-2:]
        self.sums, self.steps = torch.zeros(self.count), torch.zeros(self.count)

    def weigh(self, losses: Losses) -> Tensor:
        """T times the softmax of the losses' ratios; 1 in the first two epochs. (T,)."""
        self.sums, self.steps = self.sums + losses.tasks * losses.known, self.steps + losses.known
        if len(self.epochs) < 2:
            return torch.ones(self.count)
        before, after = self.epochs
        ratio = torch.where((before > 0) & (after > 0), after / before.clamp(min=1e-12), 1.0)
        return self.count * (ratio / TEMPERATURE).softmax(0)

    def tensors(self) -> dict[str, Tensor]:
        """Mean losses."""
        return {"sums": self.sums, "steps": self.steps, "epochs": self.epochs}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a kept state."""
        self.sums, self.steps, self.epochs = (tensors[name] for name in ("sums", "steps", "epochs"))


class GradNorm(Joint):
    """``gradnorm``: weights that bring the norms of the tasks' gradients to one another, more for slow tasks.

    The norms are those of all shared parameters (the paper allows any part of them, and takes the last shared layer
    to save time). The first loss of a task that is seen is its L(0). Weights are kept above a thousandth.

    Source: Chen et al. 2018 (arXiv:1711.02257), equations 1 and 2 and algorithm 1.
    """

    by_gradient: ClassVar[bool] = True

    def __init__(self, spec: Spec, generator: torch.Generator) -> None:
        super().__init__(spec, generator)
        self.weights, self.first = torch.ones(self.count), torch.full((self.count,), torch.nan)
        self.optimizer = AdamW([{"params": [self.weights], "weight_decay": 0.0}])

    def weigh(self, losses: Losses) -> Tensor:
        """The weights as they are. (T,)."""
        return self.weights.clone()

    def combine(self, rows: Tensor, shared: int, losses: Losses) -> Tensor:
        """Weighted sum of the gradients; the weights move at `step`."""
        known, norms = losses.known, rows[:, :shared].norm(dim=1).cpu()
        self.first = torch.where(self.first.isnan() & known, losses.tasks, self.first)
        pace = torch.where(known, losses.tasks / self.first.clamp(min=1e-12), 0.0)
        pace = pace / pace[known].mean().clamp(min=1e-12) if bool(known.any()) else pace
        size = self.weights * norms
        wanted = size[known].mean() * pace**RESTORING if bool(known.any()) else size
        self.weights.grad = torch.where(known, norms * (size - wanted).sign(), 0.0)
        return self.weights.to(rows) @ rows

    def step(self, rate: float) -> None:
        """Move the weights at their own rate, and scale them so that they add up to T."""
        self.optimizer.step(WEIGHT_RATE)
        self.weights.clamp_(min=1e-3).mul_(self.count / self.weights.sum())

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their moments and the first losses."""
        return {"weights": self.weights, "first": self.first, **self.optimizer.tensors()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a kept state."""
        self.weights.copy_(tensors["weights"])
        self.first = tensors["first"]
        self.optimizer.load(tensors)


class Aggregation(Joint):
    """``pcgrad``, ``mgda``, ``upgrad``, ``cagrad``, ``nashmtl``: combine the tasks' gradients of the shared parameters.

    Every other parameter gets the plain gradient of its own task. Each method keeps the scale it was published with:
    PCGrad adds, MGDA is a convex combination, UPGrad and CAGrad start from the mean, Nash-MTL has a norm of at most 1.
    A task that no row of a step is labelled for is left out of that step. Nash-MTL, which starts each
    search from the last one's result, starts anew in every epoch.

    Source: the aggregators of torchjd, after Yu et al. 2020 (arXiv:2001.06782), Sener and Koltun 2018
    (arXiv:1810.04650), Quinton and Rey 2024 (arXiv:2406.16232), Liu et al. 2021 (arXiv:2110.14048) and Navon et al.
    2022 (arXiv:2202.01017).
    """

    by_gradient: ClassVar[bool] = True

    def __init__(self, spec: Spec, generator: torch.Generator) -> None:
        super().__init__(spec, generator)
        self.method = spec.training.objective
        self.aggregators = {count: aggregator(self.method, count) for count in range(2, self.count + 1)}

    def start(self) -> None:
        """Forget the results of the epoch before."""
        if self.method == "nashmtl":
            for one in self.aggregators.values():
                one.reset()

    def combine(self, rows: Tensor, shared: int, losses: Losses) -> Tensor:
        """The aggregate of the shared columns beside the sum of the others."""
        gradient, known = rows.sum(0), losses.known.nonzero().flatten()
        seed = int(torch.randint(2**31, (), generator=self.generator))
        if len(known) > 1 and shared:
            some = rows if len(known) == len(rows) else rows[known.to(rows.device)]
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # cvxpy on how Nash-MTL's problem is put, in every step
                torch.default_generator.manual_seed(seed)  # PCGrad draws orders: the same ones on every rank
                gradient[:shared] = self.aggregators[len(known)](some[:, :shared])
        return gradient


def aggregator(method: str, count: int) -> Any:
    """The library's aggregator for the gradients of ``count`` tasks.

    Raises:
        SpecError: the library, or one that it needs for this method, is not there.
    """
    try:
        from torchjd.aggregation import MGDA, CAGrad, NashMTL, PCGrad, UPGrad

        known = {"pcgrad": PCGrad, "mgda": MGDA, "upgrad": UPGrad, "cagrad": lambda: CAGrad(c=AVERSION)}
        return NashMTL(n_tasks=count) if method == "nashmtl" else known[method]()
    except ImportError as error:
        raise SpecError(
            f"training.objective: {method} must have torchjd, got: {error} Run: pip install 'polymodal[objectives]'"
        ) from None


def objective(spec: Spec, generator: torch.Generator) -> Joint:
    """The objective that a spec asks for, as new."""
    kinds = {"joint": Joint, "uncertainty": Uncertainty, "dwa": DynamicAverage, "gradnorm": GradNorm}
    return kinds.get(spec.training.objective, Aggregation)(spec, generator)
