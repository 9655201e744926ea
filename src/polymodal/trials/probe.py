"""Probe: what a real server on this machine answers to rows, over each of its protocols."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from polymodal.errors import SpecError
from polymodal.runtimes import Choice
from polymodal.server.app import create_app
from polymodal.server.logs import Log
from polymodal.server.models import Models
from polymodal.server.settings import Settings
from polymodal.server.tensors import outputs, usual
from polymodal.spec import Spec
from polymodal.trials.ask import Request, Row, as_form, as_json, as_tensors

NAME = "model"
Answers = list[dict[str, dict[str, Any]]]


class Probe:
    """A server in a thread of this process, with one bundle.

    Attributes:
        url: without a path.
        choice: the runtimes that it chose.
    """

    def __init__(self, url: str, choice: Choice) -> None:
        self.url, self.choice = url, choice

    def protocols(self, spec: Spec) -> dict[str, Callable[[Sequence[Row]], Answers]]:
        """Every way to ask, by its name."""
        return {
            "JSON": self.json,
            "multipart": self.multipart,
            "inference protocol": lambda rows: self.tensors(rows, spec),
        }

    def json(self, rows: Sequence[Row]) -> Answers:
        """All rows in one JSON request."""
        return self._post("/v1/predict", as_json(rows))["predictions"]

    def multipart(self, rows: Sequence[Row]) -> Answers:
        """Each row that holds something as a form of its own, files as uploads; the empty ones as JSON."""
        found: Answers = []
        for row in rows:
            empty = all(value is None for value in row.values())
            found += self._post("/v1/predict", as_json([row]) if empty else as_form(row))["predictions"]
        return found

    def tensors(self, rows: Sequence[Row], spec: Spec) -> Answers:
        """All rows in one request of the Open Inference Protocol."""
        answer = self._post(f"/v2/models/{NAME}/infer", as_tensors(spec, rows, usual))
        data = {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}
        found: Answers = [{} for _ in rows]
        for output in outputs(spec.outputs):
            if output.path[0] != "prediction":
                continue
            flat = iter(data[output.name])
            for row in found:
                _put(row, output.path[1:], _nested(flat, output.names, output.datatype == "BYTES", output.path[-1]))
        return found

    def _post(self, path: str, request: Request) -> Any:
        headers = {"Content-Type": request.content_type}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, request.body, headers)) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise SpecError(f"{path} must answer 200, got {error.code}: {said[:500]}") from None


@contextmanager
def probe(folder: Path) -> Iterator[Probe]:
    """Serve a bundle in a thread of this process, on a free port of this machine only, as ``polymodal serve`` does.

    Raises:
        SpecError: it does not start.
    """
    settings = Settings.make(f"{NAME}={folder}", port=0, watch=0, page=False, deadline=600.0)
    models = Models(settings)
    app = create_app(settings, models, log=Log(io.StringIO()))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not (server.started and models.ready):
            if not thread.is_alive():
                raise SpecError(f"{folder} must be served, got a server that ended. Run `polymodal serve` to see why.")
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Probe(f"http://127.0.0.1:{port}", models.find().choice)
    finally:
        server.should_exit = True
        thread.join()


def _nested(flat: Iterator[Any], names: Sequence[Sequence[str]], texts: bool, key: str) -> Any:
    """The next elements as the prediction holds them: a mapping for each dimension."""
    if names:
        return {name: _nested(flat, names[1:], texts, key) for name in names[0]}
    value = next(flat)
    return json.loads(value) if texts and key != "class" else value


def _put(row: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Enter a value of a task's prediction; the whole prediction where the path names only the task."""
    if len(path) == 1:
        row[path[0]] = value
    else:
        row.setdefault(path[0], {})[path[1]] = value
