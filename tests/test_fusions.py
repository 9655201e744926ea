"""The contract of every fusion, and what each can and cannot learn."""

import itertools
import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import polymodal.fusions  # noqa: F401
from polymodal.errors import DataError, SpecError
from polymodal.part import Fusion
from polymodal.types import Masked

DIM, NAMES, SIZES = 16, ("a", "b", "c"), (2, 3, 4)
VARIANTS = [
    *({"type": name} for name in sorted(Fusion.known)),
    {"type": "pool", "how": "max"},
    {"type": "concat", "pool": "attention"},
    {"type": "film", "condition": "c"},
]
VECTOR = ("concat", "experts", "film", "gated", "hadamard", "pool", "tensor", "weighted")
WEIGH = ("experts", "gated", "vote", "weighted")


def title(spec):
    return "-".join(str(value) for value in spec.values())


every = pytest.mark.parametrize("spec", VARIANTS, ids=title)


def parse(spec) -> Fusion:
    part = Fusion.parse(spec)
    assert isinstance(part, Fusion)
    return part


def build(spec, names=NAMES, seed=0, stir=True) -> Any:
    """A module in evaluation mode; ``stir`` moves parameters that start at zero, so that nothing hides behind them."""
    torch.manual_seed(seed)
    net = parse(spec).build(names, DIM).eval()
    if stir:
        for value in net.parameters():
            value.data += 0.1 * torch.randn_like(value)
    return net


def mixed(seed=0):
    """Eight rows, one for every subset of three inputs; present rows have one to all of their tokens, anywhere."""
    torch.manual_seed(seed)
    shown = torch.tensor(list(itertools.product([True, False], repeat=3)))
    inputs = {}
    for i, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        mask = torch.rand(8, size) < 0.6
        mask[torch.arange(8), torch.randint(size, (8,))] = True
        inputs[name] = Masked(torch.randn(8, size, DIM), mask & shown[:, i : i + 1], torch.randn(8, size, 2))
    return inputs, shown


def close(x, y, tolerance=1e-6):
    torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def everything(fused):
    tokens = [fused.tokens[name].values for name in NAMES]
    return [fused.pooled, *tokens, *([] if fused.weights is None else [fused.weights])]


# The contract


@every
def test_part_survives_json_and_refuses_unknown_options(spec):
    part = Fusion.parse(spec)
    assert Fusion.parse(json.loads(part.model_dump_json())) == part
    assert part.__doc__ is not None
    assert "Source:" in part.__doc__
    with pytest.raises(ValidationError):
        Fusion.parse({**spec, "unheard": 1})


@every
def test_any_subset_of_inputs_gives_finite_outputs_with_masks_and_positions_kept(spec):
    inputs, shown = mixed()
    fused = build(spec)(inputs)
    assert fused.pooled.shape == (8, DIM)
    assert all(part.isfinite().all() for part in everything(fused))
    for name in NAMES:
        kept = fused.tokens[name]
        assert kept.values.shape == inputs[name].values.shape
        assert kept.mask.equal(inputs[name].mask)
        assert kept.at is inputs[name].at
        assert (kept.values[~kept.mask] == 0).all()
    assert (fused.weights is not None) == (spec["type"] in WEIGH)
    if fused.weights is not None:
        assert (fused.weights[~shown] == 0).all()
        close(fused.weights.sum(1), shown.any(1).float())


@every
def test_rows_do_not_see_each_other(spec):
    inputs, _ = mixed()
    net = build(spec)
    whole = net(inputs)
    for i in range(8):
        alone = net({name: x[i : i + 1] for name, x in inputs.items()})
        close(alone.pooled, whole.pooled[i : i + 1], 1e-5)


@every
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_content_behind_the_mask_changes_nothing(spec, junk):
    inputs, _ = mixed()
    net = build(spec)
    dirty = {n: Masked(x.values.masked_fill(~x.mask[..., None], junk), x.mask, x.at) for n, x in inputs.items()}
    for got, want in zip(everything(net(dirty)), everything(net(inputs)), strict=True):
        assert got.equal(want)


@every
def test_no_gradient_reaches_content_behind_the_mask(spec):
    inputs, _ = mixed()
    leaves = {n: x.values.masked_fill(~x.mask[..., None], float("nan")).requires_grad_() for n, x in inputs.items()}
    net = build(spec)
    fused = net({n: Masked(leaves[n], x.mask, x.at) for n, x in inputs.items()})
    torch.cat([part.flatten() for part in everything(fused)]).square().sum().backward()
    for name, x in inputs.items():
        grad = leaves[name].grad
        assert (grad[~x.mask] == 0).all()
        assert (grad[x.mask] != 0).any()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@every
