"""Linear-chain conditional random field: scores of sequences of tags, in time linear in their length.

A sequence's score is what its first tag scores as a start, its last as an end, each pair of neighbours as a step, and
each tag at its position. The probability of a sequence is the softmax of the scores of all sequences.

Source: Lafferty et al. 2001, "Conditional Random Fields"; forward-backward scaled as in Rabiner 1989, section V.A.

Shapes: B rows, T positions, K tags. Each row is as long as ``lengths`` (B,) says; what stands behind its end may be
anything, NaN too. All is computed in float64, in float32 on devices without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FORBIDDEN = -1e4
"""Score of a start, end or step that must not be. Float16 holds it, and its exponential is 0."""

FLOOR = -300.0
"""Least score of a tag below the best one at its position, in nats, for sums over sequences, which cannot be 0 then."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The scores of tags that do not depend on the position.

    Attributes:
        start: (K,) of tags at the first position.
        end: (K,) of tags at the last position.
        step: (K, K) from the tag of the row to the tag of the column at the next position.
    """

    start: Tensor
    end: Tensor
    step: Tensor

    def wide(self) -> Chain:
        """The same in the type that all is computed in."""
        return Chain(*(_wide(x) for x in (self.start, self.end, self.step)))

    def score(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Score of one sequence per row.

        Args:
            emissions: (B, T, K) score of each tag at each position.
            tags: (B, T) long.
            lengths: (B,) long.

        Returns:
            (B,); 0 for a row of no position.
        """
        chain, real = self.wide(), _real(emissions, lengths)
        tags = tags.masked_fill(~real, 0)
        at = _wide(emissions).gather(2, tags[..., None]).squeeze(2).masked_fill(~real, 0.0).sum(1)
        steps = chain.step[tags[:, :-1], tags[:, 1:]].masked_fill(~real[:, 1:], 0.0).sum(1)
        last = tags.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
        edges = chain.start[tags[:, 0]] + chain.end[last]
        return at + steps + edges.masked_fill(lengths == 0, 0.0)

    def loss(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Sum over rows of the negative log-likelihood of their sequences, in nats. Scalar.

        The gradient is what is expected less what is seen, from one forward and one backward pass outside of autograd;
        so it has no second derivative.
        """
        some = lengths > 0
        emissions, tags, lengths = emissions[some], tags[some], lengths[some]
        if not len(lengths):
            return (emissions.sum() + self.start.sum() + self.end.sum() + self.step.sum()) * 0
        real = _real(emissions, lengths)
        clean, chain = _wide(emissions).masked_fill(~real[..., None], 0.0), self.wide()
        with torch.no_grad():
            passes = Passes.of(chain, clean, lengths)
            total, marginals, steps = passes.log_partition().sum(), passes.marginals(), passes.steps()
            ends = marginals.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, marginals.shape[2]))
        for x, expected in (
            (clean, marginals),
            (chain.step, steps),
            (chain.start, marginals[:, 0].sum(0)),
            (chain.end, ends.sum((0, 1))),
        ):
            total = total + ((x - x.detach()) * expected).sum()  # adds 0, and the gradient
        return total - chain.score(clean, tags, lengths).sum()

    @torch.no_grad()
    def best(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The sequence of the highest score in each row. (B, T) long, 0 behind the rows' ends.

        Source: Viterbi 1967.
        """
        chain, lengths, order = self.wide(), *_longest_first(lengths)
        x, sizes = _wide(emissions)[order].transpose(0, 1), _sizes(lengths)
        count, into = x.shape[1], chain.step.T.contiguous()
        back = torch.zeros(len(sizes), count, x.shape[2], dtype=torch.long, device=x.device)
        scores = torch.where(lengths[:, None] > 0, chain.start + x[0], 0.0)
        for t, n in enumerate(sizes[1:], 1):
            best, back[t, :n] = (scores[:n, None] + into).max(2)
            best += x[t, :n]
            scores[:n] = best - best.amax(1, keepdim=True)  # only differences count: large sums lose digits
        path = torch.zeros(emissions.shape[:2][::-1], dtype=torch.long, device=x.device)
        tag = (scores + chain.end).argmax(1)
        for t in range(len(sizes) - 1, -1, -1):
            n = sizes[t]
            path[t, :n] = tag[:n]
            tag[:n] = back[t, :n].gather(1, tag[:n, None]).squeeze(1)
        found = torch.empty_like(path)
        found[:, order] = path
        return found.T


@dataclass(frozen=True, slots=True)
class Passes:
    """The forward and the backward pass over a batch of rows, each of at least one position.

    Exponentials of scores, less their maxima, so that each step is one matrix product; forward sums are scaled to 1.

    Attributes:
        chain: exponentials of its scores less their maxima.
        emissions: (B, T, K) exponentials of the scores less each position's maximum.
        forward: (B, T, K) share of each tag in the sums over all beginnings; 0 behind the rows' ends, as are the rest.
        backward: (B, T, K) such that its product with ``forward`` is each tag's probability.
        scale: (B, T) by which the forward sums were divided; 1 behind the rows' ends.
        maxima: (B,) sum of all maxima that were taken off.
        lengths: (B,) long.
    """

    chain: Chain
    emissions: Tensor
    forward: Tensor
    backward: Tensor
    scale: Tensor
    maxima: Tensor
    lengths: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, chain: Chain, emissions: Tensor, lengths: Tensor) -> Passes:
        """Run both passes over scores (B, T, K)."""
        chain, real = chain.wide(), _real(emissions, lengths)
        x = _wide(emissions).masked_fill(~real[..., None], 0.0)
        tops = x.amax(2)
        edges = [s.max() for s in (chain.start, chain.end, chain.step)]
        maxima = tops.sum(1) + edges[0] + edges[1] + edges[2] * (lengths - 1)
        parts = zip((chain.start, chain.end, chain.step), edges, strict=True)
        chain = Chain(*((s - top).exp() for s, top in parts))
        ordered, order = _longest_first(lengths)
        sizes = _sizes(ordered)
        likely = (x - tops[..., None]).clamp(min=FLOOR).exp()
        w = likely[order].transpose(0, 1).contiguous()
        forward, scale = _forward(chain, w, sizes)
        backward = _backward(chain, w, sizes, forward, scale)
        back = order.argsort()
        forward, backward, scale = (y.transpose(0, 1)[back] for y in (forward, backward, scale))
        return cls(chain, likely, forward, backward, scale.squeeze(2), maxima, lengths)

    def log_partition(self) -> Tensor:
        """Log of the sum over all sequences of the exponentials of their scores. (B,)."""
        last = self.forward[torch.arange(len(self.lengths), device=self.lengths.device), self.lengths - 1]
        return self.maxima + self.scale.log().sum(1) + (last @ self.chain.end).log()

    def marginals(self) -> Tensor:
        """Probability of each tag at each position. (B, T, K); 0 behind the rows' ends."""
        return self.forward * self.backward

    def steps(self) -> Tensor:
        """How often each step is expected in all rows together. (K, K)."""
        after = self.emissions[:, 1:] * self.backward[:, 1:] / self.scale[:, 1:, None]
        return (self.forward[:, :-1].flatten(0, 1).T @ after.flatten(0, 1)) * self.chain.step

    def runs(self, tags: Tensor, row: Tensor, first: Tensor, stop: Tensor, onward: Tensor) -> Tensor:
        """Probability of runs of tags: that the positions first..stop-1 have just these, and that no more follow.

        Args:
            tags: (B, T) long, at each position the tag that a run there has.
            row: (S,) long, which row each run is in.
            first: (S,) its first position.
            stop: (S,) the position behind its last.
            onward: (S,) the tag that would make the run longer, if it stood behind it; -1 where none would.

        Returns:
            (S,) in 0..1.
        """
        last, behind = stop - 1, stop.clamp(max=tags.shape[1] - 1)
        each = self.emissions.gather(2, tags[..., None]).squeeze(2) / self.scale
        each[:, 1:] *= self.chain.step[tags[:, :-1], tags[:, 1:]]
        logs = each.clamp(min=torch.finfo(each.dtype).tiny).log().cumsum(1)
        inner = (logs[row, last] - logs[row, first]).exp()
        ends, more = tags[row, last], onward.clamp(min=0)
        longer = self.chain.step[ends, more] * self.emissions[row, behind, more] * self.backward[row, behind, more]
        longer = longer / self.scale[row, behind]
        goes = (onward >= 0) & (stop < self.lengths[row])
        tail = self.backward[row, last, ends] - longer.masked_fill(~goes, 0.0)
        return (self.forward[row, first, tags[row, first]] * inner * tail).clamp(0, 1)


