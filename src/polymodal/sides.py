"""Sides: one or several tables, divided into rows to learn from, to choose on and to test on, and prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polymodal.data.embedding import Embedder
from polymodal.data.features import FeatureStore
from polymodal.data.gather import Progress, silent
from polymodal.data.guess import infer_spec
from polymodal.data.leakage import leakage
from polymodal.data.loader import Prepared, prepare, target_values
from polymodal.data.source import Source
from polymodal.data.split import split
from polymodal.data.table import Table
from polymodal.errors import DataError, SpecError, suggest
from polymodal.ranks import Ranks
from polymodal.settings import Split
from polymodal.spec import Spec

SPEC_FILES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one fit.

    Attributes:
        train: to learn from; divided by the spec's split.
        others: ``valid`` or ``test`` -> a table of its own instead of a part of ``train``.
    """

    train: Table
    others: Mapping[str, Table]

    def divide(self, spec: Spec) -> dict[str, np.ndarray]:
        """Row numbers of ``train`` by side.

        Raises:
            DataError: a column of the spec is missing.
            SpecError: the split and the tables contradict each other.
        """
        chosen, classes = self._plan(spec)
        return split(self.train, chosen, classes)

    def folds(self, spec: Spec, count: int) -> list[dict[str, np.ndarray]]:
        """Row numbers of ``train`` by side, once for each fold of a cross-validation; rows to test are in none.

        Every other row validates in one fold and trains in the rest, divided as the spec's split says: at random,
        stratified, by group. By time, the rows are cut into one block more than there are folds, and each block but
        the first validates what the blocks before it have taught.

        Args:
            spec: whose split says how.
            count: number of folds, 2 or more.

        Raises:
            DataError: a column of the spec is missing, or there are too few rows or groups.
            SpecError: there is a table to validate on, or the split and the tables contradict each other.
        """
        if "valid" in self.others:
            raise SpecError(f"folds must be 1 with a table to validate on, got {count}. Leave one of them out.")
        (chosen, classes), sides = self._plan(spec), self.divide(spec)
        whole = rest = np.union1d(sides["train"], sides["valid"])
        found, timed = [], chosen.by == "time"
        for left in range(count + timed, 1, -1):
            plan = chosen.model_copy(update={"given": None, "valid": 1 / left, "test": 0.0})
            try:
                parts = split(self.train.select(rest), plan, classes)
            except DataError as error:
                raise DataError(f"folds: the rows must make {count} of them: {error}") from None
            held, rest = rest[parts["valid"]], rest[parts["train"]]
            found.append({"train": rest if timed else np.setdiff1d(whole, held), "valid": held})
        return found[::-1] if timed else [*found, {"train": np.setdiff1d(whole, rest), "valid": rest}]

    def _plan(self, spec: Spec) -> tuple[Split, dict[str, bool]]:
        """How to split, and which target columns hold classes."""
        for name, part in (*spec.inputs.items(), *spec.outputs.items()):
            for column in part.columns(name):
                if column not in self.train:
                    raise DataError(
                        f"{self.train.source} must have the column {column!r} of {name!r}, "
                        f"got {list(self.train.columns)}.{suggest(column, self.train.columns)}"
                    )
        chosen = spec.split
        given = {side: 0.0 for side in ("valid", "test") if side in self.others}
        if chosen.given is not None and given:
            raise SpecError(
                f"split.given divides the one table, so {' and '.join(given)} must not be given beside it, got both. "
                "Leave one out."
            )
        chosen = chosen.model_copy(update={**given, "seed": spec.seed if chosen.seed is None else chosen.seed})
        return chosen, {c: task.kind == "classify" for n, task in spec.outputs.items() for c in task.columns(n)}

    def fit_parts(self, spec: Spec, rows: np.ndarray, progress: Progress = silent) -> Spec:
        """The spec, its parts fitted to some rows of ``train``."""
        train = self.train.select(rows)
        step = {name: i for i, name in enumerate((*spec.inputs, *spec.outputs))}
        return spec.fit(
            lambda name: Source(name, spec.inputs[name], train),
            lambda name: target_values(name, spec, train),
            lambda name: progress("fit parts", step[name], len(step)),
        )

    def prepare(
        self,
        spec: Spec,
        embedder: Embedder,
        rows: Mapping[str, np.ndarray],
        *,
        strict: bool = False,
        progress: Progress = silent,
    ) -> dict[str, Prepared]:
        """The sides that have labelled rows: train always, valid and test where there are any.

        Raises:
            DataError: nothing is labelled; with ``strict``, a cell is broken.
        """
        whole = prepare(spec, self.train, embedder, strict=strict, progress=progress)
        sides = {side: whole.select(index) for side, index in rows.items()}
        for side in ("valid", "test"):
            if side in self.others:
                sides[side] = prepare(spec, self.others[side], embedder, strict=strict, progress=progress)
        whole.report.leaks += leaks(sides)
        sides = {side: part.labelled() for side, part in sides.items()}
        if not len(sides["train"]):
            raise DataError(f"{whole.report.source} must have labelled rows to train on, got none.")
        return {side: part for side, part in sides.items() if len(part)}


