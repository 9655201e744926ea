"""Messages of the OpenAI API: what a user says as rows of a bundle, and what else was said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from polymodal.decoder.conversation import Conversation
from polymodal.server.errors import Refused
from polymodal.server.strict import json_type, near, short
from polymodal.spec import Spec

SYSTEM = ("system", "developer")
PARTS = ("text", "image_url", "input_audio", "input_table")
FORMATS = {"wav": "wav", "mp3": "mpeg", "flac": "flac", "ogg": "ogg"}
"""Format of a sound -> its media type."""


class Told(NamedTuple):
    """What was said.

    Attributes:
        rows: by the user, turn by turn, column or input -> cell as in a prediction's request; the last one is asked.
        places: number of each one's message.
        other: what else; None where that is nothing.
    """

    rows: list[dict[str, Any]]
    places: list[int]
    other: Conversation | None


def read_messages(messages: Any, spec: Spec, most: int) -> Told:
    """Read messages.

    Args:
        messages: of a request.
        spec: of the bundle.
        most: turns of a user.

    Raises:
        Refused: they are not built as they must be, or hold what the bundle has no place for.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        told = "messages must be a list of one or more objects of a role and a content"
        raise Refused(422, f"{told}, got {json_type(messages)}.", "messages")
    if len(messages) > 2 * most:
        raise Refused(413, f"messages must hold at most {most} of the user, got {len(messages)} in all.", "messages")
    first = int(messages[0].get("role") in SYSTEM)
    system, rows, places, answers = None, list[dict[str, Any]](), list[int](), list[str]()
    for i, message in enumerate(messages):
        role, wanted, where = message.get("role"), ("user", "assistant")[(i - first) % 2], f"messages[{i}]"
        if i >= first and role != wanted:
            told = "A system message may come first, then user and assistant take turns"
            raise Refused(422, f"{where}.role must be {wanted!r}, got {short(role)}. {told}.", f"{where}.role")
        no_more(message, ("role", "content", "name"), where)
        parts = _parts(message.get("content"), f"{where}.content")
        if i < first:
            system = _words(parts, where)
        elif role == "user":
            rows.append(_Row(spec).read(parts, f"{where}.content"))
            places.append(i)
        else:
            answers.append(_words(parts, where))
    if len(rows) == len(answers):
        raise Refused(422, "messages must end with one of the role 'user'.", "messages")
    return Told(rows, places, None if system is None and not answers else Conversation(system, tuple(answers)))


def no_more(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse keys that nobody reads, unless they say nothing: clients send back whole messages, with null in most keys.

    Raises:
        Refused: there is one.
    """
    for name in given.keys() - set(known):
        if given[name] not in (None, [], {}):
            told = f"{where} must have keys of {list(known)}, got {short(name)}.{near(name, known)}"
            raise Refused(422, told, f"{where}.{name[:60]}")


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
            no_more(part, ("type", kind), where)
            value = part[kind]
            if kind == "text":
                texts.append(_text(value, where))
            elif kind == "image_url":
                self._place("image", _inner(value, "url", "detail", f"{where}.image_url"), where)
            elif kind == "input_audio":
                self._place("audio", _sound(value, f"{where}.input_audio"), where)
            elif not isinstance(value, dict):
                raise Refused(422, f"{where}.input_table must be an object of columns, got {json_type(value)}.", where)
            else:
                for name, cell in value.items():
                    self._put(name, cell, where)
        if said := "\n".join(texts).strip():
            self._place("text", said, place)
        return self.row

    def _place(self, kind: str, value: Any, where: str) -> None:
        if not self.free[kind]:
            takes = [f"{name} ({part.kind})" for name, part in self.spec.inputs.items()]
            raise Refused(
                422, f"{where} must have a place in the prompt, got one {kind} more than {takes} take.", where
            )
        self._put(self.free[kind].pop(0), value, where)

    def _put(self, name: str, value: Any, where: str) -> None:
        if name in self.row:
            raise Refused(422, f"{where} must give {short(name)} once, got it twice.", where)
        self.row[name] = value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Refused(422, f"{where}.text must be a text, got {json_type(value)}.", where)
    return value


def _inner(value: Any, key: str, other: str, where: str) -> str:
    """The text under a key of an object that may have one key more."""
    if not isinstance(value, dict) or not isinstance(value.get(key), str) or not value[key]:
        got = short(value[key]) if isinstance(value, dict) and key in value else json_type(value)
        raise Refused(422, f"{where} must be an object with a text {key!r}, got {got}.", where)
    no_more(value, (key, other), where)
    return value[key]


def _sound(value: Any, where: str) -> str:
    data, form = _inner(value, "data", "format", where), value.get("format")
    if not isinstance(form, str) or form not in FORMATS:
        raise Refused(422, f"{where}.format must be one of {list(FORMATS)}, got {short(form)}.", where)
    return f"data:audio/{FORMATS[form]};base64,{data}"
