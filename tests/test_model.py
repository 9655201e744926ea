"""The model: absent rows reach no encoder, any subset and order of inputs, any names, every kind of task."""

import pytest
import torch
from torch import nn

import toys
from polymodal.mixing import Mixing
from polymodal.model import ALL, Model, summary_width
from polymodal.spec import Spec
from polymodal.task import Task
from polymodal.types import Masked

NAMES = ("a", "b", "c")
TASKS = {
    "y": {"type": "classify", "classes": ["no", "yes", "perhaps"]},
    "tags": {"type": "multilabel", "labels": ["u", "v"]},
    "size": {"type": "regress", "targets": ["w", "h"], "mean": [0, 1], "scale": [1, 2]},
    "cost": {"type": "regress", "objective": "squared", "mean": [0], "scale": [1]},
}
FUSIONS = ["concat", "attention", "vote", "weighted", "bottleneck"]


def batch(rows=6, seed=0):
    """Row 0 has everything, row 1 nothing, the others one or two inputs of one to three vectors."""
    generator = torch.Generator().manual_seed(seed)
    shown = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=torch.bool)[:rows]
    inputs = {}
    for i, name in enumerate(NAMES):
        mask = torch.rand(rows, 3, generator=generator) < 0.5
        mask[:, 0] = True
        inputs[name] = Masked(torch.randn(rows, 3, 2, generator=generator), mask & shown[:, i : i + 1])
    return inputs


