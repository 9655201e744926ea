"""Joint: the space of a task that matches the inputs of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polymodal.bundle import CHUNK, Bundle
from polymodal.data.clean import DataReport
from polymodal.data.loader import Prepared, prepare
from polymodal.data.table import Table
from polymodal.embedding.space import Space, digest_of
from polymodal.errors import SpecError, suggest
from polymodal.evaluate import BATCH
from polymodal.folder import weights_sha256
from polymodal.tasks.match import Match


@dataclass(frozen=True, slots=True)
class Joint(Space):
    """The space of a task that matches the inputs of a bundle.

    Attributes:
        bundle: that embeds.
        task: name of its task.
        match: the task.
    """

    bundle: Bundle = field(kw_only=True, repr=False)
    task: str = field(kw_only=True)
    match: Match = field(kw_only=True, repr=False)

    @classmethod
    def of(cls, bundle: Bundle, task: str | None = None, origin: str | None = None) -> Joint:
        """The space of one of a bundle's tasks; of the only one that matches if ``task`` is None.

        Raises:
            SpecError: it has none, several, or none of that name.
        """
        known = {name: part for name, part in bundle.spec.outputs.items() if isinstance(part, Match)}
        if task is None and len(known) == 1:
            task = next(iter(known))
        if not known:
            raise SpecError(f"model must have an output of type match, got {bundle}. Fit one, or name a modality.")
        if task is None or task not in known:
            raise SpecError(f"task must be one of {list(known)}, got {task!r}.{suggest(task, known)}")
        match, head = known[task], bundle.model.heads[task]
        parts = {name: bundle.spec.inputs[name] for side in match.groups for name in side}
        told = {
            "task": task,
            "match": match.model_dump(mode="json"),
            "weights": weights_sha256(bundle.model.state_dict()),
        }
        digest = digest_of(parts, bundle.embedder.digests, **told)
        scale = float(head.log_scale.detach().exp())
        return cls(parts, head.width, digest, origin, scale, bundle=bundle, task=task, match=match)

    @property
    def step(self) -> int:
        """Rows that are in memory together."""
        return CHUNK

    def chunk(
        self, table: Table, inputs: Sequence[str], width: int, allow_paths: bool, first: int
    ) -> tuple[Tensor, DataReport]:
        """Vectors (n, width) of the rows' inputs together, as the task composes them."""
        spec, embedder = self.bundle.spec, self.bundle.embedder.without_store()
        wanted = {column for name in inputs for column in self.parts[name].columns(name)}
        some = Table({c: table.column(c) for c in table.columns if c in wanted}, table.source, table.base)
        prepared = prepare(spec, some, embedder, targets=False, allow_paths=allow_paths, first=first)
        prepared.report.inputs = {name: prepared.report.inputs[name] for name in inputs}
        hidden = [name for name in spec.inputs if name not in inputs]
        return self._vectors(prepared, hidden, width), prepared.report

    @torch.inference_mode()
    def _vectors(self, prepared: Prepared, hidden: Sequence[str], width: int) -> Tensor:
        model, found = self.bundle.model, list[Tensor]()
        for rows in torch.arange(len(prepared)).split(BATCH):
            batch = prepared.batch(rows).without(*hidden).to(self.bundle.device)
            found.append(self.match.embed(model.answer(batch.inputs).decoded[self.task].cpu(), width=width))
        return torch.cat(found)
