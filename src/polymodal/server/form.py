"""Form: what a model takes and what it answers, from its fitted spec, as JSON for pages, schemas and clients."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from polymodal.reading import Field
from polymodal.spec import Spec
from polymodal.task import Task
from polymodal.tasks.classify import Classify, label_text
from polymodal.tasks.generate import Generate
from polymodal.tasks.match import Match
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.tasks.tag import Tag

LEVELS = 200
"""Categories of a column that are listed, the most frequent ones."""

MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "audio/wav", b"fLaC": "audio/flac"}
"""What an example starts with -> its media type."""


def form(spec: Spec) -> list[dict[str, Any]]:
    """Every column that a row may fill, in the order of the inputs.

    Returns:
        input, modality, column, kind, example (a JSON cell that the model reads, media as a data URL; None where the
        modality knows none), levels (the most frequent known categories) and level_count (how many are known).
    """
    return [
        {
            "input": name,
            "modality": part.kind,
            "column": field.column,
            "kind": field.kind,
            "example": example_cell(field),
            "levels": list(field.levels[:LEVELS]),
            "level_count": len(field.levels),
        }
        for name, part in spec.inputs.items()
        for field in part.fields(name)
    ]


def example_row(spec: Spec) -> dict[str, Any]:
    """A JSON row that the model answers as it stands: column -> cell. Columns without an example are left out."""
    return {field["column"]: field["example"] for field in form(spec) if field["example"] is not None}


def example_cell(field: Field) -> Any:
    """An example as JSON: media as a data URL."""
    if not isinstance(field.example, bytes):
        return field.example
    kinds = (kind for magic, kind in MAGIC.items() if field.example.startswith(magic))
    content = base64.b64encode(field.example).decode("ascii")
    return f"data:{next(kinds, 'application/octet-stream')};base64,{content}"


def outputs(spec: Spec) -> list[dict[str, Any]]:
    """What is predicted, in the order of the tasks.

    Returns:
        task, kind, what is known of its answers (classes; labels with their thresholds; targets with the share that
        their interval covers, their mean and their standard deviation) and keys: key of a prediction -> what it means.
    """
    return [
        {
            "task": name,
            "kind": task.kind,
            **facts(task),
            "keys": {key: schema["description"] for key, schema in answer(task).items()},
        }
        for name, task in spec.outputs.items()
    ]


@singledispatch
def facts(task: Task) -> dict[str, Any]:
    """What a fitted task knows of its answers; nothing for tasks not known here."""
    return {}


@facts.register
def _(task: Classify) -> dict[str, Any]:
    return {"classes": list(task.classes)} | ({} if task.coverage is None else {"coverage": task.coverage})


@facts.register
def _(task: Multilabel) -> dict[str, Any]:
    found = {"labels": list(task.labels), "thresholds": list(task.thresholds or [task.threshold] * task.size)}
    return found | ({} if task.coverage is None else {"coverage": task.coverage})


@facts.register
def _(task: Regress) -> dict[str, Any]:
    found = {"targets": list(task.targets), "mean": list(task.mean), "scale": list(task.scale)}
    return found | ({"interval": task.interval} if _has_interval(task) else {})


@facts.register
def _(task: Tag) -> dict[str, Any]:
    return {"types": list(task.types), "input": task.about}


@facts.register
def _(task: Match) -> dict[str, Any]:
    return {"sides": list(task.names)}


@singledispatch
def answer(task: Task) -> dict[str, dict[str, Any]]:
    """JSON schemas of what a prediction always holds, by key; nothing for tasks not known here."""
    return {}


@answer.register
def _(task: Classify) -> dict[str, dict[str, Any]]:
    classes = {"enum": list(task.classes)}
    found = {
        "class": classes | {"description": "the most probable class"},
        "probability": _share("of that class"),
        "probabilities": _by(
            [label_text(c) for c in task.classes], _share("of the class"), "calibrated probability of each class"
        ),
    }
    told = f"classes, most probable first, that hold the true one in {task.coverage or 0:.0%} of all rows"
    return found | ({} if task.coverage is None else {"set": _list(classes, told)})


@answer.register
def _(task: Multilabel) -> dict[str, dict[str, Any]]:
    labels = {"enum": list(task.labels)}
    found = {
        "labels": _list(labels, "labels whose probability reaches their threshold"),
        "probabilities": _by(task.labels, _share("of the label"), "calibrated probability of each label"),
    }
    told = f"labels that hold all true ones in {task.coverage or 0:.0%} of all rows"
    return found | ({} if task.coverage is None else {"set": _list(labels, told)})


@answer.register
def _(task: Regress) -> dict[str, dict[str, Any]]:
    several = len(task.targets) > 1

    def number(told: str) -> dict[str, Any]:
        told += ", in the target's own unit"
        one = {"type": "number", "description": told}
        return _by(task.targets, one, told) if several else one

    found = {"value": number("the prediction")}
    if _has_interval(task):
        for end in ("low", "high"):
            found[end] = number(f"{end} end of the interval that holds the truth in {task.interval:.0%} of all rows")
    if task.objective == "quantiles":
        levels = [str(level) for level in task.quantiles]
        return found | {"quantiles": _by(levels, number("the quantile"), "quantiles by their level")}
    return found | ({"std": number("standard deviation of the prediction's error")} if _has_interval(task) else {})


@answer.register
def _(task: Tag) -> dict[str, dict[str, Any]]:
    gate = _share("1: other inputs count in full, 0: not at all") | {"description": "how far the gate is open"}
    places = {
        "first": "number of its first word",
        "stop": "number of the word behind it",
        "start": "offset of its first character in the text",
        "end": "offset behind its last character",
    }
    entity: dict[str, Any] = {"type": {"enum": list(task.types)}, "text": {"type": "string"}}
    entity |= {key: {"type": "integer", "minimum": 0, "description": told} for key, told in places.items()}
    entity |= {"probability": _share("that just these words are one entity of this type")}
    entity |= {"gate": gate} if task.gated else {}
    needed = [key for key in entity if key not in ("text", "start", "end")]
    one = {"type": "object", "required": needed, "properties": entity, "additionalProperties": False}
    found = {
        "entities": _list(one, "entities in the order of the text"),
        "tags": _list({"enum": task.tags}, f"a tag for each word, in the scheme {task.scheme}"),
    }
    found |= {"gates": _list(gate, "of each word, for the other inputs")} if task.gated else {}
    return found | {"words": _list({"type": "string"}, "the words that the tags are of")}


@answer.register
def _(task: Generate) -> dict[str, dict[str, Any]]:
    told = _share("") | {"description": "geometric mean of the probabilities of its tokens"}
    return {"text": {"type": "string", "description": "the answer"}, "probability": told}


@answer.register
def _(task: Match) -> dict[str, dict[str, Any]]:
    cosine = {"type": "number", "description": "cosine of two sides"}
    pairs = {"type": "object", "additionalProperties": cosine, "description": "cosine of each pair of sides there is"}
    similarity = {"type": ["number", "null"], "description": "mean cosine of the sides, null without two of them"}
    return {"similarity": similarity, "pairs": pairs}


def _has_interval(task: Regress) -> bool:
    return task.objective != "squared" or bool(task.residual)


def _share(told: str) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "maximum": 1, "description": f"calibrated probability {told}"}


def _list(items: dict[str, Any], told: str) -> dict[str, Any]:
    return {"type": "array", "items": items, "description": told}


def _by(names: Sequence[str], value: dict[str, Any], told: str) -> dict[str, Any]:
    """An object with one value for each name; there is no schema for each, as there may be thousands."""
    size = {"minProperties": len(names), "maxProperties": len(names)}
    return {"type": "object", "additionalProperties": value, **size, "description": told}
