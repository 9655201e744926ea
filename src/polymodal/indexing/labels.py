"""Labels by name: rows are classified without any example, by how near the names lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymodal.data.gather import Progress, silent
from polymodal.data.table import Table
from polymodal.embedding.embed import space
from polymodal.embedding.space import Space
from polymodal.errors import DataError, SpecError, suggest


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """What the nearest name says of each row.

    Attributes:
        labels: that were to choose from.
        scores: (n, K) float64, cosine of each row and label; NaN where a row has none of the inputs.
        scale: learned factor that makes a cosine a logit; None where none was learned.
        warnings: one line for everything a user should look at.
    """

    labels: tuple[str, ...]
    scores: np.ndarray
    scale: float | None
    warnings: list[str]

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.scores)

    @property
    def probabilities(self) -> np.ndarray | None:
        """Softmax of the scaled cosines (n, K), NaN where a row has none of the inputs; None without a scale."""
        if self.scale is None:
            return None
        logits = self.scale * self.scores
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    def rows(self) -> list[dict[str, Any] | None]:
        """Per row the nearest label, its score and all scores, and where a scale was learned its probability.

        None where a row has none of the inputs. Of labels that are equally near, the first one.
        """
        shares, found = self.probabilities, list[dict[str, Any] | None]()
        for i, line in enumerate(self.scores.tolist()):
            if np.isnan(line[0]):
                found.append(None)
                continue
            best = int(np.argmax(line))
            row = {"label": self.labels[best], "score": line[best]}
            row |= {} if shares is None else {"probability": float(shares[i, best])}
            found.append(row | {"scores": dict(zip(self.labels, line, strict=True))})
        return found

    def to_columns(self) -> dict[str, list[Any]]:
        """Flat columns for a file: ``label``, ``score``, ``probability``, ``scores.food``, ..."""
        keys = ["label", "score", *([] if self.scale is None else ["probability"])]
        rows = self.rows()
        columns = {key: [None if row is None else row[key] for row in rows] for key in keys}
        return columns | {
            f"scores.{label}": [None if row is None else row["scores"][label] for row in rows] for label in self.labels
        }


def zero_shot(  # noqa: PLR0913  (each argument stands for itself)
    model: Any,
    table: Any,
    labels: Sequence[str],
    *,
    templates: Sequence[str] = ("{}",),
    text_input: str | None = None,
    inputs: Sequence[str] | None = None,
    task: str | None = None,
    device: str = "auto",
    strict: bool = False,
    progress: Progress = silent,
) -> ZeroShot:
    """Give each row the label whose name is nearest to it.

    Source: Radford et al. 2021, "CLIP" (arXiv:2103.00020), section 3.1; several templates: the mean of their vectors,
    section 3.1.4.

    Args:
        model: as `polymodal.embedding.embed.space` takes it.
        table: anything `Table.read` takes.
        labels: names, two or more.
        templates: texts in which ``{}`` stands for the name, such as ``a picture of {}``.
        text_input: that names are given to; the only one that takes text if None.
        inputs: of a row that are looked at; all but ``text_input`` if None, or that one if the table has no other.
        task: which one of a bundle's tasks, where several match.
        device: that the model runs on, unless it is loaded already.
        strict: raise on a broken cell instead of counting it as absent.
        progress: told how far it is.

    Raises:
        DataError: the table cannot be used, or labels or templates are not as they must be.
        SpecError: there is no such input, or none that takes text.
        BundleError: there is no such model.
    """
    own, rows = space(model, task=task, device=device), Table.read(table)
    names = _names(labels)
    text = _text_input(own, text_input)
    anchors = _anchors(own, text, names, templates)
    if inputs is None:
        others = [
            name for name, part in own.parts.items() if name != text and set(part.columns(name)) & {*rows.columns}
        ]
        inputs = others or [text]
    found = own.embed(rows, inputs=inputs, strict=strict, progress=progress)
    scores = found.vectors.astype(np.float64) @ anchors.T
    return ZeroShot(names, scores, own.scale, found.warnings)


def _names(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise DataError(f"labels must be a list of names, none of them empty, got {labels!r}.")
    names = tuple(label.strip() for label in labels)
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"labels must be two or more different names, got {list(names)}.")
    return names


def _text_input(own: Space, name: str | None) -> str:
    """The input that names are given to."""
    known = [name for name, part in own.parts.items() if part.kind == "text" or part.worded]
    if name is None and len(known) == 1:
        return known[0]
    if not known:
        raise SpecError(f"the model must have an input that takes text, got {list(own.parts)}. Take another model.")
    if name is None or name not in known:
        told = "must be given, as the model has" if name is None else "must be one that takes text, of"
        got = "" if name is None else f", got {name!r}"
        raise SpecError(f"text_input {told} {known}{got}.{suggest(name, known) if name else ''}")
    return name


def _anchors(own: Space, text: str, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """One vector (W,) float64 of length 1 per name: the mean over the templates."""
    if isinstance(templates, str) or not templates or not all("{}" in template for template in templates):
        raise DataError(f"templates must be texts with {{}} for the name, got {templates!r}.")
    column = own.parts[text].columns(text)[0]
    texts = [template.replace("{}", name) for name in names for template in templates]
    found = own.embed({column: texts}, inputs=[text])
    if not found.present.all():
        gone = texts[int(np.flatnonzero(~found.present)[0])]
        raise DataError(f"labels must leave a text that the model can read, got {gone!r}.")
    means = found.vectors.astype(np.float64).reshape(len(names), len(templates), -1).mean(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)