def test_padding_changes_nothing(spec):
    inputs, _ = mixed()
    net = build(spec)

    def longer(x, extra):
        values = torch.cat([x.values, torch.full((8, extra, DIM), 9.0)], 1)
        mask = torch.cat([x.mask, torch.zeros(8, extra, dtype=torch.bool)], 1)
        return Masked(values, mask, torch.cat([x.at, torch.zeros(8, extra, 2)], 1))

    want = net(inputs)
    got = net({n: longer(x, 1 + i) for i, (n, x) in enumerate(inputs.items())})
    close(got.pooled, want.pooled)
    for name, size in zip(NAMES, SIZES, strict=True):
        close(got.tokens[name].values[:, :size], want.tokens[name].values)


@every
def test_names_count_and_their_order_does_not(spec):
    inputs, _ = mixed()
    want = build(spec)(inputs)
    got = build(spec, NAMES[::-1])(dict(reversed(inputs.items())))
    for x, y in zip(everything(got)[:4], everything(want)[:4], strict=True):
        assert x.equal(y)
    if want.weights is not None:  # in the order in which the names were given
        assert got.weights.equal(want.weights.flip(1))


@every
@pytest.mark.parametrize("gone", [("a",), ("c",), ("a", "b")])
def test_a_name_left_out_is_the_same_as_absent_everywhere(spec, gone):
    inputs, _ = mixed()
    net = build(spec)
    every_row = torch.ones(8, dtype=torch.bool)
    want = net({n: x.without(every_row) if n in gone else x for n, x in inputs.items()})
    got = net({n: x for n, x in inputs.items() if n not in gone})
    close(got.pooled, want.pooled)
    for name in NAMES:
        if name not in gone:
            close(got.tokens[name].values, want.tokens[name].values)
    assert not any(got.tokens[name].mask.any() for name in gone)


@every
def test_one_input_is_enough_under_any_name(spec):
    spec = {key: value for key, value in spec.items() if key != "condition"}
    net = build(spec, ["type.of forward"])
    fused = net({"type.of forward": Masked(torch.randn(3, 2, DIM), torch.tensor([[1, 1], [1, 0], [0, 0]]).bool())})
    assert fused.pooled.isfinite().all()
    assert not fused.pooled[0].equal(fused.pooled[1])


@every
def test_absent_is_not_the_same_as_zeros(spec):
    inputs, _ = mixed()
    full = {n: Masked(x.values, torch.ones_like(x.mask)) for n, x in inputs.items()}
    zero = full | {"b": Masked(torch.zeros_like(full["b"].values), full["b"].mask)}
    net = build(spec)
    without = net({n: x for n, x in full.items() if n != "b"})
    if spec["type"] == "tensor":  # by definition: a zero vector is [0; 1] as well
        close(net(zero).pooled, without.pooled)
    else:
        assert not torch.allclose(net(zero).pooled, without.pooled, atol=1e-3)


@every
def test_tokens_learn_of_the_other_inputs(spec):
    inputs, _ = mixed()
    other = inputs | {"b": Masked(inputs["b"].values + 1, inputs["b"].mask)}
    net = build(spec)
    before, after = (net(x).tokens["a"].values[0] for x in (inputs, other))
    assert before.equal(after) == (spec["type"] == "vote")
    if spec["type"] in VECTOR:
        fresh = build(spec, stir=False)(inputs).tokens["a"]
        assert fresh.values.equal(inputs["a"].values * inputs["a"].mask[..., None])


@every
def test_state_loads_and_unknown_or_no_inputs_are_refused(spec):
    inputs, _ = mixed()
    net, twin = build(spec), build(spec, seed=1)
    twin.load_state_dict(net.state_dict())
    assert twin(inputs).pooled.equal(net(inputs).pooled)
    with pytest.raises(DataError, match="'imge'"):
        net({"imge": inputs["a"]})
    with pytest.raises(DataError, match="at least one"):
        net({})
    for names in ([], ["a", "a"]):
        with pytest.raises(SpecError, match="different names"):
            parse({"type": spec["type"]}).build(names, DIM)


