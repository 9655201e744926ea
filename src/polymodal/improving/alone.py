"""One input by itself: its thawed backbone, its encoder and its own heads, trained on its cells."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.data.gather import Progress
from polymodal.data.source import Source
from polymodal.errors import PolymodalError
from polymodal.model import Model
from polymodal.nn.adapt import Adapter, Method, Thawed
from polymodal.nn.backbone import Backbone
from polymodal.nn.optimise import AdamW, decay_groups, schedule
from polymodal.part import Reading
from polymodal.types import Fused, Masked

RATES: Mapping[Method, float] = {"lora": 1e-3, "last": 1e-4, "all": 1e-4}
"""Peak learning rate of a backbone's weights, by what of it is trained."""

HEAD_RATE = 1e-3
"""Peak learning rate of the encoder and the own heads above a backbone, which are trained already."""

WARM_UP = 0.1
DISTIL = 1.0
"""Weight of the distance from the teacher's raw outputs, beside the task's own loss."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train an input by itself.

    Attributes:
        method: what of its backbone is trained; None for an input without one.
        rank: of LoRA's changes.
        epochs: at most this many passes.
        batch_size: rows per step.
        learning_rate: peak rate of the backbone's weights, or of the encoder where there is none.
        patience: stop after this many epochs without a lower loss on the validation rows.
        seed: of order, augmentation, dropout and first values.
    """

    method: Method | None
    rank: int
    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    seed: int


@dataclass(frozen=True, slots=True)
class Cells:
    """One input's labelled cells on one side of the split.

    Attributes:
        source: of the cells; its modality augments.
        rows: (n,) their rows in the source's table.
        targets: task name -> (n, K).
        soft: task name -> (n, size) raw outputs of a teacher, where one is to be learned from.
    """

    source: Source
    rows: Tensor
    targets: Mapping[str, Masked]
    soft: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)

    def batch(self, picks: Tensor, seed: int, epoch: int | None) -> Masked:
        """Read and collate some cells (B,), varied if they are of a training epoch."""
        values: list[Any] = []
        modality, rows = self.source.modality, self.rows[picks]
        for row, cell in zip(rows.tolist(), self.source.some(rows.numpy()), strict=True):
            reading = self.source.read(row, cell)
            value = reading.value if isinstance(reading, Reading) else None
            if value is not None and epoch is not None:
                value = modality.augment(value, np.random.default_rng((seed, epoch, row)))
            values.append(value)
        return modality.collate(values)


@dataclass(frozen=True, slots=True)
class Taught:
    """What came of training an input by itself.

    Attributes:
        adapter: changes of its backbone; None where it has none.
        encoder: state of its encoder.
        heads: task name -> state of its own head.
        history: ``number``, ``train_loss`` and ``valid_loss`` of each epoch.
        start: loss of the own heads on the validation rows before.
        epochs: passes that were best.
    """

    adapter: Adapter | None
    encoder: dict[str, Tensor]
    heads: dict[str, dict[str, Tensor]]
    history: list[dict[str, Any]]
    start: float | None
    epochs: int

    @property
    def best(self) -> float | None:
        """Least loss of the own heads on the validation rows."""
        return self.history[self.epochs - 1]["valid_loss"]


