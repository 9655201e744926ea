"""The int8 graphs that a bundle may hold: files, hashes, and what was measured with each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polymodal.errors import BundleError
from polymodal.metrics import higher_is_better
from polymodal.nn.provider import GraphFile

FOLDER, NOTE = "int8", "int8.json"
ANEW = "Remove the folder, or make it anew with polymodal export MODEL --to int8."


class Loss(BaseModel):
    """What a task's headline score loses by int8.

    Attributes:
        task: its name.
        metric: its headline score.
        score_float: of the bundle with everything in float.
        score_int8: of the bundle in int8, on the same rows.
        loss: by how much it is worse; of an error (lower is better) the share that it grew by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: str
    metric: str
    score_float: float
    score_int8: float
    loss: float

    def __str__(self) -> str:
        """For a person."""
        return f"{self.task} {self.metric} {self.score_float:.4f} -> {self.score_int8:.4f} (loss {self.loss:.4f})"


class Int8(BaseModel):
    """The int8 graph of one input's backbone.

    Attributes:
        file: its name, beside the note.
        sha256: of the file, in hex.
        backbone: digest of the backbone that it was made from.
        method: as in `polymodal.nn.quantise.Quantised`.
        agreement: mean cosine with the float graph's tokens, on rows beside those it was calibrated on.
        example: the same on the input's made-up example, by which another machine is compared; None without one.
        alone: whether each row must go through it alone.
        losses: of each task, with this input alone in int8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str = Field(pattern=r"^[0-9]+\.onnx$")
    sha256: str
    backbone: str
    method: str
    agreement: float
    example: float | None
    alone: bool
    losses: list[Loss] = Field(min_length=1)

    @property
    def worst(self) -> Loss:
        """Of the task that loses most."""
        return max(self.losses, key=lambda one: one.loss)

    def graph(self, folder: Path) -> GraphFile:
        """The graph, whose note lies in ``folder``."""
        return GraphFile(folder / self.file, self.sha256, self.alone)


class Note(BaseModel):
    """What ``int8.json`` says.

    Attributes:
        weights_sha256: of the model that was scored with these graphs.
        inputs: input name -> its graph.
        together: loss of each task with all of these graphs.
        rows: labelled ones that were scored.
        table: where they came from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    weights_sha256: str
    inputs: dict[str, Int8]
    together: list[Loss]
    rows: int
    table: str


@dataclass(frozen=True, slots=True)
class Held:
    """The int8 graphs that a bundle's folder holds.

    Attributes:
        folder: ``int8`` in the bundle.
        note: what it says of them.
    """

    folder: Path
    note: Note

    @property
    def graphs(self) -> dict[str, GraphFile]:
        """Input name -> its graph."""
        return {name: one.graph(self.folder) for name, one in self.note.inputs.items()}

    def fits(self, weights_sha256: str | None, backbones: Mapping[str, str]) -> bool:
        """Whether the graphs were made and scored with these weights and backbones (input name -> digest)."""
        made = all(backbones.get(name) == one.backbone for name, one in self.note.inputs.items())
        return made and self.note.weights_sha256 == weights_sha256

    def copy(self, folder: Path) -> None:
        """Write the graphs and their note into a new folder.

        Raises:
            BundleError: a file is damaged.
        """
        write_int8(folder, self.note, {name: graph.read() for name, graph in self.graphs.items()})


def loss(metric: str, before: float, after: float) -> float:
    """By how much a score is worse; for one that falls as a model gets better, by which share of it."""
    if not math.isfinite(after):
        return math.inf
    if higher_is_better(metric):
        return before - after
    return (after - before) / abs(before) if before else math.inf if after > before else 0.0


def read_int8(folder: Path, weights_sha256: str | None, backbones: Mapping[str, str]) -> Held | None:
    """Read the graphs of a bundle's folder; None where it holds none.

    Args:
        folder: ``int8`` in the bundle.
        weights_sha256: of the bundle's model.
        backbones: input name -> digest of the backbone.

    Raises:
        BundleError: something is missing or damaged, or is of another model.
    """
    if not folder.exists():
        return None
    file = folder / NOTE
    try:
        held = Held(folder, Note.model_validate_json(file.read_bytes()))
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{file} must be as this version writes it, got: {reason}. {ANEW}") from None
    if not held.fits(weights_sha256, backbones):
        raise BundleError(f"{file} must be of this bundle's weights and backbones, got others. {ANEW}")
    for graph in held.graphs.values():
        graph.read()
    return held


def write_int8(folder: Path, note: Note, graphs: Mapping[str, bytes]) -> None:
    """Write graphs (by input name) and the note that names their files into a new folder."""
    folder.mkdir(parents=True)
    for name, one in note.inputs.items():
        (folder / one.file).write_bytes(graphs[name])
    (folder / NOTE).write_text(json.dumps(note.model_dump(), indent=1, ensure_ascii=False), encoding="utf-8")
