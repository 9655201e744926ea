"""The space of a search: which settings of a spec may change, and to what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from polymodal.errors import SpecError, suggest
from polymodal.part import Part
from polymodal.settings import Settings, Training
from polymodal.spec import Spec

FIXED = {
    "seed": "it is the search's own",
    "split": "trials on other rows cannot be compared",
    "data": "trials on other tables cannot be compared",
    "version": "it says how a spec is read",
    "training.monitor": "trials are compared by it; give a metric instead",
    "training.refit": "no trial trains once more on all rows",
}
"""Settings that no search may change, and why."""


class Range(Settings):
    """Numbers of a setting.

    Attributes:
        low: the least.
        high: the greatest.
        log: whether the logarithm is what is drawn evenly.
        step: distance between the numbers that are tried, from ``low`` on; any number when not given.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}.")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"log must have a low above 0 and no step, got low {self.low} and step {self.step}.")
        if self.step is not None:
            count = (self.high - self.low) / self.step if self.step > 0 else 0
            if count < 1 or abs(count - round(count)) > 1e-9 * count:
                raise ValueError(f"step must go into high - low without a rest, got {self.step}.")
        return self

    def holds(self, value: Any) -> bool:
        """Whether a number is one of these."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        count = (value - self.low) / self.step if self.step else 0.0
        return abs(count - round(count)) <= 1e-9 * max(1.0, count)


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting that may change.

    Attributes:
        path: of the setting, with dots.
        values: to choose from, by how they read; empty for numbers.
        range: of numbers, or None.
        whole: whether the setting takes whole numbers only.
        start: what stands for the spec as it is: a value's text or a number; None if it is not in the space.
    """

    path: str
    values: Mapping[str, Any]
    range: Range | None
    whole: bool
    start: str | int | float | None

    def setting(self, drawn: Any) -> Any:
        """What a spec takes, from a value's text or a number."""
        return drawn if self.range is not None else self.values[drawn]


def change(spec: Spec, settings: Mapping[str, Any]) -> Spec:
    """A spec with other settings by their path, whole parts before what is in them.

    Raises:
        SpecError: there is no such place, or the whole is no valid spec.
    """
    mapping = yaml.safe_load(spec.to_yaml())
    for path in sorted(settings, key=lambda path: path.count(".")):
        *way, last = _steps(spec, path)
        place: Any = mapping
        for step in way:
            if isinstance(place.get(step), str):
                place[step] = {"type": place[step]}  # a part by its name alone
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise SpecError(f"{path}: no such setting.")
        place[last] = settings[path]
    return Spec.parse(mapping)


def look(spec: Spec, path: str) -> Any:
    """What a spec says at a path, as JSON; None where there is nothing."""
    value: Any = spec
    for step in _steps(spec, path):
        if isinstance(value, BaseModel):
            names = {field.alias or name: name for name, field in type(value).model_fields.items()}
            value = getattr(value, names.get(step, step), None)
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    if isinstance(value, Part):
        more = value.model_dump(mode="json", exclude_defaults=True, exclude={"type"})
        return {"type": value.kind, **more} if more else value.kind
    return value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value


def _steps(spec: Spec, path: str) -> list[str]:
    """A path in pieces. Names of inputs and outputs may hold dots of their own."""
    head, _, rest = path.partition(".")
    if head not in ("inputs", "outputs"):
        return path.split(".")
    names: Mapping[str, Any] = getattr(spec, head)
    for name in sorted(names, key=len, reverse=True):
        if rest == name or rest.startswith(f"{name}."):
            return [head, name, *rest[len(name) + 1 :].split(".")] if rest != name else [head, name]
    name = rest.partition(".")[0]
    raise SpecError(f"{path}: {head} must be one of {list(names)}, got {name!r}.{suggest(name, names)}")


