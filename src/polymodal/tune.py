"""What is set on validation rows after training: the votes' weights, the linear model's share, the certainty."""

from __future__ import annotations

import torch
from torch import Tensor

from polymodal.data.loader import Prepared
from polymodal.evaluate import answers
from polymodal.fusions.vote import Vote, VoteFusion
from polymodal.model import ALL, Model
from polymodal.nn.fuse import present_softmax
from polymodal.nn.optimise import minimise
from polymodal.task import VectorTask
from polymodal.types import Masked

STEPS = 50
PRIOR = 1e-3
"""Pull of the votes' weights towards equal ones, per squared log weight."""

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
    """Calibrate each input's own head, then find the weights of the vote with the lowest held-out loss.

    Weights are shared by all tasks, whose losses are added up with the tasks' weights; where an input is absent,
    the others' weights are scaled up, as at prediction.
    """
    tasks = {n: task for n, task in model.spec.outputs.items() if isinstance(task, VectorTask)}
    if not tasks:
        return
    batch = valid.batch(torch.arange(len(valid))).to(device)
    single = model(batch.inputs).single
    present = torch.stack([x.present for x in batch.inputs.values()], 1)
    for row, (n, task) in enumerate(model.spec.outputs.items()):
        for column, name in enumerate(model.names):
            own = batch.targets[n].without(~present[:, column])
            if isinstance(task, VectorTask) and bool(own.present.any()):
                model.certainty[row, column] = task.calibrate(single[n][name], own).certainty
    votes = {n: model.votes(n, single[n]) for n in tasks}

    def loss(scores: Tensor) -> Tensor:
        weights = present_softmax(scores.expand_as(present), present)
        terms = [t.weight * t.loss(t.mix(votes[n], weights), batch.targets[n]) for n, t in tasks.items()]
        return torch.stack(terms).sum() + PRIOR * scores.square().sum()

    scores = minimise(loss, torch.zeros(len(model.names), device=device), STEPS)
    assert isinstance(model.fusion, VoteFusion)
    model.fusion.set_weights(scores.softmax(0))


def _blend(model: Model, valid: Prepared, device: torch.device) -> None:
    """Give the linear model the share that lowers the held-out loss most, with all inputs and without each.

    Having everything counts as much as all the removals together. Ties leave the answer to the fusion model.
    """
    if not model.linear.names:
        return
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
