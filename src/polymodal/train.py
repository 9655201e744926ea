"""The training loop: the only one."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from polymodal.checkpoint import Checkpoint, pack, unpack
from polymodal.data.loader import Prepared
from polymodal.errors import PolymodalError
from polymodal.model import Model
from polymodal.nn.optimise import AdamW
from polymodal.ranks import Ranks
from polymodal.spec import Spec
from polymodal.types import Batch, Outputs

EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: from 0.
        train_loss: mean over steps of everything that is minimised.
        valid_loss: weighted sum of the tasks' losses on the validation rows; None without such rows.
        terms: every term of the objective, unweighted, mean over steps.
    """

    number: int
    train_loss: float
    valid_loss: float | None
    terms: dict[str, float]


def hide(batch: Batch, drop: Tensor) -> Batch:
    """Hide inputs of rows, but never the last one of a row: such a row keeps everything.

    Args:
        batch: B rows of M inputs.
        drop: (M, B) bool, what to hide.

    Source: ModDrop, Neverova et al. 2015 (arXiv:1501.00102), section 3.3; the exception is ours.
    """
    present = torch.stack([x.present for x in batch.inputs.values()])
    drop = drop.to(present.device) & present
    drop = drop & (present & ~drop).any(0)
    inputs = {name: x.without(gone) for gone, (name, x) in zip(drop, batch.inputs.items(), strict=True)}
    return Batch(inputs, batch.targets)


