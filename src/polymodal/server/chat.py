"""Chat: what clients of the OpenAI API send, as a row of a bundle and how it is to be answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polymodal.decoder.conversation import Conversation
from polymodal.nn.language.decode import Decoding
from polymodal.server.errors import Refused
from polymodal.server.strict import json_type, near, short
from polymodal.spec import Spec
from polymodal.tasks.generate import Generate

TAKEN = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "stop", "seed", "n", "user", "metadata", "store",
)  # fmt: skip
"""Keys of a request; the last three say nothing about the answer."""

SYSTEM = ("system", "developer")
PARTS = ("text", "image_url", "input_audio", "input_table")
FORMATS = {"wav": "wav", "mp3": "mpeg", "flac": "flac", "ogg": "ogg"}
"""Format of a sound -> its media type."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A request.

    Attributes:
        rows: of what a user says, the last one is asked: column or input -> cell, as a prediction's request has it.
        other: what else was said; None where that is nothing.
        how: the answer is made.
        stream: whether it is sent piece by piece.
        usage: whether the stream ends with counts of tokens.
    """

    rows: list[dict[str, Any]]
    other: Conversation | None
    how: Decoding
    stream: bool
    usage: bool


def speaks(spec: Spec) -> str | None:
    """The task that answers in words; None where none does."""
    return next((n for n, task in spec.outputs.items() if isinstance(task, Generate)), None)


def read_chat(document: Any, spec: Spec, task: Generate) -> Chat:
    """Read a request.

    Args:
        document: JSON of its body.
        spec: of the bundle.
        task: that answers.

    Raises:
        Refused: it is not built as it must be, or asks for what the bundle has no place for.
    """
    if not isinstance(document, dict):
        raise Refused(422, f"The body must be an object with 'messages', got {json_type(document)}.")
    for name in document.keys() - set(TAKEN):
        raise Refused(422, f"The body must have keys of {list(TAKEN)}, got {short(name)}.{near(name, TAKEN)}", name)
    if document.get("n", 1) != 1:
        raise Refused(422, f"n must be 1, got {short(document['n'])}.", "n")
    stream, options = document.get("stream") or False, document.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(options, dict):
        raise Refused(422, "stream must be true or false, and stream_options an object.", "stream")
    rows, other = _said(document.get("messages"), spec)
    return Chat(rows, other, _how(document, task.decoding), stream, bool(options.get("include_usage")))


def _said(messages: Any, spec: Spec) -> tuple[list[dict[str, Any]], Conversation | None]:
    """What a user says, turn by turn, and what else was said."""
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        told = "messages must be a list of one or more objects of a role and a content"
        raise Refused(422, f"{told}, got {json_type(messages)}.", "messages")
    first = int(messages[0].get("role") in SYSTEM)
    system, rows, answers = None, list[dict[str, Any]](), list[str]()
    for i, message in enumerate(messages):
        role, wanted = message.get("role"), ("user", "assistant")[(i - first) % 2]
        where, parts = f"messages[{i}]", _parts(message.get("content"), f"messages[{i}].content")
        if i < first:
            system = _words(parts, where)
        elif role != wanted:
            told = "A system message may come first, then user and assistant take turns"
            raise Refused(422, f"{where}.role must be {wanted!r}, got {short(role)}. {told}.", f"{where}.role")
        elif role == "user":
            rows.append(_Row(spec).read(parts, f"{where}.content"))
        else:
            answers.append(_words(parts, where))
    if len(rows) == len(answers):
        raise Refused(422, "messages must end with one of the role 'user'.", "messages")
    return rows, None if system is None and not answers else Conversation(system, tuple(answers))


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    """Parts of one message."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise Refused(422, f"{where} must be a text or a list of parts, got {json_type(content)}.", where)
    return parts


def _words(parts: list[dict[str, Any]], where: str) -> str:
    """The text of a message that can hold nothing else."""
    for i, part in enumerate(parts):
        if part.get("type") != "text":
            told = f"{where}.content[{i}].type must be 'text' in a message that is no user's"
            raise Refused(422, f"{told}, got {short(part.get('type'))}.", where)
    return "\n".join(_text(part.get("text"), f"{where}.content[{i}]") for i, part in enumerate(parts))


