"""What is set on validation rows after training: the votes' weights, the linear model's share, the certainty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polymodal.data.loader import Prepared
from polymodal.evaluate import answers
from polymodal.fusions.vote import Vote, VoteFusion
from polymodal.model import ALL, Model
from polymodal.part import VectorTask
from polymodal.types import Batch, Masked

SHARPNESS = 4.0
"""How fast a vote's weight falls with its held-out loss, per nat."""

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@torch.no_grad()
def tune(model: Model, valid: Prepared, device: torch.device) -> None:
    """Set, in place, everything that needs held-out rows but no gradient."""
    if isinstance(model.spec.fusion, Vote):
        _weigh_votes(model, valid, device)
    _blend(model, valid, device)
    seen = answers(model, valid, device)
    outputs = dict(model.spec.outputs)
    for n, task in outputs.items():
        if isinstance(task, VectorTask) and bool(seen.targets[n].present.any()):
            outputs[n] = task.calibrate(seen.outputs[n], seen.targets[n])
    model.spec = model.spec.model_copy(update={"outputs": outputs})


def _weigh_votes(model: Model, valid: Prepared, device: torch.device) -> None:
    """Weigh each input by how well its own head predicts: softmax of minus its held-out loss, over the present rows.

    Weights are shared by all tasks: their losses are added up with the tasks' weights. An input that no labelled row
    has could prove nothing, and weighs as little as the worst of the others.
    """
    losses = {n: torch.full((len(model.names),), float("nan")) for n in model.spec.outputs}
    for i, name in enumerate(model.names):
        seen = answers(model, valid, device, decode=lambda batch, name=name: _own(model, batch, name))
        for n, output in seen.outputs.items():
            target = seen.targets[n].without(output.isnan().any(1))
            if bool(target.present.any()):
                losses[n][i] = model.spec.outputs[n].loss(output, target)
    total = torch.zeros(len(model.names))
    for n, task in model.spec.outputs.items():
        worst = losses[n].nan_to_num(-math.inf).max()
        total += task.weight * torch.where(losses[n].isnan(), worst, losses[n]).nan_to_num(0.0, 0.0, 0.0)
    assert isinstance(model.fusion, VoteFusion)
    model.fusion.set_weights((-total * SHARPNESS).softmax(0))


def _own(model: Model, batch: Batch, name: str) -> dict[str, Tensor]:
    """Raw outputs of one input's own heads, NaN where the input is absent."""
    single = model(batch.inputs).single
    absent = ~batch.inputs[name].present
    return {n: outputs[name].masked_fill(absent[:, None], float("nan")) for n, outputs in single.items()}


def _blend(model: Model, valid: Prepared, device: torch.device) -> None:
    """Give the linear model the share that lowers the held-out loss most, with all inputs and without each.

    Having everything counts as much as all the removals together. Ties leave the answer to the fusion model.
    """
    names = list(model.names)
    removals = [[name] for name in names] if len(names) > 1 else []
    losses = {n: torch.zeros(len(SHARES)) for n in model.linear}
    for hidden in [[], *removals]:
        weight = 1.0 if hidden else max(1.0, len(removals))
        fused = answers(model, valid, device, hidden, lambda batch: model(batch.inputs).decoded)
        linear = answers(model, valid, device, hidden, model.baselines()[ALL])
        for n in losses:
            losses[n] += weight * _losses(model.vector_task(n), fused.outputs[n], linear.outputs[n], fused.targets[n])
    for number, n in enumerate(model.spec.outputs):
        if n in losses:
            model.share[number] = SHARES[int(losses[n].argmin())]


def _losses(task: VectorTask, fused: Tensor, linear: Tensor, target: Masked) -> Tensor:
    """Held-out loss for each of `SHARES`."""
    weights = [torch.tensor([1 - share, share]) for share in SHARES]
    return torch.stack([task.loss(task.mix([fused, linear], w), target) for w in weights])