@dataclass(frozen=True, slots=True)
class Sides:
    """Prepared rows by side, and what prepared them.

    Attributes:
        spec: fitted.
        embedder: its backbones, as they were pretrained.
        parts: ``train``, and ``valid`` and ``test`` where they have labelled rows.
    """

    spec: Spec
    embedder: Embedder
    parts: dict[str, Prepared]

    @classmethod
    def of(
        cls,
        spec: Spec,
        tables: Tables,
        device: torch.device,
        store: FeatureStore | None,
        *,
        rows: Mapping[str, np.ndarray] | None = None,
        fitted: bool = False,
        strict: bool = False,
        progress: Progress = silent,
    ) -> Sides:
        """Divide unless the ``rows`` of each side are given, fit the parts unless they are ``fitted``, and prepare.

        Inputs whose backbones are to be fine-tuned stay as they were collated. The first rank fills the feature store.
        """
        ranks, rows = Ranks.join(device), tables.divide(spec) if rows is None else rows
        spec = spec if fitted else tables.fit_parts(spec, rows["train"], progress)
        embedder = Embedder(spec, device, store)
        if not ranks.first:
            ranks.wait()  # the first rank fills the feature store, the others read it
        opened = embedder.with_opened(spec.finetuned)
        parts = tables.prepare(spec, opened, rows, strict=strict, progress=progress)
        if ranks.first:
            ranks.wait()
        return cls(spec, embedder, parts)

    @property
    def digest(self) -> str:
        """Name of the rows to learn from and to choose on, and of their content."""
        state = hashlib.sha256()
        for side in ("train", "valid"):
            if (part := self.parts.get(side)) is not None:
                state.update(f"{side} {len(part)}".encode() + part.rows.numpy().tobytes())
                for name in sorted(part.digests):
                    state.update(part.digests[name][0].tobytes())
                for name in sorted(part.targets):
                    state.update(part.targets[name].values.numpy().tobytes())
        return state.hexdigest()

    @property
    def warnings(self) -> list[str]:
        """What a person should look at in the tables."""
        lines = self.parts["train"].report.warnings()
        for side in ("valid", "test"):
            if side in self.parts and self.parts[side].report is not self.parts["train"].report:
                lines += [f"{side}: {line}" for line in self.parts[side].report.warnings()]
        return lines


def arguments(
    spec: Any, table: Any, target: str | Sequence[str] | None, held: Mapping[str, Any]
) -> tuple[Spec, Tables]:
    """Sort out which argument is the spec and which tables there are.

    Args:
        spec: a spec; or, with ``target``, the table to learn from.
        table: to learn from; the spec's own when not given.
        target: column or columns to predict, if the spec is to be inferred.
        held: ``valid`` and ``test`` -> a table or None.

    Raises:
        SpecError: they do not fit together.
    """
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
    return parsed, Tables(train, {side: table for side, table in tables.items() if side != "train"})


def leaks(sides: Mapping[str, Prepared]) -> list[str]:
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
