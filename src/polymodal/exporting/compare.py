"""Whether exported graphs answer as their bundle does."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from polymodal.bundle import Bundle
from polymodal.data.embedding import Embedder
from polymodal.data.loader import prepare
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.errors import SpecError
from polymodal.model import Model
from polymodal.nn.backbone import Backbone
from polymodal.nn.runtime import accelerate
from polymodal.predictions import by_row
from polymodal.tracing import Answerer
from polymodal.tracing.answer import difference
from polymodal.types import Masked

TOLERANCE = 1e-3
"""Largest difference of a probability, or of another number relative to its size where that is above 1."""

SUBSETS = 8


def exported_inputs(bundle: Bundle, table: Table, graphs: Mapping[str, Path]) -> dict[str, Masked]:
    """A table's rows as the model takes them, their tokens from exported graphs."""
    through = dict[str, Backbone]()
    for name, file in graphs.items():
        backbone = bundle.embedder.backbone(name)
        if backbone is not None:
            through[name] = copy.copy(backbone)
            through[name].graph = file  # pyright: ignore[reportArgumentType]
    embedder = Embedder(bundle.spec, torch.device("cpu"), None, through)
    return prepare(bundle.spec, table, embedder, targets=False).batch(torch.arange(len(table))).inputs


def compare(bundle: Bundle, table: Table, inputs: Mapping[str, Masked], run: Answerer) -> list[dict[str, Any]]:
    """Compare answers of the graphs with `Bundle.predict` and `Model.answer`.

    Args:
        bundle: that was exported.
        table: n rows.
        inputs: the same rows, as `exported_inputs` gives them.
        run: of the exported model.

    Returns:
        What was compared, on how many rows, and the largest difference.

    Raises:
        SpecError: a difference is above `TOLERANCE`.
    """
    model, n = copy.deepcopy(bundle.model).cpu().eval(), len(table)
    predicted = list(bundle.predict(table))
    values = {name: list(Source(name, bundle.spec.inputs[name], table)) for name in bundle.spec.about}
    found = [_entry("predict, all rows at once", n, _apart(by_row(model.spec, run(inputs), values), predicted))]
    each = []
    for i in range(n):
        one = run({name: x[i : i + 1] for name, x in inputs.items()})
        each += by_row(model.spec, one, {name: some[i : i + 1] for name, some in values.items()})
    found.append(_entry("predict, row by row", n, _apart(each, predicted)))
    for gone in itertools.islice(_subsets(model.names), SUBSETS):
        without = {k: x.without(torch.full((n,), k in gone)) for k, x in inputs.items()}
        want, got = model.answer(without).decoded, run(without)
        raw = max(difference(model.spec.outputs[k], got[k], y) for k, y in want.items())
        apart = max(raw, _apart(_predictions(model, got), _predictions(model, want)))
        found.append(_entry(f"model, without {', '.join(gone) or 'nothing'}", n, apart))
    for entry in found:
        refuse(entry)
    return found


def refuse(entry: Mapping[str, Any]) -> None:
    """Raise where a difference is too large.

    Raises:
        SpecError: it is.
    """
    if not entry["largest"] <= TOLERANCE:
        raise SpecError(
            f"the exported graphs must answer as the bundle within {TOLERANCE:g}, got {entry['largest']:.2g} "
            f"({entry['what']}). Nothing was written. Serve the bundle in torch, and report this."
        )


def compare_tokens(name: str, backbone: Backbone, file: Path, x: Masked) -> dict[str, Any]:
    """Compare an exported backbone with itself in torch on present rows."""
    from_graph = copy.copy(backbone)
    from_graph.graph = file  # pyright: ignore[reportArgumentType]
    slow = copy.deepcopy(backbone).cpu().eval()
    with torch.inference_mode():
        got = accelerate(from_graph, file.parent, x)(x)
        want = slow(x)
    apart = ((got.values - want.values).abs() / want.values.abs().clamp(min=1))[want.mask]
    return _entry(f"backbone of {name}", len(x), float(apart.max()))


def _subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Nothing, each input, each two ..., all of them."""
    return itertools.chain.from_iterable(itertools.combinations(names, k) for k in range(len(names) + 1))


def _predictions(model: Model, decoded: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    answers = {n: task.predict(decoded[n]) for n, task in model.spec.outputs.items()}
    return [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]


def _apart(x: Any, y: Any) -> float:
    """Largest difference of the numbers in two JSON values of the same form; infinite where the form differs."""
    if isinstance(x, Mapping) and isinstance(y, Mapping) and x.keys() == y.keys():
        return max((_apart(x[key], y[key]) for key in x), default=0.0)
    if isinstance(x, list) and isinstance(y, list) and len(x) == len(y):
        return max(map(_apart, x, y), default=0.0)
    if isinstance(x, float) and isinstance(y, float):
        return abs(x - y) / max(1.0, abs(y))
    return 0.0 if type(x) is type(y) and not isinstance(x, Mapping | list) else float("inf")


def _entry(what: str, rows: int, largest: float) -> dict[str, Any]:
    return {"what": what, "rows": rows, "largest": largest}