def read_space(space: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """A space as it was given, or from a YAML or JSON file, perhaps under the one key ``search``.

    Raises:
        SpecError: it is none.
    """
    found: Any = space
    if isinstance(space, str | Path):
        try:
            found = yaml.safe_load(Path(space).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SpecError(f"{space}: space must be a readable YAML or JSON file, got: {error}.") from None
    if isinstance(found, Mapping) and list(found) == ["search"]:
        found = found["search"]
    if not isinstance(found, Mapping) or not found:
        raise SpecError(f"space must be a mapping from settings to what to try, got {found!r}.")
    return found


def knobs(spec: Spec, space: Mapping[str, Any]) -> list[Knob]:
    """What may change, every value of it tried on the spec.

    Args:
        spec: that the search starts from.
        space: path of a setting -> a list of values (names, numbers, mappings: whole parts too) or a mapping with low
            and high, and perhaps log or step.

    Raises:
        SpecError: a path or a value is not one of this spec; all such faults together.
    """
    found, faults = list[Knob](), list[str]()
    for path, wanted in space.items():
        try:
            found.append(_knob(spec, str(path), wanted))
        except SpecError as error:
            faults += str(error).splitlines()
    if faults:
        raise SpecError("\n".join(f"space: {fault}" for fault in faults))
    return found


def _knob(spec: Spec, path: str, wanted: Any) -> Knob:
    for fixed, reason in FIXED.items():
        if path == fixed or path.startswith(f"{fixed}."):
            raise SpecError(f"{path} must stay as it is: {reason}. Leave it out.")
    if path in ("inputs", "outputs", "training"):
        raise SpecError(f"{path} must be followed by one of its settings, as in training.learning_rate, got all of it.")
    if path.startswith("outputs.") and spec.training.monitor == "loss":
        raise SpecError(f"{path} must stay as it is where trials are compared by their loss. Give a metric.")
    if isinstance(wanted, Mapping):
        return _numbers(spec, path, wanted)
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or len(wanted) < 2:
        raise SpecError(f"{path} must be a list of two or more values, or low and high, got {wanted!r}.")
    values = {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False): v for v in wanted}
    specs = {text: _tried(spec, path, value) for text, value in values.items()}
    if len(values) < len(wanted) or any(specs[a] == specs[b] for a in specs for b in specs if a < b):
        raise SpecError(f"{path} must be a list of different values, got {list(wanted)}.")
    start = next((text for text, tried in specs.items() if tried == spec), None)
    return Knob(path, values, None, False, start)


def _numbers(spec: Spec, path: str, wanted: Mapping[str, Any]) -> Knob:
    try:
        numbers = Range.model_validate(dict(wanted))
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault) for fault in error.errors()]
        lines = [
            f"{path}{f'.{place}' if place else ''}: {fault['msg']}, got {fault['input']!r}." for place, fault in faults
        ]
        raise SpecError("\n".join(lines)) from None
    for value in (numbers.low, numbers.high):
        _tried(spec, path, value)
    whole = not _takes(spec, path, numbers.low + 0.4142 * (numbers.high - numbers.low))
    if whole and isinstance(numbers.step, float) and not numbers.step.is_integer():
        raise SpecError(f"{path}.step must be a whole number, as the setting is, got {numbers.step}.")
    start = look(spec, path)
    return Knob(path, {}, numbers, whole, start if numbers.holds(start) else None)


def _takes(spec: Spec, path: str, value: Any) -> bool:
    try:
        change(spec, {path: value})
    except SpecError:
        return False
    return True


def _tried(spec: Spec, path: str, value: Any) -> Spec:
    try:
        return change(spec, {path: value})
    except SpecError as error:
        lines = [line if line.startswith(path) else f"{path}: {line}" for line in str(error).splitlines()]
        raise SpecError("\n".join(lines)) from None


def default_space(spec: Spec) -> dict[str, Any]:
    """What most specs gain from: the optimiser, the width, what is dropped, how inputs meet. It holds the start."""
    plan, several = spec.training, len(spec.inputs) > 1
    space: dict[str, Any] = {
        "training.learning_rate": _around(plan.learning_rate, 1e-3, 1e-2, log=True),
        "training.weight_decay": _around(plan.weight_decay, 1e-3, 0.3, log=plan.weight_decay > 0),
        "training.batch_size": sorted({64, 128, 256, plan.batch_size}),
        "dim": sorted({32, 64, 128, spec.dim}),
    }
    if spec.summarised:
        space["training.dropout"] = _around(plan.dropout, 0.0, 0.6)
    if several:
        space["training.modality_dropout"] = _around(plan.modality_dropout, 0.0, 0.5)
        if not (spec.fusion.deep or spec.fusion.late):
            space["fusion"] = _with(look(spec, "fusion"), ["concat", "gated", "weighted", "hadamard"])
        if all(getattr(plan, name) == Training.model_fields[name].default for name in ("auxiliary", "modulation")):
            space["training.balance"] = _with(plan.balance, ["auxiliary", "none"])
    return space


def _around(start: float, low: float, high: float, log: bool = False) -> dict[str, Any]:
    return {"low": min(start, low), "high": max(start, high), "log": log}


def _with(start: Any, values: list[Any]) -> list[Any]:
    return [start, *(value for value in values if value != start)]