class _Row:
    """Puts parts in the places of a bundle's inputs, in their order."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.row = spec, dict[str, Any]()
        self.free = {kind: [n for n, part in spec.inputs.items() if part.kind == kind] for kind in ("image", "audio")}
        words = [n for n, part in spec.inputs.items() if part.verbatim]
        self.free["text"] = words or [n for n, part in spec.inputs.items() if part.kind in ("text", "words")]

    def read(self, parts: list[dict[str, Any]], place: str) -> dict[str, Any]:
        """The row of a message's content, whose place is given."""
        texts = list[str]()
        for i, part in enumerate(parts):
            where, kind = f"{place}[{i}]", part.get("type")
            if kind not in PARTS or kind not in part:
                told = f"{where} must have a type of {list(PARTS)} and a key of that name"
                raise Refused(422, f"{told}, got {short(kind)}.{near(str(kind), PARTS)}", where)
            value = part[kind]
            if kind == "text":
                texts.append(_text(value, where))
            elif kind == "image_url":
                self._place("image", _inner(value, "url", f"{where}.image_url"), where)
            elif kind == "input_audio":
                self._place("audio", _sound(value, f"{where}.input_audio"), where)
            elif not isinstance(value, dict):
                raise Refused(422, f"{where}.input_table must be an object of columns, got {json_type(value)}.", where)
            else:
                self.row |= value
        if said := "\n".join(texts).strip():
            self._place("text", said, place)
        return self.row

    def _place(self, kind: str, value: Any, where: str) -> None:
        if not self.free[kind]:
            takes = [f"{name} ({part.kind})" for name, part in self.spec.inputs.items()]
            raise Refused(
                422, f"{where} must have a place in the prompt, got one {kind} more than {takes} take.", where
            )
        self.row[self.free[kind].pop(0)] = value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Refused(422, f"{where}.text must be a text, got {json_type(value)}.", where)
    return value


def _inner(value: Any, key: str, where: str) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        raise Refused(422, f"{where} must be an object with {key!r}, got {json_type(value)}.", where)
    return value[key]


def _sound(value: Any, where: str) -> str:
    data, form = _inner(value, "data", where), value.get("format")
    if form not in FORMATS:
        raise Refused(422, f"{where}.format must be one of {list(FORMATS)}, got {short(form)}.", where)
    return f"data:audio/{FORMATS[form]};base64,{data}"


def _how(document: Mapping[str, Any], usual: Decoding) -> Decoding:
    """How the answer is to be made: as the bundle does it, but for what the request says."""
    wishes = dict[str, Any]()
    for key in ("max_tokens", "max_completion_tokens"):
        if document.get(key) is not None:
            wishes["tokens"] = _number(document[key], key, whole=True)
    for key in ("temperature", "top_p", "seed"):
        if document.get(key) is not None:
            wishes[key] = _number(document[key], key, whole=key == "seed")
    if document.get("stop") is not None:
        stop = document["stop"]
        wishes["stop"] = tuple([stop] if isinstance(stop, str) else stop if isinstance(stop, list) else [None])
    if not wishes.get("temperature", usual.temperature):
        wishes |= {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    try:
        return Decoding(**{**_settings(replace(usual, beams=1)), **wishes})
    except ValueError as error:
        faults = getattr(error, "errors", list)()
        place = ".".join(map(str, faults[0]["loc"])) if faults else "body"
        told = faults[0]["msg"].removeprefix("Value error, ") if faults else str(error)
        raise Refused(422, f"{place}: {told}", place) from None


def _settings(how: Decoding) -> dict[str, Any]:
    return {name: getattr(how, name) for name in how.__dataclass_fields__}


def _number(value: Any, key: str, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise Refused(422, f"{key} must be a {'whole ' * whole}number, got {json_type(value)}.", key)
    return value