@every
def test_half_precision_gives_about_the_same(spec):
    inputs, _ = mixed()
    net = build(spec)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(inputs).pooled.float()
    want = net(inputs).pooled
    assert (got - want).abs().max() < 0.1 * want.abs().max()


class Plain(nn.Module):
    """Every fusion at once, with plain tensors in and out."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(build({"type": name}, NAMES[:2]) for name in sorted(Fusion.known))

    def forward(self, values, masks):
        inputs = {n: Masked(values[n], masks[n]) for n in values}
        fused = [net(inputs) for net in self.nets]
        return [[f.pooled, *(x.values for x in f.tokens.values())] for f in fused]


@pytest.mark.slow
def test_one_exported_graph_serves_any_batch_and_length():
    inputs, _ = mixed()
    net, auto = Plain(), torch.export.Dim.DYNAMIC
    shapes = {n: {0: auto, 1: auto} for n in NAMES[:2]}
    values, masks = ({n: getattr(inputs[n], field) for n in NAMES[:2]} for field in ("values", "mask"))
    graph = torch.export.export(net, (values, masks), dynamic_shapes=(shapes, shapes)).module()
    values = {n: torch.randn(3, i + 5, DIM) for i, n in enumerate(NAMES[:2])}
    masks = {n: torch.rand(3, i + 5) < 0.5 for i, n in enumerate(NAMES[:2])}
    for got, want in zip(graph(values, masks), net(values, masks), strict=True):
        for x, y in zip(got, want, strict=True):
            close(x, y, 1e-5)


# Options


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        ({"type": "concat"}, {"pool": "attention"}),
        ({"type": "pool"}, {"how": "max"}),
        ({"type": "hadamard"}, {"rank": 3}),
        ({"type": "tensor"}, {"rank": 2}),
        ({"type": "attention"}, {"depth": 1}),
        ({"type": "attention"}, {"heads": 2}),
        ({"type": "cross"}, {"depth": 2}),
        ({"type": "cross"}, {"heads": 2}),
        ({"type": "bottleneck"}, {"depth": 3}),
        ({"type": "bottleneck"}, {"heads": 2}),
        ({"type": "bottleneck"}, {"bottlenecks": 1}),
        ({"type": "film"}, {"condition": "b"}),
    ],
    ids=str,
)
def test_option_changes_the_result(spec, changed):
    inputs, _ = mixed()
    assert not torch.allclose(build(spec)(inputs).pooled, build({**spec, **changed})(inputs).pooled, atol=1e-3)


@pytest.mark.parametrize("name", ["attention", "bottleneck", "concat", "cross", "film"])
def test_dropout_counts_in_training_only(name):
    inputs, _ = mixed()
    net = build({"type": name, "dropout": 0.5})
    still = net(inputs).pooled
    assert still.equal(build({"type": name, "dropout": 0.0})(inputs).pooled)
    net.train()
    assert not net(inputs).pooled.equal(net(inputs).pooled)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "concat", "dropout": 1.0},
        {"type": "concat", "pool": "max"},
        {"type": "attention", "depth": 0},
        {"type": "cross", "heads": 0},
        {"type": "bottleneck", "depth": 1},
        {"type": "bottleneck", "bottlenecks": 0},
        {"type": "hadamard", "rank": 0},
        {"type": "tensor", "rank": 0},
        {"type": "pool", "how": "min"},
    ],
    ids=str,
)
def test_options_are_bounded(spec):
    with pytest.raises(ValidationError):
        Fusion.parse(spec)


@pytest.mark.parametrize("name", ["attention", "bottleneck", "cross"])
def test_heads_must_divide_the_width(name):
    with pytest.raises(SpecError, match="heads must divide the model width 16, got 3"):
        parse({"type": name, "heads": 3}).build(NAMES, DIM)


def test_film_condition_must_be_an_input():
    with pytest.raises(SpecError, match=r"'imag'\. Did you mean 'image'"):
        parse({"type": "film", "condition": "imag"}).build(["image", "text"], DIM)


def test_only_vote_is_late():
    assert [name for name in sorted(Fusion.known) if parse(name).late] == ["vote"]


# Against the papers


def test_gated_two_inputs_are_the_papers_unit():
    net = build({"type": "gated"}, ("a", "b"))
    x = {n: Masked(torch.randn(5, 1, DIM), torch.ones(5, 1, dtype=torch.bool)) for n in ("a", "b")}
    first, second = x["a"].values[:, 0], x["b"].values[:, 0]
    both = torch.cat([first, second], 1) @ net.gate.weight.T
    z = (both[:, :DIM] - both[:, DIM:]).sigmoid()
    want = z * (first @ net.hidden.weight[0]).tanh() + (1 - z) * (second @ net.hidden.weight[1]).tanh()
    close(net(x).pooled, want)
    close(net(x).weights, torch.stack([z.mean(1), 1 - z.mean(1)], 1))


def test_tensor_is_the_full_outer_product_under_a_low_rank_weight():
    inputs, _ = mixed()
    net = build({"type": "tensor", "rank": 3})
    factors = torch.cat([net.factors.weight, net.factors.bias[:, None]], 1).unflatten(-1, (3, DIM))
    weight = torch.einsum("irh,jrh,krh->ijkh", *factors)
    one = torch.ones(8, 1)
    z = [torch.cat([inputs[n].mean(), one], 1) for n in NAMES]
    outer = torch.einsum("bi,bj,bk->bijk", *z)
    close(net(inputs).pooled, torch.einsum("bijk,ijkh->bh", outer, weight), 1e-4)


def test_hadamard_absent_is_the_factor_one():
    inputs, _ = mixed()
    net = build({"type": "hadamard"})
    w, b = net.factors.weight, net.factors.bias
    only_b = inputs["b"].mean()[5]  # row 5 of the eight subsets: b alone
    close(net(inputs).pooled[5], net.project((only_b @ w[1] + b[1]).tanh()))
    a, c = inputs["a"].mean()[2], inputs["c"].mean()[2]  # row 2: a and c
    close(net(inputs).pooled[2], net.project((a @ w[0] + b[0]).tanh() * (c @ w[2] + b[2]).tanh()))


def experts_of(net, inputs):
    """Mean and variance (B, M, D) of each input's Gaussian, calculated apart."""
    vectors = [inputs[n].mean() for n in NAMES]
    linear = [(net.expert.weight[i], net.expert.bias[i]) for i in range(3)]
    spread = [(net.log_variance.weight[i], net.log_variance.bias[i]) for i in range(3)]
    mean = torch.stack([x @ w + b for x, (w, b) in zip(vectors, linear, strict=True)], 1)
    return mean, torch.stack([(x @ w + b).exp() for x, (w, b) in zip(vectors, spread, strict=True)], 1)


