"""Settings of a language model as a task's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from polymodal.decoder import template
from polymodal.decoder.template import FUSED, Piece
from polymodal.errors import BundleError
from polymodal.nn.language.loading import load_language
from polymodal.nn.language.model import Language
from polymodal.nn.project import Kind
from polymodal.part import Modality

COUNTS: Mapping[Kind, int] = {"resampler": 16, "shuffle": 2, "linear": 0, "mlp": 0}
"""Count of a projector, where nobody set it."""

RANK = 8

Adapt = Literal["lora", "all", "none"]


class Decoder(BaseModel):
    """How a language model answers for a task.

    Attributes:
        pretrained: in a spec ``backbone``: "smollm2" (packaged), "hf:org/name" or "hf:folder" for another causal
            language model (extra ``language``).
        prompt: text with places for inputs, ``<image>``: soft tokens of that input, or the very words of one of the
            type ``prompt``; ``<fused>`` is what the fusion makes of all. A place for each input when not given. Of an
            input that is absent nothing is said.
        chat: speak by the model's chat template, if it has one; without, the prompt is all that it reads.
        system: what the model is told first, in its chat template; what that says by itself when not given.
        projector: from an input's tokens to soft tokens: ``linear``, ``mlp``, ``resampler`` or ``shuffle``.
        count: soft tokens of a ``resampler`` (16); side of the squares that ``shuffle`` joins (2).
        adapt: what is trained of the language model: low-rank changes (``lora``), ``all`` of it, or ``none``.
        rank: of the low-rank changes; 8 when not given.
        merge: answer by a copy of the weights that the low-rank changes are added into, instead of keeping both apart:
            a tenth faster, for as much memory again.
        truncate: what becomes of a prompt that is longer than the model's context: an ``error``, or its ``left`` end
            is cut off.
        checkpointing: compute a layer's values again for the gradient instead of keeping them: less memory, a third
            more time.
        packed: put several answers behind one another in training instead of padding them to one length.
        digest: of the language model and its tokenizer. Set when the task is fitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    pretrained: str = Field("smollm2", alias="backbone")
    prompt: str | None = None
    chat: bool = True
    system: str | None = None
    projector: Kind = "mlp"
    count: int | None = Field(default=None, ge=1, le=1024)
    adapt: Adapt = "lora"
    rank: int | None = Field(default=None, ge=1)
    merge: bool = False
    truncate: Literal["error", "left"] = "error"
    checkpointing: bool = False
    packed: bool = False
    digest: str = ""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Take a language model's name for all of it."""
        return {"backbone": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _effective(self) -> Self:
        """Reject settings without effect."""
        if self.count is not None and not COUNTS[self.projector]:
            raise ValueError(f"count has no effect with projector {self.projector}, got {self.count}. Leave it out.")
        if self.system is not None and not self.chat:
            raise ValueError(f"system has no effect without chat, got {self.system!r:.40}. Leave it out.")
        if self.rank is not None and self.adapt != "lora":
            raise ValueError(f"rank has no effect with adapt {self.adapt}, got {self.rank}. Leave it out.")
        if self.merge and self.adapt != "lora":
            raise ValueError(f"merge has no effect with adapt {self.adapt}, got true. Leave it out.")
        return self

    def within(self, inputs: Mapping[str, Modality], alone: bool) -> Self:
        """A copy whose prompt is known.

        Args:
            inputs: of the spec.
            alone: whether no other task could use an input that has no place.

        Raises:
            ValueError: the prompt and the inputs do not fit.
        """
        told = template.default(inputs) if self.prompt is None else self.prompt
        found = [f"decoder.{fault}" for fault in template.faults(told, inputs, alone)]
        found += [
            f"decoder.backbone must be that of input {name!r}, {other!r}, got {self.pretrained!r}. Name the same."
            for name, part in inputs.items()
            if part.verbatim and f"<{name}>" in told and (other := getattr(part, "pretrained", None)) != self.pretrained
        ]
        if found:
            raise ValueError("\n".join(found))
        return self.model_copy(update={"prompt": told})

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The prompt's stretches."""
        return template.pieces(self.prompt or "")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs that have a place in the prompt."""
        return tuple(piece.input for piece in self.pieces if piece.input not in ("", FUSED))

    def language(self) -> Language:
        """The language model.

        Raises:
            SpecError: it is not there.
            BundleError: it is not the one that the task was fitted with.
        """
        found = load_language(self.pretrained)
        if self.digest and found.digest != self.digest:
            raise BundleError(
                f"language model {self.pretrained!r} must have digest {self.digest}, got {found.digest}. Install the "
                "version that the model was trained with, or fit again."
            )
        return found

    def fitted(self) -> Self:
        """A copy that is bound to the language model that is there now."""
        return self.model_copy(update={"digest": self.language().digest})
