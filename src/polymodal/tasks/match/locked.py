"""Which inputs may be locked: enter the shared space as their pretrained features are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from polymodal.errors import suggest
from polymodal.part import Modality, is_pretrained


def check_locked(locked: Sequence[str], named: Sequence[str], inputs: Mapping[str, Modality]) -> None:
    """Reject locked inputs that cannot be, and such that leave nothing to be learned.

    Args:
        locked: by name.
        named: every input of every side.
        inputs: of the spec.

    Raises:
        ValueError: one is in no side or has no backbone, or all of them are locked.
    """
    for name in locked:
        if name not in named:
            raise ValueError(f"locked must name inputs of the sides {named}, got {name!r}.{suggest(name, named)}")
        if not is_pretrained(inputs[name]):
            raise ValueError(f"locked must name inputs with a backbone, got {name!r}, which has none. Leave it out.")
    if set(named) <= set(locked):
        raise ValueError(f"locked must leave an input to be learned, got {list(locked)}. Leave out one.")


def faults_beside(
    locked: Sequence[str], width: int | None, dim: int, summaries: Mapping[str, int], finetuned: Collection[str]
) -> list[str]:
    """Why inputs cannot be locked in a spec.

    Args:
        locked: by name.
        width: of the embeddings, as it was set.
        dim: of the model.
        summaries: input name -> width of its pretrained summary, of each input that reaches the model as that.
        finetuned: inputs whose backbones are trained.
    """
    faults = list[str]()
    for name in locked:
        own = summaries.get(name)
        if own is None:
            faults.append(
                f"locked must name inputs that reach the model as one vector, got {name!r}. Change the fusion."
            )
        elif name in finetuned:
            faults.append(f"locked must not name what is fine-tuned, got {name!r}. Leave out one of them.")
        elif (dim, width or dim) != (own, own):
            faults.append(f"dim and width must be {own}, that of the locked {name!r}, got {dim} and {width or dim}.")
    return faults
