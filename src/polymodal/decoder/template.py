"""Templates of prompts: text with places for inputs, as in ``<image> What is this?``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from polymodal.errors import suggest
from polymodal.part import Modality

FUSED = "fused"
"""Place of the one vector that the fusion makes of all inputs."""

_PLACE = re.compile(r"<([^\W\d](?:[\w. -]*[\w.-])?)>")


class Piece(NamedTuple):
    """A stretch of a template.

    Attributes:
        text: that stands there, "" for a place.
        input: whose tokens stand there, or `FUSED`; "" for text.
    """

    text: str = ""
    input: str = ""


def pieces(template: str) -> tuple[Piece, ...]:
    """A template's stretches, in order."""
    found, end = list[Piece](), 0
    for place in _PLACE.finditer(template):
        found += [Piece(text=template[end : place.start()])] if place.start() > end else []
        found.append(Piece(input=place[1]))
        end = place.end()
    return (*found, Piece(text=template[end:])) if end < len(template) else tuple(found)


def default(inputs: Iterable[str]) -> str:
    """A place for each input, in their order."""
    return " ".join(f"<{name}>" for name in inputs)


def faults(template: str, inputs: Mapping[str, Modality], alone: bool) -> list[str]:
    """What is wrong with a template, a line each.

    Args:
        template: of a prompt.
        inputs: that a spec has.
        alone: whether no other task could use an input that has no place.
    """
    named = [piece.input for piece in pieces(template) if piece.input]
    known = [*inputs, FUSED]
    found = [f"prompt must name inputs among {known}, got <{n}>.{suggest(n, known)}" for n in named if n not in known]
    found += [f"prompt must have one place for each input, got <{n}> twice." for n in {*named} if named.count(n) > 1]
    if FUSED in inputs:
        found.append(f"prompt has its own meaning of <{FUSED}>, got an input of that name. Rename the input.")
    if not named:
        found.append(f"prompt must have a place for an input, as in <{next(iter(inputs))}>, got {template!r:.60}.")
    missing = [name for name in inputs if name not in named] if FUSED not in named else []
    if alone and missing and named:
        found.append(
            f"prompt must have a place for every input, got none for {missing[0]!r}. Write <{missing[0]}> where it "
            f"belongs, or <{FUSED}> for what the fusion makes of all."
        )
    return found
