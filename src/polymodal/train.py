"""The training loop: the only one."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from polymodal import balance
from polymodal.checkpoint import Checkpoint, pack, unpack
from polymodal.data.loader import Prepared
from polymodal.decoder.spoken import stage_of
from polymodal.devices import computes_in_half
from polymodal.errors import PolymodalError, SpecError
from polymodal.mixing import Mixing, hide
from polymodal.model import Model
from polymodal.nn.average import average_of, kept, take, update
from polymodal.nn.optimise import AdamW, decay_groups, schedule
from polymodal.objectives.gradients import Gradients
from polymodal.objectives.methods import objective
from polymodal.objectives.monitor import Epoch, best_epoch, check_score, monitored
from polymodal.objectives.terms import Losses, measure, terms
from polymodal.ranks import Ranks
from polymodal.settings import Trained

ESTIMATE_EPOCHS = 10
"""Epochs, at most, of the trainings by which gradient blending finds its weights."""

WINDOW = 40
"""Steps whose rows are sorted by length together, where that matters."""


class Trainer:
    """Minimise the objective of a spec with AdamW; keep the averaged weights that did best on validation.

    Randomness comes from one generator (order, hidden inputs, mixing), from torch's own, seeded anew in every epoch
    (dropout), and from the epoch's number (augmentation), so a run that was killed and resumed ends with the weights
    of one that was not, on any number of ranks.

    Attributes:
        blend: weights of the tasks' and the own heads' losses by the terms' names, where the balance is gradient
            blending. Estimated at the start, unless given.
    """

    def __init__(
        self,
        model: Model,
        train: Prepared,
        valid: Prepared | None,
        device: torch.device,
        checkpoint: Checkpoint | None = None,
        epochs: int | None = None,
        blend: Mapping[str, float] | None = None,
    ) -> None:
        self.spec, self.plan = model.spec, model.spec.training
        self.model, self.train, self.valid = model.to(device), train, valid
        self.device, self.checkpoint, self.ranks = device, checkpoint, Ranks.join(device)
        for trunk in (trunk for _, trunk in model.thawed.items()):
            trunk.size, trunk.in_half = self.plan.microbatch, computes_in_half(self.plan.precision, device)
        for head in model.decoders.values():
            head.size = self.plan.microbatch
            head.in_half(computes_in_half(self.plan.precision, device))
        self.parts = model.learned()
        self.average = average_of(model)
        self.best: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(self.spec.seed)
        self.optimizer = AdamW(decay_groups(model, self.plan.weight_decay, model.factors()))
        self.objective, self.gradients = objective(self.spec, self.generator), Gradients(model, self.ranks)
        self.watched, self.blend = monitored(self.spec), dict(blend or {})
        self.history: list[Epoch] = []
        self.step, self.epochs = 0, self.plan.epochs if epochs is None else epochs

    def run(self, on_epoch: Callable[[Epoch], None] = lambda _: None) -> list[Epoch]:
        """Train until the last epoch or until validation stops improving; leave the best weights in the model.

        Raises:
            SpecError: no such score can be monitored; or gradient blending has no validation rows to estimate on.
        """
        self._resume()
        self._check_monitor()
        if self.plan.balance == "gradient_blending" and not self.blend:
            self.blend = blending(self.model, self.train, self.valid, self.device)
        while len(self.history) < self.epochs and not self._stalled():
            epoch = self._epoch(len(self.history))
            self.history.append(epoch)
            if self.valid is None or epoch is best_epoch(self.history, self.plan.monitor):
                self.best = {name: t.clone() for name, t in kept(self.average).items()}
            self._save()
            on_epoch(epoch)
        take(self.model, self.best)
        for head in self.model.decoders.values():
            head.in_half(False)
        self._let_learn(None)
        self.model.eval()
        return self.history

    def _epoch(self, number: int) -> Epoch:
        self.model.train()
        self._let_learn(stage_of(self.plan.stages, number))
        self.objective.start()
        torch.manual_seed(((self.spec.seed * 10_007 + number) * 1_009 + self.ranks.rank) % 2**63)
        order = torch.randperm(len(self.train), generator=self.generator)
        parts = self._parts(order)
        total, sums = 0.0, dict[str, float]()
        norms = torch.zeros(len(self.model.names), device=self.device)
        for rows in parts:
            loss, means = self._step(rows, number, len(parts) * self.plan.epochs, norms)
            total += loss
            for name, value in means.items():
                sums[name] = sums.get(name, 0.0) + value
        means = {name: value / len(parts) for name, value in sums.items()}
        gradients = dict(zip(self.model.names, (norms / len(parts)).tolist(), strict=True))
        loss, terms, score = (None, {}, None) if self.valid is None else self._validate(self.valid)
        loss, score = self.ranks.agree(loss, self.device), self.ranks.agree(score, self.device)
        return Epoch(number, total / len(parts), loss, means, terms, gradients, score)

    def _let_learn(self, parts: Collection[Trained] | None) -> None:
        """Give gradients to some parts of the model only, to all if None."""
        for part, parameters in self.parts.items() if self.plan.stages else ():
            for parameter in parameters:
                parameter.requires_grad_(parts is None or part in parts)

    def _parts(self, order: Tensor) -> list[Tensor]:
        """Rows of each step; where a backbone is trained, those of a step are of like length."""
        size, lengths = self.plan.batch_size, self.train.lengths if self.model.thawed.names else None
        if lengths is None:
            return self.ranks.batches(order, size)
        windows = (some[lengths[some].argsort(stable=True)] for some in order.split(WINDOW * size))
        parts = self.ranks.batches(torch.cat(list(windows)), size)
        return [parts[i] for i in torch.randperm(len(parts), generator=self.generator).tolist()]

    def _step(self, rows: Tensor, epoch: int, steps: int, norms: Tensor) -> tuple[float, dict[str, float]]:
        drop = torch.rand(len(self.spec.inputs), len(rows), generator=self.generator) < self.plan.modality_dropout
        mixing = self._mixing(len(rows)) if self.plan.mixup else None
        batch = self.train.batch(self.ranks.mine(rows), epoch).to(self.device)
        batch = hide(batch, self.ranks.mine(drop))
        with self._precision():
            outputs = self.model(batch.inputs, mixing, batch.targets)
            found = terms(self.model, outputs, batch, self.blend, mixing)
        losses = Losses.of(found, tuple(self.spec.outputs), self.ranks)
        if not all(map(math.isfinite, losses.means.values())):
            raise PolymodalError(
                f"training: loss must be finite, got {sum(losses.means.values())} in epoch {epoch}. "
                f"Lower training.learning_rate."
            )
        self.optimizer.zero_grad()
        total = self._differentiate(losses)
        norms += self._norms()
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        factors = [1.0] * len(norms)
        if self.plan.balance == "ogm_ge":
            sure = self.ranks.add_up(balance.confidence(self.spec, outputs, batch))
            factors = balance.coefficients(sure, self.plan.modulation)
            balance.enhance(self.model, factors, self.generator)
        rate = self.plan.learning_rate * schedule(self.step, steps, self.plan.warm_up)
        with balance.slowed(self.model, factors):
            self.optimizer.step(rate)
        self.objective.step(rate)
        self._update_average()
        return total, losses.means

    def _differentiate(self, losses: Losses) -> float:
        """Set the gradients, summed over ranks; returns what is minimised."""
        names, weights = tuple(self.spec.outputs), self.objective.weigh(losses)
        factors: dict[str | None, float] = dict(zip(names, weights.tolist(), strict=True))
        beside = losses.add({None: 1.0})
        if self.objective.by_gradient:
            rows = self.gradients.of([*(losses.add({n: 1.0}) for n in names), beside])
            self.gradients.give(self.objective.combine(rows[:-1], self.gradients.shared, losses) + rows[-1])
        elif self.plan.balance == "mmpareto":
            rows = self.gradients.of([losses.add(factors, own=False), losses.add(factors, own=True), beside])
            gradient = rows.sum(0)
            for part in self.gradients.encoders.values():
                gradient[part] = balance.pareto(rows[0, part], rows[1, part]) + rows[2, part]
            self.gradients.give(gradient)
        else:
            whole = losses.add({**factors, None: 1.0})
            assert whole is not None
            if whole.requires_grad:  # perhaps no row of this step has a target of what learns in this stage
                whole.backward()
            self.ranks.sum_gradients(self.model)
        return float(weights @ losses.tasks) + losses.beside + self.objective.penalty

    def _norms(self) -> Tensor:
        """L2 norm of the gradient of each input's encoder. (M,)."""
        encoders = (self.model.encoders[name].parameters() for name in self.model.names)
        found = [[p.grad for p in encoder if p.grad is not None] for encoder in encoders]
        return torch.stack([nn.utils.get_total_norm(grads).to(self.device) for grads in found])

    def _mixing(self, count: int) -> Mixing:
        """Rows to mix in a step of ``count`` rows: this rank's part, all with one share, in a drawn order."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=self.generator)))
        share, order = rng.beta(self.plan.mixup, self.plan.mixup), torch.from_numpy(rng.random(count))
        partner = self.ranks.mine(order).argsort().to(self.device)
        return Mixing(partner, torch.full((len(partner),), max(share, 1 - share), device=self.device))

    def _update_average(self) -> None:
        self.step += 1
        update(self.average, self.model, min(self.plan.averaging, self.step / (self.step + 9)), self.step)

    def _validate(self, valid: Prepared) -> tuple[float, dict[str, float], float | None]:
        """Weighted sum of the tasks' losses, each loss by itself, and the monitored score, of the averaged model."""
        task, name = self.watched or (None, "")
        means, scores = measure(self.average, valid, self.device, task)
        return sum(part.weight * means[n] for n, part in self.spec.outputs.items()), means, scores.get(name)

    def _check_monitor(self) -> None:
        if self.watched is not None and self.valid is not None and not self.history:
            check_score(self.spec, measure(self.average, self.valid, self.device, self.watched[0])[1])

    def _precision(self) -> torch.autocast:
        on = self.device.type != "cpu" or self.plan.precision != "auto"
        on = on and computes_in_half(self.plan.precision, self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)

    def _stalled(self) -> bool:
        if not self.plan.patience or self.valid is None or not self.history:
            return False
        first = self.epochs - self.plan.stages[-1].epochs if self.plan.stages else 0
        best = max(best_epoch(self.history, self.plan.monitor).number, first)
        return len(self.history) - 1 - best >= self.plan.patience

    def _save(self) -> None:
        if self.checkpoint is None or not self.ranks.first:
            return
        tensors: dict[str, Tensor] = {"random/order": self.generator.get_state()}
        pack("model", kept(self.model), tensors)
        pack("average", kept(self.average), tensors)
        pack("best", self.best, tensors)
        pack("optimizer", self.optimizer.tensors(), tensors)
        pack("objective", self.objective.tensors(), tensors)
        try:
            history = [asdict(epoch) for epoch in self.history]
            self.checkpoint.write(tensors, {"step": self.step, "history": history, "blend": self.blend})
        except OSError as error:
            place, self.checkpoint = self.checkpoint.path, None
            warnings.warn(f"{place}: cannot keep the state of the fit, which goes on without: {error}", stacklevel=2)

    def _resume(self) -> None:
        found = None if self.checkpoint is None else self.checkpoint.read()
        if found is None:
            return
        tensors, state = found
        self.step, self.history = state["step"], [Epoch(**epoch) for epoch in state["history"]]
        self.blend = state["blend"]
        take(self.model, unpack("model", tensors))
        take(self.average, unpack("average", tensors))
        self.best = {name: t.to(self.device) for name, t in unpack("best", tensors).items()}
        self.optimizer.load(unpack("optimizer", tensors))
        self.objective.load(unpack("objective", tensors))
        self.generator.set_state(tensors["random/order"])


