"""What a user can set about a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from polymodal.errors import SpecError
from polymodal.machine import processors

Host = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\[\]\s/:@?#*]+)(:[0-9]+)?$")]
"""A host's name or address, perhaps with a port; no URL, and no pattern of several."""


class Place(BaseModel):
    """A bundle to serve.

    Attributes:
        name: that clients call it by; the folder's own name when not given.
        folder: of the bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    folder: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``folder`` or ``name=folder``."""
        name, equals, folder = text.partition("=")
        folder = folder if equals else text
        return cls(name=name if equals else Path(folder).resolve().name, folder=Path(folder))


class Settings(BaseModel):
    """A server's settings.

    Attributes:
        models: bundles; the first one answers where a request names none.
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        workers: processes that answer; with more than one, another one stands before them.
        device: that the models run on.
        runtime: of the frozen backbones; ``auto`` measures which is fastest here.
        threads: of one call of a runtime; a quarter of a worker's cores when not given, at least 1. Fewer threads serve
            more calls beside one another.
        batch: rows that go through the model together at most.
        wait_ms: that a row waits for others which are being decoded.
        queue: rows that may wait; more are answered by 429.
        deadline: seconds from a request's arrival after which nobody waits for its answer any more.
        max_body: bytes of a request.
        max_rows: of a request.
        max_pixels: of an image.
        max_seconds: of a sound.
        token: that requests must carry as ``Authorization: Bearer TOKEN``; visible ASCII, as in a header.
        allow_hosts: names of hosts from which media may be fetched by URL.
        watch: seconds between two looks at the bundles' folders for a new version; 0 never looks.
        drain: seconds that a stopping server gives to what it has taken in.
        index: folder of an index that one of the bundles has made, for ``/v1/find``.
        page: whether ``/`` shows a page to try the model on, and ``/docs`` one to read the API on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    models: tuple[Place, ...] = Field(min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=256)
    device: str = "auto"
    runtime: str = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    batch: int = Field(16, ge=1, le=1024)
    wait_ms: float = Field(2.0, ge=0, le=1000)
    queue: int = Field(256, ge=1, le=1_000_000)
    deadline: float = Field(10.0, gt=0, le=3600)
    max_body: int = Field(32 << 20, ge=1024)
    max_rows: int = Field(256, ge=1, le=100_000)
    max_pixels: int = Field(50_000_000, ge=1)
    max_seconds: float = Field(600.0, gt=0)
    token: str | None = Field(None, min_length=8, pattern=r"^[!-~]([ -~]*[!-~])?$")
    allow_hosts: tuple[Host, ...] = ()
    watch: float = Field(2.0, ge=0, le=3600)
    drain: float = Field(30.0, ge=0, le=3600)
    index: Path | None = None
    page: bool = True

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [place.name for place in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"models must have names of their own, got {names}. Give them as name=folder.")
        return self

    @property
    def cores(self) -> int:
        """Processors that each worker may use."""
        return max(1, processors() // self.workers)

    @property
    def call_threads(self) -> int:
        """Threads of one call of a runtime."""
        return self.threads or max(1, self.cores // 4)

    @property
    def lanes(self) -> int:
        """Batches that go through a model beside one another on CPUs."""
        return max(1, self.cores // self.call_threads)

    @classmethod
    def make(cls, *bundles: str | Path, **options: Any) -> Self:
        """Settings from folders, each perhaps as ``name=folder``, and options by name.

        Raises:
            SpecError: one is not as it must be, or there is none of that name.
        """
        try:
            return cls(models=tuple(Place.parse(str(bundle)) for bundle in bundles), **options)
        except ValidationError as error:
            raise SpecError("\n".join(_told(fault) for fault in error.errors())) from None


def _told(fault: Any) -> str:
    """One fault in words; a token is never shown."""
    place = ".".join(map(str, fault["loc"])) or "models"
    got = "" if place in ("token", "models") else f", got {fault['input']!r:.80}"
    return f"{place}: {fault['msg']}{got}."
