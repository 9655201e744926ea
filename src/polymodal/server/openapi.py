"""OpenAPI: the description of a server's interface, from the bundles that it has loaded."""

from __future__ import annotations

from typing import Any

from polymodal import __version__
from polymodal.server import schemas
from polymodal.server.chat import speaks
from polymodal.server.form import example_row
from polymodal.server.models import Models
from polymodal.server.schemas import Schema
from polymodal.server.settings import Settings

REFUSALS = {
    400: "The body is no JSON, holds NaN, or is no form.",
    401: "The token is missing or wrong.",
    404: "There is no model of that name.",
    408: "The body arrived too slowly.",
    413: "The body, or what it holds, is larger than the server takes.",
    415: "The body is neither JSON nor a form, or a cell is of another media type.",
    422: "A name is not known, or a cell cannot be read.",
    429: "Too many rows are waiting. Retry-After tells when to come again.",
    500: "The server failed.",
    503: "The server is starting or stopping. Retry-After tells when to come again.",
    504: "The deadline has passed.",
}
"""Status -> what it means."""

REQUEST_ID = {"description": "Names the request in the server's log.", "schema": {"type": "string"}}
TOO_EARLY = (429, 503)
JSON = "application/json"


def openapi(models: Models) -> dict[str, Any]:
    """Describe every path under ``/v1``, the checks of health and the metrics in OpenAPI 3.1.

    Schemas and examples come from the specs of the bundles that are loaded; as long as there are none, a row is any
    object.
    """
    token = models.settings.token is not None
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Polymodal",
            "version": __version__,
            "summary": f"Predictions of {', '.join(place.name for place in models.settings.models)}.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in ("predict", "models", "server")],
        "paths": _Paths(models, token).all(),
        "components": _components(models, token),
    }
    return document | ({"security": [{"token": []}]} if token else {})


def _components(models: Models, token: bool) -> dict[str, Any]:
    found: dict[str, Schema] = {"Error": ERROR, "Field": FIELD, "Output": OUTPUT}
    for name, served in models.served.items():
        spec, settings = served.bundle.spec, models.settings
        found[f"Request.{name}"] = schemas.request(spec, settings) | {"examples": [{"inputs": example_row(spec)}]}
        found[f"Form.{name}"] = schemas.form_request(spec, settings)
        found[f"Prediction.{name}"] = schemas.prediction(spec)
    if (finder := models.finder) is not None:
        spec = finder.spec(models.served[finder.name])
        found |= {"Query": schemas.query(spec, models.settings), "QueryForm": schemas.query_form(spec, models.settings)}
    schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if token else {}
    return {"schemas": found, **schemes}