def _forward(chain: Chain, w: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Scaled sums over beginnings (T, B, K) and their scales (T, B, 1), rows sorted by falling length."""
    sums, scale = torch.zeros_like(w), torch.ones_like(w[..., :1])
    tiny = torch.finfo(w.dtype).tiny
    for t, n in enumerate(sizes):
        x = (sums[t - 1, :n] @ chain.step if t else chain.start) * w[t, :n]
        total = x.sum(1, keepdim=True).clamp_(min=tiny)
        scale[t, :n] = total
        torch.div(x, total, out=sums[t, :n])
    return sums, scale


def _backward(chain: Chain, w: Tensor, sizes: list[int], forward: Tensor, scale: Tensor) -> Tensor:
    """Sums over endings (T, B, K), such that their product with the forward sums is a probability."""
    sums, into = torch.zeros_like(w), chain.step.T.contiguous()
    ratio = w / scale
    for t in range(len(sizes) - 1, -1, -1):
        n = sizes[t]
        more = sizes[t + 1] if t + 1 < len(sizes) else 0
        sums[t, more:n] = chain.end / (forward[t, more:n] @ chain.end)[:, None]
        if more:
            sums[t, :more] = (ratio[t + 1, :more] * sums[t + 1, :more]) @ into
    return sums


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _real(emissions: Tensor, lengths: Tensor) -> Tensor:
    """Which positions are before their row's end. (B, T) bool."""
    return torch.arange(emissions.shape[1], device=emissions.device) < lengths[:, None]


def _longest_first(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Falling lengths, and the rows that have them."""
    order = lengths.argsort(descending=True, stable=True)
    return lengths[order], order


def _sizes(lengths: Tensor) -> list[int]:
    """How many rows are longer than 0, 1, 2 ... positions, until none is; ``lengths`` fall."""
    counts = torch.bincount(lengths)
    return counts.flip(0).cumsum(0).flip(0)[1:].tolist()
