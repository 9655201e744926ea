"""Logs: one line of JSON per request, without anything a user sent."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
"""Paths that are asked every second for weeks: no lines, since what they tell is in the metrics."""

TELLING = (RuntimeError, OSError, MemoryError)
"""Errors of the machine and its runtimes, whose message is logged; another one's may quote what a user sent."""


@dataclass(slots=True)
class Note:
    """What is known of a request while it runs, for its log line and the metrics.

    Attributes:
        request_id: given by the client or made up.
        arrived: time of the event loop's clock at which its head was there.
        model: name of the bundle that was asked; None before that is known.
        version: of that bundle.
        rows: in the request.
        received: bytes of its body.
        status: of the answer; 0 before there is one.
        error: type of the fault, if it was refused.
        trace: of an unexpected error: where it happened, never the values it happened with.
    """

    request_id: str
    arrived: float
    model: str | None = None
    version: str | None = None
    rows: int = 0
    received: int = 0
    status: int = 0
    error: str | None = None
    trace: str | None = None


class Log:
    """Writes lines to a stream. A line that cannot be written is dropped and counted, and never breaks a request.

    Attributes:
        dropped: how many lines were.
    """

    def __init__(self, stream: TextIO | None = None, on_drop: Callable[[], None] = lambda: None) -> None:
        self._stream, self._on_drop = stream, on_drop
        self.dropped = 0

    def write(self, level: str, **fields: Any) -> None:
        """Write one line.

        Args:
            level: "info", "warning" or "error".
            fields: in order; those that are None are left out.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level}
        line |= {name: value for name, value in fields.items() if value is not None}
        stream = self._stream or sys.stderr
        try:
            stream.write(_JSON.encode(line) + "\n")
            stream.flush()
        except (OSError, ValueError) as error:  # a full disk, a pipe that nobody reads, a closed file
            self._drop(error)

    def request(self, note: Note, scope: Any, seconds: float) -> None:
        """Write the line of a request that is over, unless it was a probe.

        Args:
            note: what is known of it.
            scope: ASGI's.
            seconds: from its head's arrival to its answer's last byte.
        """
        if scope["path"] in PROBES:
            return
        client = scope.get("client")
        self.write(
            "info" if note.status < 400 else "warning" if note.status < 500 else "error",
            request_id=note.request_id,
            method=scope["method"],
            path=scope["path"][:200],
            status=note.status,
            ms=round(1000 * seconds, 3),
            rows=note.rows or None,
            model=note.model,
            version=note.version,
            bytes=note.received,
            client=client[0][:64] if client else None,
            error=note.error,
            trace=note.trace,
        )

    def _drop(self, error: Exception) -> None:
        self.dropped += 1
        self._on_drop()
        if self.dropped == 1 and self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # there may be nobody to tell
                print(f"polymodal: the log cannot be written, lines are dropped: {error}", file=sys.stderr)  # noqa: T201


def trace(error: BaseException) -> str:
    """Where an unexpected error happened, and of which type it and its causes are."""
    lines, seen = list[str](), set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        said = f": {link!s:.500}" if isinstance(link, TELLING) else ""
        lines.append(f"{type(link).__module__}.{type(link).__qualname__}{said}")
        lines += [f"  {f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(link.__traceback__)]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n".join(lines)


_JSON = json.JSONEncoder(separators=(",", ":"))