class _Paths:
    """Path -> what it does.

    Args:
        models: of the server.
        token: whether requests must carry one.
    """

    def __init__(self, models: Models, token: bool) -> None:
        self.models, self.settings, self.token = models, models.settings, token
        self.names = [place.name for place in self.settings.models]

    def all(self) -> dict[str, Any]:
        """Every path."""
        named = [self._model()]
        found = {
            "/v1/predict": {"post": self._predict()},
            **({"/v1/find": {"post": self._find()}} if self.models.finder is not None else {}),
            **({"/v1/chat/completions": {"post": self._chat()}} if self._speaks() else {}),
            "/v1/models": {"get": self._get("models", "The models of this server", schemas.models())},
            "/v1/spec": {"get": self._get("models", "What a model takes and answers", SPEC, named)},
            "/v1/card": {"get": self._get("models", "A model's card", None, named, "text/markdown")},
            "/metrics": {"get": self._get("server", "Measurements for Prometheus", None, [], "text/plain")},
            "/healthz": {"get": self._get("server", "Whether the server is alive", STATUS, free=True)},
            "/readyz": {"get": self._get("server", "Whether every model is loaded and warm", STATUS, free=True)},
            "/openapi.json": {"get": self._get("server", "This document", {"type": "object"})},
        }
        for path in ("/readyz", "/openapi.json"):
            found[path]["get"]["responses"] |= _refusals([503])
        return found

    def _model(self) -> dict[str, Any]:
        told = f"Which model; {self.names[0]} if not given."
        return {"name": "model", "in": "query", "description": told, "schema": {"type": "string", "enum": self.names}}

    def _predict(self) -> dict[str, Any]:
        responses = {"200": _json("What the model says of each row.", self._answer())}
        return {
            "operationId": "predict",
            "tags": ["predict"],
            "summary": "Predict rows",
            "description": "Any input may be left out. Media are base64, data URLs or files of a form.",
            "parameters": [self._model(), *_headers(self.settings)],
            "requestBody": {"required": True, "content": self._bodies()},
            "responses": responses | _refusals([s for s in REFUSALS if s != 401 or self.token]),
        }

    def _find(self) -> dict[str, Any]:
        name = self.models.finder.name if self.models.finder is not None else ""
        bodies = {
            JSON: {"schema": {"$ref": "#/components/schemas/Query"}},
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/QueryForm"}},
        }
        model = self._model() | {"description": "The index's model.", "schema": {"type": "string", "enum": [name]}}
        return {
            "operationId": "find",
            "tags": ["predict"],
            "summary": "Find items of the index",
            "description": "The items that are nearest to each row. A row of several inputs is composed of them.",
            "parameters": [model, *_headers(self.settings)],
            "requestBody": {"required": True, "content": bodies},
            "responses": {"200": _json("The nearest items of each row.", FOUND)}
            | _refusals([s for s in REFUSALS if s != 401 or self.token]),
        }

    def _speaks(self) -> bool:
        return any(speaks(served.bundle.spec) for served in self.models.served.values())

    def _chat(self) -> dict[str, Any]:
        return {
            "operationId": "chat",
            "tags": ["predict"],
            "summary": "Answer in words",
            "description": "As the OpenAI API has it: the parts of a user's message fill the inputs of a row.",
            "parameters": _headers(self.settings),
            "requestBody": {"required": True, "content": {JSON: {"schema": _object({"messages": {"type": "array"}})}}},
            "responses": {"200": _json("The answer, or a stream of its pieces.", {"type": "object"})}
            | _refusals([s for s in REFUSALS if s != 401 or self.token]),
        }

    def _bodies(self) -> dict[str, Any]:
        """The request's body, in both media types, with examples for the model that is asked when none is named."""
        first = self.models.served.get(self.names[0])
        bodies: dict[str, Any] = {JSON: {"schema": self._any("Request")}}
        bodies["multipart/form-data"] = {"schema": self._any("Form")}
        if first is not None:
            shown = schemas.examples(first.bundle.spec)
            bodies[JSON]["examples"] = {
                name.replace(" ", "-"): {"summary": name, "value": shown[name]} for name in shown
            }
            cells = {column: _spoken(cell) for column, cell in example_row(first.bundle.spec).items()}
            bodies["multipart/form-data"]["examples"] = {"one-row": {"summary": "one row", "value": cells}}
        return bodies

    def _any(self, kind: str) -> Schema:
        """The schema of some model's request, form or prediction. Bodies may fit several models."""
        found = [{"$ref": f"#/components/schemas/{kind}.{name}"} for name in self.models.served]
        return {"type": "object"} if not found else found[0] if len(found) == 1 else {"anyOf": found}

    def _answer(self) -> Schema:
        told = ANSWER["properties"] | {"predictions": _rows(self._any("Prediction"), "In the order of the rows.")}
        return ANSWER | {"properties": told}

    def _get(
        self,
        tag: str,
        summary: str,
        schema: Schema | None,
        parameters: list[dict[str, Any]] | None = None,
        media_type: str = JSON,
        free: bool = False,
    ) -> dict[str, Any]:
        """A path that is read; ``free`` ones need no token."""
        content = {media_type: {"schema": schema or {"type": "string"}}}
        statuses = ([401] if self.token and not free else []) + ([404, 422, 503] if parameters else [])
        found: dict[str, Any] = {
            "operationId": summary.lower().replace(" ", "-").replace("'", ""),
            "tags": [tag],
            "summary": summary,
            "parameters": parameters or [],
            "responses": {"200": _response("It is here.", content)} | _refusals(statuses),
        }
        return found | ({"security": []} if self.token and free else {})