def build(fusion="concat", names=NAMES, outputs=None) -> Model:
    torch.manual_seed(0)
    model = Model(toys.spec(names, outputs or TASKS, fusion=fusion)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for _, family in model.linear.items():
        for _, linear in family.items():
            linear.weight.normal_()
    model.share.fill_(0.3)
    return model


def decoded(model, inputs):
    with torch.no_grad():
        return model.answer(inputs).decoded


def close(x, y, **tolerance):
    for n in TASKS:
        torch.testing.assert_close(x[n], y[n], **tolerance)


every = pytest.mark.parametrize("fusion", FUSIONS)


def test_absent_rows_never_reach_an_encoder():
    model, inputs = build(), batch()
    encoded = model(inputs).encoded
    for name, x in inputs.items():
        (seen,) = model.encoders[name].seen
        assert seen.present.all()
        assert len(seen) == int(x.present.sum())
        assert torch.equal(encoded[name].present, x.present)
        assert not encoded[name].values[~x.present].any()


@every
def test_what_lies_behind_the_mask_changes_nothing_at_all(fusion):
    model, inputs = build(fusion), batch()
    for junk in (float("nan"), 1e9):
        dirty = {n: Masked(x.values.masked_fill(~x.mask[..., None], junk), x.mask) for n, x in inputs.items()}
        for n, output in decoded(model, dirty).items():
            assert torch.equal(output, decoded(model, inputs)[n])


@every
def test_every_row_is_finite_also_with_nothing_present(fusion):
    model, inputs = build(fusion), batch()
    nothing = {name: x.without(torch.ones(6, dtype=torch.bool)) for name, x in inputs.items()}
    for given in (inputs, nothing):
        outputs = decoded(model, given)
        assert all(output.isfinite().all() for output in outputs.values())
        for n, task in model.spec.outputs.items():
            assert len(task.predict(outputs[n])) == 6


@every
def test_a_row_alone_is_answered_as_in_a_batch(fusion):
    model, inputs = build(fusion), batch()
    whole = decoded(model, inputs)
    for i in range(6):
        one = decoded(model, {name: x[i : i + 1].split()[0] for name, x in inputs.items()})
        close(one, {n: output[i : i + 1] for n, output in whole.items()}, atol=1e-5, rtol=1e-5)


@every
def test_the_order_of_inputs_and_leaving_one_out_do_not_matter(fusion):
    model, inputs = build(fusion), batch()
    whole = decoded(model, inputs)
    close(decoded(model, dict(reversed(inputs.items()))), whole, atol=1e-6, rtol=1e-6)
    gone = {**inputs, "b": inputs["b"].without(torch.ones(6, dtype=torch.bool))}
    left = {name: x for name, x in inputs.items() if name != "b"}
    close(decoded(model, left), decoded(model, gone), atol=1e-6, rtol=1e-6)
    assert all(output.isfinite().all() for output in decoded(model, left).values())


@every
def test_padding_changes_nothing(fusion):
    model, inputs = build(fusion), batch()
    wide = {
        name: Masked(
            torch.cat([x.values, torch.full((6, 2, 2), 9.0)], 1), torch.cat([x.mask, x.mask[:, :2] & False], 1)
        )
        for name, x in inputs.items()
    }
    close(decoded(model, wide), decoded(model, inputs), atol=1e-5, rtol=1e-5)


def test_no_gradient_comes_from_a_hidden_input():
    model, inputs = build(), batch()
    inputs["b"] = inputs["b"].without(torch.ones(6, dtype=torch.bool))
    outputs = model(inputs)
    sum(output.sum() for output in outputs.decoded.values()).backward()
    assert all(p.grad is None for p in model.encoders["b"].parameters())
    assert all(p.grad is not None for p in model.encoders["a"].parameters())


@pytest.mark.parametrize("name", ["type", "a.b", "keys", "training", "a/b", "ключ", "@", "all inputs"])
@pytest.mark.parametrize("fusion", ["concat", "vote"])
def test_inputs_and_tasks_may_have_any_name(name, fusion):
    model = Model(toys.spec((name, "z"), {name: {"type": "classify", "classes": [0, 1], "column": "t"}}, fusion=fusion))
    x = Masked(torch.randn(2, 1, 2), torch.ones(2, 1, dtype=torch.bool))
    assert model.eval().answer({name: x, "z": x}).decoded[name].shape == (2, 2)
    again = Model(model.spec)
    again.load_state_dict(model.state_dict())
    assert toys.same(again, model)


def test_late_fusion_mixes_the_inputs_own_heads_by_weight():
    model, inputs = build("vote"), batch()
    model.share.zero_()
    model.fusion.set_weights(torch.tensor([0.7, 0.2, 0.1]))
    outputs = model(inputs)
    p = {name: outputs.single["y"][name].softmax(-1) for name in NAMES}
    expected = 0.7 * p["a"][0] + 0.2 * p["b"][0] + 0.1 * p["c"][0]
    torch.testing.assert_close(outputs.decoded["y"][0].softmax(-1), expected)
    torch.testing.assert_close(outputs.decoded["y"][2].softmax(-1), p["a"][2])
    torch.testing.assert_close(outputs.decoded["y"][4].softmax(-1), (2 * p["b"][4] + p["c"][4]) / 3)
    assert not model.heads.names, "late fusion has no head that could learn an interaction"


def test_the_answer_is_the_fused_head_plus_the_mean_of_the_present_inputs_own():
    model, inputs = build(), batch()
    outputs = model(inputs)
    head, own = model.heads["y"](outputs.fused), outputs.single["y"]
    torch.testing.assert_close(outputs.decoded["y"][0], head[0] + (own["a"][0] + own["b"][0] + own["c"][0]) / 3)
    torch.testing.assert_close(outputs.decoded["y"][1], head[1])
    torch.testing.assert_close(outputs.decoded["y"][4], head[4] + (own["b"][4] + own["c"][4]) / 2)


def test_the_blend_goes_from_the_fusion_model_to_the_linear_one():
    model, inputs = build(), batch()
    summaries = model.summaries(inputs)
    for share, expected in ((0.0, model(inputs).decoded), (1.0, None)):
        model.share.fill_(share)
        for n, output in decoded(model, inputs).items():
            want = expected[n] if expected else model.linear[n][ALL](*summaries)
            task = model.vector_task(n)
            assert str(task.predict(output.double()))[:200]  # both are answers of the task
            torch.testing.assert_close(
                task.mix([output], torch.ones(1)), task.mix([want], torch.ones(1)), atol=1e-5, rtol=1e-4
            )
    model.share.copy_(torch.tensor([0.5, 0, 0, 0]))
    half = decoded(model, inputs)
    assert torch.equal(half["tags"], model(inputs).decoded["tags"])
    assert not torch.allclose(half["y"], model(inputs).decoded["y"])


def test_summaries_are_fixed_in_width_and_blank_where_absent():
    model, inputs = build(), batch()
    features, present = model.summaries(inputs)
    assert features.shape == (6, 6)
    for i, (name, part) in enumerate(model.spec.inputs.items()):
        own = features[:, 2 * i : 2 * i + 2]
        assert torch.equal(present[:, i], inputs[name].present)
        torch.testing.assert_close(own, part.summary(inputs[name]) * present[:, i : i + 1])
        assert summary_width(part) == 2
    fewer = model.summaries({"b": inputs["b"]})
    assert fewer[0].shape == (6, 6)
    assert fewer[1].any(0).tolist() == [False, True, False]


def test_one_input_has_one_linear_model_and_baselines_name_theirs():
    assert list(Model(toys.spec(("a",))).baselines()) == [ALL]
    model = Model(toys.spec(("a", "b")))
    assert list(model.baselines()) == [ALL, "a", "b"]


def test_the_same_seed_gives_the_same_weights():
    assert toys.same(build(), build())


def test_built_from_any_spec_with_many_kinds():
    spec = Spec.parse(
        {
            "inputs": {"t": {"type": "table", "numbers": ["x"]}, "n": {"type": "text", "backbone": "none"}},
            "outputs": {"y": "classify"},
        }
    ).fit(
        {"t": [{"x": 1.0}, {"x": 2.0}], "n": ["a b", "b a"]}.__getitem__,
        {"y": ["u", "v"]}.__getitem__,
    )
    model = Model(spec).eval()
    inputs = {name: part.collate([None, None]) for name, part in spec.inputs.items()}
    assert model.answer(inputs).decoded["y"].isfinite().all()


PARTNER = torch.tensor([3, 0, 2, 5, 1, 4])
SHARE = torch.tensor([0.9, 0.5, 0.3, 1.0, 0.0, 0.6])


def mixture(x):
    return SHARE[:, None] * x + (1 - SHARE[:, None]) * x[PARTNER]


@pytest.mark.parametrize("fusion", ["concat", "attention", "weighted", "bottleneck"])
def test_mixing_mixes_the_fused_vector_and_what_the_own_heads_add(fusion):
    model, inputs = build(fusion), batch()
    plain, mixed = model(inputs), model(inputs, Mixing(PARTNER, SHARE))
    torch.testing.assert_close(mixed.fused.pooled, mixture(plain.fused.pooled))
    present = torch.stack([inputs[name].present for name in NAMES], 1).float()
    share = present / present.sum(1, keepdim=True).clamp(min=1)
    for n in TASKS:
        head = model.heads[n].project
        want = mixture(plain.fused.pooled) @ head.weight.T + head.bias
        for i, name in enumerate(NAMES):  # the own heads on mixed features, each input with the share that it has
            own = model.single[n][name].project
            features = mixture(plain.encoded[name].mean() * share[:, i : i + 1])
            want = want + features @ own.weight.T + mixture(share[:, i : i + 1]) * own.bias
        torch.testing.assert_close(mixed.decoded[n], want)
        for name in NAMES:
            assert mixed.single[n][name].equal(plain.single[n][name])
    for name in NAMES:
        assert mixed.fused.tokens[name].values.equal(plain.fused.tokens[name].values)
        assert mixed.encoded[name].values.equal(plain.encoded[name].values)


def test_mixing_with_a_nonlinear_head_mixes_in_front_of_it():
    model, inputs = build(), batch()

    class Curved(nn.Module):
        def forward(self, fused):
            return fused.pooled[:, :3].square()

    model.heads._modules["@y"] = Curved()
    plain, mixed = model(inputs), model(inputs, Mixing(PARTNER, SHARE))
    own = plain.decoded["y"] - plain.fused.pooled[:, :3].square()
    torch.testing.assert_close(mixed.decoded["y"], mixture(plain.fused.pooled)[:, :3].square() + mixture(own))


def test_rows_that_keep_all_of_themselves_or_give_all_away():
    model, inputs = build(), batch()
    plain = model(inputs)
    kept = model(inputs, Mixing(PARTNER, torch.ones(6)))
    given = model(inputs, Mixing(PARTNER, torch.zeros(6)))
    close(kept.decoded, plain.decoded)
    close(given.decoded, {n: output[PARTNER] for n, output in plain.decoded.items()})


def test_a_task_without_one_vector_per_row_is_answered_from_the_unmixed_row():
    class Dense(Task):
        """Answers for every token."""

        def fit(self, values):
            return self

        def collate(self, values):
            return Masked(torch.zeros(len(values), 1), torch.ones(len(values), 1, dtype=torch.bool))

        def head(self, dim):
            return PerTokenHead()

        def loss(self, output, target):
            return output.sum() * 0

        def predict(self, output):
            return [{} for _ in output]

        def metrics(self, output, target):
            return {}

    class PerTokenHead(nn.Module):
        def forward(self, fused):
            x = fused.tokens.get("a", next(iter(fused.tokens.values())))
            return x.values.sum(-1) + fused.pooled.sum(-1, keepdim=True)

    spec = toys.spec(NAMES, TASKS)
    model = Model(spec.model_copy(update={"outputs": {**spec.outputs, "dense": Dense()}})).eval()
    plain, mixed = model(batch()), model(batch(), Mixing(PARTNER, SHARE))
    assert mixed.decoded["dense"].equal(plain.decoded["dense"])
    assert not mixed.decoded["y"].equal(plain.decoded["y"])


def test_gradients_of_a_mixed_row_reach_both_rows():
    model, inputs = build(), batch()
    leaf = inputs["a"].values.clone().requires_grad_()
    inputs["a"] = Masked(leaf, inputs["a"].mask)
    partner, share = torch.tensor([2, 1, 2, 3, 4, 5]), torch.tensor([0.5, 1, 1, 1, 1, 1])
    model(inputs, Mixing(partner, share)).decoded["y"][0].sum().backward()
    moved = leaf.grad.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [True, False, True, False, False, False]


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match=r"a fused vector, got vote"):
        build("vote")(batch(), Mixing(PARTNER, SHARE))
    with pytest.raises(ValueError, match=r"\(B,\), got \(6,\) and \(\)"):
        Mixing(PARTNER, torch.tensor(0.5))


def test_alignment_mixup_and_manifold_cost_nothing_when_off():
    """Weights of a bundle that knew none of them still load, and every answer is what it was."""
    plain = build()
    full = Model(toys.spec(NAMES, TASKS, fusion="concat", training={"manifold": {"noise": 1}, "mixup": 0.2}))
    full.load_state_dict(plain.state_dict())
    close(decoded(full.eval(), batch()), decoded(plain, batch()), atol=0, rtol=0)
    assert not any("alignment" in name or "manifold" in name for name in plain.state_dict())
