"""The pages of a server: one to try the model on, one that shows the API. Both work offline.

Their files are read into memory once. A request chooses among them by name and never reaches the disk.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PAGES = {"/": "index.html", "/docs": "docs.html"}
STATIC = (
    "answer.js", "code.js", "docs.css", "docs.js", "form.js", "icon.svg", "lib.js", "media.js", "page.css", "page.js",
)  # fmt: skip

_NEVER = re.compile(r"q=0(\.0*)?")


@dataclass(frozen=True, slots=True)
class Held:
    """A file in memory.

    Attributes:
        content: its bytes.
        packed: the same by gzip.
        headers: that both are sent with.
    """

    content: bytes
    packed: bytes
    headers: dict[str, str]

    @classmethod
    def read(cls, name: str) -> Held:
        """Take a file of this package into memory."""
        content = files(__name__).joinpath("static", name).read_bytes()
        headers = {
            "Content-Type": f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8",
            "ETag": f'W/"{hashlib.sha256(content).hexdigest()[:16]}"',  # weak: of the file, packed or not
            "Cache-Control": "no-cache",  # kept, but asked for again each time, so that a new version shows at once
            "Vary": "Accept-Encoding",
        }
        return cls(content, gzip.compress(content, mtime=0), headers)

    async def answer(self, request: Request) -> Response:
        """The file, or 304 without it where the client has it."""
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
        if self.headers["ETag"].removeprefix("W/") in known or "*" in known:
            kept = {name: value for name, value in self.headers.items() if name != "Content-Type"}
            return Response(status_code=304, headers=kept)
        if _takes_gzip(request.headers.get("Accept-Encoding", "")):
            return Response(self.packed, headers={**self.headers, "Content-Encoding": "gzip"})
        return Response(self.content, headers=self.headers)


def routes() -> list[Route]:
    """Routes of ``/``, ``/docs`` and the files they need."""
    static = {name: Held.read(name) for name in STATIC}

    async def file(request: Request) -> Response:
        """A file of the pages, by its known name."""
        name = request.path_params["name"]
        if name not in static:
            raise HTTPException(404, f"static must be one of {sorted(static)}, got {name[:60]!r}.")
        return await static[name].answer(request)

    return [*(Route(path, Held.read(name).answer) for path, name in PAGES.items()), Route("/static/{name}", file)]


def _takes_gzip(header: str) -> bool:
    """Whether an Accept-Encoding names gzip, and not with a weight of 0."""
    choices = (choice.replace(" ", "").partition(";") for choice in header.lower().split(","))
    return any(name == "gzip" and not _NEVER.fullmatch(weight) for name, _, weight in choices)
