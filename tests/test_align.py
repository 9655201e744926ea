"""Alignment: the published losses by hand, who takes part, and what training with it does."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import toys
from polymodal.errors import SpecError
from polymodal.model import Model
from polymodal.nn.align import Alignment, contrast, infonce, shortened, sigmoid_loss
from polymodal.types import Masked

DIM = 8
KINDS = ("infonce", "sigmoid")
every = pytest.mark.parametrize("kind", KINDS)


def close(x, y, tolerance=1e-5):
    torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def unit(rows, seed=0):
    torch.manual_seed(seed)
    return [functional.normalize(torch.randn(rows, DIM), dim=-1) for _ in range(2)]


def tokens(names="ab", rows=6, seed=0):
    """Everything present; three tokens each, of which one to three are real."""
    torch.manual_seed(seed)
    mask = torch.arange(3) < torch.randint(1, 4, (rows, 1))
    return {name: Masked(torch.randn(rows, 3, DIM), mask) for name in names}


def build(kind, names="ab", temperature=0.1, seed=0) -> Alignment:
    torch.manual_seed(seed)
    return Alignment(tuple(names), DIM, kind, temperature)


def without(x, *gone):
    rows = torch.zeros(len(x), dtype=torch.bool)
    rows[list(gone)] = True
    return x.without(rows)


# The losses


def test_infonce_by_hand():
    a, b = unit(5)
    scale = torch.tensor(7.0)
    total = 0.0
    for i in range(5):
        right = math.exp(7 * float(a[i] @ b[i]))
        total -= math.log(right / sum(math.exp(7 * float(a[i] @ b[j])) for j in range(5)))
        total -= math.log(right / sum(math.exp(7 * float(a[j] @ b[i])) for j in range(5)))
    close(infonce(a, b, scale.log()), torch.tensor(total / 10))
    close(infonce(b, a, scale.log()), torch.tensor(total / 10))


def test_sigmoid_loss_by_hand():
    a, b = unit(5)
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
    total = 0.0
    for i, j in itertools.product(range(5), repeat=2):
        logit = 7 * float(a[i] @ b[j]) - 3
        total += math.log1p(math.exp(-logit if i == j else logit))
    close(sigmoid_loss(a, b, scale.log(), bias), torch.tensor(total / 5))


def test_losses_know_no_other_rows_of_the_same_unless_told():
    a, b = unit(5)
    scale, bias, alone = torch.tensor(2.0), torch.tensor(-3.0), torch.eye(5, dtype=torch.bool)
    close(infonce(a, b, scale, alone), infonce(a, b, scale))
    close(sigmoid_loss(a, b, scale, bias, alone), sigmoid_loss(a, b, scale, bias))
    two = alone.clone()
    two[0, 1] = two[1, 0] = True
    assert infonce(a, b, scale, two) != infonce(a, b, scale)
    total = 0.0
    for i, j in itertools.product(range(5), repeat=2):
        logit = float(scale.exp() * a[i] @ b[j] + bias)
        total += math.log1p(math.exp(-logit if two[i, j] else logit))
    close(sigmoid_loss(a, b, scale, bias, two), torch.tensor(total / 5))


def test_several_right_partners_by_hand():
    """Each has the wrong ones against it, and no other right one."""
    logits, ids = 3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), [0, 1, 0, 2]
    same = torch.tensor([[x == y for y in ids] for x in ids])
    total = 0.0
    for i in range(4):
        wrong = sum(math.exp(logits[i, j]) for j in range(4) if not same[i, j])
        right = [math.exp(logits[i, j]) for j in range(4) if same[i, j]]
        total -= sum(math.log(r / (r + wrong)) for r in right) / len(right)
    close(contrast(logits, same), torch.tensor(total / 4))


@pytest.mark.parametrize("beta", [0.25, 1.0, 2.0])
def test_hard_negatives_by_hand(beta):
    """Robinson et al. 2021: negatives are weighted by e^(beta logit), weights that are 1 on average."""
    logits, same = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), torch.eye(5, dtype=torch.bool)
    total = 0.0
    for i in range(5):
        wrong = [float(logits[i, j]) for j in range(5) if i != j]
        tilt = [math.exp(beta * x) for x in wrong]
        against = sum(w / (sum(tilt) / 4) * math.exp(x) for w, x in zip(tilt, wrong, strict=True))
        right = math.exp(logits[i, i])
        total -= math.log(right / (right + against))
    close(contrast(logits, same, beta), torch.tensor(total / 5))
    a, b = unit(5)
    assert infonce(a, b, torch.tensor(1.0), hardness=beta) > infonce(a, b, torch.tensor(1.0))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_row_without_a_wrong_partner_costs_nothing_and_stays_finite(beta):
    logits = (30 * torch.randn(3, 3)).requires_grad_()
    same = torch.ones(3, 3, dtype=torch.bool)
    loss = contrast(logits, same, beta)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    same[0, 1] = False
    contrast(logits, same, beta).backward()
    assert logits.grad.isfinite().all()


def test_the_first_entries_are_an_embedding_of_length_one():
    a, _ = unit(4)
    assert shortened(a, None) is a
    assert shortened(a, DIM) is a
    close(shortened(a, 3), a[:, :3] / a[:, :3].norm(dim=1, keepdim=True))


def test_infonce_of_known_cases():
    eye, one = torch.eye(4), torch.zeros(())
    same = torch.ones(4, 4) / 2
    close(infonce(same, same, one), torch.tensor(4.0).log())  # embeddings that say nothing
    close(infonce(eye, eye, torch.tensor(100.0).log()), torch.tensor(0.0))
    close(infonce(eye, eye.roll(1, 0), torch.tensor(100.0).log()), torch.tensor(100.0))  # all wrong
    assert infonce(eye[:1], eye[:1], one) == 0


def test_two_copies_of_a_row_are_false_negatives():
    eye, scale = torch.eye(4), torch.tensor(50.0).log()
    close(infonce(eye[[0, 0, 1]], eye[[0, 0, 1]], scale), torch.tensor(2.0).log() * 2 / 3)


# The term


@every
def test_a_pair_of_inputs_gives_the_loss_of_their_projected_means(kind):
    net, encoded = build(kind), tokens()
    a, b = (functional.normalize(encoded[n].mean() @ net.project[n].weight.T, dim=-1) for n in "ab")
    if kind == "infonce":
        want = infonce(a, b, net.log_scale[0])
    else:
        want = sigmoid_loss(a, b, net.log_scale[0], torch.tensor(-10.0))
    loss, count = net(encoded)
    close(loss, want)
    assert (count.item(), count.dtype) == (6, torch.long)
    close(net.embed("a", encoded["a"]).norm(dim=-1), torch.ones(6))


def test_the_published_start_is_the_default():
    net = build("sigmoid", "abc")
    close(net.log_scale.exp(), torch.full((3,), 10.0))
    assert (net.bias == -10).all()
    close(build("infonce", temperature=0.05).log_scale.exp(), torch.tensor([20.0]))
    assert build("infonce").bias is None


@every
def test_three_inputs_give_the_mean_over_their_pairs(kind):
    net, encoded = build(kind, "abc"), tokens("abc")
    with torch.no_grad():
        net.log_scale.copy_(torch.tensor([0.5, 1.0, 1.5]))  # a scale for each pair
    assert net.pairs == (("a", "b"), ("a", "c"), ("b", "c"))
    losses = [net({n: encoded[n] for n in pair})[0] for pair in net.pairs]
    close(net(encoded)[0], torch.stack(losses).mean())
    assert len({round(loss.item(), 4) for loss in losses}) == 3


@every
def test_rows_that_lack_one_input_have_no_say(kind):
    net, encoded = build(kind), tokens()
    some = {"a": without(encoded["a"], 0), "b": without(encoded["b"], 3)}
    kept = torch.tensor([1, 2, 4, 5])
    close(net(some)[0], net({n: x[kept] for n, x in encoded.items()})[0])
    assert net(some)[1] == 4
    dirty = {n: Masked(x.values.masked_fill(~x.mask[..., None], float("nan")), x.mask) for n, x in some.items()}
    assert net(dirty)[0].equal(net(some)[0])
    leaves = {n: x.values.clone().requires_grad_() for n, x in some.items()}
    net({n: Masked(leaves[n], x.mask) for n, x in some.items()})[0].backward()
    for leaf in leaves.values():
        assert leaf.grad.isfinite().all()
        assert (leaf.grad[[0, 3]] == 0).all()
        assert (leaf.grad[1] != 0).any()


def test_rows_are_counted_once_and_pairs_without_enough_rows_left_out_of_the_mean():
    net, encoded = build("infonce", "abc"), tokens("abc")
    encoded["c"] = without(encoded["c"], 0, 1, 2, 3, 4)  # one row: nothing to choose from
    loss, count = net(encoded)
    close(loss, net({n: encoded[n] for n in "ab"})[0])
    assert count == 6
    encoded["b"] = without(encoded["b"], 0)
    assert net(encoded)[1] == 5


@pytest.mark.parametrize(("kind", "rows", "count"), [("infonce", 1, 0), ("sigmoid", 1, 1), ("sigmoid", 0, 0)])
def test_too_few_rows_give_no_term_but_a_gradient_path(kind, rows, count):
    net, encoded = build(kind), tokens()
    encoded["b"] = without(encoded["b"], *range(rows, 6))
    loss, counted = net(encoded)
    assert counted == count
    assert loss.requires_grad
    loss.backward()
    assert (loss.item() == 0) == (count == 0)
    nothing, counted = net({"a": encoded["a"]})  # an input that is left out
    assert (nothing.item(), counted.item()) == (0, 0)


@every
def test_other_inputs_are_passed_over_and_the_order_of_names_does_not_matter(kind):
    net, encoded = build(kind), tokens("abc")
    want = net({n: encoded[n] for n in "ab"})[0]
    assert net(encoded)[0].equal(want)
    assert net(dict(reversed(encoded.items())))[0].equal(want)


def test_fewer_than_two_inputs_are_refused():
    with pytest.raises(SpecError, match=r"two or more inputs, got \['a'\]"):
        build("infonce", "a")


def test_the_scale_of_infonce_is_clipped_at_100_and_can_come_back():
    net, encoded = build("infonce", temperature=0.01), tokens()
    with torch.no_grad():
        net.log_scale += 1
    net.eval()(encoded)
    assert net.log_scale.exp().item() > 200  # evaluation changes nothing
    net.train()(encoded)[0].backward()
    close(net.log_scale.exp(), torch.tensor([100.0]), 1e-3)
    assert net.log_scale.grad.abs().item() > 0
    free = build("sigmoid", temperature=0.005)
    free.train()(encoded)
    close(free.log_scale.exp(), torch.tensor([200.0]), 1e-3)


@every
def test_half_precision_does_not_touch_the_logits(kind):
    net, encoded = build(kind, temperature=0.01), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        a, b = (net.embed(n, encoded[n]) for n in "ab")
        loss, _ = net(encoded)
    assert a.dtype == loss.dtype == torch.float32
    if kind == "infonce":
        close(loss, infonce(a, b, net.log_scale[0]))
    else:
        close(loss, sigmoid_loss(a, b, net.log_scale[0], net.bias[0]))


@every
def test_training_finds_the_partner_of_each_row(kind):
    """Two inputs show the same hidden vector through different random maps: partners can be found among 64 rows."""
    torch.manual_seed(0)
    maps = {n: torch.randn(4, DIM) for n in "ab"}
    net = build(kind)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-2)

    def shown(rows):
        hidden = torch.randn(rows, 1, 4)
        return {n: Masked(hidden @ m, torch.ones(rows, 1, dtype=torch.bool)) for n, m in maps.items()}

    def found(encoded):
        a, b = (net.embed(n, encoded[n]) for n in "ab")
        return ((a @ b.T).argmax(1) == torch.arange(len(a))).float().mean().item()

    test = shown(64)
    before = found(test)
    for _ in range(200):
        optimiser.zero_grad()
        net(shown(32))[0].backward()
        optimiser.step()
    assert before < 0.3
    assert found(test) > 0.9


# In the model


def model(**training):
    torch.manual_seed(0)
    return Model(toys.spec("abc", training=training))


def test_a_model_has_the_alignment_that_its_spec_asks_for():
    assert model().alignment is None
    plain, aligned = model(), model(alignment={"type": "sigmoid", "temperature": 0.2})
    assert aligned.alignment.names == ("a", "b", "c")
    assert aligned.alignment.bias is not None
    close(aligned.alignment.log_scale.exp(), torch.full((3,), 5.0))
    assert model(alignment={}).alignment.bias is None
    assert model(alignment={"inputs": ["c", "a"]}).alignment.pairs == (("c", "a"),)
    more = set(aligned.state_dict()) - set(plain.state_dict())
    assert more
    assert all(name.startswith("alignment.") for name in more)
    assert set(plain.state_dict()) < set(aligned.state_dict())
    again = model(alignment={"type": "sigmoid"})
    again.load_state_dict(aligned.state_dict())
    assert toys.same(again, aligned)


@every
def test_alignment_reaches_the_encoders_and_leaves_the_answer_alone(kind):
    plain, aligned = model(), model(alignment={"type": kind})
    rows = {n: Masked(torch.randn(5, 1, 2), torch.ones(5, 1, dtype=torch.bool)) for n in "abc"}
    outputs = aligned(rows)
    assert outputs.decoded["y"].equal(plain(rows).decoded["y"])
    aligned.alignment(outputs.encoded)[0].backward()
    for name in "abc":
        assert all(p.grad is not None and p.grad.any() for p in aligned.encoders[name].net[0].parameters())
    assert isinstance(aligned.alignment, nn.Module)
