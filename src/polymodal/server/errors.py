"""Errors: which status, type and headers each exception is answered with, in one table."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from polymodal.errors import DataError, PolymodalError
from polymodal.server.batching import Busy, Late, Stopping

KINDS = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "bad_request",
    408: "deadline",
    413: "too_large",
    415: "unsupported_media_type",
    422: "unprocessable",
    429: "too_busy",
    500: "internal",
    503: "unavailable",
    504: "deadline",
}
"""Status -> the type that a client reads."""

GONE = 499
"""Status in logs and metrics of a request whose client hung up. Nothing is sent."""

_WHERE = re.compile(r"(inputs\[\d+\][^\n]*?)(?:: | must )")


class Refused(Exception):  # noqa: N818  (the name says what is the case)
    """A request that cannot be answered as it stands.

    Attributes:
        status: of the answer.
        where: path of what is at fault in the body ("inputs[0].image"), if there is one.
        headers: that the answer carries besides the usual ones.
    """

    def __init__(self, status: int, message: str, where: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.where = status, where
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class MediaTypeError(DataError):
    """A part says that it holds another kind of media than its column takes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is answered in place of a prediction.

    Attributes:
        status: of the answer.
        message: for a person; never says anything about the server's inside.
        where: as in `Refused`.
        headers: name in lower case -> value.
    """

    status: int
    message: str
    where: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        """The type that a client reads."""
        return KINDS.get(self.status, "bad_request" if self.status < 500 else "internal")

    def body(self, request_id: str, *, flat: bool = False) -> bytes:
        """The answer as JSON.

        Args:
            request_id: of the request.
            flat: as the Open Inference Protocol has it: the message alone.
        """
        told: dict[str, Any] = {"type": self.kind, "message": self.message, "where": self.where}
        return dumps({"error": self.message} if flat else {"error": told, "request_id": request_id})


TABLE: dict[type[Exception], tuple[int, str | None]] = {
    MediaTypeError: (415, None),
    PolymodalError: (422, None),
    Busy: (429, "Too many rows are waiting. Send the request again after the time that Retry-After tells."),
    Late: (504, "The request's deadline has passed before its answer was there. Allow more time, or send fewer rows."),
    TimeoutError: (504, "The request's deadline has passed before its answer was there. Allow more time."),
    Stopping: (503, "The server is stopping. Send the request again: another one may answer."),
    ClientDisconnect: (GONE, "The client has hung up."),
}
"""Exception -> status and message (None: the exception's own, which is written for the client)."""


def describe(error: BaseException) -> Fault:
    """What a client is told of an exception: all of it where it wrote the cause, else nothing but that it failed."""
    if isinstance(error, Refused):
        return Fault(error.status, str(error), error.where, tuple(error.headers.items()))
    if isinstance(error, HTTPException):
        headers = tuple((name.lower(), value) for name, value in (error.headers or {}).items())
        return Fault(error.status_code, _routing(error), None, headers)
    for known in type(error).__mro__:
        if known in TABLE:
            status, message = TABLE[known]
            message = message or str(error)
            return Fault(status, message, _where(message), _headers(status, error))
    return Fault(500, "The server failed to answer. Its log has the cause under this request's id.")


def _where(message: str) -> str | None:
    """The path that a message starts with."""
    found = _WHERE.match(message)
    return found[1] if found else None


def _headers(status: int, error: BaseException) -> tuple[tuple[str, str], ...]:
    """When to come again, where that helps."""
    if status not in (429, 503):
        return ()
    return (("retry-after", str(max(1, math.ceil(getattr(error, "retry_after", 1.0))))),)


def _routing(error: HTTPException) -> str:
    """What the router means."""
    if error.status_code == 404:
        return "There is nothing at this path. GET /openapi.json lists what there is."
    if error.status_code == 405:
        return f"The method must be one of {(error.headers or {}).get('Allow', 'those of /openapi.json')}."
    return error.detail


def dumps(value: Any) -> bytes:
    """JSON in UTF-8. What JSON cannot say (NaN, infinities) is null; half a surrogate pair becomes a question mark."""
    try:
        text = _JSON.encode(value)
    except ValueError:
        text = _JSON.encode(_finite(value))
    return text.encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    """The same with None in place of floats that are no finite number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
