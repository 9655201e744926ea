"""Balance: keep inputs that learn at different speeds level with one another."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from polymodal.model import Model
from polymodal.spec import Spec
from polymodal.tasks import Classify
from polymodal.types import Batch, Outputs

MAGNITUDE = 1.5
"""gamma of `pareto`: how much longer the combined gradient is made; the authors' code for Wei and Hu 2024."""

LEAST_OVERFIT = 0.01
"""Overfitting below this share of the largest gain counts as this much in `blend`: a quotient by noise says nothing."""


def confidence(spec: Spec, outputs: Outputs, batch: Batch) -> Tensor:
    """How sure each input's own head is of the truth: sums over labelled rows that have the input, and their number.

    Returns:
        (2, M): sum of the probability of the true class over rows and over tasks with one class per row; the rows.
    """
    found = []
    for name, x in batch.inputs.items():
        total = x.mask.new_zeros(2, dtype=torch.float32)
        for n, task in spec.outputs.items():
            if isinstance(task, Classify):
                target = batch.targets[n].without(~x.present)
                rows = target.present
                p = outputs.single[n][name].detach()[rows].float().softmax(-1)
                right = p.gather(1, target.values[rows]).sum()
                total = total + torch.stack([right, rows.sum().to(right)])
        found.append(total)
    return torch.stack(found, 1)


def coefficients(confidence: Tensor, modulation: float) -> list[float]:
    """Factor of the step of each input's encoder: 1 - tanh(modulation * rho) where it leads (rho > 1), else 1.

    rho of an input is its confidence over the mean confidence of the others. With two inputs that have all rows this
    is the paper's ratio of sums; the mean over several others, and the mean over the rows that have an
    input, are ours. An input that no row has keeps 1 and is no other's measure.

    Args:
        confidence: (2, M) as from `confidence`, added up over ranks.
        modulation: alpha of the paper.

    Source: Peng et al. 2022 (arXiv:2203.15332), section 3.2 (OGM).
    """
    total, count = confidence.double().cpu()
    mean = total / count.clamp(min=1)
    found = []
    for i in range(len(mean)):
        others = count > 0
        others[i] = False
        if not bool(others.any()) or not count[i]:
            found.append(1.0)
            continue
        ratio = mean[i] / mean[others].mean().clamp(min=1e-12)
        found.append(1 - float((modulation * ratio).tanh()) if ratio > 1 else 1.0)
    return found


@torch.no_grad()
def enhance(model: Model, factors: Sequence[float], generator: torch.Generator) -> None:
    """Slow the gradients of the encoders' matrices and add noise (GE); as in the authors' code, vectors get none.

    The noise is normal around 0 with the deviation that the entries of the parameter's gradient had before. It is not
    slowed, so it also keeps AdamW, which divides by the size of what it gets, from undoing the factor.

    Args:
        model: with gradients.
        factors: (M,) one per input as from `coefficients`, in the order of the model's names.
        generator: on the CPU; the same draw on every rank.

    Source: Peng et al. 2022 (arXiv:2203.15332), section 3.3.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    for name, factor in zip(model.names, factors, strict=True):
        for p in model.branch(name):
            if p.grad is None or p.ndim < 2 or not p.numel():
                continue
            seed += 1
            source = torch.Generator(p.device).manual_seed(seed)
            noise = torch.randn(p.shape, generator=source, device=p.device, dtype=p.grad.dtype)
            p.grad = factor * p.grad + noise * p.grad.std(correction=0)


@contextmanager
def slowed(model: Model, factors: Sequence[float]) -> Iterator[None]:
    """Let the encoders' vectors go only a share of what they are moved by inside (OGM); `enhance` sees to matrices.

    The paper multiplies gradients. For its plain gradient descent that is the same; AdamW would undo it.

    Args:
        model: whose optimiser takes a step inside.
        factors: (M,) as for `enhance`.

    Source: Peng et al. 2022 (arXiv:2203.15332), section 3.2.
    """
    encoders = [model.branch(name) for name in model.names]
    held = [
        (p, f, p.detach().clone())
        for f, group in zip(factors, encoders, strict=True)
        if f != 1
        for p in group
        if p.ndim < 2
    ]
    yield
    with torch.no_grad():
        for p, factor, before in held:
            p.copy_(torch.lerp(before, p, factor))


def pareto(joint: Tensor, own: Tensor) -> Tensor:
    """Combine the gradients of an encoder from all inputs' loss and from its own head's so that neither suffers.

    In conflict (a negative inner product) the shortest convex combination of the two, else their mean; both twice.
    Where the result is shorter than the plain sum it is made as long, then all is lengthened by `MAGNITUDE`. Opposite
    gradients, which have no common direction, give 0.

    Source: Wei and Hu 2024 (arXiv:2405.17730), algorithm 1, over the encoder as a whole; the authors' code compares
    lengths parameter by parameter.

    Args:
        joint: (P,) gradient of the fused answer's loss.
        own: (P,) gradient of the input's own head's loss.
    """
    dot, first, second = joint @ own, joint @ joint, own @ own
    share = torch.where(dot < 0, (second - dot) / (first + second - 2 * dot).clamp(min=1e-30), 0.5)
    mixed = 2 * share * joint + 2 * (1 - share) * own
    size, plain = mixed.norm(), (joint + own).norm()
    common = size > 1e-6 * (first.sqrt() + second.sqrt())
    factor = torch.where(common, (plain / size.clamp(min=1e-30)).clamp(min=1), 0.0)
    return MAGNITUDE * factor * mixed


def blend(before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Weights of one task's losses by how much each generalises for how much it overfits; they add up to 1.

    w is proportional to G / O^2: G is how far the loss on validation rows fell, O how much the gap between it and
    the loss on training rows grew. A branch whose G is not positive gets 0. Overfitting is taken as at least
    `LEAST_OVERFIT` of the largest G. Where the fused answer itself gained nothing, nothing can be estimated: all
    weights are equal then, with a warning.

    Args:
        before: label -> losses on training and on validation rows at the start, the fused answer's first.
        after: the same at the end, each branch trained apart.

    Source: Wang et al. 2020 (arXiv:1905.12681), equation 3, proposition 1 and algorithm 1; the bounds are ours.
    """
    gains, gaps = {}, {}
    for label, (train, valid) in before.items():
        gains[label] = valid - after[label][1]
        gaps[label] = (after[label][1] - after[label][0]) - (valid - train)
    fused = next(iter(before))
    if not gains[fused] > 0:
        warnings.warn(
            f"gradient_blending: the loss of {fused!r} on validation rows must fall in the estimate, got a change of "
            f"{-gains[fused]:+.3g}. All weights are equal. Train for more epochs, or choose another balance.",
            stacklevel=2,
        )
        return dict.fromkeys(before, 1 / len(before))
    least = LEAST_OVERFIT * max(gains.values())
    raw = {label: max(gain, 0.0) / max(abs(gaps[label]), least) ** 2 for label, gain in gains.items()}
    whole = sum(raw.values())
    return {label: value / whole for label, value in raw.items()}