def test_experts_give_the_mean_of_the_product_of_gaussians():
    inputs, shown = mixed()
    net = build({"type": "experts"})
    mean, variance = (part.double() for part in experts_of(net, inputs))
    fused = net(inputs)
    line = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    for i in range(8):
        m, v = mean[i, shown[i]], variance[i, shown[i]]
        precision = 1 + (1 / v).sum(0)  # of N(0, I) and of the present inputs' experts
        close(fused.pooled[i].double(), (m / v).sum(0) / precision)
        density = torch.exp(
            -(line**2) / 2 - ((line[:, None, None] - m) ** 2 / (2 * v)).sum(1).T
        ).T  # the product itself
        close(fused.pooled[i].double(), (line[:, None] * density).sum(0) / density.sum(0), 1e-5)
        share = (1 / v) / (1 / v).sum(0)
        close(fused.weights[i, shown[i]].double(), share.mean(-1))


def test_experts_without_any_input_are_the_prior_and_a_sure_one_overrules():
    inputs, shown = mixed()
    net = build({"type": "experts"})
    assert not shown[7].any()
    assert (net(inputs).pooled[7] == 0).all()
    mean, _ = experts_of(net, inputs)
    with torch.no_grad():
        net.log_variance.bias[1] = -500.0  # exp(500) is no float: shares must not overflow
    fused = net(inputs)
    for i in range(8):
        if shown[i, 1]:
            close(fused.pooled[i], mean[i, 1])
            close(fused.weights[i], torch.tensor([0.0, 1.0, 0.0]))
    with torch.no_grad():
        net.log_variance.bias[:] = 500.0  # no input knows anything: the prior stays
    close(net(inputs).pooled, torch.zeros(8, DIM))


def test_pool_is_mean_or_maximum_over_the_present():
    inputs, shown = mixed()
    means = torch.stack([inputs[n].mean() for n in NAMES], 1)
    mean, largest = (build({"type": "pool", "how": how})(inputs).pooled for how in ("mean", "max"))
    for i in range(7):
        close(mean[i], means[i, shown[i]].mean(0))
        close(largest[i], means[i, shown[i]].amax(0))
    assert (mean[7] == 0).all()
    assert (largest[7] == 0).all()


