"""Multipart: the parts of a multipart/form-data body that is in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from polymodal.server.errors import Refused

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


@dataclass(slots=True)
class Part:
    """One part of a form.

    Attributes:
        name: of the field.
        filename: None unless it is a file; empty where a browser's form had no file chosen.
        media_type: that it says it is; empty where it says nothing.
        data: its content.
    """

    name: str = ""
    filename: str | None = None
    media_type: str = ""
    data: bytes = b""

    @property
    def is_file(self) -> bool:
        """Whether its content is bytes rather than text."""
        return self.filename is not None or bool(self.media_type and not self.media_type.startswith("text/"))


@dataclass(slots=True)
class _Reader:
    """Gathers what the parser finds."""

    most: int
    parts: list[Part] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    name: bytes = b""
    value: bytes = b""
    pieces: list[bytes] = field(default_factory=list)
    ended: bool = False

    def on_part_begin(self) -> None:
        if len(self.parts) >= self.most:
            raise Refused(413, f"The form must have at most {self.most} parts. Send fewer rows.")
        self.headers, self.pieces = {}, []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def on_header_end(self) -> None:
        self.headers[self.name.decode("latin-1").lower()] = _text(self.value)
        self.name = self.value = b""

    def on_headers_finished(self) -> None:
        # The parser of options takes its text as Latin-1, in which any bytes have a place.
        kind, options = _options(self.headers.get("content-disposition", ""))
        if kind != "form-data" or "name" not in options:
            raise Refused(
                400, "Every part of the form must have the header 'Content-Disposition: form-data; name=...'."
            )
        media_type, _ = _options(self.headers.get("content-type", ""))
        self.parts.append(Part(options["name"], options.get("filename"), media_type))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.pieces.append(data[start:end])

    def on_part_end(self) -> None:
        self.parts[-1].data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    def on_end(self) -> None:
        self.ended = True


def read_parts(body: bytes, content_type: str, most: int) -> list[Part]:
    """Take a form apart.

    Args:
        body: the whole of it.
        content_type: header, with the boundary.
        most: parts that it may have.

    Raises:
        Refused: it is no such form (400), or has too many parts (413).
    """
    boundary = _options(content_type)[1].get("boundary", "")
    if not boundary:
        raise Refused(400, "The header Content-Type must name the form's boundary. Let your client make the header.")
    reader = _Reader(most)
    names = (name for name in dir(reader) if name.startswith("on_"))
    callbacks = cast("MultipartCallbacks", {name: getattr(reader, name) for name in names})
    try:
        parser = MultipartParser(boundary.encode("utf-8"), callbacks)
        parser.write(body)
    except FormParserError as error:
        raise Refused(400, f"The body must be multipart/form-data: {error}.") from None
    if not reader.ended:
        raise Refused(400, "The form must end with its boundary, got a body that was cut off. Send it again.")
    return reader.parts


def _options(header: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case, and its options."""
    kind, options = parse_options_header(header.encode("utf-8"))
    return kind.decode("latin-1"), {name.decode("latin-1"): _text(value) for name, value in options.items()}


def _text(data: bytes) -> str:
    """Bytes of a header as text: UTF-8 as browsers write it, else Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