def objective(spec: Spec, outputs: Outputs, batch: Batch) -> dict[str, tuple[float, Tensor, Tensor]]:
    """Every term to minimise: its factor, its mean over samples, and how many samples that mean is over.

    Beside each task stands the loss of each input's own head, on the rows that have that input
    (Wang et al. 2020, arXiv:1905.12681, equation 2, with one weight for all inputs).
    """
    terms = {}
    for n, task in spec.outputs.items():
        target = batch.targets[n]
        terms[n] = (task.weight, task.loss(outputs.decoded[n], target), target.present.sum())
        if spec.training.balance == "auxiliary":
            for name, output in outputs.single[n].items():
                seen = target.without(~batch.inputs[name].present)
                factor = task.weight * spec.training.auxiliary
                terms[f"{n} from {name}"] = (factor, task.loss(output, seen), seen.present.sum())
    return terms


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the lowest validation loss; one without a finite loss comes last."""

    def loss(epoch: Epoch) -> float:
        return epoch.valid_loss if epoch.valid_loss is not None and math.isfinite(epoch.valid_loss) else math.inf

    return min(history, key=loss)


def schedule(step: int, steps: int, warm_up: float) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to 0."""
    rise = round(steps * warm_up)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def decay_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay, vectors (biases, norms) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Trainer:
    """Minimise the objective of a spec with AdamW; keep the averaged weights that did best on validation.

    Randomness comes from one generator (order, hidden inputs), from torch's own, seeded anew in every epoch
    (dropout), and from the epoch's number (augmentation), so a run that was killed and resumed ends with the weights
    of one that was not, on any number of ranks.
    """

    def __init__(
        self,
        model: Model,
        train: Prepared,
        valid: Prepared | None,
        device: torch.device,
        checkpoint: Checkpoint | None = None,
        epochs: int | None = None,
    ) -> None:
        self.spec, self.plan = model.spec, model.spec.training
        self.model, self.train, self.valid = model.to(device), train, valid
        self.device, self.checkpoint, self.ranks = device, checkpoint, Ranks.join(device)
        self.average = copy.deepcopy(model).eval()
        self.best: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(self.spec.seed)
        groups = decay_groups(model, self.plan.weight_decay)
        self.optimizer = AdamW(groups)
        self.history: list[Epoch] = []
        self.step, self.epochs = 0, self.plan.epochs if epochs is None else epochs

    def run(self, on_epoch: Callable[[Epoch], None] = lambda _: None) -> list[Epoch]:
        """Train until the last epoch or until validation stops improving; leave the best weights in the model."""
        self._resume()
        while len(self.history) < self.epochs and not self._stalled():
            epoch = self._epoch(len(self.history))
            self.history.append(epoch)
            if self.valid is None or epoch is best_epoch(self.history):
                self.best = {name: t.clone() for name, t in self.average.state_dict().items()}
            self._save()
            on_epoch(epoch)
        self.model.load_state_dict(self.best)
        self.model.eval()
        return self.history

    def _epoch(self, number: int) -> Epoch:
        self.model.train()
        torch.manual_seed(((self.spec.seed * 10_007 + number) * 1_009 + self.ranks.rank) % 2**63)
        order = torch.randperm(len(self.train), generator=self.generator)
        parts = self.ranks.batches(order, self.plan.batch_size)
        total, sums = 0.0, dict[str, float]()
        for rows in parts:
            loss, terms = self._step(rows, number, len(parts) * self.plan.epochs)
            total += loss
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
        means = {name: value / len(parts) for name, value in sums.items()}
        valid = None if self.valid is None else self.ranks.agree(self._validate(self.valid), self.device)
        return Epoch(number, total / len(parts), valid, means)

    def _step(self, rows: Tensor, epoch: int, steps: int) -> tuple[float, dict[str, float]]:
        drop = torch.rand(len(self.spec.inputs), len(rows), generator=self.generator) < self.plan.modality_dropout
        batch = self.train.batch(self.ranks.mine(rows), epoch).to(self.device)
        batch = hide(batch, self.ranks.mine(drop))
        with self._precision():
            terms = objective(self.spec, self.model(batch.inputs), batch)
        shares = self.ranks.shares({name: count for name, (_, _, count) in terms.items()})
        parts = {name: mean * shares[name] for name, (_, mean, _) in terms.items()}
        loss = torch.stack([terms[name][0] * part for name, part in parts.items()]).sum()
        total, *means = self.ranks.add_up(torch.stack([loss, *parts.values()]).detach()).tolist()
        if not math.isfinite(total):
            raise PolymodalError(
                f"training: loss must be finite, got {total} in epoch {epoch}. Lower training.learning_rate."
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.ranks.sum_gradients(self.model)
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        rate = self.plan.learning_rate * schedule(self.step, steps, self.plan.warm_up)
        self.optimizer.step(rate)
        self._update_average()
        return total, dict(zip(terms, means, strict=True))

    @torch.no_grad()
    def _update_average(self) -> None:
        self.step += 1
        decay = min(self.plan.averaging, self.step / (self.step + 9))
        get_ema_multi_avg_fn(decay)(list(self.average.parameters()), list(self.model.parameters()), self.step)
        for mine, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)  # running statistics are averages already

    @torch.no_grad()
    def _validate(self, valid: Prepared) -> float:
        total = 0.0
        sums: dict[str, float] = dict.fromkeys(self.spec.outputs, 0.0)
        counts: dict[str, int] = dict.fromkeys(self.spec.outputs, 0)
        for rows in torch.arange(len(valid)).split(EVALUATION_BATCH):
            batch = valid.batch(rows).to(self.device)
            decoded = self.average(batch.inputs).decoded
            for n, task in self.spec.outputs.items():
                count = int(batch.targets[n].present.sum())
                sums[n] += task.loss(decoded[n], batch.targets[n]).item() * count
                counts[n] += count
        for n, task in self.spec.outputs.items():
            total += task.weight * sums[n] / max(1, counts[n])
        return total

    def _precision(self) -> torch.autocast:
        wanted = self.plan.precision
        on = wanted == "bfloat16" or (
            wanted == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)

    def _stalled(self) -> bool:
        if not self.plan.patience or self.valid is None or not self.history:
            return False
        return len(self.history) - 1 - best_epoch(self.history).number >= self.plan.patience

    def _save(self) -> None:
        if self.checkpoint is None or not self.ranks.first:
            return
        tensors: dict[str, Tensor] = {"random/order": self.generator.get_state()}
        pack("model", self.model.state_dict(), tensors)
        pack("average", self.average.state_dict(), tensors)
        pack("best", self.best, tensors)
        pack("optimizer", self.optimizer.tensors(), tensors)
        try:
            self.checkpoint.write(tensors, {"step": self.step, "history": [asdict(epoch) for epoch in self.history]})
        except OSError as error:
            place, self.checkpoint = self.checkpoint.path, None
            warnings.warn(f"{place}: cannot keep the state of the fit, which goes on without: {error}", stacklevel=2)

    def _resume(self) -> None:
        found = None if self.checkpoint is None else self.checkpoint.read()
        if found is None:
            return
        tensors, state = found
        self.step, self.history = state["step"], [Epoch(**epoch) for epoch in state["history"]]
        self.model.load_state_dict(unpack("model", tensors))
        self.average.load_state_dict(unpack("average", tensors))
        self.best = {name: t.to(self.device) for name, t in unpack("best", tensors).items()}
        self.optimizer.load(unpack("optimizer", tensors))
        self.generator.set_state(tensors["random/order"])
