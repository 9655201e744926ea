"""Guard: what every request passes before and after the application."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Collection, Iterable
from typing import Any

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polymodal.server.errors import GONE, Fault, Refused, describe
from polymodal.server.logs import Log, Note, trace
from polymodal.server.metrics import Metrics
from polymodal.server.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(self), geolocation=()"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Of every answer that does not set them itself."""

BODIES = 16
"""As many bodies of the largest size may be in memory at the same time; beyond that, requests get 503."""

LINGER = 2.0
"""Seconds for which the rest of a body that is not needed is read and dropped, so that its sender sees the answer."""

OPEN = ("/healthz", "/readyz")
"""Paths that need no token, besides the page's."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def open_paths(pages: Iterable[BaseRoute]) -> list[str]:
    """Paths that need no token: health, and a page's files, all below a folder where a name is a part of the path."""
    return [*OPEN, *(getattr(page, "path", "/").partition("{")[0] for page in pages)]


class Guard:
    """ASGI middleware: names, limits, admits, times, counts and logs requests, and answers for what goes wrong.

    Args:
        app: behind it.
        settings: `max_body`, `deadline` (a body must have arrived by then) and `token`.
        metrics: that requests are counted in.
        log: that gets a line for each.
        paths: that the application answers, to count requests under that were refused before they were routed.
        open_paths: that need no token; one that ends in a slash stands for all below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        metrics: Metrics,
        log: Log,
        paths: Collection[str] = (),
        open_paths: Collection[str] = (),
    ) -> None:
        self.app, self.settings, self.metrics, self.log = app, settings, metrics, log
        self.paths, self.open_paths = frozenset(paths), frozenset(open_paths)
        self.open_folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")
        self.token = None if settings.token is None else settings.token.encode()
        self.held, self.may_hold = 0, BODIES * settings.max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; anything but HTTP and the start and end of the server is closed."""
        if scope["type"] == "http":
            await Exchange(self, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    def is_open(self, path: str) -> bool:
        """Whether a path needs no token."""
        return path in self.open_paths or path.startswith(self.open_folders)


class Exchange:
    """One request and its answer.

    Attributes:
        note: what is known of it; the application finds it as ``scope["note"]`` and adds to it.
    """

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self._receive, self._send = guard, scope, receive, send
        self.loop, self.began = asyncio.get_running_loop(), time.perf_counter()  # the loop's clock may tick in ms
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        known = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        self.note = scope["note"] = Note(known, self.loop.time())
        self.until = self.note.arrived + guard.settings.deadline
        self.whole = b"transfer-encoding" not in self.headers and self.headers.get(b"content-length", b"0") == b"0"
        self.gone = False
        self._watcher: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Answer it, whatever happens."""
        guard, note = self.guard, self.note
        try:
            self._admit()
            await guard.app(self.scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - this is where every one of them ends
            await self._answer_for(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.gone or task is None:
                raise
            task.uncancel()
            note.status = GONE
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
            guard.held -= note.received
            seconds = time.perf_counter() - self.began
            guard.metrics.request(self._route(), note.status, seconds, note.error)
            guard.log.request(note, self.scope, seconds)

    def _admit(self) -> None:
        """Refuse what its head shows to be not allowed.

        Raises:
            Refused: the token is missing or wrong, the body is said to be too long, or it is packed.
        """
        guard, headers = self.guard, self.headers
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        known = scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), guard.token or b"")
        if guard.token and not known and not guard.is_open(self.scope["path"]):
            told = "The header Authorization must be 'Bearer TOKEN' with this server's token."
            raise Refused(401, told, www_authenticate="Bearer")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Refused(400, "The header Content-Length must be a number of bytes.")
        if int(length[:20]) > guard.settings.max_body:
            raise self._too_long()
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise Refused(415, "The body must not be packed. Leave the header Content-Encoding out.")

    def _too_long(self) -> Refused:
        return Refused(
            413, f"The body must have at most {self.guard.settings.max_body} bytes. Send fewer rows at a time."
        )

    async def receive(self) -> Message:
        """The next piece of the body, within the limits of size and time; then, when it comes to that, the hang-up.

        Raises:
            Refused: the body is too long or too slow, or too much is in memory.
        """
        if self._watcher is not None:
            await asyncio.shield(self._watcher)
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self.until):
                message = await self._receive()
        except TimeoutError:
            limit = self.guard.settings.deadline
            raise Refused(408, f"The body must arrive within {limit:g} s. Send less, or over a faster line.") from None
        if message["type"] == "http.disconnect":
            self.gone = True
            return message
        self.whole = not message.get("more_body", False)
        self._count(len(message.get("body", b"")))
        if self.whole:
            self._watcher = self.loop.create_task(self._watch(asyncio.current_task()))
        return message

    def _count(self, size: int) -> None:
        guard, note = self.guard, self.note
        note.received += size
        guard.held += size
        if note.received > guard.settings.max_body:
            raise self._too_long()
        if guard.held > guard.may_hold:
            raise Refused(503, "The server holds as many bodies as it can. Send the request again.", retry_after="1")

    async def _watch(self, worker: asyncio.Task[Any] | None) -> None:
        """Cancel the work on a request whose client hangs up."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.note.status and worker is not None:
            self.gone = True
            worker.cancel()

    async def send(self, message: Message) -> None:
        """Send a piece of the answer, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.note.status = message["status"]
            headers = list(message.get("headers", ()))
            given = {name for name, _ in headers}
            headers += [header for header in HEADERS if header[0] not in given]
            headers.append((b"x-request-id", self.note.request_id.encode()))
            if not self.whole:
                headers.append((b"connection", b"close"))  # the rest of the body is still to come
            message = {"type": "http.response.start", "status": message["status"], "headers": headers}
        elif not self.whole and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drop_rest()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _answer_for(self, error: Exception) -> None:
        """Answer in the application's place, and note why."""
        fault = describe(error)
        if self.gone or fault.status == GONE:
            self.note.status = GONE
            return
        self.note.error = fault.kind
        if fault.status == 500:
            self.note.trace = trace(error)
        if self.note.status:  # half of an answer is out: the connection is closed, which says that the rest is missing
            self.note.status = fault.status
            return
        await self._tell(fault)

    async def _tell(self, fault: Fault) -> None:
        body = fault.body(self.note.request_id, flat=self.scope["path"].startswith("/v2"))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fault.headers]
        await self.send({"type": "http.response.start", "status": fault.status, "headers": headers})
        body = b"" if self.scope["method"] == "HEAD" else body
        await self.send({"type": "http.response.body", "body": body})

    async def _drop_rest(self) -> None:
        """Read on for a while: a connection that is closed over unread bytes takes the answer with it."""
        try:
            async with asyncio.timeout(LINGER):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body", False):
                    pass
        except TimeoutError:
            pass

    def _route(self) -> str:
        """Pattern of the path, of which there are few."""
        route = self.scope.get("route")
        pattern = getattr(route, "path_format", None) or getattr(route, "path", None)
        if pattern is None:
            pattern = self.scope["path"] if self.scope["path"] in self.guard.paths else "other"
        return pattern
