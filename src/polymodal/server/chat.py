"""Chat: a request of the OpenAI API, and how it is to be answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polymodal.nn.language.decode import Decoding
from polymodal.server.errors import Refused
from polymodal.server.messages import Told, no_more, read_messages
from polymodal.server.strict import json_type, near, short
from polymodal.spec import Spec
from polymodal.tasks.generate import Generate

TAKEN = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "stop", "seed", "n", "user", "metadata", "store",
)  # fmt: skip
"""Keys of a request; the last three say nothing about the answer."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "logprobs": (False,), "top_logprobs": (0,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "service_tier": ("auto", "default"), "parallel_tool_calls": (True, False),
}  # fmt: skip
"""Other keys -> what clients send in them that asks for nothing."""

STOPS, STOP = 4, 256
"""Texts at which an answer may stop, at most, and characters of one."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A request.

    Attributes:
        told: what was said.
        how: the answer is made.
        stream: whether it is sent piece by piece.
        usage: whether the stream ends with counts of tokens.
    """

    told: Told
    how: Decoding
    stream: bool
    usage: bool


def speaks(spec: Spec) -> str | None:
    """The task that answers in words; None where none does."""
    return next((n for n, task in spec.outputs.items() if isinstance(task, Generate)), None)


def read_chat(document: Mapping[str, Any], spec: Spec, task: Generate, most: int) -> Chat:
    """Read a request.

    Args:
        document: JSON of its body.
        spec: of the bundle.
        task: that answers.
        most: turns of a user.

    Raises:
        Refused: it is not built as it must be, or asks for what the bundle has no place for.
    """
    for name in document.keys() - set(TAKEN):
        if document[name] is not None and document[name] not in NEUTRAL.get(name, ()):
            got = short({name: document[name]}) if name in NEUTRAL else short(name)
            raise Refused(422, f"The body must have keys of {list(TAKEN)}, got {got}.{near(name, TAKEN)}", name[:60])
    if (n := document.get("n")) is not None and (isinstance(n, bool) or n != 1):
        raise Refused(422, f"n must be 1, got {short(n)}.", "n")
    options = document.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(422, f"stream_options must be an object, got {json_type(options)}.", "stream_options")
    no_more(options, ("include_usage", "include_obfuscation"), "stream_options")
    usage = _flag(options.get("include_usage"), "stream_options.include_usage")
    told = read_messages(document.get("messages"), spec, most)
    return Chat(told, _how(document, task.decoding), _flag(document.get("stream"), "stream"), usage)


def _how(document: Mapping[str, Any], usual: Decoding) -> Decoding:
    """How the answer is to be made: as the bundle does it, but for what the request says, and without beams."""
    wishes, names = dict[str, Any](), {"tokens": "max_tokens"}
    for key in ("max_tokens", "max_completion_tokens"):
        if document.get(key) is not None:
            wishes["tokens"], names["tokens"] = _number(document[key], key, whole=True), key
    for key in ("temperature", "top_p", "seed"):
        if document.get(key) is not None:
            wishes[key] = _number(document[key], key, whole=key == "seed")
    if document.get("stop") is not None:
        wishes["stop"] = _stops(document["stop"])
    usual = replace(usual, beams=1)
    if not wishes.get("temperature", usual.temperature):
        usual = replace(usual, temperature=0.0, top_p=1.0, top_k=0)
    try:
        return Decoding(**{**_settings(usual), **wishes})
    except ValueError as error:
        faults = getattr(error, "errors", list)()
        place = ".".join(names.get(str(x), str(x)) for x in faults[0]["loc"]) if faults else ""
        told = faults[0]["msg"].removeprefix("Value error, ") if faults else str(error)
        raise Refused(422, f"{place}: {told}" if place else told, place or None) from None


def _stops(stop: Any) -> tuple[str, ...]:
    found = [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list) or not all(isinstance(text, str) and len(text) <= STOP for text in found):
        told = f"stop must be a text or a list of texts, each of at most {STOP} characters"
        raise Refused(422, f"{told}, got {json_type(stop)}.", "stop")
    if len(found) > STOPS:
        raise Refused(422, f"stop must hold at most {STOPS} texts, got {len(found)}.", "stop")
    return tuple(found)


def _settings(how: Decoding) -> dict[str, Any]:
    return {name: getattr(how, name) for name in how.__dataclass_fields__}


def _flag(value: Any, key: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise Refused(422, f"{key} must be true or false, got {json_type(value)}.", key)
    return bool(value)


def _number(value: Any, key: str, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise Refused(422, f"{key} must be a {'whole ' * whole}number, got {json_type(value)}.", key)
    return value
