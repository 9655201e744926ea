"""improve: train one input further, re-fit the model around it, and keep that only if it proves its worth."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from polymodal.bundle import Bundle
from polymodal.data.gather import Progress, silent
from polymodal.data.table import Table
from polymodal.errors import SpecError, suggest
from polymodal.evaluate import evaluate
from polymodal.improving.alone import RATES, Plan
from polymodal.improving.compare import Judged, Verdict, judge
from polymodal.improving.ground import Ground
from polymodal.improving.make import Made, Maker, divided
from polymodal.nn.adapt import METHODS, RANK, Method
from polymodal.ranks import Ranks
from polymodal.sides import Tables
from polymodal.task import VectorTask

EPOCHS, BATCH, PATIENCE = 8, 16, 2
LABELS: Mapping[Method | None, str] = {"lora": "LoRA", "last": "last blocks", "all": "all layers"}


@dataclass(frozen=True, slots=True)
class Improvement:
    """What came of an attempt to improve one input.

    Attributes:
        bundle: the new one if it was accepted, else the very one that was given.
        accepted: whether validation says that the model as a whole is better.
        reason: why, in words, with the numbers.
        content: all of it as JSON: ``input``, ``method``, ``accepted``, ``reason``, ``task`` and ``metric`` (the first
            task's headline score), ``before``, ``after`` and ``difference`` of it, the same by task in ``tasks``,
            ``rows`` and ``folds`` of the comparison, ``history`` of the input by itself, ``frozen``, ``changed``,
            ``teacher``, ``refitted``, ``settings``, ``cpu_seconds``.
    """

    bundle: Bundle
    accepted: bool
    reason: str
    content: dict[str, Any]


def improve(  # noqa: PLR0913  (each argument stands for itself)
    bundle: Bundle,
    table: Any,
    *,
    input: str | None = None,
    method: Method | None = None,
    valid: Any = None,
    diagnosis: Mapping[str, Any] | None = None,
    rank: int = RANK,
    epochs: int | None = None,
    batch_size: int = BATCH,
    learning_rate: float | None = None,
    folds: int = 1,
    seed: int | None = None,
    strict: bool = False,
    progress: Progress = silent,
) -> Improvement:
    """Train one input further, and keep the result only if the whole model proves better on validation rows.

    The input's backbone is thawed and trained with its encoder and its own heads, on augmented cells; where the linear
    model on its features answers better than its own head, it is the teacher. Then its encoder, the fusion and the
    tasks' heads are trained on the new features. Other inputs' backbones, encoders and own heads stay bit for bit.

    A bundle whose last training included the validation rows cannot be compared on them: it knows their answers.
    "Before" is then the same recipe trained on the training rows only, which is what the fit compared on validation
    too, and "after" is made from that. If it wins, the same steps, with everything chosen, are done once more from the
    bundle itself on all rows. A bundle that has not seen the validation rows is itself "before". A backbone that an
    earlier improvement trained on all rows knows the validation rows on both sides of a later comparison, whose
    scores are then too good.

    Training the fusion further may help by itself. A control is therefore trained in the same way with the input as it
    was, and the new model must be better than that too.

    Args:
        bundle: to improve; never changed.
        table: that it was fitted to. It is divided like then.
        input: name of the input; the weakest by the ``diagnosis`` when not given.
        method: what of the backbone is trained: ``lora``, ``last`` or ``all`` (see `Thawed`); ``lora`` when not given.
            An input without a backbone learns its encoder anew, and takes no method.
        valid: table to validate on instead of a part of ``table``.
        diagnosis: content of a diagnosis, that names the weakest input; one of "before" on the validation rows when
            neither it nor an input is given.
        rank: of LoRA's changes.
        epochs: at most this many passes over the input's cells; 8 with a backbone, else as many as the spec has.
        batch_size: rows per step.
        learning_rate: peak rate of the backbone's weights; by the method when not given.
        folds: 1 compares on the validation rows. More divide the training rows into ``folds - 1`` parts, train both
            models anew without each part, and compare on all of these rows together: surer with few validation rows,
            and ``folds`` times as expensive. Groups by which the rows were split stay whole.
        seed: of the input's training and of the bootstrap; the spec's when not given.
        strict: raise on a broken cell instead of counting it as absent.
        progress: told what is being done, how much of it is done and how much there is.

    Raises:
        SpecError: there is no such input, or a setting is wrong or has no effect.
        DataError: the table cannot be used, or has no labelled rows to validate on.
    """
    clock = time.process_time()
    if folds > 1 and bundle.spec.split.by == "time":
        raise SpecError(
            f"folds must be 1 with split by time, whose parts would learn from later rows, got {folds}. Leave it out."
        )
    if Ranks.current().world > 1:
        raise SpecError("improve must run in one process, got several ranks. Start it without torchrun.")
    _check(bundle, input)
    _check_folds(bundle, folds)
    tables = Tables(Table.read(table), {} if valid is None else {"valid": Table.read(valid)})
    if input is None:  # numbers are refused before anything is trained
        _plan(bundle, next(iter(bundle.spec.inputs)), None, RANK, epochs, batch_size, learning_rate, seed)
    plan = None if input is None else _plan(bundle, input, method, rank, epochs, batch_size, learning_rate, seed)
    ground = Ground(bundle, tables, strict, progress)
    name = input or (ground.diagnosis() if diagnosis is None else diagnosis).get("weakest")
    if name is None:
        reason = "The diagnosis finds no weak input, so nothing was changed. Name an input to train it all the same."
        return Improvement(bundle, False, reason, {"input": None, "accepted": False, "reason": reason})
    _check(bundle, name)
    plan = plan or _plan(bundle, name, method, rank, epochs, batch_size, learning_rate, seed)
    found = _Attempt(ground, name, plan).run(folds)
    found.content["cpu_seconds"] = time.process_time() - clock
    return found


def _check(bundle: Bundle, name: str | None) -> None:
    """Refuse a name that is no input's, or of one that learns nothing by itself.

    Raises:
        SpecError: it is not.
    """
    known, tasks = list(bundle.spec.inputs), bundle.spec.outputs.values()
    if name is not None and name not in known:
        raise SpecError(f"input must be one of {known}, got {name!r}.{suggest(name, known)}")
    if name is not None and not any(task.asks(name) for task in tasks):
        raise SpecError(
            f"input must be one that some output can be answered from alone, got {name!r}, which has nothing to learn "
            "by itself. Name another, or fine-tune it with the model (training.finetune)."
        )


def _check_folds(bundle: Bundle, folds: int) -> None:
    """Refuse folds whose answers cannot be judged together.

    Raises:
        SpecError: they cannot.
    """
    kinds = [task.kind for task in bundle.spec.outputs.values() if not isinstance(task, VectorTask)]
    if folds > 1 and kinds:
        raise SpecError(
            f"folds must be 1 with {kinds[0]}, since answers of several models do not make one ranking or one chain, "
            f"got {folds}. Leave it out."
        )


def _plan(
    bundle: Bundle,
    name: str,
    method: Method | None,
    rank: int,
    epochs: int | None,
    batch_size: int,
    learning_rate: float | None,
    seed: int | None,
) -> Plan:
    """Sort out the settings.

    Raises:
        SpecError: one is out of bounds or has no effect.
    """
    training, seed = bundle.spec.training, bundle.spec.seed if seed is None else seed
    pretrained = bundle.embedder.backbone(name) is not None
    if method is not None and method not in METHODS:
        raise SpecError(f"method must be one of {list(METHODS)}, got {method!r}.{suggest(method, METHODS)}")
    if method is not None and not pretrained:
        raise SpecError(f"method has no effect on {name!r}, which has no backbone, got {method!r}. Leave it out.")
    method = (method or "lora") if pretrained else None
    if rank != RANK and method != "lora":
        raise SpecError(f"rank has no effect with method {method}, got {rank}. Leave it out.")
    rate = (training.learning_rate if method is None else RATES[method]) if learning_rate is None else learning_rate
    epochs = (EPOCHS if pretrained else training.epochs) if epochs is None else epochs
    least = {"rank": 1, "epochs": 1, "batch_size": 1, "seed": 0}
    for (label, low), value in zip(least.items(), (rank, epochs, batch_size, seed), strict=True):
        if value < low:
            raise SpecError(f"{label} must be {low} or more, got {value}.")
    if not rate > 0:
        raise SpecError(f"learning_rate must be above 0, got {rate}.")
    return Plan(method, rank, epochs, batch_size, rate, PATIENCE if pretrained else max(1, training.patience), seed)


class _Attempt:
    """One attempt at improving one input of one bundle."""

    def __init__(self, ground: Ground, name: str, plan: Plan) -> None:
        self.ground, self.bundle, self.name, self.plan = ground, ground.bundle, name, plan
        self.maker = Maker(self.bundle, name, plan, ground.tables, ground.progress)

    def run(self, folds: int) -> Improvement:
        """Make the new model on the training rows, compare, and deliver the better one."""
        seen, made = list[tuple[Judged, Judged, Judged]](), list[Made]()
        parts = divided(self.ground.train, self.ground.valid, folds, self.plan.seed, self.ground.groups())
        for number, (train, valid) in enumerate(parts):
            before = self.ground.learned(train, valid) if number else self.ground.before()
            made.append(self.maker.make(before, train, valid))
            sides = (before, valid), (self.maker.control(before, train, valid), valid)
            sides = (*sides, (made[-1].model, made[-1].sides["valid"]))
            old, control, new = (Judged.of(*side, self.bundle.device) for side in sides)
            seen.append((old, control, new))
            if number:
                self.maker.forget(made[-1])
        old, control, new = (Judged.join(side) for side in zip(*seen, strict=True))
        verdict = judge(old, new, control, self.name, self.plan.seed)
        content = self._content(verdict, made[0], len(old.whole), folds)
        bundle = self._deliver(made[0], content) if verdict.accepted else self.bundle
        if bundle is self.bundle:
            self.maker.forget(made[0])
        return Improvement(bundle, verdict.accepted, verdict.reason, content)

    def _deliver(self, first: Made, content: dict[str, Any]) -> Bundle:
        """The new bundle: made once more from the old one, with all that was chosen, if that has seen more rows."""
        old, final = self.bundle, first
        valid = evaluate(first.model, first.sides["valid"], old.device, old.spec.seed).to_dict()
        if self.ground.seen:
            self.maker.forget(first)
            train = self.ground.train
            if self.ground.refitted and train.inputs is self.ground.valid.inputs:
                train = replace(train, rows=torch.cat([train.rows, self.ground.valid.rows]).sort().values)
            final = self.maker.make(old.model, train, None, first)
        model, adapter = final.model, final.taught.adapter
        model.spec = old.spec.model_copy(update={"outputs": first.chosen.model.spec.outputs})
        adapters = dict(old.adapters)
        if adapter is not None:
            adapters[self.name] = (*adapters.get(self.name, ()), adapter)
        report = copy.deepcopy({k: v for k, v in old.report.items() if k != "test"}) | {"valid": valid}
        if "test" in self.ground.parts:
            test = self.maker.embedded(final.embedder, {"test": self.ground.parts["test"]})["test"]
            report["test"] = evaluate(model, test, old.device, old.spec.seed).to_dict()
        report["improvements"] = [*report.get("improvements", []), content]
        return Bundle(model.spec, model, report, old.device, final.embedder, list(old.warnings), adapters)

    def _content(self, verdict: Verdict, first: Made, rows: int, folds: int) -> dict[str, Any]:
        task, taught, plan = next(iter(verdict.tasks)), first.taught, self.plan
        changed = [] if taught.adapter is None else [f"{self.name} backbone ({LABELS[plan.method]})"]
        changed += [f"{self.name} encoder", f"{self.name} heads", "fusion", "task heads", "linear model of all inputs"]
        return {
            "input": self.name, "method": plan.method, "accepted": verdict.accepted, "reason": verdict.reason,
            "task": task, **verdict.tasks[task], "tasks": verdict.tasks, "rows": rows, "folds": folds,
            "history": taught.history, "own_loss": {"before": taught.start, "after": taught.best},
            "frozen": [name for name in self.bundle.spec.inputs if name != self.name], "changed": changed,
            "teacher": "linear" if first.teachers else None, "refitted": verdict.accepted and self.ground.refitted,
            "parameters": sum(t.numel() for t in taught.adapter.tensors.values()) if taught.adapter else 0,
            "settings": asdict(plan),
        }  # fmt: skip
