"""What a language model of a bundle is asked about rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from polymodal.bundle import Bundle
from polymodal.data.loader import prepare
from polymodal.data.table import Table
from polymodal.decoder.conversation import Conversation
from polymodal.errors import SpecError
from polymodal.model import Model
from polymodal.nn.language.decode import Decoding, say
from polymodal.nn.language.talk import stream
from polymodal.tasks.generate import Generate
from polymodal.types import Fused, Masked


@torch.inference_mode()
def prompts(model: Model, name: str, inputs: Mapping[str, Masked], other: Conversation | None = None) -> Masked:
    """What the decoder of a task reads, as embeddings (B, L, W).

    Args:
        model: in evaluation mode.
        name: of a task with a decoder.
        inputs: as the model takes them.
        other: what else was said in a conversation of which each row is a turn; B is 1 then.

    Raises:
        SpecError: the language model takes no such conversation.
    """
    encoded = {n: model.encode(n, inputs[n]) for n in model.names if n in inputs}
    fused, head = Fused(model.fusion(encoded).pooled, encoded, given=inputs), model.decoders[name]
    return head.prompts(fused) if other is None else head.conversation(fused, other)


def talk(bundle: Bundle, row: Mapping[str, Any], how: Decoding | None = None) -> Iterator[str]:
    """The answer of a bundle to a row, text by text as it becomes certain; with beams, all at once.

    Args:
        bundle: with a task that answers in words.
        row: column -> cell; columns may be left out.
        how: the answer is made; as the task does it when not given.

    Raises:
        SpecError: no task answers in words.
        DataError: the row has no input of the model, or a cell is broken.
    """
    found = [(n, task) for n, task in bundle.spec.outputs.items() if isinstance(task, Generate)]
    if not found:
        raise SpecError(f"the model must have an output that answers in words, got {list(bundle.spec.outputs)}.")
    name, task = found[0]
    table = Table.read([dict(row)])
    prepared = prepare(bundle.spec, table, bundle.embedder.without_store(), targets=False, strict=True)
    asked = prompts(bundle.model, name, prepared.batch(torch.tensor([0])).to(bundle.device).inputs)
    head = bundle.model.decoders[name]
    how = how or task.decoding
    if how.beams > 1:
        yield say(head.answering, asked, how)[0].text
    else:
        yield from stream(head.answering, asked.values[0, asked.mask[0]], how, head.memory)
