"""Spoken: a task that a language model answers, or may answer."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Self

from pydantic import Field

from polymodal.decoder.settings import Decoder
from polymodal.decoder.template import FUSED
from polymodal.part import Modality
from polymodal.settings import Stage, Trained, Training
from polymodal.task import Task


class Spoken(Task):
    """What tasks with a decoder share.

    Attributes:
        decoder: the language model, its prompt and what is trained of it; None for a task that does without.
        verbatim: inputs whose very words the language model reads. Set by the spec; it is not written down.
    """

    decoder: Decoder | None = None
    verbatim: tuple[str, ...] = Field(default=(), exclude=True)

    @property
    def unfused(self) -> bool:
        """A language model reads the inputs themselves."""
        return self.decoder is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs in the prompt."""
        return () if self.decoder is None else self.decoder.inputs

    @property
    def soft(self) -> bool:
        """Whether anything in the prompt is a soft token."""
        known = {*self.verbatim, ""}
        return self.decoder is not None and any(piece.input not in known for piece in self.decoder.pieces)

    def within(self, inputs: Mapping[str, Modality], alone: bool = True) -> Self:
        """A copy whose prompt is known."""
        if self.decoder is None:
            return self
        words = tuple(name for name, part in inputs.items() if part.verbatim)
        return self.model_copy(update={"decoder": self.decoder.within(inputs, alone), "verbatim": words})

    def asks(self, name: str) -> bool:
        """No input answers by itself where a language model is asked about all."""
        return self.decoder is None


def speaks(task: Task) -> bool:
    """Whether a language model answers for a task."""
    return isinstance(task, Spoken) and task.decoder is not None


def unread(tasks: Mapping[str, Task], inputs: Mapping[str, Modality]) -> list[str]:
    """Inputs that nobody reads where language models answer for all tasks, a line each."""
    seen = {
        piece.input
        for task in tasks.values()
        if isinstance(task, Spoken) and task.decoder
        for piece in task.decoder.pieces
    }
    if not all(map(speaks, tasks.values())) or FUSED in seen:
        return []
    return [
        f"decoder.prompt of one of {list(tasks)} must have a place for {n!r}, got none."
        for n in inputs
        if n not in seen
    ]


def decoder_faults(plan: Training, tasks: Mapping[str, Task], finetuned: bool) -> list[str]:
    """What is wrong with settings of a training that language models make sense of, a line each.

    Args:
        plan: of the training.
        tasks: of the spec.
        finetuned: whether backbones of inputs are trained, too.
    """
    spoken, found = [n for n, task in tasks.items() if speaks(task)], list[str]()
    if plan.microbatch and not (finetuned or spoken):
        found.append(
            f"microbatch has no effect where no backbone is fine-tuned and no language model answers, got "
            f"{plan.microbatch}. Leave it out."
        )
    for name in ("stages", "rates"):
        if getattr(plan, name) and not spoken:
            found.append(f"{name} has no effect without an output that has a decoder. Leave it out.")
    trained = any(isinstance(task, Spoken) and task.decoder and task.decoder.adapt != "none" for task in tasks.values())
    wanted = "language" in plan.rates or any(stage.train == ("language",) for stage in plan.stages)
    if spoken and wanted and not trained:
        found.append("rates and stages must name language only where a decoder adapts, got adapt none. Leave it out.")
    if plan.mixup and spoken:
        found.append(f"mixup cannot mix what a language model reads, got outputs.{spoken[0]}. Leave it out.")
    if plan.stages and plan.objective != "joint":
        found.append(f"stages must have objective joint, got {plan.objective}. Leave out one of them.")
    if plan.stages and plan.balance in ("mmpareto", "gradient_blending"):
        found.append(f"stages must be left out with balance {plan.balance}, or the balance changed.")
    soft = any(task.soft for task in tasks.values() if isinstance(task, Spoken))
    if spoken and not soft and any(stage.train == ("projector",) for stage in plan.stages):
        found.append("stages must not train the projector alone where every input is read word for word.")
    if spoken and not soft and not trained and len(spoken) == len(tasks):
        found.append("decoder.adapt must not be none where every input is read word for word: nothing would learn.")
    return found


def stage_of(stages: Sequence[Stage], number: int) -> Collection[Trained] | None:
    """The parts that learn in an epoch; None for all."""
    ends = itertools.accumulate(stage.epochs for stage in stages)
    return next((stage.train for stage, end in zip(stages, ends, strict=True) if number < end), None)
