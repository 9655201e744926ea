"""learn: choose everything on validation rows, then train once more on all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from polymodal.baselines import adapt, fit_baselines
from polymodal.checkpoint import Checkpoint
from polymodal.data.gather import Progress
from polymodal.data.loader import Prepared
from polymodal.errors import SpecError
from polymodal.evaluate import Report, evaluate
from polymodal.fusions.vote import VoteFusion
from polymodal.model import Model
from polymodal.spec import Spec
from polymodal.train import Epoch, Trainer, best_epoch
from polymodal.tune import tune


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained model and how it came about.

    Attributes:
        model: in evaluation mode, its spec calibrated.
        history: of the training that was watched on validation rows.
        valid: scores on the validation rows before the model learned from them; None without such rows.
        refitted: whether it learned from them afterwards.
    """

    model: Model
    history: list[Epoch]
    valid: Report | None
    refitted: bool


@dataclass(frozen=True, slots=True)
class Learner:
    """Trains models of one spec on one device.

    Attributes:
        spec: fitted.
        device: to train on.
        resume: file of the state of an unfinished fit, or None.
        fingerprint: of the fit that the state must belong to.
        progress: told how far it is.
        on_epoch: told each epoch that is over, and the stage ("train" or "refit") that it belongs to.
    """

    spec: Spec
    device: torch.device
    resume: Path | None
    fingerprint: str
    progress: Progress
    on_epoch: Callable[[str, Epoch], None] | None = None

    def learn(self, train: Prepared, valid: Prepared | None) -> Learned:
        """Train on some rows while watching others; then on both, if they are parts of one small table.

        The second training keeps what was chosen on the validation rows: epochs, penalties, shares, certainty, blend.

        Raises:
            SpecError: a score is to be monitored, or gradients are to be blended, and there are no validation rows.
        """
        monitor = self.spec.training.monitor
        if valid is None and monitor != "loss":
            raise SpecError(
                f"training.monitor must have validation rows, got {monitor!r} without any. Give some, or leave it out."
            )
        trainer = self._train("train", train, valid, self.spec.training.epochs)
        model, history = trainer.model, trainer.history
        penalties = fit_baselines(model, train, valid, self.device, progress=self.progress)
        if valid is None:
            return Learned(model, history, None, False)
        tune(model, valid, self.device)
        report = evaluate(model, valid, self.device, self.spec.seed)
        if train.inputs is not valid.inputs or len(train) + len(valid) > self.spec.training.refit:
            return Learned(model, history, report, False)
        both = replace(train, rows=torch.cat([train.rows, valid.rows]).sort().values)
        best = best_epoch(history, monitor)
        final = self._train("refit", both, None, best.number + 1, trainer.blend).model
        fit_baselines(final, both, None, self.device, penalties, self.progress)
        _carry_over(model, final)
        return Learned(final, history, report, True)

    def clear(self) -> None:
        """Forget the state of the fit, once all of it is done."""
        for stage in ("train", "refit"):
            if (checkpoint := self._checkpoint(stage)) is not None:
                checkpoint.clear()

    def _checkpoint(self, stage: str) -> Checkpoint | None:
        if self.resume is None:
            return None
        path = self.resume if stage == "train" else self.resume.with_stem(f"{self.resume.stem}-{stage}")
        return Checkpoint(path, f"{self.fingerprint}-{stage}")

    def _train(
        self,
        stage: str,
        train: Prepared,
        valid: Prepared | None,
        epochs: int,
        blend: Mapping[str, float] | None = None,
    ) -> Trainer:
        torch.manual_seed(self.spec.seed)
        model = Model(self.spec)
        adapt(model, train, self.device)
        trainer = Trainer(model, train, valid, self.device, self._checkpoint(stage), epochs, blend)

        def told(epoch: Epoch) -> None:
            self.progress(stage, epoch.number + 1, epochs)
            if self.on_epoch is not None:
                self.on_epoch(stage, epoch)

        trainer.run(told)
        return trainer


def _carry_over(model: Model, final: Model) -> None:
    """Keep what was chosen on validation rows."""
    final.spec = model.spec
    final.share.copy_(model.share)
    if isinstance(final.fusion, VoteFusion) and isinstance(model.fusion, VoteFusion):
        final.fusion.log_weights.copy_(model.fusion.log_weights)
    final.certainty.copy_(model.certainty)
