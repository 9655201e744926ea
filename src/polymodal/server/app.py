"""App: the server's routes, and the way of a prediction through them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl
from weakref import WeakKeyDictionary

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from polymodal.errors import SpecError
from polymodal.server import inference, page
from polymodal.server.batching import Stopping
from polymodal.server.completions import Completions
from polymodal.server.ends import Endpoint, read_body, send_json
from polymodal.server.engine import Answer
from polymodal.server.errors import Refused, dumps
from polymodal.server.find import told_items
from polymodal.server.form import form, outputs
from polymodal.server.guard import Guard, open_paths
from polymodal.server.logs import Log, Note
from polymodal.server.metrics import MEDIA_TYPE, Metrics
from polymodal.server.models import Models, Served
from polymodal.server.openapi import openapi
from polymodal.server.requests import Asked, Intake, patience
from polymodal.server.settings import Settings
from polymodal.server.strict import near, short

LIMITS = ("max_body", "max_rows", "max_pixels", "max_seconds")


def create_app(
    settings: Settings, models: Models | None = None, *, metrics: Metrics | None = None, log: Log | None = None
) -> Starlette:
    """Make the ASGI application. Its start loads the bundles, its end stops them.

    Args:
        settings: of the server.
        models: that answer; made from the settings when not given.
        metrics: that everything is counted in; new ones when not given.
        log: that requests are written to; standard error when not given.
    """
    counts = metrics or Metrics()
    models = models or Models(settings)
    models.metrics = counts
    counts.watch(lambda: models.waiting)
    pages: Sequence[BaseRoute] = page.routes() if settings.page else ()
    chats = Completions(settings, models, counts)
    routes = [*Api(settings, models, counts).routes(), *chats.routes(), *inference.routes(models), *pages]
    guard = Middleware(
        Guard, settings=settings, metrics=counts, log=log or Log(on_drop=counts.dropped.inc),
        paths=[_path(route) for route in routes], open_paths=open_paths(pages),
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await models.start()
        try:
            yield
        finally:
            await models.stop()

    app = Starlette(
        routes=routes, middleware=[guard], lifespan=lifespan, exception_handlers={HTTPException: _pass_on}
    )  # fmt: skip
    app.router.redirect_slashes = False
    return app


class Api:
    """What ``/v1`` answers, and what a cluster asks.

    Attributes:
        settings: of the server.
        models: that answer.
        metrics: that rows are counted in.
    """

    def __init__(self, settings: Settings, models: Models, metrics: Metrics) -> None:
        self.settings, self.models, self.metrics = settings, models, metrics
        self._intakes: WeakKeyDictionary[Served, Intake] = WeakKeyDictionary()
        self._specs: WeakKeyDictionary[Served, bytes] = WeakKeyDictionary()
        self._schema: tuple[Any, bytes] = (None, b"")

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/predict", Endpoint(self.predict), methods=["POST"]),
            Route("/v1/find", Endpoint(self.find_items), methods=["POST"]),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name}", self.tell_model),
            Route("/v1/spec", self.spec),
            Route("/v1/card", self.card),
            Route("/healthz", self.alive),
            Route("/readyz", self.ready),
            Route("/metrics", self.counts),
            Route("/openapi.json", self.schema),
        ]

    async def predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the rows of a request."""
        note: Note = scope["note"]
        served = self.find(scope["query_string"])
        note.model, note.version = served.name, served.version
        until, content_type = self._terms(scope, note)
        body = await read_body(receive)
        async with asyncio.timeout_at(until):
            asked = await self._intake(served).read(body, content_type)
            note.rows = len(asked.rows)
            answers = await served.predict(asked.rows, strict=asked.strict, explain=asked.explain, deadline=until)
        self.metrics.version(served.name, served.version)
        self.metrics.answered(served.name, len(answers))
        await send_json(send, told(served, note.request_id, asked, answers))

    async def find_items(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the items of the index that are nearest to the rows of a request.

        Raises:
            Refused: there is no index, or it is of another model than the one that is named.
        """
        note: Note = scope["note"]
        served = self.find(scope["query_string"])
        finder = self.models.finder
        if finder is None:
            raise Refused(404, "This server has no index. Start it with polymodal serve MODEL --index INDEX.")
        if scope["query_string"] and served.name != finder.name:
            raise Refused(404, f"The index is of the model {finder.name!r}, got {served.name!r}. Leave the key out.")
        served = self.models.find(finder.name)
        note.model, note.version = served.name, served.version
        until, content_type = self._terms(scope, note)
        body = await read_body(receive)
        async with asyncio.timeout_at(until):
            asked = await finder.intake(served).read(body, content_type)
            note.rows = len(asked.rows)
            found = await finder.find(served, asked.rows, count=asked.count, strict=asked.strict)
        self.metrics.version(served.name, served.version)
        self.metrics.answered(served.name, len(found))
        await send_json(send, told_items(served, note.request_id, asked, found))

    def find(self, query: bytes) -> Served:
        """The bundle that a request names.

        Raises:
            Refused: there is none of that name, or the query asks for something else.
            Stopping: it is not loaded.
        """
        name = None
        for key, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else ():
            if key != "model":
                raise Refused(422, f"The query must have no keys but 'model', got {short(key)}.{near(key, ('model',))}")
            if name is not None:
                raise Refused(422, f"The query must name one model, got {short(name)} and {short(value)}.")
            name = value
        try:
            return self.models.find(name)
        except SpecError as error:
            raise Refused(404, str(error)) from None

    def _intake(self, served: Served) -> Intake:
        found = self._intakes.get(served)
        if found is None:
            found = self._intakes[served] = Intake(served.bundle.spec, self.settings)
        return found

    def _terms(self, scope: Scope, note: Note) -> tuple[float, str]:
        """Until when somebody waits for the answer, and what the body is.

        Raises:
            Refused: the deadline is no number of milliseconds.
        """
        headers = Headers(scope=scope)
        until = note.arrived + patience(headers.get("X-Deadline-Ms"), self.settings.deadline)
        return until, headers.get("Content-Type", "")

    async def list_models(self, request: Request) -> Response:
        """Names and versions of the bundles."""
        names = [place.name for place in self.settings.models]
        found = {name: self.models.served.get(name) for name in names}
        rows = [{"name": n, "version": s and s.version, "ready": s is not None} for n, s in found.items()]
        return answer({"models": rows, "object": "list", "data": [_model(name) for name in names]})

    async def tell_model(self, request: Request) -> Response:
        """One of them, as the OpenAI API has it.

        Raises:
            Refused: there is none of that name.
        """
        name = request.path_params["name"]
        try:
            return answer(_model(self.models.find(name).name))
        except SpecError as error:
            raise Refused(404, str(error)) from None

    async def spec(self, request: Request) -> Response:
        """What a bundle takes and gives: fields for a form, outputs, the fitted spec, the limits."""
        served = self.find(request.scope["query_string"])
        if served not in self._specs:
            spec = served.bundle.spec
            self._specs[served] = dumps(
                {
                    "model": served.name,
                    "version": served.version,
                    "inputs": form(spec),
                    "outputs": outputs(spec),
                    "spec": spec.model_dump(mode="json"),
                    "limits": {name: getattr(self.settings, name) for name in LIMITS},
                }
            )
        return Response(self._specs[served], media_type="application/json")

    async def card(self, request: Request) -> Response:
        """A bundle's model card."""
        return Response(self.find(request.scope["query_string"]).card, media_type="text/markdown")

    async def alive(self, request: Request) -> Response:
        """Whether the process answers at all."""
        return answer({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """Whether every bundle is loaded and warm.

        Raises:
            Refused: not so, or the server is stopping.
        """
        if not self.models.ready:
            raise Refused(503, "Not every bundle is loaded, or the server is stopping. Ask again.", retry_after="1")
        return answer({"status": "ready"})

    async def counts(self, request: Request) -> Response:
        """Everything that is counted, for Prometheus."""
        for name, served in self.models.served.items():
            self.metrics.version(name, served.version)
        return Response(self.metrics.text(), headers={"Content-Type": MEDIA_TYPE})

    async def schema(self, request: Request) -> Response:
        """The OpenAPI description of the bundles that are served now."""
        if not self.models.ready:
            raise Stopping("Not every bundle is loaded.")
        versions = {name: served.version for name, served in self.models.served.items()}
        if self._schema[0] != versions:
            self._schema = (versions, dumps(openapi(self.models)))
        return Response(self._schema[1], media_type="application/json")


def told(served: Served, request_id: str, asked: Asked, answers: Sequence[Answer]) -> dict[str, Any]:
    """What a client is told, row by row."""
    found: dict[str, Any] = {
        "model": served.name,
        "version": served.version,
        "request_id": request_id,
        "predictions": [answer.prediction for answer in answers],
        "absent": [answer.absent for answer in answers],
        "broken": [[*here, *answer.broken] for here, answer in zip(asked.broken, answers, strict=True)],
        "repairs": [answer.repairs for answer in answers],
    }
    if asked.explain:
        found["explanations"] = [answer.explanation for answer in answers]
    return found


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "polymodal"}


def answer(content: Mapping[str, Any]) -> Response:
    """A small answer in JSON."""
    return Response(dumps(content), media_type="application/json")


async def _pass_on(request: Request, error: Exception) -> Response:
    """Leave what the router raises to the guard, where every error is answered and counted."""
    raise error


def _path(route: BaseRoute) -> str:
    return getattr(route, "path", "other")