def _headers(settings: Settings) -> list[dict[str, Any]]:
    """Headers that a request may have."""
    most = round(1000 * settings.deadline)
    deadline = {"type": "integer", "minimum": 1, "maximum": most}
    name = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}
    return [
        _header("X-Deadline-Ms", "Milliseconds after which the answer is of no use any more.", deadline),
        _header("X-Request-Id", "Names the request in the answer and in the server's log.", name),
    ]


def _header(name: str, told: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": told, "schema": schema}


def _spoken(cell: Any) -> str:
    """A cell as the text of a form's part."""
    return {True: "true", False: "false"}[cell] if isinstance(cell, bool) else str(cell)


def _refusals(statuses: list[int]) -> dict[str, Any]:
    found = {}
    for status in statuses:
        found[str(status)] = _json(REFUSALS[status], {"$ref": "#/components/schemas/Error"})
        if status in TOO_EARLY:
            later = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}
            found[str(status)]["headers"] |= {"Retry-After": later}
    return found


def _json(told: str, schema: Schema) -> dict[str, Any]:
    return _response(told, {JSON: {"schema": schema}})


def _response(told: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": told, "headers": {"X-Request-Id": REQUEST_ID}, "content": content}


def _object(required: dict[str, Schema], **more: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": required | more}


def _rows(items: Schema, told: str) -> Schema:
    return {"type": "array", "items": items, "description": told}


TEXT: Schema = {"type": "string"}
ERROR = _object(
    {
        "error": _object(
            {"type": TEXT, "message": TEXT, "where": {"type": ["string", "null"], "description": "Path in the body."}}
        ),
        "request_id": TEXT,
    }
)
FIELD = _object(
    {"input": TEXT, "modality": TEXT, "column": TEXT, "kind": TEXT, "example": {}},
    levels=_rows(TEXT, "Of a category, the most frequent known ones."),
    level_count={"type": "integer", "description": "How many are known."},
)
OUTPUT = _object({"task": TEXT, "kind": TEXT, "keys": {"type": "object", "additionalProperties": TEXT}})
ANSWER = _object(
    {
        "model": TEXT,
        "version": TEXT,
        "request_id": TEXT,
        "predictions": {},
        "absent": _rows(_rows(TEXT, "Inputs that had nothing usable."), "For each row."),
        "broken": _rows(
            _rows(_object({"input": TEXT, "column": TEXT, "reason": TEXT}), "Cells that count as absent."),
            "For each row.",
        ),
        "repairs": _rows(
            {"type": "object", "additionalProperties": _rows(TEXT, "What was mended.")}, "For each row, by input."
        ),
    },
    explanations=_rows({"type": "object"}, "For each row, if asked for: by task, what each input did to the answer."),
)
FOUND = _object(
    {name: ANSWER["properties"][name] for name in ("model", "version", "request_id")}
    | {
        "items": _rows(
            _rows(_object({"id": TEXT, "score": {"type": "number"}, "columns": {"type": "object"}}), "Nearest first."),
            "For each row.",
        )
    }
    | {name: ANSWER["properties"][name] for name in ("absent", "broken", "repairs")}
)
SPEC = _object(
    {
        "model": TEXT,
        "version": TEXT,
        "inputs": _rows({"$ref": "#/components/schemas/Field"}, "Every column that a row may fill."),
        "outputs": _rows({"$ref": "#/components/schemas/Output"}, "Every task."),
        "spec": {"type": "object", "description": "The fitted spec."},
        "limits": {"type": "object"},
    }
)
STATUS = _object({"status": TEXT})
