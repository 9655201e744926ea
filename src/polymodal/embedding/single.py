"""Single: the space of one pretrained backbone, without any fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from polymodal.data.clean import DataReport
from polymodal.data.embedding import Embedder
from polymodal.data.gather import Survey
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.devices import choose_device
from polymodal.embedding.space import Space, digest_of
from polymodal.errors import SpecError
from polymodal.modalities.text import Text
from polymodal.part import Modality
from polymodal.spec import Spec
from polymodal.types import Masked

WINDOWS = {"minilm": 256}
"""Text backbone -> tokens of a window, special ones included, with which its published embeddings are made."""

LIGHT = 4096
"""Rows without media that are sorted by length together."""


@dataclass(frozen=True, slots=True)
class Single(Space):
    """The space of one pretrained backbone: its modality's summary of the tokens (a text's mean), at length 1.

    Attributes:
        embedder: that holds the backbone; its tokens are taken unrounded.
        batch: rows that go through it together.
    """

    embedder: Embedder = field(kw_only=True, repr=False)
    batch: int = field(kw_only=True, default=16)

    @classmethod
    def of(cls, part: Any, device: str = "auto", batch: int = 16) -> Single:
        """The space of a modality.

        Args:
            part: its type, a mapping with a ``type``, or the modality itself. A text whose ``window`` is not set is
                cut into windows of the length that its backbone was published with.
            device: that the backbone runs on.
            batch: rows that go through it together.

        Raises:
            SpecError: it is no modality, or has no pretrained backbone.
        """
        try:
            modality = Modality.parse(part)
        except ValidationError as error:
            raise SpecError("\n".join(map(_told, error.errors()))) from None
        except ValueError as error:
            raise SpecError(str(error)) from None
        if isinstance(modality, Text) and modality.name in WINDOWS and "window" not in modality.model_fields_set:
            modality = modality.model_copy(update={"window": WINDOWS[modality.name]})
        backbone = modality.backbone()
        if backbone is None:
            raise SpecError(
                f"modality {modality.kind!r} must have a pretrained backbone to embed without a fit, got none. "
                "Name one, or give a bundle."
            )
        modality, name = modality.fit([]), modality.kind
        parts = {name: modality}
        embedder = Embedder(Spec.model_construct(inputs=parts, outputs={}), choose_device(device))
        one = Masked(torch.zeros(1, 1, backbone.width), torch.ones(1, 1, dtype=torch.bool))
        origin = modality.model_dump(mode="json", exclude_defaults=True) | {"type": modality.kind}
        digest = digest_of(parts, {name: backbone.digest})
        return cls(parts, modality.summary(one).shape[1], digest, origin, embedder=embedder, batch=batch)

    @property
    def step(self) -> int:
        """Rows that are in memory together."""
        return self.batch if next(iter(self.parts.values())).media else LIGHT

    def chunk(
        self, table: Table, inputs: Sequence[str], width: int, allow_paths: bool, first: int
    ) -> tuple[Tensor, DataReport]:
        """Vectors (n, width) of the rows, embedded with others of like length so that little is padding."""
        [name] = inputs
        part, values = self.parts[name], list[Any]()
        survey = Survey(Source(name, part, table, allow_paths, first))
        for start, cells in survey.chunks():
            values += survey.read(start, cells)
        survey.report.count(survey.digests, survey.absent)
        vectors = torch.full((len(table), width), torch.nan)
        order = sorted((i for i, value in enumerate(values) if value is not None), key=lambda i: part.length(values[i]))
        for place in range(0, len(order), self.batch):
            rows = order[place : place + self.batch]
            tokens = self.embedder.tokens(name, part.collate([values[i] for i in rows]))
            vectors[rows] = functional.normalize(part.summary(tokens).float()[:, :width], dim=-1)
        return vectors, DataReport(table.source, len(table), {name: survey.report})


def _told(fault: Any) -> str:
    """One fault of a modality in words, with the path of the setting."""
    path = ".".join(["modality", *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        return f"{path}: no such setting. Leave it out."
    return f"{path}: {fault['msg'].removeprefix('Value error, ').rstrip('.')}."
