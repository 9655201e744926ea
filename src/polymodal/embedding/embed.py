"""Embed: rows of a table as vectors, whatever the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polymodal.bundle import Bundle
from polymodal.data.gather import Progress, silent
from polymodal.embedding.joint import Joint
from polymodal.embedding.single import Single
from polymodal.embedding.space import Space
from polymodal.embedding.vectors import Embeddings
from polymodal.errors import BundleError, SpecError, suggest
from polymodal.part import Modality


def space(model: Any, *, task: str | None = None, device: str = "auto") -> Space:
    """The space that a model embeds in.

    Args:
        model: a bundle or its folder, with a task of type match; or a modality with a pretrained backbone: its type
            ("text"), a mapping ({"type": "text", "backbone": "minilm"}) or the part itself.
        task: which one of a bundle's tasks, where several match.
        device: that it runs on, unless ``model`` is loaded already.

    Raises:
        SpecError: nothing in it can embed.
        BundleError: there is no such folder, or it is damaged.
    """
    if isinstance(model, Space):
        return model
    if isinstance(model, Bundle):
        return Joint.of(model, task)
    if not isinstance(model, str | Path) or (str(model) in Modality.known and not Path(model).is_dir()):
        if task is not None:
            raise SpecError(f"task must not be given with a modality, which has none, got {task!r}. Leave it out.")
        return Single.of(str(model) if isinstance(model, Path) else model, device)
    if not Path(model).exists():
        known = sorted(Modality.known)
        raise BundleError(
            f"model must be a bundle's folder or one of the modalities {known}, got {str(model)!r}."
            f"{suggest(model, known)}"
        )
    return Joint.of(Bundle.load(model, device=device), task, str(Path(model).absolute()))


def embed(
    model: Any,
    table: Any,
    *,
    inputs: Sequence[str] | None = None,
    width: int | None = None,
    task: str | None = None,
    device: str = "auto",
    strict: bool = False,
    progress: Progress = silent,
) -> Embeddings:
    """Embed every row of a table as a vector of length 1.

    A row with several inputs gets one vector of all of them together. The text backbone "minilm" gives what
    sentence-transformers gives for all-MiniLM-L6-v2; texts of more than 254 tokens differ: those are cut there, while
    here all of it counts, window by window.

    Args:
        model: as `space` takes it.
        table: anything `Table.read` takes; for a modality also a plain list of cells.
        inputs: that are looked at, others count as absent; all if None.
        width: entries of a vector that are kept, the first ones; all if None. Of a row with several inputs each is cut
            before they are added, as where the model was trained so. Fewer are of use where a model was
            trained for it (``matryoshka``).
        task: which one of a bundle's tasks, where several match.
        device: that the model runs on, unless it is loaded already.
        strict: raise on a broken cell instead of counting it as absent.
        progress: told how far it is.

    Raises:
        DataError: the table cannot be read, no input has a column in it, or, with ``strict``, a cell is broken.
        SpecError: nothing in the model can embed, an input is unknown or the width is not within the model's.
        BundleError: there is no such bundle, or it is damaged.
    """
    own = space(model, task=task, device=device)
    if isinstance(own, Single) and isinstance(table, list | tuple) and not any(isinstance(x, Mapping) for x in table):
        table = {own.columns[0]: list(table)}
    return own.embed(table, inputs=inputs, width=width, strict=strict, progress=progress)
