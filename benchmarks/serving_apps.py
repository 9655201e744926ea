"""What Polymodal's server is compared with (see serving.py), each as a process of its own on a port, or as a loop."""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import polymodal as pm
from polymodal.data.features import cache_folder
from polymodal.reading import Field
from polymodal.server import hosting
from polymodal.server.app import create_app
from polymodal.server.engine import Answer
from polymodal.server.models import Models
from polymodal.server.settings import Settings
from polymodal.trials.ask import Row, fields, made_up, table_rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve one of the apps until the process is ended, or print what the loop cost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app", choices=APPS)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--runtime", default="auto", help="of the loop")
    parser.add_argument("--table", help="rows of the loop; made-up ones when not given")
    parser.add_argument("--columns", nargs="+", help="of the loop's rows")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the loop, for each size of batch")
    options = parser.parse_args(arguments)
    APPS[options.app](options)


def chosen(bundle: pm.Bundle, table: str | None, columns: Sequence[str] | None, most: int = 256) -> list[Row]:
    """Rows to ask for, with only some of their columns."""
    rows = made_up(bundle.spec) if table is None else table_rows(bundle.spec, table, most)[0]
    return [{c: v if columns is None or c in columns else None for c, v in row.items()} for row in rows]


def loop(options: argparse.Namespace) -> None:
    """Decode and run the model, one row after another and sixteen together: nothing of a server."""
    from polymodal.runtimes import choose
    from polymodal.server.settings import Settings
    from polymodal.tracing import answerer

    bundle = pm.load(options.bundle)
    threads = Settings.make(options.bundle).call_threads
    torch.set_num_threads(threads)
    choice = choose(bundle, runtime=options.runtime, threads=threads)
    embedder, run = choice.embedder.without_store(), answerer(bundle.model, cache_folder() / "graphs")
    rows = [row for row in chosen(bundle, options.table, options.columns) if any(v is not None for v in row.values())]

    def forward(some: Sequence[Row]) -> None:
        inputs = {}
        for name, part in bundle.spec.inputs.items():
            values = []
            for row in some:
                cell = {column: row[column] for column in part.columns(name)}
                content = cell if part.spans else next(iter(cell.values()))
                absent = all(value is None for value in cell.values())
                values.append(None if absent else part.read(content).value)
            if any(value is not None for value in values):
                x = embedder.embed(name, part.collate(values))
                inputs[name] = embedder.summary(name, x) if name in embedder.summarised else x
        run(inputs)

    found: dict[str, Any] = {"names": dict(choice.names), "threads": torch.get_num_threads()}
    with torch.inference_mode():
        for size in (1, 16):
            batches = [rows[i : i + size] for i in range(0, len(rows), size)]
            for batch in batches[:3]:
                forward(batch)
            done, end, cpu = 0, time.perf_counter() + options.seconds, time.process_time()
            while time.perf_counter() < end:
                batch = batches[done % len(batches)]
                forward(batch)
                done += 1
            cost = (time.process_time() - cpu) * 1e3
            asked = sum(len(batches[i % len(batches)]) for i in range(done))
            found[f"cpu_ms_{size}"] = cost / asked
    print(json.dumps(found))


def fastapi(options: argparse.Namespace) -> None:
    """A plain FastAPI endpoint around `Bundle.predict`, as a user would write it: files and form fields, no batching.

    Its parameters are the bundle's columns: ``image: UploadFile | None = None, text: str | None = Form(None)``, ...
    """
    from fastapi import FastAPI, File, Form, UploadFile

    bundle, app = pm.load(options.bundle), FastAPI()
    known = fields(bundle.spec)
    bundle.predict(made_up(bundle.spec)[:1])
    columns = {f"c{i}": field.column for i, field in enumerate(known)}  # a column need not be a name in Python

    def predict(**form: Any) -> dict[str, Any]:
        cells = {columns[name]: value for name, value in form.items()}
        row = {c: v if v is None or isinstance(v, str) else v.file.read() for c, v in cells.items()}
        return {"predictions": list(bundle.predict([row]))}

    def parameter(name: str, field: Field) -> inspect.Parameter:
        media = isinstance(field.example, bytes)
        kind, place = (UploadFile, File) if media else (str, Form)
        annotation = Annotated[kind | None, place(alias=field.column)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    made = [parameter(name, field) for name, field in zip(columns, known, strict=True)]
    predict.__signature__ = inspect.Signature(made)  # what FastAPI reads in place of **form
    app.post("/v1/predict")(predict)
    app.get("/readyz")(lambda: {})
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


class Constant:
    """A model that does nothing: every row has the same answer."""

    name, version, card, waiting = "model", "0" * 12, "", 0

    def __init__(self, bundle: pm.Bundle) -> None:
        self.bundle, row = bundle, made_up(bundle.spec)[0]
        self.prediction = bundle.predict([row])[0]

    async def predict(self, rows: Sequence[Row], **options: Any) -> list[Answer]:
        """Answer at once."""
        return [Answer(self.prediction, [], [], {}) for _ in rows]


class Nothing(Models):
    """Such a model in the place of a server's bundles."""

    def __init__(self, settings: Settings, constant: Constant) -> None:
        super().__init__(settings)
        self.constant: Any = constant

    async def start(self) -> None:
        """Have it ready."""
        self.served["model"] = self.constant

    async def stop(self) -> None:
        """Have nothing more."""
        self.served.clear()


class Hosted:
    """An ASGI application as the server hosts its own."""

    def __init__(self, app: Any) -> None:
        self.app, self._stack = app, AsyncExitStack()

    async def open(self) -> None:
        """Run what the application does at its start."""
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))

    async def look(self) -> None:
        """Look for nothing."""

    async def close(self, seconds: float) -> None:
        """Run what the application does at its end."""
        await self._stack.aclose()

    def kill(self) -> None:
        """Nothing is left behind."""


def empty(options: argparse.Namespace) -> None:
    """Polymodal's own application and hosting, around a model that does nothing."""
    settings = Settings.make(f"model={options.bundle}")
    app = create_app(settings, Nothing(settings, Constant(pm.load(options.bundle))))
    with hosting.listen("127.0.0.1", options.port) as listener:
        hosting.run(Hosted(app), listener, settings.drain)


def starlette(options: argparse.Namespace) -> None:
    """A bare Starlette route that reads the body and answers the same bytes every time."""
    content = json.dumps({"predictions": [Constant(pm.load(options.bundle)).prediction]}).encode()

    async def predict(request: Request) -> Response:
        await request.body()
        return Response(content, media_type="application/json")

    async def ready(request: Request) -> Response:
        return Response()

    app = Starlette(routes=[Route("/v1/predict", predict, methods=["POST"]), Route("/readyz", ready)])
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


APPS = {"loop": loop, "fastapi": fastapi, "empty": empty, "starlette": starlette}

if __name__ == "__main__":
    main()