def blending(model: Model, train: Prepared, valid: Prepared | None, device: torch.device) -> dict[str, float]:
    """Weights of the tasks' and the own heads' losses for gradient blending, by the terms' names. The model stays.

    Offline G-Blend: each branch is trained apart, from the weights that the model has now, and judged by how its
    losses on training and validation rows have changed. Own heads share no parameter with one another, so one training
    serves them all, and a second one the fused answers. Several tasks are trained together. The trainings have at
    most `ESTIMATE_EPOCHS` epochs where the paper's have as many as the fit, and no clipping, which would tie branches.

    Raises:
        SpecError: there are no validation rows.

    Source: Wang et al. 2020 (arXiv:1905.12681), algorithms 1 and 2.
    """
    if valid is None:
        raise SpecError(
            "training.balance: gradient_blending must have validation rows to estimate its weights, got none. "
            "Give some, or choose another balance."
        )
    plan = model.spec.training.model_copy(
        update={"epochs": min(ESTIMATE_EPOCHS, model.spec.training.epochs), "clip": 0.0, "objective": "joint",
                "monitor": "loss", "mixup": 0.0, "alignment": None}
    )  # fmt: skip

    def losses(judged: Model) -> dict[str, tuple[float, float]]:
        sides = [measure(judged.eval(), rows, device)[0] for rows in (train, valid)]
        return {label: (sides[0][label], sides[1][label]) for label in sides[0]}

    before, after = losses(copy.deepcopy(model).to(device)), dict[str, tuple[float, float]]()
    for fused in (True, False):
        branch = copy.deepcopy(model)
        branch.spec = model.spec.model_copy(update={"training": plan})
        chosen = {label: float((label in model.spec.outputs) == fused) for label in before}
        Trainer(branch, train, None, device, blend=chosen).run()
        after |= {label: pair for label, pair in losses(branch).items() if chosen[label]}
    found = {}
    for n in model.spec.outputs:
        labels = [n, *(f"{n} from {name}" for name in model.single[n])]
        found |= balance.blend({x: before[x] for x in labels}, {x: after[x] for x in labels})
    ranks = Ranks.current()
    return {label: ranks.agree(weight, device) or 0.0 for label, weight in found.items()}
