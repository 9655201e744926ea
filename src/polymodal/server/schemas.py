"""JSON schemas of what a bundle takes and answers, from its fitted spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymodal.reading import Field
from polymodal.server.form import answer, example_cell, example_row
from polymodal.server.requests import FIND_OPTIONS, MOST
from polymodal.server.settings import Settings
from polymodal.spec import Spec

Schema = dict[str, Any]
KINDS: dict[str, tuple[list[str], str]] = {
    "text": (["string", "number", "null"], "A text."),
    "words": (["array", "string", "null"], "Words as a list of texts, or a text, which is split into words."),
    "number": (["number", "string", "null"], "A finite number, or a text that is one."),
    "category": (["string", "number", "boolean", "null"], "A category; unseen ones are taken, and told in repairs."),
    "boolean": (["boolean", "string", "integer", "null"], "true or false; also yes, no, y, n, t, f, 1, 0."),
    "date": (["string", "null"], "A date, or date and time, in ISO 8601."),
}
"""Kind of a column -> JSON types of its cells, and what they are."""

SHOWN = 20
"""Categories that a description lists."""

OPTIONS: Schema = {
    "explain": {"type": "boolean", "default": False, "description": "Also say what each input did to the answer."},
    "strict": {
        "type": "boolean",
        "default": True,
        "description": "Refuse a row with a broken cell; else that cell counts as absent and is listed in broken.",
    },
}


SAID: Schema = {"type": "string", "enum": ["true", "false"]}
"""A flag in a form."""

COUNT: Schema = {
    "type": "integer",
    "minimum": 1,
    "maximum": MOST,
    "default": FIND_OPTIONS["count"],
    "description": "Items for each row, at most.",
}


def row(spec: Spec, settings: Settings, *, files: bool = False) -> Schema:
    """A row: any of its columns; what is left out or null is absent.

    Args:
        spec: fitted.
        settings: of the server.
        files: whether media may also point to parts of the form that the row lies in.
    """
    cells: dict[str, Schema] = {}
    for name, part in spec.inputs.items():
        columns = {field.column: _cell(field, part.media, settings, files) for field in part.fields(name)}
        cells |= columns
        if part.spans and name not in columns:
            told = f"The columns of {name} may also be given in an object of its name."
            cells[name] = {"type": ["object", "null"], "description": told} | _only(columns)
        elif len(columns) == 1 and name not in columns:
            [(column, cell)] = columns.items()
            cells[name] = cell | {"description": f"Another name of {column}.", "deprecated": True}
    return {"type": "object", "description": "A row; what is left out or null is absent."} | _only(cells)


def _only(properties: dict[str, Schema]) -> Schema:
    return {"properties": properties, "additionalProperties": False}


def _cell(field: Field, media: bool, settings: Settings, files: bool) -> Schema:
    if not media and field.kind not in KINDS:
        return {"description": f"Of kind {field.kind}."}
    types, told = KINDS.get(field.kind, (["string", "null"], _media(field.kind, settings)))
    if field.levels:
        known = ", ".join(field.levels[:SHOWN]) + (" ..." if len(field.levels) > SHOWN else "")
        told += f" Known: {known}."
    schema: Schema = {"type": types, "description": told}
    if "array" in types:
        schema["items"] = {"type": "string"}
    if media:
        schema["contentEncoding"] = "base64"
    if media and files:
        part = {"type": "object", "required": ["file"]} | _only({"file": {"type": "string"}})
        schema = {"anyOf": [schema, part], "description": f"{told} Or the name of a part of this form."}
    return schema if field.example is None else schema | {"examples": [example_cell(field)]}


def _media(kind: str, settings: Settings) -> str:
    """What a media cell may be, in words."""
    limits = {
        "image": f", at most {settings.max_pixels} pixels",
        "audio": f", at most {settings.max_seconds:g} s",
    }
    hosts = f", or a URL of {', '.join(settings.allow_hosts)}" if settings.allow_hosts else ""
    return f"A file of kind {kind} as base64 or data URL{hosts}{limits.get(kind, '')}."


def request(spec: Spec, settings: Settings) -> Schema:
    """The JSON body of a prediction's request."""
    return {"type": "object", "required": ["inputs"]} | _only(
        {"inputs": _rows(row(spec, settings), settings), **OPTIONS}
    )


def _rows(one: Schema, settings: Settings) -> Schema:
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": settings.max_rows}
    return {"oneOf": [one, many], "description": "A row, or a list of rows."}


def form_request(spec: Spec, settings: Settings) -> Schema:
    """The form of a prediction's request: a part for each cell, or rows in JSON beside their files."""
    return _form(spec, settings, dict.fromkeys(OPTIONS, SAID))


def _form(spec: Spec, settings: Settings, options: Mapping[str, Schema]) -> Schema:
    cells: dict[str, Schema] = {}
    for name, part in spec.inputs.items():
        for field in part.fields(name):
            told = f"A {field.kind}: " + ("a file, or text as in JSON." if part.media else "text.")
            cells[field.column] = {"type": "string", "description": f"{told} Once for each row; empty where absent."}
    rows = _rows(row(spec, settings, files=True), settings)
    return {
        "anyOf": [
            {"type": "object", **_only({**cells, **options}), "minProperties": 1},
            {"type": "object", "properties": {"inputs": rows, **options}, "required": ["inputs"]},
        ]
    }


def query(spec: Spec, settings: Settings) -> Schema:
    """The JSON body of a request to an index; ``spec`` has the inputs that can be searched by."""
    own = {"inputs": _rows(row(spec, settings), settings), "count": COUNT, "strict": OPTIONS["strict"]}
    return {"type": "object", "required": ["inputs"]} | _only(own)


def query_form(spec: Spec, settings: Settings) -> Schema:
    """The form of a request to an index: a part for each cell, or rows in JSON beside their files."""
    return _form(spec, settings, {"count": {"type": "string", "pattern": "^[0-9]{1,4}$"}, "strict": SAID})


def prediction(spec: Spec) -> Schema:
    """What is said of one row: task -> prediction."""
    tasks = {}
    for name, task in spec.outputs.items():
        keys = answer(task)
        tasks[name] = {"type": "object", "properties": keys, "required": list(keys)}
    return {"type": "object", "required": list(tasks)} | _only(tasks)


def examples(spec: Spec) -> dict[str, Any]:
    """Bodies that the model answers as they stand, by name: one row, several rows, and a row with an input left out."""
    whole = example_row(spec)
    found: dict[str, Any] = {
        "one row": {"inputs": whole},
        "an explained row": {"inputs": whole, "explain": True},
        "several rows": {"inputs": [whole, whole]},
    }
    for name, part in spec.inputs.items():
        rest = {column: cell for column, cell in whole.items() if column not in part.columns(name)}
        if rest:
            found[f"without {name}"] = {"inputs": rest}
    return found


def models() -> Schema:
    """The list of models, in our words and in those of the OpenAI API."""
    text: Schema = {"type": "string"}
    version: Schema = {"type": ["string", "null"]}
    ours = {"name": text, "version": version, "ready": {"type": "boolean"}}
    theirs = {"id": text, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": text}
    rows = [{"type": "object", "required": list(keys), "properties": keys} for keys in (ours, theirs)]
    told = "In the order in which they were given; the first one is the usual one."
    found: Schema = {
        "models": {"type": "array", "items": rows[0], "description": told},
        "object": {"const": "list"},
        "data": {"type": "array", "items": rows[1], "description": "The same, as clients of the OpenAI API read it."},
    }
    return {"type": "object", "required": list(found), "properties": found}
