"""An application on a real server in this process, for tests; and what speaks to it, by HTTP or byte by byte."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from polymodal.server.hosting import Connection

WAIT = 30.0
"""Seconds after which a test fails rather than waits."""


@contextmanager
def running(app: ASGIApp, **options: Any) -> Iterator[tuple[str, int]]:
    """Serve an application by uvicorn in a thread until the block ends.

    Args:
        app: with its lifespan.
        options: of `uvicorn.Config`.

    Yields:
        Host and port.
    """
    usual = {"log_config": None, "access_log": False, "http": Connection, "timeout_graceful_shutdown": 5}
    server = uvicorn.Server(uvicorn.Config(app, **usual | options))
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            for _ in range(int(WAIT / 0.01)):
                if server.started or not thread.is_alive():
                    break
                thread.join(0.01)
            assert server.started, "the server did not start"
            yield listening.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive(), "the server did not end"


class Reply:
    """An answer: status, headers by lower-case name, body, and the body as JSON where it is."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.body = response.status, response.read()
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        is_json = self.headers.get("content-type", "").startswith("application/json")
        self.json: Any = json.loads(self.body) if is_json else None


def ask(place: tuple[str, int], path: str, body: Any = None, method: str = "", **headers: str) -> Reply:
    """Send one request and read its answer. A body that is no bytes goes as JSON.

    Args:
        place: host and port.
        path: with its query.
        body: None for none.
        method: GET without a body and POST with one, if not given.
        headers: underscores stand for hyphens.
    """
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None:
        found = {"Content-Type": "application/json", **found}
    with closing(http.client.HTTPConnection(*place, timeout=WAIT)) as connection:
        connection.request(method or ("GET" if body is None else "POST"), path, body, found)
        return Reply(connection.getresponse())


def multipart(*parts: tuple[str, bytes, str | None, str | None]) -> tuple[bytes, str]:
    """A form and its content type, from (name, content, file name, media type)."""
    pieces = []
    for name, content, file, media_type in parts:
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"'
        head += "" if file is None else f'; filename="{file}"'
        head += "" if media_type is None else f"\r\nContent-Type: {media_type}"
        pieces.append(head.encode() + b"\r\n\r\n" + content + b"\r\n")
    return b"".join(pieces) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def connect(place: tuple[str, int]) -> socket.socket:
    """A connection to write raw bytes to."""
    return socket.create_connection(place, timeout=WAIT)


def receive(connection: socket.socket) -> bytes:
    """Everything that comes until the other side closes or resets the connection."""
    found = bytearray()
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return bytes(found)
        if not piece:
            return bytes(found)
        found += piece


def statuses(raw: bytes) -> list[int]:
    """Statuses of the answers in raw bytes."""
    return [int(part.split(b" ", 1)[0]) for part in raw.split(b"HTTP/1.1 ")[1:]]
