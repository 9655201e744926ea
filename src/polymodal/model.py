"""Model: encode -> fuse -> decode, with linear models beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from polymodal.decoder.head import DecoderHead
from polymodal.mixing import Mixing
from polymodal.nn.adapt import Adapter
from polymodal.nn.align import Alignment
from polymodal.nn.blocks import LockedEncoder, Named, SummaryEncoder
from polymodal.nn.linear import Linear
from polymodal.nn.manifold import vary
from polymodal.nn.trunk import Trunk
from polymodal.part import summary_width
from polymodal.settings import RATES, Trained
from polymodal.spec import Spec
from polymodal.task import VectorTask
from polymodal.types import Batch, Fused, Masked, Outputs, tracing

ALL = "all inputs"
"""Label of the linear model that sees every input; the others are labelled by the one input that they see."""


class Model(nn.Module):
    """Built from a fitted spec. Takes what frozen backbones give; every stage's result is in its `Outputs`.

    A vector task's answer is its head on the fused vector plus the mean over the present inputs of their own
    heads: what one input can say alone, the fusion need not learn again.

    Attributes:
        linear: task name -> label -> linear model on the inputs' summaries: the baselines that the fusion must beat.
        certainty: (tasks, inputs) calibration of each input's own head, for a late fusion; 1 until it is fitted.
        share: (tasks,) share of the linear model of all inputs in each task's answer, chosen on validation.
        thawed: input name -> its backbone while it is trained with the model, which then takes collated values.
        alignment: contrastive term between the inputs' embeddings, for training; None where the spec asks for none.
    """

    certainty: Tensor
    share: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, self.dim = spec, spec.dim
        self.names, tasks = tuple(spec.inputs), spec.outputs
        self.widths = {name: summary_width(part) for name, part in spec.inputs.items()}
        self.summarised = spec.summarised
        self.locked = {name for task in tasks.values() for name in task.fixed}
        self.thawed = Named({})
        self.encoders = Named({name: self._encoder(name) for name in self.names})
        self.fusion = spec.fusion.build(self.names, spec.dim)
        fused = {n: task for n, task in tasks.items() if task.unfused or not spec.fusion.late}
        self.heads = Named({n: task.head(spec.dim) for n, task in fused.items()})
        self.single = Named(
            {n: Named({name: t.head(spec.dim) for name in self.names if t.asks(name)}) for n, t in tasks.items()}
        )
        vector = {n: task for n, task in tasks.items() if isinstance(task, VectorTask)}
        labels = [ALL, *self.names] if len(self.names) > 1 else [ALL]
        self.linear = Named(
            {n: Named({x: Linear(tuple(self.widths.values()), t.size) for x in labels}) for n, t in vector.items()}
        )
        self.register_buffer("share", torch.zeros(len(tasks)))
        self.register_buffer("certainty", torch.ones(len(tasks), len(self.names)))
        align = spec.training.alignment
        self.alignment = (
            None if align is None else Alignment(align.inputs or self.names, spec.dim, align.type, align.temperature)
        )

    def forward(
        self,
        inputs: Mapping[str, Masked],
        mixing: Mixing | None = None,
        targets: Mapping[str, Masked] | None = None,
    ) -> Outputs:
        """Answer a batch by the fusion model alone. An input that is left out is absent in every row.

        In training the encoded features are varied if the spec has `manifold`, and rows are mixed if asked. Only the
        pooled vector is mixed, never a token: a task without one vector per row is answered from the unmixed row.
        The inputs' own heads in a vector task's answer are linear, so mixing what they say mixes their features;
        their outputs in `single` stay unmixed.

        Args:
            inputs: input name -> backbone's summary or tokens, or collated values where it has none. At least one.
            mixing: which rows to mix, or None.
            targets: task name -> target, for tasks whose heads must know it to tell what it costs.

        Raises:
            ValueError: rows are to be mixed by a late fusion, which has no fused vector.

        Source: Verma et al. 2019, "Manifold Mixup" (arXiv:1806.05236), section 2, always at the fused layer; the
        paper draws the layer anew for each step.
        """
        if mixing is not None and self.spec.fusion.late:
            raise ValueError(f"mixing must have a fused vector, got {self.spec.fusion.kind}. Take another fusion.")
        encoded = {name: self._varied(self.encode(name, inputs[name])) for name in self.names if name in inputs}
        fused = self.fusion(encoded)
        single = {n: self._single(n, encoded) for n in self.single}
        seen = Fused(fused.pooled, encoded, given=inputs)
        decoded = {
            n: self._ask(n, seen, single[n], targets)
            if self.spec.outputs[n].unfused
            else self._decode(n, fused, single[n], encoded, mixing)
            for n in self.single
        }
        if mixing is not None:
            fused = replace(fused, pooled=mixing(fused.pooled))
        return Outputs(encoded, fused, decoded, single)

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Masked], targets: Mapping[str, Masked] | None = None) -> Outputs:
        """Answer a batch (see `forward`) as a user gets it: blended with the linear model where that was better."""
        outputs = self(inputs, targets=targets)
        decoded = dict(outputs.decoded)
        summaries = self.summaries(inputs) if bool((self.share > 0).any()) else None
        for share, (n, task) in zip(self.share, self.spec.outputs.items(), strict=True):
            if isinstance(task, VectorTask) and summaries is not None and share > 0:
                linear = self.linear[n][ALL](*summaries)
                decoded[n] = task.mix([decoded[n], linear], torch.stack([1 - share, share]))
        return Outputs(outputs.encoded, outputs.fused, decoded, outputs.single)

    def encode(self, name: str, x: Masked) -> Masked:
        """Encode the rows that have this input; the others get masked zeros. No encoder sees an absent row.

        A traced graph cannot leave rows out: there, an absent row is encoded as one real position of zeros, and then
        blanked.

        Args:
            name: of the input.
            x: (B, N, ...), with any rows absent.

        Returns:
            (B, T, D). Absent rows are all zero and all masked, and no gradient reaches them.
        """
        rows = x.present
        if tracing():
            y, gone = self.encoders[name](x.filled()), ~rows[:, None]
            return Masked(y.values.masked_fill(gone[..., None], 0.0), y.mask & ~gone, y.at)
        if bool(rows.all()):
            return self.encoders[name](self._features(name, x))
        if not bool(rows.any()):
            return Masked(x.mask.new_zeros(len(x), 1, self.dim, dtype=torch.float32), rows[:, None])
        return self.encoders[name](self._features(name, x[rows])).spread(rows)

    def summaries(self, inputs: Mapping[str, Masked]) -> tuple[Tensor, Tensor]:
        """What the linear models take: features (B, F) of all inputs side by side, presence (B, M)."""
        some = next(iter(inputs.values()))
        nothing = torch.zeros(len(some), dtype=torch.bool, device=some.mask.device)
        features, present = [], []
        for name in self.names:
            x = inputs.get(name)
            here = nothing if x is None else x.present
            if x is not None and tracing():
                blank = self._summary(name, x.filled()).masked_fill(~here[:, None], 0.0)
            else:
                blank = torch.zeros(len(some), self.widths[name], device=some.mask.device)
                if x is not None and bool(here.any()):
                    blank[here] = self._summary(name, self._features(name, x[here]))
            features.append(blank)
            present.append(here)
        return torch.cat(features, 1), torch.stack(present, 1)

    def _features(self, name: str, x: Masked) -> Masked:
        """What the encoder takes, of rows that are all present."""
        if name not in self.thawed.names:
            return x
        tokens = self.thawed[name](x)
        if name not in self.summarised:
            return tokens
        summary = self.spec.inputs[name].summary(tokens)[:, None]
        return Masked(summary, torch.ones(summary.shape[:2], dtype=torch.bool, device=summary.device))

    def thaw(self, trunks: Mapping[str, Trunk]) -> None:
        """Take backbones in, to train them."""
        self.thawed = Named(trunks)

    def freeze(self) -> dict[str, Adapter]:
        """Give the backbones back. What each has learned, by input."""
        adapters = {name: trunk.adapter() for name, trunk in self.thawed.items()}
        self.thawed = Named({})
        return adapters

    @property
    def decoders(self) -> dict[str, DecoderHead]:
        """Task name -> its head, where that is a language model."""
        return {n: head for n, head in self.heads.items() if isinstance(head, DecoderHead)}

    def learned(self) -> dict[Trained, list[nn.Parameter]]:
        """What is trained, by the parts that a stage can name."""
        found: dict[Trained, list[nn.Parameter]] = {"projector": [], "language": [], "rest": []}
        for head in self.decoders.values():
            for part, some in head.parts.items():
                found[part] += some
        named = {p for some in found.values() for p in some}
        found["rest"] = [p for p in self.parameters() if p.requires_grad and p not in named]
        return found

    def factors(self) -> dict[Tensor, float]:
        """Factors of the learning rate of what is trained of backbones and language models."""
        rate, found = self.spec.training.learning_rate, dict[Tensor, float]()
        for head in self.decoders.values():
            own = {"language": RATES["all" if head.plan.adapt == "all" else "lora"]} | dict(self.spec.training.rates)
            found |= {p: own[part] / rate for part, some in head.parts.items() if part in own for p in some}
        for name, trunk in self.thawed.items():
            plan = self.spec.finetuned[name]
            found |= {p: plan.peak / rate * factor for p, factor in trunk.factors(plan.layer_decay).items()}
        return found

    def branch(self, name: str) -> list[nn.Parameter]:
        """What only this input has: the thawed part of its backbone, and its encoder."""
        trunk = self.thawed[name].learned if name in self.thawed.names else []
        return [*trunk, *self.encoders[name].parameters()]

    def _summary(self, name: str, x: Masked) -> Tensor:
        return x.values[:, 0] if name in self.summarised else self.spec.inputs[name].summary(x).float()

    def vector_task(self, n: str) -> VectorTask:
        """The task called ``n``, which has linear models."""
        task = self.spec.outputs[n]
        if not isinstance(task, VectorTask):
            raise TypeError(f"outputs.{n} must be a task with one vector per sample, got {task.kind}.")
        return task

    def baselines(self) -> dict[str, Callable[[Batch], dict[str, Tensor]]]:
        """Label -> function from a batch to the raw outputs of the linear models of that label."""

        def decode(label: str) -> Callable[[Batch], dict[str, Tensor]]:
            return lambda batch: {n: f[label](*self.summaries(batch.inputs)) for n, f in self.linear.items()}

        labels = next(iter(self.linear.items()))[1].names if self.linear.names else ()
        return {label: decode(label) for label in labels}

    def votes(self, n: str, single: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw outputs of the inputs' own heads of a task with each one's own certainty, in the order of `names`."""
        factors = self.certainty[list(self.spec.outputs).index(n)]
        return [self.vector_task(n).settle(single[self.names[i]], factors[i]) for i in self._columns(single)]

    def _columns(self, single: Mapping[str, Tensor]) -> list[int]:
        return [i for i, name in enumerate(self.names) if name in single]

    @torch.no_grad()
    def adapt(self, features: Tensor, present: Tensor) -> None:
        """Standardise summaries like those of the training rows: (n, F) and (n, M) as from `summaries`."""
        parts = features.split(list(self.widths.values()), 1)
        for i, (name, part) in enumerate(zip(self.names, parts, strict=True)):
            if name in self.summarised:
                self.encoders[name].adapt(part[present[:, i]])

    def _encoder(self, name: str) -> nn.Module:
        if name in self.locked:
            return LockedEncoder(self.dim)
        if name in self.summarised:
            return SummaryEncoder(self.widths[name], self.dim, self.spec.training.dropout, not self.locked)
        return self.spec.inputs[name].encoder(self.dim)

    def _single(self, task: str, encoded: Mapping[str, Masked]) -> dict[str, Tensor]:
        heads = self.single[task]
        found = {name: heads[name](Fused(x.mean(), {name: x})) for name, x in encoded.items() if name in heads.names}
        about = self.spec.outputs[task].about
        if about is not None and about not in found:  # left out, which is the same as absent in every row
            found[about] = heads[about](Fused(next(iter(encoded.values())).mean(), {}))
        return found

    def _varied(self, x: Masked) -> Masked:
        plan = self.spec.training.manifold
        return vary(x, plan.noise, plan.extrapolate) if plan is not None and self.training else x

    def _ask(self, n: str, seen: Fused, single: Mapping[str, Tensor], targets: Mapping[str, Masked] | None) -> Tensor:
        """What a head says that takes the inputs as they are encoded."""
        task, head = self.spec.outputs[n], self.heads[n]
        found = head(seen, targets[n]) if task.forced and targets is not None else head(seen)
        return task.combine(found, single)

    def _decode(
        self,
        n: str,
        fused: Fused,
        single: Mapping[str, Tensor],
        encoded: Mapping[str, Masked],
        mixing: Mixing | None,
    ) -> Tensor:
        task = self.spec.outputs[n]
        if n not in self.heads.names and task.about is not None:
            return single[task.about]
        if fused.weights is not None and n not in self.heads.names:
            return self.vector_task(n).mix(self.votes(n, single), fused.weights[:, self._columns(single)])
        if not isinstance(task, VectorTask):
            return task.combine(self.heads[n](fused), single)
        present = torch.stack([x.present for x in encoded.values()], 1)
        share = present / present.sum(1, keepdim=True).clamp(min=1)
        own = (torch.stack(list(single.values()), 1) * share[..., None]).sum(1)
        if mixing is None:
            return self.heads[n](fused) + own
        return self.heads[n](replace(fused, pooled=mixing(fused.pooled))) + mixing(own)
