"""Hosting: an ASGI application under uvicorn in this process, from its port to its last answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polymodal.errors import SpecError

HEAD_BYTES = 65536
"""Of a request's line and headers, at most."""

HEAD_SECONDS = 10.0
"""From a connection's start, or the first byte of a later request, to the end of the request's headers."""

IDLE_SECONDS = 20
"""After which a connection without a request is closed."""

BACKLOG = 2048
"""Connections that the system keeps until they are taken."""


class Guest(Protocol):
    """What is hosted."""

    app: Any
    """The ASGI application, which answers 503 until `open` is done and after `close` began."""

    async def open(self) -> None:
        """Make ready to answer.

        Raises:
            PolymodalError: that is not possible.
        """
        ...

    async def look(self) -> None:
        """Look for new versions now."""
        ...

    async def close(self, seconds: float) -> None:
        """Take nothing new in, and answer what was taken in within some seconds."""
        ...

    def kill(self) -> None:
        """End what would outlive this process, at once."""
        ...


class Connection(HttpToolsProtocol):
    """One connection, closed where a client sends endless headers, or none for too long."""

    _head: int | None = None
    _begun = True  # with the data at hand, which may hold an earlier request's body too
    _timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Wait for the first request's headers."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Wait for a request's headers."""
        super().on_message_begin()
        if self._head is None:
            self._expect()

    def on_headers_complete(self) -> None:
        """They are there."""
        self._arrived()
        super().on_headers_complete()
        if self.parser is not None and self.parser.should_upgrade():
            self._stay()

    def data_received(self, data: bytes) -> None:
        """Refuse headers that are too long."""
        self._begun = False
        super().data_received(data)
        if self._head is not None and not self._begun:
            self._head += len(data)
            if self._head > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's headers are too long.")

    def _stay(self) -> None:
        """Answer as if no other protocol had been asked for, and close then: the parser cannot tell what follows."""
        self.cycle.keep_alive = False
        if {b"content-length", b"transfer-encoding"} & {name for name, _ in self.headers}:
            self.send_400_response("A request with a body must have no header Upgrade. Leave it out.")

    def _expect(self) -> None:
        self._head, self._begun = 0, True
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _arrived(self) -> None:
        self._head = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """Without uvicorn's own signal handlers, which would stop listening before the guest has closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `host`."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Open a port.

    Raises:
        SpecError: there is no such address here, the port is taken, or it needs rights.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (socket.gaierror, UnicodeError):
        raise SpecError(f"host must be an address or a name of this machine, got {host!r}.") from None
    except OSError as error:
        if error.errno == socket.EAI_NONAME:  # in another guise
            raise SpecError(f"host must be an address or a name of this machine, got {host!r}.") from None
        reason = error.strerror or str(error)
        raise SpecError(
            f"host and port must be free to listen on, got {host}:{port} ({reason}). Give others."
        ) from None


def address(host: str, port: int) -> str:
    """Where a server that listens on a host is reached from the same machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(guest: Guest, listener: socket.socket, drain: float, *, behind: bool = False) -> None:
    """Host a guest until a signal ends it; return once it has answered what it took in.

    SIGTERM and SIGINT close it, and a second one ends the process at once. SIGHUP makes it look for new versions.

    Args:
        guest: to host.
        listener: bound to where its clients come from.
        drain: seconds that it has to close.
        behind: whether its only client is our own front process, which sets dates and names the true client.

    Raises:
        PolymodalError: the guest cannot be opened.
        SpecError: this is not the process's main thread, where signals arrive, or an event loop runs in it.
    """
    _check_thread()
    config = uvicorn.Config(
        guest.app, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        date_header=not behind, forwarded_allow_ips="*" if behind else None, backlog=BACKLOG,
        timeout_keep_alive=3600 if behind else IDLE_SECONDS,
    )  # fmt: skip
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_host(guest, _Server(config), listener, drain))


def _check_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        name = threading.current_thread().name
        raise SpecError(f"a server must run in the main thread, got {name!r}. Start it as a process of its own.")
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise SpecError("a server must be started where no event loop runs. Start it as a process of its own.")


async def _host(guest: Guest, server: uvicorn.Server, listener: socket.socket, drain: float) -> None:
    leave = asyncio.Event()
    _handle_signals(guest, leave)
    serving = asyncio.create_task(server.serve([listener]))
    opening = asyncio.create_task(guest.open())
    leaving = asyncio.create_task(leave.wait())
    try:
        await asyncio.wait({opening, leaving, serving}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            await asyncio.wait({leaving, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        opening.cancel()
        leaving.cancel()
        await _end(guest, server, serving, drain)


async def _end(guest: Guest, server: uvicorn.Server, serving: asyncio.Task[None], drain: float) -> None:
    """Close the guest while its port still answers (503), then the port."""
    loop = asyncio.get_running_loop()
    end = loop.time() + drain
    await guest.close(drain)
    server.config.timeout_graceful_shutdown = max(0, end - loop.time())  # pyright: ignore[reportAttributeAccessIssue]
    server.should_exit = True
    await serving


def _handle_signals(guest: Guest, leave: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        if leave.is_set():
            guest.kill()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        leave.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    looks = set[asyncio.Task[None]]()

    def look() -> None:
        task = asyncio.create_task(guest.look())
        looks.add(task)
        task.add_done_callback(looks.discard)

    loop.add_signal_handler(signal.SIGHUP, look)


Tell = Callable[[str], None]
"""Takes a line for a person."""
