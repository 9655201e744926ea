"""learn: choose everything on validation rows, then train once more on all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from polymodal.baselines import adapt, fit_baselines
from polymodal.checkpoint import Checkpoint
from polymodal.data.embedding import Embedder
from polymodal.data.gather import Progress
from polymodal.data.loader import Prepared, embedded
from polymodal.errors import SpecError
from polymodal.evaluate import Report, evaluate
from polymodal.fusions.vote import VoteFusion
from polymodal.model import Model
from polymodal.nn.adapt import RANK, Adapter
from polymodal.nn.trunk import Trunk
from polymodal.ranks import Ranks
from polymodal.settings import Finetune
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
        sides: the rows to test on, if any, as ``test``, with the features that the model takes.
        embedder: with the fine-tuned backbones, where there are any.
        adapters: input name -> what was changed in its backbone.
    """

    model: Model
    history: list[Epoch]
    valid: Report | None
    refitted: bool
    sides: Mapping[str, Prepared] = field(default_factory=dict)
    embedder: Embedder | None = None
    adapters: Mapping[str, Adapter] = field(default_factory=dict)


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
        embedder: of the backbones that the spec fine-tunes, as they were pretrained; None leaves all as they are.
    """

    spec: Spec
    device: torch.device
    resume: Path | None
    fingerprint: str
    progress: Progress
    on_epoch: Callable[[str, Epoch], None] | None = None
    embedder: Embedder | None = None

    def learn(self, train: Prepared, valid: Prepared | None, test: Prepared | None = None) -> Learned:
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
        given = {"train": train, "valid": valid, "test": test}
        sides = {side: part for side, part in given.items() if part is not None}
        trainer, tuned = self._train("train", sides, self.spec.training.epochs)
        model, history, sides = trainer.model, trainer.history, tuned.sides
        penalties = fit_baselines(model, sides["train"], sides.get("valid"), self.device, progress=self.progress)
        if valid is None:
            return Learned(model, history, None, False, sides, tuned.embedder, tuned.adapters)
        tune(model, sides["valid"], self.device)
        report = evaluate(model, sides["valid"], self.device, self.spec.seed)
        if train.inputs is not valid.inputs or len(train) + len(valid) > self.spec.training.refit:
            return Learned(model, history, report, False, sides, tuned.embedder, tuned.adapters)
        tuned.forget()
        both = replace(train, rows=torch.cat([train.rows, valid.rows]).sort().values)
        best = best_epoch(history, monitor)
        rest = {side: part for side, part in given.items() if side == "test" and part is not None}
        again, tuned = self._train("refit", {"train": both, **rest}, best.number + 1, trainer.blend)
        final, sides = again.model, tuned.sides
        fit_baselines(final, sides["train"], None, self.device, penalties, self.progress)
        _carry_over(model, final)
        return Learned(final, history, report, True, sides, tuned.embedder, tuned.adapters)

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
        self, stage: str, sides: Mapping[str, Prepared], epochs: int, blend: Mapping[str, float] | None = None
    ) -> tuple[Trainer, Tuned]:
        def told(epoch: Epoch) -> None:
            self.progress(stage, epoch.number + 1, epochs)
            if self.on_epoch is not None:
                self.on_epoch(stage, epoch)

        model = started(self.spec, self.embedder, sides["train"], self.device)
        trainer = Trainer(
            model, sides["train"], sides.get("valid"), self.device, self._checkpoint(stage), epochs, blend
        )  # fmt: skip
        trainer.run(told)
        return trainer, Tuned.of(model, self.embedder, sides, self.progress)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a training made of the backbones that it fine-tuned; nothing where it left them as they were.

    Attributes:
        sides: the rows, with the features that the model takes now.
        embedder: with the changed backbones.
        adapters: input name -> what was changed.
    """

    sides: dict[str, Prepared]
    embedder: Embedder | None
    adapters: Mapping[str, Adapter]

    @classmethod
    def of(cls, model: Model, embedder: Embedder | None, sides: Mapping[str, Prepared], progress: Progress) -> Tuned:
        """Take the backbones out of a trained model and embed the rows with them."""
        adapters = model.freeze()
        if embedder is None or not adapters:
            return cls(dict(sides), embedder, adapters)
        for name, adapter in adapters.items():
            base = embedder.backbone(name)
            assert base is not None
            embedder = embedder.with_adapted(name, adapter.apply(base))
        return cls(embedded(sides, embedder, progress), embedder, adapters)

    def forget(self) -> None:
        """Remove from the disk what nobody will use of the changed backbones."""
        ranks = Ranks.current()
        ranks.wait()
        if ranks.first and self.embedder is not None:
            for name in self.adapters:
                self.embedder.forget(name)


def started(spec: Spec, embedder: Embedder | None, train: Prepared, device: torch.device) -> Model:
    """A model to be trained on some rows, with the backbones in it that its spec fine-tunes, as they were pretrained.

    Args:
        spec: fitted.
        embedder: of the backbones; None leaves all as they are.
        train: rows that summaries are standardised like.
        device: to train on.
    """
    torch.manual_seed(spec.seed)
    model = Model(spec)
    if embedder is not None:
        model.thaw({name: _trunk(name, plan, embedder, spec.seed) for name, plan in spec.finetuned.items()})
    adapt(model, train, device)
    return model


def _trunk(name: str, plan: Finetune, embedder: Embedder, seed: int) -> Trunk:
    base = embedder.backbone(name)
    assert base is not None
    assert plan.method != "none"
    return Trunk(base, plan.method, plan.rank or RANK, seed, plan.dropout)


def _carry_over(model: Model, final: Model) -> None:
    """Keep what was chosen on validation rows."""
    final.spec = model.spec
    final.share.copy_(model.share)
    if isinstance(final.fusion, VoteFusion) and isinstance(model.fusion, VoteFusion):
        final.fusion.log_weights.copy_(model.fusion.log_weights)
    final.certainty.copy_(model.certainty)
