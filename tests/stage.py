"""A server's application over models that need no training, for tests of what is around them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import polymodal as pm
from polymodal.server.app import create_app
from polymodal.server.batching import Stopping
from polymodal.server.engine import Answer
from polymodal.server.logs import Log
from polymodal.server.metrics import Metrics
from polymodal.server.settings import Settings

SPEC = pm.Spec.parse(
    {
        "inputs": {
            "caption": {"type": "text", "backbone": "none", "column": "words"},
            "image": {"type": "image", "backbone": "none", "size": 32},
            "sound": {"type": "audio", "backbone": "none", "max_seconds": 1.0},
            "table": {"type": "table", "numbers": ["width", "weight"], "categories": ["colour"], "booleans": ["new"]},
        },
        "outputs": {"label": {"type": "classify", "column": "verdict"}},
        "dim": 16,
    }
)


class Constant:
    """Answers every row alike, and keeps what it was asked."""

    def __init__(self, name: str = "m", version: str = "0" * 12, prediction: Any = None, spec: Any = SPEC) -> None:
        self.name, self.version, self.card = name, version, "# A card"
        self.bundle = SimpleNamespace(spec=spec)
        self.prediction = {"label": {"class": "a", "probability": 0.5}} if prediction is None else prediction
        self.error: BaseException | None = None
        self.asked: list[dict[str, Any]] = []

    async def predict(self, rows: Any, *, strict: bool, explain: bool, deadline: float) -> list[Answer]:
        self.asked.append({"rows": rows, "strict": strict, "explain": explain, "deadline": deadline})
        if self.error is not None:
            raise self.error
        told = {"inputs": {}} if explain else None
        return [Answer(self.prediction, ["image"], [], {}, told) for _ in rows]


class Held(Constant):
    """Answers when it is let, and notices when nobody waits any more."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go, self.cancelled = asyncio.Event(), asyncio.Event(), False

    async def predict(self, rows: Any, **how: Any) -> list[Answer]:
        self.entered.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return await super().predict(rows, **how)


class Shelf:
    """Models without a disk."""

    def __init__(self, settings: Settings, *served: Constant) -> None:
        self.settings, self.served = settings, {one.name: one for one in served}
        self.names, self.ready, self.metrics, self.waiting = list(self.served), True, None, {"m": 3}
        self.finder, self.started, self.stopped = None, False, False

    async def start(self) -> None:
        self.started = True

    async def stop(self) -> None:
        self.stopped = True

    def find(self, name: str | None = None) -> Constant:
        if name is not None and name not in self.names:
            raise pm.SpecError(f"model must be one of {self.names}, got {name!r}.")
        if not self.served:
            raise Stopping("Nothing is loaded.")
        return self.served[name or self.names[0]]


class Lines:
    """A stream that keeps what is written, until it is full."""

    def __init__(self) -> None:
        self.text, self.full = "", False

    def write(self, text: str) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.text += text

    def flush(self) -> None:
        pass

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


def settings(**more: Any) -> Settings:
    """Of a server with one bundle."""
    return Settings.make("m=nowhere", **more)


class Stage:
    """An application over a model, with what it counts and logs."""

    def __init__(self, *served: Constant, **options: Any) -> None:
        self.served, self.lines, self.metrics = served or (Constant(),), Lines(), Metrics()
        places = [f"{one.name}=nowhere" for one in self.served]
        self.settings = Settings.make(*places, **options)
        self.shelf = Shelf(self.settings, *self.served)
        log = Log(self.lines, self.metrics.dropped.inc)  # pyright: ignore[reportArgumentType]
        self.app = create_app(self.settings, self.shelf, metrics=self.metrics, log=log)  # pyright: ignore

    def counted(self, name: str, **labels: str) -> float | None:
        """A sample of the metrics."""
        return self.metrics.registry.get_sample_value(name, labels)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request, body as bytes or JSON, with nothing between."""
        return asyncio.run(self.call(method, path, body, **headers))

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """The same in a running event loop."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if content:
            named = {"content-type": "application/json", "content-length": str(len(content)), **named}
        client = Client([{"type": "http.request", "body": content}])
        await self.app(scope(method, path, named), client.receive, client.send)
        return client.reply


def scope(method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """What a server tells an application of a request."""
    path, _, query = path.partition("?")
    return {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "", "scheme": "http", "client": ("10.0.0.9", 5000),
        "server": ("127.0.0.1", 8080),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
    }  # fmt: skip


class Client:
    """The other end: sends pieces of a body, then waits; hangs up when told."""

    def __init__(self, pieces: list[dict[str, Any]]) -> None:
        self.pieces, self.sent, self.hung_up, self.read = pieces, list[dict[str, Any]](), asyncio.Event(), 0

    async def receive(self) -> dict[str, Any]:
        if self.pieces:
            self.read += 1
            return self.pieces.pop(0)
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def reply(self) -> Reply:
        return Reply(self.sent)


class Reply:
    """An answer."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        starts = [message for message in sent if message["type"] == "http.response.start"]
        assert len(starts) == 1, sent
        assert not sent[-1].get("more_body", False)
        self.status = starts[0]["status"]
        pairs = [(name.decode(), value.decode()) for name, value in starts[0]["headers"]]
        self.headers = dict(pairs)
        assert len(self.headers) == len(pairs), "a header is there twice"
        self.body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")

    @property
    def json(self) -> Any:
        return json.loads(self.body)
