"""One step of each gradient method, against torchjd's own step on the same model: the ratio of their CPU times.

Three tasks on generated inputs; nothing is learned, only timed. Ours is a step as training takes it; torchjd's own is
``mtl_backward`` and ``jac_to_grad`` with the same aggregator. Both include the forward pass and leave out the
optimiser. A ratio is of the medians over repeats that alternate between the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import polymodal as pm
from polymodal.model import Model
from polymodal.objectives.gradients import Gradients
from polymodal.objectives.methods import aggregator, objective
from polymodal.objectives.terms import Losses, terms
from polymodal.ranks import Ranks
from polymodal.settings import GRADIENT_METHODS
from polymodal.types import Batch, Fused, Masked

LIMIT = 1.5
FUSIONS = ("concat", "attention")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every method with every fusion; 1 if any ratio is above `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--rows", type=int, default=128, help="of a batch")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write every number to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = []
    print(f"{'fusion':<12}{'method':<10}{'ours':>10}{'torchjd':>10}{'ratio':>8}   CPU ms per step, one thread")
    for fusion in FUSIONS:
        for method in GRADIENT_METHODS:
            row = compare(method, fusion, options.repeats, options.rows, options.dim)
            found.append(row)
            print(
                f"{fusion:<12}{method:<10}{row['ours']:>10.2f}{row['torchjd']:>10.2f}{row['ratio']:>8.2f}", flush=True
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return int(any(row["ratio"] > LIMIT for row in found))


def compare(method: str, fusion: str, repeats: int, rows: int, dim: int) -> dict[str, Any]:
    """Median CPU milliseconds of a step, ours and torchjd's, and their ratio."""
    model, batch = generated(method, fusion, rows, dim)
    sides = {"ours": ours(model, batch), "torchjd": theirs(model, batch, method)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 2):
        for name, step in sides.items():
            model.zero_grad()
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # cvxpy on how Nash-MTL's problem is put, in every step
                step()
            if repeat > 1:  # the first ones allocate
                times[name].append(1000 * (time.process_time() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"method": method, "fusion": fusion, **medians, "ratio": medians["ours"] / medians["torchjd"]}


def generated(method: str, fusion: str, rows: int, dim: int) -> tuple[Model, Batch]:
    """A model of three number tables and three tasks, and a batch of random rows."""
    names = {f"table{i}": [f"x{i}{k}" for k in range(12)] for i in range(3)}
    spec = pm.Spec.parse(
        {
            "inputs": {name: {"type": "table", "numbers": columns} for name, columns in names.items()},
            "fusion": fusion,
            "outputs": {f"y{i}": {"type": "classify", "classes": [0, 1, 2]} for i in range(3)},
            "dim": dim,
            "training": {"objective": method, "balance": "none"},
        }
    )
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(rows, 36, generator=generator).tolist()
    cells = {
        name: [dict(zip(columns, row[12 * i : 12 * i + 12], strict=True)) for row in numbers]
        for i, (name, columns) in enumerate(names.items())
    }
    readings = {name: [spec.inputs[name].read(cell).value for cell in cells[name]] for name in names}
    labels = torch.randint(3, (3, rows, 1), generator=generator)
    spec = spec.fit(readings.__getitem__, lambda n: labels[int(n[1:]), :, 0].tolist())
    torch.manual_seed(0)
    inputs = {name: spec.inputs[name].collate(values) for name, values in readings.items()}
    known = torch.ones(rows, 1, dtype=torch.bool)
    return Model(spec).train(), Batch(inputs, {f"y{i}": Masked(labels[i], known) for i in range(3)})


def ours(model: Model, batch: Batch) -> Callable[[], None]:
    """A step as training takes it."""
    names, ranks = tuple(model.spec.outputs), Ranks()
    method, gradients = objective(model.spec, torch.Generator()), Gradients(model, ranks)

    def step() -> None:
        losses = Losses.of(terms(model, model(batch.inputs), batch), names, ranks)
        rows = gradients.of([losses.add({n: 1.0}) for n in names])
        gradients.give(method.combine(rows, gradients.shared, losses))

    return step


def theirs(model: Model, batch: Batch, method: str) -> Callable[[], None]:
    """The library's step. It must know where shared features end, so the model is cut there."""
    from torchjd.autojac import jac_to_grad, mtl_backward

    rule = aggregator(method, len(model.spec.outputs))
    shared = [p for part in (model.encoders, model.fusion) for p in part.parameters()]

    def step() -> None:
        losses, features, own = cut(model, batch)
        mtl_backward(losses, features=features, tasks_params=own, shared_params=shared)
        jac_to_grad([p for p in shared if hasattr(p, "jac")], rule)

    return step


def cut(model: Model, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[list[nn.Parameter]]]:
    """Losses of the tasks, the shared features that they come from, and the parameters that each has for itself."""
    encoded = {name: model.encode(name, batch.inputs[name]) for name in model.names}
    fused = model.fusion(encoded)
    means = {name: x.mean() for name, x in encoded.items()}
    losses, own = [], []
    for n, task in model.spec.outputs.items():
        heads = model.single[n]
        said = [heads[name](Fused(means[name], {})) for name in model.names]
        losses.append(task.loss(model.heads[n](fused) + torch.stack(said).mean(0), batch.targets[n]))
        own.append([*model.heads[n].parameters(), *heads.parameters()])
    return losses, [fused.pooled, *means.values()], own


if __name__ == "__main__":
    raise SystemExit(main())
