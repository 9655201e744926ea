"""Linear-chain CRF: against every sequence enumerated, and on what is long, short, padded or impossible."""

import itertools

import pytest
import torch

from polymodal.nn.chain import FORBIDDEN, Chain, Passes


def case(k=4, lengths=(5, 3, 1, 4), seed=0, spread=1.5, padding=2):
    """A chain with two forbidden steps and a forbidden start, emissions with NaN behind the rows' ends, and lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * spread

    chain = Chain(draw(k), draw(k), draw(k, k))
    chain.start[1] = chain.step[0, 1] = chain.step[2, 1] = FORBIDDEN
    sizes = torch.tensor(lengths)
    emissions = draw(len(lengths), max(lengths) + padding, k)
    emissions[torch.arange(emissions.shape[1]) >= sizes[:, None]] = torch.nan
    return chain, emissions, sizes


def everything(chain, emissions):
    """All sequences (S, n) of one row (n, K), and their scores (S,)."""
    n, k = emissions.shape
    paths = torch.tensor(list(itertools.product(range(k), repeat=n)))
    scores = chain.start[paths[:, 0]] + chain.end[paths[:, -1]] + emissions[torch.arange(n), paths].sum(1)
    for t in range(1, n):
        scores = scores + chain.step[paths[:, t - 1], paths[:, t]]
    return paths, scores


def draws(chain, emissions, lengths, seed=1):
    """Tags that no rule forbids."""
    tags = torch.zeros(emissions.shape[:2], dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for b, n in enumerate(lengths):
        paths, scores = everything(chain, emissions[b, :n])
        paths = paths[scores > FORBIDDEN / 2]
        tags[b, :n] = paths[torch.randint(len(paths), (1,), generator=generator)[0]]
    return tags


@pytest.mark.parametrize("seed", range(4))
def test_all_that_is_computed_equals_enumeration(seed):
    chain, emissions, lengths = case(seed=seed)
    tags, best, passes = draws(chain, emissions, lengths), chain.best(emissions, lengths), Passes.of(*case(seed=seed))
    likely, total, seen = passes.marginals(), passes.log_partition(), torch.zeros(4, 4, dtype=torch.float64)
    for b, n in enumerate(lengths):
        paths, scores = everything(chain, emissions[b, :n])
        p = scores.softmax(0)
        torch.testing.assert_close(total[b], scores.logsumexp(0))
        assert torch.equal(best[b, :n], paths[scores.argmax()])
        torch.testing.assert_close(
            likely[b, :n], torch.stack([((paths == k) * p[:, None]).sum(0) for k in range(4)], 1)
        )
        place = (paths == tags[b, :n]).all(1)
        torch.testing.assert_close(chain.score(emissions, tags, lengths)[b], scores[place][0])
        for t in range(1, n):
            seen.index_put_((paths[:, t - 1], paths[:, t]), p, accumulate=True)
    assert (best[torch.arange(emissions.shape[1]) >= lengths[:, None]] == 0).all()
    torch.testing.assert_close(passes.steps(), seen)
    torch.testing.assert_close(
        chain.loss(emissions, tags, lengths), total.sum() - sum(chain.score(*case(seed=seed)[1:2], tags, lengths))
    )


@pytest.mark.parametrize("seed", range(3))
def test_runs_have_the_probability_of_all_sequences_that_hold_them(seed):
    chain, emissions, lengths = case(seed=seed)
    passes, tags = Passes.of(chain, emissions, lengths), draws(chain, emissions, lengths)
    asked = [
        (b, first, stop, onward)
        for b, n in enumerate(lengths.tolist())
        for first in range(n)
        for stop in range(first + 1, n + 1)
        for onward in (-1, 1, 3)
    ]
    row, first, stop, onward = torch.tensor(asked).T
    found = passes.runs(tags, row, first, stop, onward)
    for p, (b, i, j, more) in zip(found, asked, strict=True):
        n = int(lengths[b])
        paths, scores = everything(chain, emissions[b, :n])
        holds = (paths[:, i:j] == tags[b, i:j]).all(1)
        if more >= 0 and j < n:
            holds &= paths[:, j] != more
        torch.testing.assert_close(p, (scores.softmax(0) * holds).sum())


def test_loss_has_the_right_gradient():
    chain, emissions, lengths = case(k=3, lengths=(4, 0, 1, 3))
    chain.start[:], chain.step[:] = chain.start.clamp(min=-3), chain.step.clamp(min=-3)
    tags = torch.randint(3, emissions.shape[:2], generator=torch.Generator().manual_seed(2))
    leaves = [x.requires_grad_() for x in (emissions, chain.start, chain.end, chain.step)]

    def loss(x, start, end, step):
        return Chain(start, end, step).loss(x, tags, lengths)

    real = torch.arange(emissions.shape[1]) < lengths[:, None]
    clean = emissions.detach().masked_fill(~real[..., None], 0.0).requires_grad_()
    assert torch.autograd.gradcheck(loss, (clean, *leaves[1:]))
    loss(*leaves).backward()
    assert emissions.grad is not None
    assert emissions.grad.isfinite().all()
    assert not emissions.grad[~real].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_numbers_are_widened(dtype):
    chain, emissions, lengths = case(spread=1.0)
    tags = draws(chain, emissions, lengths)
    narrow = Chain(*(x.to(dtype) for x in (chain.start, chain.end, chain.step)))
    some = emissions.to(dtype).requires_grad_()
    loss = narrow.loss(some, tags, lengths)
    exact = Chain(*(x.double() for x in (narrow.start, narrow.end, narrow.step))).loss(some.double(), tags, lengths)
    torch.testing.assert_close(loss, exact)
    loss.backward()
    assert some.grad is not None
    assert some.grad.dtype == dtype
    assert torch.equal(narrow.best(some, lengths), narrow.best(some.double(), lengths))


def test_rows_do_not_depend_on_one_another_nor_on_padding():
    chain, emissions, lengths = case(lengths=(5, 2, 7, 1), padding=6)
    together, tags = Passes.of(chain, emissions, lengths), draws(*case(lengths=(5, 2, 7, 1), padding=6))
    best = chain.best(emissions, lengths)
    losses = 0.0
    for b, n in enumerate(lengths.tolist()):
        alone = Passes.of(chain, emissions[b : b + 1, :n], lengths[b : b + 1])
        torch.testing.assert_close(alone.log_partition()[0], together.log_partition()[b])
        torch.testing.assert_close(alone.marginals()[0], together.marginals()[b, :n])
        assert torch.equal(chain.best(emissions[b : b + 1, :n], lengths[b : b + 1])[0], best[b, :n])
        losses = losses + chain.loss(emissions[b : b + 1, :n], tags[b : b + 1, :n], lengths[b : b + 1])
    torch.testing.assert_close(chain.loss(emissions, tags, lengths), losses)


def test_ten_thousand_words_and_certain_scores_stay_finite():
    chain, emissions, lengths = case(k=9, lengths=(10_000, 3), spread=8.0)
    best = chain.best(emissions, lengths)
    loss = chain.loss(emissions.requires_grad_(), best, lengths)
    loss.backward()
    passes = Passes.of(chain, emissions.detach(), lengths)
    whole = passes.runs(best, torch.tensor([0]), torch.tensor([10]), torch.tensor([9000]), torch.tensor([-1]))
    assert loss.isfinite()
    assert loss >= 0
    assert emissions.grad is not None
    assert emissions.grad.isfinite().all()
    assert 0 <= whole < 1
    sums = passes.marginals().sum(2)
    torch.testing.assert_close(sums[0, :10_000], torch.ones(10_000, dtype=torch.float64))
    wild = Chain(*(x * 1.0 for x in (chain.start, chain.end, chain.step)))
    steep = torch.tensor([[[0.0, 900.0, -900.0, 0, 0, 0, 0, 0, 0]] * 3])
    assert wild.loss(steep, torch.zeros(1, 3, dtype=torch.long), torch.tensor([3])).isfinite()


def test_forbidden_steps_are_never_taken_and_have_no_probability():
    chain, emissions, lengths = case()
    emissions[:, :, 1] += 40.0
    best, passes = chain.best(emissions, lengths), Passes.of(chain, emissions, lengths)
    assert not passes.marginals()[:, 0, 1].any()
    for b, n in enumerate(lengths.tolist()):
        assert best[b, 0] != 1
        assert all((int(x), int(y)) not in ((0, 1), (2, 1)) for x, y in itertools.pairwise(best[b, :n]))


def test_no_rows_and_no_positions_are_fine():
    chain, emissions, _ = case()
    none = torch.zeros(4, dtype=torch.long)
    leaf = emissions.requires_grad_()
    loss = chain.loss(leaf, torch.zeros(emissions.shape[:2], dtype=torch.long), none)
    loss.backward()
    assert loss == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()
    assert not chain.best(emissions, none).any()
    assert chain.best(emissions[:0], none[:0]).shape == (0, emissions.shape[1])
