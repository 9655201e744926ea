"""What an input learns from when it is trained by itself: varied cells, and a linear model that knows better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from pydantic import BaseModel
from torch import Tensor

from polymodal.data.loader import Prepared
from polymodal.model import ALL, Model
from polymodal.part import Modality
from polymodal.types import Fused, Masked

BATCH = 256


def augmented(part: Modality) -> Modality:
    """The modality with its own augmentation; where it has none, with its kind's default one, if there is one."""
    field = type(part).model_fields.get("augmentation")
    if field is None or getattr(part, "augmentation", None) is not None:
        return part
    kinds = [kind for kind in get_args(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return part.model_copy(update={"augmentation": kinds[0]()}) if kinds else part


def usable(prepared: Prepared, name: str) -> Tensor:
    """Which of the rows have this input and a target. (n,) bool."""
    here = torch.as_tensor(~prepared.digests[name][1])[prepared.rows]
    known = torch.stack([target.present[prepared.rows] for target in prepared.targets.values()]).any(0)
    return here & known


@torch.no_grad()
def lessons(model: Model, prepared: Prepared, name: str, device: torch.device) -> dict[str, Tensor]:
    """Raw outputs of the linear models on one input's features, by task, for rows that have it. (n, size)."""
    label = name if len(model.names) > 1 else ALL
    found: dict[str, list[Tensor]] = {n: [] for n in model.linear}
    for rows in torch.arange(len(prepared)).split(BATCH):
        inputs = prepared.batch(rows).to(device).inputs
        seen = model.summaries({name: inputs[name]})
        for n, parts in found.items():
            parts.append(model.linear[n][label](*seen).cpu())
    return {n: torch.cat(parts) for n, parts in found.items()}


@torch.no_grad()
def better_teachers(model: Model, valid: Prepared, name: str, device: torch.device) -> tuple[str, ...]:
    """Tasks whose linear model on this input has a lower loss on validation rows than the input's own head."""
    soft, own, targets = lessons(model, valid, name, device), dict[str, list[Tensor]](), dict[str, list[Masked]]()
    for rows in torch.arange(len(valid)).split(BATCH):
        batch = valid.batch(rows).to(device)
        encoded = model.encode(name, batch.inputs[name])
        for n in soft:
            output = model.single[n][name](Fused(encoded.mean(), {name: encoded}))
            own.setdefault(n, []).append(output.cpu())
            targets.setdefault(n, []).append(batch.targets[n].to("cpu"))
    found = []
    for n, outputs in soft.items():
        task, target = model.spec.outputs[n], Masked.join(targets[n])
        if bool(target.present.any()) and task.loss(outputs, target) < task.loss(torch.cat(own[n]), target):
            found.append(n)
    return tuple(found)


def targets_of(prepared: Prepared) -> Mapping[str, Masked]:
    """Targets of the rows that a selection has. (n, K) each."""
    return {n: target[prepared.rows] for n, target in prepared.targets.items()}
