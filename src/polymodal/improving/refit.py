"""The rest of the model after one input was trained by itself: its encoder and heads, the fusion, the blend."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from polymodal.baselines import fit_baselines
from polymodal.data.gather import Progress
from polymodal.data.loader import Prepared
from polymodal.fusions.vote import VoteFusion
from polymodal.improving.alone import Taught
from polymodal.model import Model
from polymodal.objectives.monitor import best_epoch
from polymodal.train import Trainer
from polymodal.tune import tune


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen on validation rows, for a training without them.

    Attributes:
        epochs: of the whole model.
        penalties: of the linear models.
        blend: weights of the losses, where the balance is gradient blending.
        model: that the calibration, the linear models' shares and the votes' weights are taken from.
    """

    epochs: int
    penalties: Mapping[tuple[str, str], float]
    blend: Mapping[str, float]
    model: Model


def refit(
    start: Model,
    taught: Taught | None,
    name: str,
    train: Prepared,
    valid: Prepared | None,
    chosen: Chosen | None,
    device: torch.device,
    progress: Progress,
) -> tuple[Model, Chosen]:
    """Train one input's encoder and own heads, the fusion and the tasks' heads; everything of other inputs stays.

    Args:
        start: never changed.
        taught: the input trained by itself, where its encoder and own heads start from; None starts from the model's.
        name: of the input.
        train: rows, with the adapted backbone's features.
        valid: rows to choose on; None if all is ``chosen``.
        chosen: what an earlier call chose.
        device: of the model.
        progress: told how far it is.

    Returns:
        The model, in evaluation mode, and what was chosen.
    """
    model = copy.deepcopy(start)
    if taught is not None:
        model.encoders[name].load_state_dict(taught.encoder)
        for n, state in taught.heads.items():
            model.single[n][name].load_state_dict(state)
    others = [(part.requires_grad_(False), copy.deepcopy(part.state_dict())) for part in of_others(model, name)]
    epochs = model.spec.training.epochs if chosen is None else chosen.epochs
    trainer = Trainer(model, train, valid, device, None, epochs, None if chosen is None else chosen.blend)
    history = trainer.run(lambda epoch: progress("re-fit", epoch.number + 1, epochs))
    model.requires_grad_(True)
    penalties = fit_baselines(model, train, valid, device, None if chosen is None else chosen.penalties, progress)
    for part, state in others:
        part.load_state_dict(state)  # the linear ones were fitted again, to the same rows
    if chosen is None:
        assert valid is not None
        tune(model, valid, device)
        best = best_epoch(history, model.spec.training.monitor)
        return model, Chosen(best.number + 1, penalties, trainer.blend, model)
    model.share.copy_(chosen.model.share)
    model.certainty.copy_(chosen.model.certainty)
    if isinstance(model.fusion, VoteFusion) and isinstance(chosen.model.fusion, VoteFusion):
        model.fusion.log_weights.copy_(chosen.model.fusion.log_weights)
    outputs = chosen.model.spec.outputs
    model.spec = model.spec.model_copy(update={"outputs": outputs})
    return model, chosen


def of_others(model: Model, name: str) -> list[nn.Module]:
    """What belongs to other inputs than one: their encoders, own heads and linear models."""
    found = []
    for other in model.names:
        if other != name:
            families = [*model.single.items(), *model.linear.items()]
            found += [model.encoders[other], *(family[other] for _, family in families if other in family.names)]
    return found
