"""Spec: three lists of parts (inputs, a fusion, outputs) and how to train them, before and after fitting."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from polymodal import fusions, modalities  # noqa: F401  (fills each kind's table, as tasks does)
from polymodal.decoder.spoken import decoder_faults, speaks, unread
from polymodal.errors import SpecError, suggest
from polymodal.fusions import Concat
from polymodal.part import Fusion, Modality, is_pretrained, summary_width
from polymodal.settings import LOSS_METHODS, PACE, Alignment, Data, Finetune, Settings, Split, Training
from polymodal.task import Task, VectorTask, fitted
from polymodal.tasks import Classify, Regress

VERSION = 1
"""Version of the spec's format. A bundle of a newer version is refused."""


class Spec(Settings):
    """inputs -> fusion -> outputs, and how to train them.

    Fitting returns a new spec that also holds everything learned outside the weights (vocabularies,
    scales, classes, temperatures). A fitted spec and its weights are the whole model.

    Attributes:
        inputs: input name -> modality.
        fusion: how the inputs become one vector per sample.
        outputs: task name -> task.
        dim: D, the width of the model.
        training: how to learn.
        split: how to divide the rows of one table.
        data: where the tables lie, for fits from a file.
        seed: of every random choice.
        version: of this format.
    """

    inputs: dict[str, Annotated[SerializeAsAny[Modality], BeforeValidator(Modality.parse)]] = Field(min_length=1)
    fusion: Annotated[SerializeAsAny[Fusion], BeforeValidator(Fusion.parse)] = Concat()
    outputs: dict[str, Annotated[SerializeAsAny[Task], BeforeValidator(Task.parse)]] = Field(min_length=1)
    dim: int = Field(default=64, ge=4)
    training: Training = Field(default=Training(), validate_default=True)
    split: Split = Split()
    data: Data | None = None
    seed: int = Field(default=0, ge=0)
    version: int = Field(default=VERSION, ge=1)

    @field_validator("outputs")
    @classmethod
    def _within(cls, outputs: dict[str, Task], info: ValidationInfo) -> dict[str, Task]:
        """Tell the tasks what inputs there are."""
        inputs, found, faults = info.data.get("inputs"), dict[str, Task](), list[str]()
        if inputs is None:
            return outputs
        for name, task in outputs.items():
            try:
                found[name] = task.within(inputs, len(outputs) == 1)
            except ValueError as error:
                faults.append(f"{name}: {error}")
        faults += [] if faults else unread(found, inputs)
        if faults:
            raise ValueError("\n".join(faults))
        return found

    @field_validator("training")
    @classmethod
    def _paced(cls, training: Training, info: ValidationInfo) -> Training:
        """Set the pace of fine-tuning where a backbone is fine-tuned and nobody set another."""
        inputs, tasks = info.data.get("inputs"), info.data.get("outputs")
        if inputs is None or tasks is None:
            return training
        about, chosen = {task.about for task in tasks.values()} - {None}, training.finetune
        tuned = about if chosen is None else {name for name, plan in chosen.items() if plan.method != "none"}
        unset = {name: value for name, value in PACE.items() if name not in training.model_fields_set}
        pretrained = any(name in inputs and is_pretrained(inputs[name]) for name in tuned)
        return training.model_copy(update=unset) if pretrained or any(map(speaks, tasks.values())) else training

    @model_validator(mode="after")
    def _columns_and_version(self) -> Self:
        if self.version > VERSION:
            raise ValueError(f"version must be at most {VERSION}, got {self.version}. Update polymodal.")
        answers = {c: name for name, task in self.outputs.items() if task.foretells for c in task.columns(name)}
        faults = [
            f"inputs.{name}: column {column!r} is what outputs.{answers[column]} predicts. Leave it out."
            for name, modality in self.inputs.items()
            for column in modality.columns(name)
            if column in answers
        ]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @model_validator(mode="after")
    def _training(self) -> Self:
        """Reject settings of the training that these inputs, this fusion and these outputs make void."""
        plan, faults = self.training, list[str]()
        alone = any(task.asks(name) for task in self.outputs.values() for name in self.inputs)
        if plan.objective != "joint" and len(self.outputs) < 2:
            faults.append(f"objective must be joint with one task, got {plan.objective}. Leave it out.")
        if plan.objective in LOSS_METHODS:
            faults += [
                f"objective {plan.objective} must have losses that are never negative, got outputs.{n} with "
                f"{task.objective}. Give it the objective squared, or choose another one here."
                for n, task in self.outputs.items()
                if isinstance(task, Regress) and task.objective in ("gaussian", "beta_nll")
            ]
        if plan.balance in ("gradient_blending", "ogm_ge", "mmpareto") and len(self.inputs) < 2:
            faults.append(f"balance {plan.balance} must have two inputs or more, got one. Leave it out.")
        if plan.balance in ("gradient_blending", "mmpareto") and not alone:
            faults.append(f"balance {plan.balance} must have an output that one input can answer. Leave it out.")
        if plan.balance == "ogm_ge" and not any(isinstance(task, Classify) for task in self.outputs.values()):
            faults.append("balance ogm_ge must have a classify output, got none. Choose another balance.")
        if plan.mixup and self.fusion.late:
            faults.append(f"mixup must have a fused vector, got fusion {self.fusion.kind}. Leave out one of them.")
        if plan.mixup and not any(isinstance(task, VectorTask) for task in self.outputs.values()):
            faults.append("mixup must have a task with one answer per row, got none. Leave it out.")
        faults += decoder_faults(plan, self.outputs, bool(self.finetuned))
        if plan.alignment is not None:
            faults += self._alignment(plan.alignment)
        faults += self._finetune()
        if faults:
            raise ValueError("\n".join(f"training.{fault}" for fault in faults))
        return self

    @model_validator(mode="after")
    def _fixed(self) -> Self:
        """Reject tasks that want features of inputs as they are, where these inputs do not give such."""
        fixed = {name for task in self.outputs.values() for name in task.fixed}
        widths = {x: summary_width(self.inputs[x]) for x in self.summarised if x in fixed} if fixed else {}
        seen = self.dim, widths, self.finetuned if fixed else {}
        if faults := [f"outputs.{n}: {x}" for n, task in self.outputs.items() for x in task.unfit(*seen)]:
            raise ValueError("\n".join(faults))
        return self

    def _alignment(self, alignment: Alignment) -> list[str]:
        if len(self.inputs) < 2:
            return ["alignment must have two inputs or more, got one. Leave it out."]
        if "alignment" in self.outputs:
            return ["alignment must be the only term of that name, got outputs.alignment. Rename the output."]
        unknown = [name for name in alignment.inputs if name not in self.inputs]
        return [
            f"alignment.inputs must name inputs among {list(self.inputs)}, got {name!r}.{suggest(name, self.inputs)}"
            for name in unknown
        ]

    def _finetune(self) -> list[str]:
        faults, known = [], list(self.inputs)
        for name in self.training.finetune or ():
            if name not in self.inputs:
                faults.append(f"finetune must name inputs among {known}, got {name!r}.{suggest(name, known)}")
            elif not is_pretrained(self.inputs[name]):
                faults.append(f"finetune must name inputs with a backbone, got {name!r}, which has none. Leave it out.")
        return faults

    @property
    def summarised(self) -> tuple[str, ...]:
        """Inputs that reach the model as their backbone's summary, since nothing asks for their tokens."""
        if self.fusion.deep:
            return ()
        asked = {*self.about, *(name for task in self.outputs.values() for name in task.reads)}
        return tuple(name for name, part in self.inputs.items() if name not in asked and part.backbone() is not None)

    @property
    def about(self) -> tuple[str, ...]:
        """Inputs whose tokens a task answers for."""
        named = {task.about for task in self.outputs.values()}
        return tuple(name for name in self.inputs if name in named)

    @property
    def finetuned(self) -> dict[str, Finetune]:
        """Inputs whose backbones are trained with the model, and how."""
        chosen = self.training.finetune
        if chosen is None:
            return {name: Finetune() for name in self.about if self.inputs[name].backbone() is not None}
        return {name: plan for name, plan in chosen.items() if plan.method != "none"}

    @classmethod
    def parse(cls, value: Spec | Mapping[str, Any] | str | Path) -> Spec:
        """Read a spec from a mapping or a YAML / JSON file.

        Raises:
            SpecError: every fault at once, one line each with its path.
        """
        if isinstance(value, Spec):
            return value
        if not isinstance(value, Mapping | str | Path):
            raise SpecError(f"spec must be a mapping or the path of a YAML or JSON file, got {type(value).__name__}.")
        mapping = value if isinstance(value, Mapping) else _load(Path(value))
        try:
            return cls.model_validate(dict(mapping))
        except ValidationError as error:
            raise SpecError("\n".join(_explain(fault, mapping) for fault in error.errors())) from None

    def fit(
        self,
        values: Callable[[str], Iterable[Any | None]],
        targets: Callable[[str], Sequence[Any | None]],
        progress: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """A new spec whose parts have learned from training rows what they need outside the weights.

        Args:
            values: input name -> its decoded training values, on demand.
            targets: task name -> its raw training targets.
            progress: told each part's name before it is fitted.
        """
        inputs, outputs = {}, {}
        for name, modality in self.inputs.items():
            progress(name)
            inputs[name] = modality.fit(values(name))
        for name, task in self.outputs.items():
            progress(name)
            outputs[name] = fitted(name, task, targets(name))
        return self.model_copy(update={"inputs": inputs, "outputs": outputs})

    def to_yaml(self) -> str:
        """YAML that `parse` reads back: parts by type and every setting that differs from its default."""
        mapping = self.model_dump(mode="json", exclude_defaults=True)
        for kind in ("inputs", "outputs"):
            parts = getattr(self, kind)
            mapping[kind] = {name: _short(part) for name, part in parts.items()}
        mapping["fusion"] = _short(self.fusion)
        if self.finetuned or any(map(speaks, self.outputs.values())):  # whose defaults are others
            mapping["training"] = mapping.get("training", {}) | {name: getattr(self.training, name) for name in PACE}
        order = [name for name in Spec.model_fields if name in mapping]
        return yaml.safe_dump({name: mapping[name] for name in order}, sort_keys=False, allow_unicode=True)


def _short(part: Modality | Fusion | Task) -> str | dict[str, Any]:
    settings = part.model_dump(mode="json", exclude_defaults=True, exclude={"type"})
    return {"type": part.kind, **settings} if settings else part.kind


def _load(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "something that is not text"
        raise SpecError(f"{path}: spec must be a readable YAML or JSON file, got {reason}.") from None
    try:
        mapping = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise SpecError(f"{path}: spec must be YAML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(mapping, Mapping):
        raise SpecError(f"{path}: spec must be a mapping with inputs and outputs, got {type(mapping).__name__}.")
    return mapping


def _explain(fault: Any, spec: Any) -> str:
    path = ".".join(str(step) for step in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        known = _settings(fault["loc"][:-1], spec)
        message = f"no such setting.{suggest(fault['loc'][-1], known)}"
        message += f" Known here: {', '.join(known)}." if known else ""
    elif fault["type"] != "value_error":
        message = f"{message}, got {fault['input']!r}."
    return f"{path}: {message}" if path else message


def _settings(loc: tuple[Any, ...], spec: Any) -> list[str]:
    """Names of the settings that a place in a spec may have; none where that place is not known."""
    model: Any = Spec
    kinds = {"inputs": Modality, "outputs": Task, "fusion": Fusion}
    if loc and loc[0] in kinds:
        size = 1 if loc[0] == "fusion" else 2
        for step in loc[:size]:
            spec = spec[step]
        name = spec if isinstance(spec, str) else spec.get("type")
        model, loc = kinds[loc[0]].known.get(name), loc[size:]
    for i, step in enumerate(loc):
        if model is None or step not in model.model_fields:
            named = model is not None and i and loc[i - 1] == "finetune"  # a step that is a name of the user's
            model = model if named else None
        else:
            model = _model_in(model.model_fields[step].annotation)
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field's type allows, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
