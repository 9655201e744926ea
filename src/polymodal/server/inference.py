"""The Open Inference Protocol v2 over HTTP with binary tensors, as ``tritonclient[http]`` speaks it.

A tensor per column in, a tensor per column of what is predicted out; see `polymodal.server.tensors`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from polymodal import __version__
from polymodal.errors import DataError, SpecError
from polymodal.server.calls import HEADER, read_call, tell
from polymodal.server.cells import Cells
from polymodal.server.errors import Refused, dumps
from polymodal.server.logs import Note
from polymodal.server.metrics import Metrics
from polymodal.server.models import Models
from polymodal.server.requests import SMALL, Intake, patience
from polymodal.server.served import Served
from polymodal.server.settings import Settings
from polymodal.server.strict import short
from polymodal.server.tensors import Output, outputs, usual

FOREVER = 10**12
"""Microseconds beyond any deadline."""

_ROW = re.compile(r"inputs\[(\d+)\]\.(.*?)(: | must )", re.DOTALL)


@dataclass(frozen=True)
class Interface:
    """What goes into a bundle and comes out of it.

    Attributes:
        intake: knows its columns.
        outputs: name -> tensor.
        metadata: of the bundle, as the protocol has it.
    """

    intake: Intake
    outputs: Mapping[str, Output]
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, served: Served, settings: Settings) -> Self:
        """Of one version of a bundle."""
        spec = served.bundle.spec
        intake, found = Intake(spec, settings), {output.name: output for output in outputs(spec.outputs)}
        slots = {slot.column: slot for slot in intake.slots.values()}
        metadata = {
            "name": served.name,
            "versions": [served.version],
            "platform": "polymodal",
            "inputs": [
                {
                    "name": name,
                    "datatype": usual(slot.kind),
                    "shape": [-1],
                    "parameters": {"input": slot.input, "kind": slot.kind, "optional": True},
                }
                for name, slot in slots.items()
            ],
            "outputs": [output.metadata for output in found.values()],
        }
        return cls(intake, found, metadata)


class Protocol:
    """Answers the protocol's requests.

    Args:
        models: that are asked.
    """

    def __init__(self, models: Models) -> None:
        self._models, self._settings, self._cells = models, models.settings, Cells(models.settings)
        self._known: WeakKeyDictionary[Served, Interface] = WeakKeyDictionary()

    async def server(self, request: Request) -> Response:
        """Name, version and extensions of the server."""
        return _json({"name": "polymodal", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, request: Request) -> Response:
        """Whether the process answers at all."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether every bundle is loaded and warm; 503 if not."""
        return _json({"ready": self._models.ready}, 200 if self._models.ready else 503)

    async def model(self, request: Request) -> Response:
        """Inputs and outputs of a bundle."""
        return _json(self._interface(self._find(request)).metadata)

    async def model_ready(self, request: Request) -> Response:
        """Whether a bundle is loaded and warm; 503 if not."""
        served = self._find(request)
        return _json({"name": served.name, "ready": self._models.ready}, 200 if self._models.ready else 503)

    async def infer(self, request: Request) -> Response:
        """Answer the rows of a request."""
        note: Note = request.scope["note"]
        served = self._find(request)
        note.model, note.version = served.name, served.version
        until = note.arrived + patience(request.headers.get("X-Deadline-Ms"), self._settings.deadline)
        body, head = await request.body(), request.headers.get(HEADER)
        known = self._interface(served)
        parse = partial(read_call, body, head, known.intake, known.outputs, self._cells)
        asked, call = parse() if len(body) <= SMALL else await asyncio.to_thread(parse)
        if call.parameters.timeout is not None:
            until = min(until, note.arrived + min(call.parameters.timeout, FOREVER) / 1e6)
        note.rows = len(asked.rows)
        async with asyncio.timeout_at(until):
            await self._cells.fetch(asked)
            try:
                answers = await served.predict(asked.rows, strict=asked.strict, explain=False, deadline=until)
            except DataError as error:
                raise type(error)(_ROW.sub(r"\2[\1]\3", str(error), count=1)) from None
        if isinstance(self._models.metrics, Metrics):
            self._models.metrics.answered(served.name, len(answers))
        rows = [
            {"prediction": answer.prediction, "absent": answer.absent, "broken": [*here, *answer.broken]}
            for here, answer in zip(asked.broken, answers, strict=True)
        ]
        return tell(served.name, served.version, call, known.outputs, rows)

    def routes(self) -> list[Route]:
        """All of them."""
        every = [
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
        ]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            every += [
                Route(path, self.model),
                Route(f"{path}/ready", self.model_ready),
                Route(f"{path}/infer", self.infer, methods=["POST"]),
            ]
        return every

    def _find(self, request: Request) -> Served:
        """The bundle, and version, that a path names.

        Raises:
            Refused: there is none of that name, or that version does not answer now.
            Stopping: it is not loaded.
        """
        try:
            served = self._models.find(request.path_params["name"])
        except SpecError as error:
            raise Refused(404, str(error)) from None
        version = request.path_params.get("version", served.version)
        if version != served.version:
            raise Refused(404, f"version must be {served.version!r}, which answers now, got {short(version)}.")
        return served

    def _interface(self, served: Served) -> Interface:
        found = self._known.get(served)
        if found is None:
            found = self._known[served] = Interface.of(served, self._settings)
        return found


def routes(models: Models) -> list[Route]:
    """The protocol's paths."""
    return Protocol(models).routes()


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(dumps(content), status, media_type="application/json")