class Alone:
    """Trains one input by itself, starting from a model's encoder and own heads of it.

    Starting from trained heads keeps the first steps from spoiling the backbone's features. An input without a backbone
    learns its encoder and heads anew.

    Source: Kumar et al. 2022 (arXiv:2202.10054), section 3.4 (first the head, then all).
    """

    def __init__(self, start: Model, name: str, base: Backbone | None, plan: Plan, device: torch.device) -> None:
        self.name, self.plan, self.device, self.spec = name, plan, device, start.spec
        torch.manual_seed(plan.seed)
        self.model = model = copy.deepcopy(start) if base is not None else Model(start.spec).to(device)
        self.asked = [n for n, heads in model.single.items() if name in heads.names]
        self.parts = nn.ModuleList([model.encoders[name], *(model.single[n][name] for n in self.asked)])
        self.thawed = None
        groups = decay_groups(self.parts, self.spec.training.weight_decay)
        self.optimizers = [(AdamW(groups), plan.learning_rate if base is None else HEAD_RATE)]
        if base is not None and plan.method is not None:
            self.thawed = Thawed(base, plan.method, plan.rank, seed=plan.seed)
            self.thawed.backbone.to(device)
            # convolutions are up to twice as fast
            self.thawed.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            self.optimizers.append(
                (AdamW([{"params": self.thawed.parameters, "weight_decay": 0.0}]), plan.learning_rate)
            )
        self.generator = torch.Generator().manual_seed(plan.seed)

    def train(self, train: Cells, valid: Cells | None, epochs: int, progress: Progress) -> Taught:
        """Train; with validation rows until their loss stops falling, and keep the best weights."""
        start = None if valid is None else self.loss(valid)
        history, kept, best, taken = list[dict[str, Any]](), self._kept(), math.inf, 0
        for number in range(epochs):
            mean = self._epoch(train, number)
            held = None if valid is None else self.loss(valid)
            history.append({"number": number, "train_loss": mean, "valid_loss": held})
            progress(f"train {self.name}", number + 1, epochs)
            if held is None or held < best:
                best, kept, taken = best if held is None else held, self._kept(), number + 1
            elif number + 1 - taken >= self.plan.patience:
                break
        adapter, encoder, heads = kept
        return Taught(adapter, encoder, heads, history, start, taken)

    @torch.no_grad()
    def loss(self, cells: Cells) -> float:
        """Weighted sum of the tasks' losses of the own heads. The cells are not varied."""
        self.parts.eval()
        sums, tasks = dict.fromkeys(self.asked, 0.0), {n: self.spec.outputs[n] for n in self.asked}
        for picks in torch.arange(len(cells)).split(self.plan.batch_size):
            outputs = self._outputs(cells.batch(picks, self.plan.seed, None).to(self.device))
            for n, task in tasks.items():
                target = cells.targets[n][picks].to(self.device)
                sums[n] += float(task.loss(outputs[n], target)) * int(target.present.sum())
        counts = {n: max(1, int(cells.targets[n].present.sum())) for n in sums}
        return sum(task.weight * sums[n] / counts[n] for n, task in tasks.items())

    def _epoch(self, cells: Cells, number: int) -> float:
        """One pass; the mean loss over steps."""
        self.parts.train()
        torch.manual_seed((self.plan.seed * 10_007 + number) % 2**63)
        order = torch.randperm(len(cells), generator=self.generator)
        batches = order.split(self.plan.batch_size)
        total = 0.0
        for i, picks in enumerate(batches):
            outputs = self._outputs(cells.batch(picks, self.plan.seed, number).to(self.device))
            loss = self._objective(outputs, cells, picks)
            if not math.isfinite(value := loss.item()):
                raise PolymodalError(f"improve: loss must be finite, got {value}. Lower learning_rate.")
            for optimizer, _ in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            self._clip()
            factor = schedule(number * len(batches) + i, self.plan.epochs * len(batches), WARM_UP)
            for optimizer, rate in self.optimizers:
                optimizer.step(rate * factor)
            total += value
        return total / len(batches)

    def _objective(self, outputs: Mapping[str, Tensor], cells: Cells, picks: Tensor) -> Tensor:
        """The tasks' losses, and the distance from the teacher's raw outputs in units of their variance.

        Source: Ba and Caruana 2014 (arXiv:1312.6184), equation 1; it is the distillation of Hinton et al. 2015
        (arXiv:1503.02531), section 2.1, at a high temperature, and fits any task. Dividing by the variance is ours.
        """
        terms = []
        for n in self.asked:
            task = self.spec.outputs[n]
            terms.append(task.weight * task.loss(outputs[n], cells.targets[n][picks].to(self.device)))
            if n in cells.soft:
                soft = cells.soft[n].to(self.device)
                unit = soft.var(0, correction=0).mean().clamp(min=1e-6)
                terms.append(DISTIL * task.weight * (outputs[n] - soft[picks]).square().mean() / unit)
        return torch.stack(terms).sum()

    def _outputs(self, x: Masked) -> dict[str, Tensor]:
        """Raw outputs of the own heads for collated values, all of which are present."""
        if self.thawed is not None:
            x = self.thawed.backbone(x)
            if self.name in self.model.summarised:
                summary = self.spec.inputs[self.name].summary(x)[:, None]
                x = Masked(summary, torch.ones(summary.shape[:2], dtype=torch.bool, device=summary.device))
        encoded = self.model.encode(self.name, x)
        fused = Fused(encoded.mean(), {self.name: encoded})
        return {n: self.model.single[n][self.name](fused) for n in self.asked}

    def _clip(self) -> None:
        clip = self.spec.training.clip
        if clip:
            thawed = [] if self.thawed is None else self.thawed.parameters
            nn.utils.clip_grad_norm_([*self.parts.parameters(), *thawed], clip)

    def _kept(self) -> tuple[Adapter | None, dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Copies of what is trained."""
        encoder, *heads = ({k: t.clone() for k, t in part.state_dict().items()} for part in self.parts)
        adapter = None if self.thawed is None else self.thawed.adapter()
        return adapter, encoder, dict(zip(self.asked, heads, strict=True))