def test_film_starts_as_identity_and_is_the_identity_without_its_condition():
    inputs, shown = mixed()
    plain = torch.stack([inputs[n].mean() for n in NAMES], 1).sum(1) / shown.sum(1, keepdim=True).clamp(min=1)
    close(build({"type": "film"}, stir=False)(inputs).pooled, plain)
    moved = build({"type": "film", "condition": "b"})(inputs).pooled
    close(moved[~shown[:, 1]], plain[~shown[:, 1]])
    changed = shown[:, 1] & (shown[:, 0] | shown[:, 2])
    assert ((moved - plain)[changed].abs().amax(1) > 1e-2).all()


def test_film_scales_and_shifts_each_other_input_by_its_own_numbers():
    inputs, _ = mixed()
    net = build({"type": "film", "condition": "b"})
    change = net.modulate(inputs["b"].mean()[:1]).view(4, DIM)
    seen = net.film(net.arrange(inputs), net.modulate)
    for i, (gamma, beta) in ((0, change[:2]), (2, change[2:])):
        x = inputs[NAMES[i]]
        close(seen[i].values[0], ((1 + gamma) * x.values[0] + beta) * x.mask[0, :, None])
    assert seen[1].values.equal(inputs["b"].values * inputs["b"].mask[..., None])


def test_bottleneck_is_the_only_way_between_inputs(monkeypatch):
    inputs, _ = mixed()
    source = inputs["b"].values.clone().requires_grad_()
    net = build({"type": "bottleneck"})

    def reach():
        fused = net(inputs | {"b": Masked(source, inputs["b"].mask)})
        return torch.autograd.grad(fused.tokens["a"].values[0].sum(), source, allow_unused=True)[0]

    assert reach()[0].abs().sum() > 0
    exchange = net.exchange
    monkeypatch.setattr(net, "exchange", lambda copies, present: exchange(copies, present).detach())
    assert reach() is None


def test_bottleneck_averages_over_the_present():
    net = build({"type": "bottleneck"})
    copies = [torch.full((2, 4, DIM), float(value)) for value in (1, 2, 6)]
    mean = net.exchange(copies, torch.tensor([[True, False, True], [False, False, False]]))
    assert mean.shape == (2, 4, DIM)
    assert (mean[0] == 3.5).all()
    assert (mean[1] == 0).all()


def test_attention_reaches_single_tokens_of_another_input():
    inputs, _ = mixed()
    full = {n: Masked(x.values, torch.ones_like(x.mask)) for n, x in inputs.items()}
    shift = torch.randn(DIM) * torch.tensor([1.0, -1.0, 0.0])[:, None]
    swapped = full | {"b": Masked(full["b"].values + shift, full["b"].mask)}
    for name in ("attention", "cross", "bottleneck"):  # the mean token is the same: only single tokens differ
        net = build({"type": name})
        assert not torch.allclose(net(full).tokens["a"].values, net(swapped).tokens["a"].values, atol=1e-4)
    for name in ("pool", "tensor", "gated"):
        net = build({"type": name})
        close(net(full).pooled, net(swapped).pooled, 1e-5)


def test_cross_sees_nothing_of_an_absent_source():
    inputs, shown = mixed()
    net = build({"type": "cross"})
    alone = net({"a": inputs["a"]})
    only_a = 3  # row 3 of the eight subsets
    assert shown[only_a].tolist() == [True, False, False]
    close(net(inputs).tokens["a"].values[only_a], alone.tokens["a"].values[only_a])


