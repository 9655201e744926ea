"""Greeting: what a person is told when a server starts."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterable
from typing import Any

from polymodal.server.settings import Settings
from polymodal.spec import Spec

SHOWN = 4
"""Columns in the example at most."""


def greeting(settings: Settings, base: str, spec: Spec, runtimes: Iterable[str] = ()) -> list[str]:
    """Lines that tell where the server is and how to ask it.

    Args:
        settings: of the server.
        base: its address.
        spec: of the first bundle.
        runtimes: lines about the choice of runtimes.
    """
    pages = [f"Page: {base}/", f"Docs: {base}/docs"] if settings.page else [f"API:  {base}/openapi.json"]
    return [*runtimes, *pages, f"Try:  {curl(settings, base, spec)}"]


def curl(settings: Settings, base: str, spec: Spec) -> str:
    """A command that asks for a prediction and works as it stands; a token is taken from POLYMODAL_TOKEN, not shown."""
    body = shlex.quote(json.dumps({"inputs": example(spec)}, ensure_ascii=False))
    token = '-H "Authorization: Bearer $POLYMODAL_TOKEN" ' if settings.token else ""
    return f"curl -s {base}/v1/predict {token}-H 'Content-Type: application/json' -d {body}"


def example(spec: Spec) -> dict[str, Any]:
    """Cells of the simplest columns: a few that are no media, or the smallest media where there is nothing else."""
    fields = [field for name, part in spec.inputs.items() for field in part.fields(name) if field.example is not None]
    plain = {field.column: field.example for field in fields if not isinstance(field.example, bytes)}
    if plain:
        return dict(list(plain.items())[:SHOWN])
    media = sorted(fields, key=lambda field: len(field.example))
    return {field.column: base64.b64encode(field.example).decode() for field in media[:1]}