def test_vote_weights_are_kept_renormalised_and_checked():
    inputs, _ = mixed()
    net = build({"type": "vote"})
    close(net(inputs).weights[0], torch.full((3,), 1 / 3))
    net.set_weights(torch.tensor([6.0, 2.0, 0.0]))
    weights = net(inputs).weights
    close(weights[0], torch.tensor([0.75, 0.25, 0.0]))
    close(weights[2], torch.tensor([1.0, 0.0, 0.0]))  # a and c
    close(weights[6], torch.tensor([0.0, 0.0, 1.0]))  # c alone still answers
    twin = build({"type": "vote"}, ("c", "a", "b"))  # weights belong to names, in whatever order they are given
    twin.load_state_dict(net.state_dict())
    assert twin(inputs).weights.equal(weights[:, [2, 0, 1]])
    twin.set_weights(torch.tensor([5.0, 3.0, 2.0]))
    close(twin(inputs).weights[0], torch.tensor([0.5, 0.3, 0.2]))
    close(twin(inputs).weights[2], torch.tensor([5 / 8, 3 / 8, 0.0]))
    for bad in ([1.0, 2.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="weights must"):
            net.set_weights(torch.tensor(bad))


# What they can and cannot learn


def sample(task, size, generator):
    """Three inputs, each of noisy tokens that carry one bit, and a label made of the bits."""
    bits = torch.randint(0, 2, (size, 3), generator=generator)
    if task == "shared":
        bits[:] = bits[:, :1]
    where = torch.randn(3, DIM, generator=torch.Generator().manual_seed(7))
    inputs = {}
    for i, (name, length) in enumerate(zip(NAMES, SIZES, strict=True)):
        noise = 0.3 * torch.randn(size, length, DIM, generator=generator)
        values = (2.0 * bits[:, i, None, None] - 1) * where[i] + noise
        inputs[name] = Masked(values, torch.ones(size, length, dtype=torch.bool))
    label = {"xor": bits[:, 0] ^ bits[:, 1], "additive": bits.sum(1) >= 2}.get(task, bits[:, 0])
    return inputs, label.float()


class Classifier(nn.Module):
    """A fusion with a linear head; with one linear head per input for a late one."""

    def __init__(self, spec):
        super().__init__()
        part = parse(spec)
        self.late = part.late
        self.fusion = part.build(NAMES, DIM)
        self.heads = nn.ModuleList(nn.Linear(DIM, 1) for _ in (NAMES if self.late else "1"))

    def forward(self, inputs):
        fused = self.fusion(inputs)
        if not self.late:
            return self.heads[0](fused.pooled)[:, 0].sigmoid()
        votes = [head(fused.tokens[n].mean()).sigmoid() for head, n in zip(self.heads, NAMES, strict=True)]
        return (torch.cat(votes, 1) * fused.weights).sum(1)


def train(spec, task, steps=150, hide=False, rate=1e-2, seed=0):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(spec)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        inputs, label = sample(task, 64, generator)
        if hide:  # each row keeps one input at random, or all of them
            kept = torch.randint(0, 4, (64,), generator=generator)
            inputs = {n: x.without((kept != i) & (kept != 3)) for i, (n, x) in enumerate(inputs.items())}
        loss = nn.functional.binary_cross_entropy(model(inputs).clamp(1e-6, 1 - 1e-6), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.02:
            break
    return model.eval()


@torch.no_grad()
def accuracy(model, task, gone=()):
    inputs, label = sample(task, 500, torch.Generator().manual_seed(99))
    rows = torch.ones(500, dtype=torch.bool)
    inputs = {n: x.without(rows) if n in gone else x for n, x in inputs.items()}
    return ((model(inputs) > 0.5) == (label > 0.5)).float().mean().item()


LINEAR = ("pool", "vote", "weighted", "film-c")


@pytest.mark.slow
@every
def test_evidence_of_all_inputs_adds_up(spec):
    assert accuracy(train(spec, "additive"), "additive") > 0.95  # any single input: 0.75


@pytest.mark.slow
@every
def test_exclusive_or_of_two_inputs_needs_a_fusion_that_multiplies(spec):
    score = accuracy(train(spec, "xor"), "xor")
    if title(spec) in LINEAR:  # film conditioned on an input without a say: the other two only add up
        assert score < 0.6
    else:
        assert score > 0.95


@pytest.mark.slow
@every
def test_any_input_alone_answers_when_all_know_the_answer(spec):
    model = train(spec, "shared", hide=True)
    for gone in ((), ("a",), ("b",), ("a", "b"), ("b", "c"), ("a", "c")):
        assert accuracy(model, "shared", gone) > 0.95, gone


@pytest.mark.parametrize(("name", "rest"), [("weighted", 0.3), ("gated", 0.3), ("experts", 1 / 3)])
def test_weights_go_to_the_input_that_knows(name, rest):
    model = train({"type": name}, "first", rate=3e-2)
    inputs, _ = sample("first", 100, torch.Generator().manual_seed(5))
    weights = model.fusion(inputs).weights.mean(0)
    assert weights[0] > 0.4  # equal weights: 0.33
    assert (weights[1:] < rest).all()  # an expert that knows nothing may also say so by a mean near the prior's
