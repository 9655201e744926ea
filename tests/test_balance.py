"""Balance between inputs: the published formulas on hand-computed numbers, and a shortcut beside a slow input."""

import math

import pytest
import torch

import toys
from polymodal.balance import blend, coefficients, confidence, enhance, pareto, slowed
from polymodal.errors import SpecError
from polymodal.model import Model
from polymodal.train import Trainer, blending
from polymodal.types import Batch, Masked

CPU = torch.device("cpu")


def shortcut(rows=300, seed=0):
    """The label is the XOR of two bits in each input, so that its encoder must learn; a is loud, b is quiet."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (rows, 1), generator=generator)
    inputs, known = {}, torch.ones(rows, 1, dtype=torch.bool)
    for name, scale in (("a", 1.5), ("b", 0.6)):
        bit = torch.randint(2, (rows,), generator=generator)
        bits = torch.stack([bit, bit ^ label[:, 0]], 1) * 2.0 - 1
        inputs[name] = Masked((bits + 0.2 * torch.randn(rows, 2, generator=generator))[:, None] * scale, known)
    return toys.prepared(inputs, {"y": Masked(label, known)})


def trainer(balance, seed=0, **more):
    training = {"epochs": 15, "batch_size": 30, "modality_dropout": 0.0, "averaging": 0.0, "warm_up": 0.0}
    spec = toys.spec(seed=seed, training={**training, "balance": balance, **more})
    torch.manual_seed(seed)
    return Trainer(Model(spec), shortcut(), shortcut(200, seed=1), CPU)


def slow_input(balance, seed):
    """Loss of the fused model on the slow input alone."""
    done = trainer(balance, seed, **({"modulation": 1.5} if balance == "ogm_ge" else {}))
    done.run()
    batch = done.valid.batch(torch.arange(200)).without("a")
    with torch.no_grad():
        return done.spec.outputs["y"].loss(done.model(batch.inputs).decoded["y"], batch.targets["y"]).item()


@pytest.fixture(scope="module")
def starved():
    return [slow_input("none", seed) for seed in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["auxiliary", "mmpareto", "gradient_blending", "ogm_ge"])
def test_the_slow_input_beside_a_fast_one_learns_more_than_without_balance(balance, starved):
    for seed, loss in enumerate(starved):
        assert slow_input(balance, seed) < 0.8 * loss


# OGM-GE --------------------------------------------------------------------------------------------------------------


def test_only_the_input_that_leads_is_slowed():
    sure = torch.tensor([[6.0, 3.0], [10.0, 10.0]])
    assert coefficients(sure, 0.3) == pytest.approx([1 - math.tanh(0.3 * 2), 1.0])
    assert coefficients(sure.flip(1), 0.3) == pytest.approx([1.0, 1 - math.tanh(0.3 * 2)])
    assert coefficients(torch.ones(2, 2), 0.3) == [1.0, 1.0]


def test_with_several_inputs_each_is_compared_with_the_mean_of_the_others():
    sure = torch.tensor([[8.0, 6.0, 2.0], [10.0, 10.0, 10.0]])
    first, second = 0.8 / 0.4, 0.6 / 0.5
    assert coefficients(sure, 0.5) == pytest.approx([1 - math.tanh(first / 2), 1 - math.tanh(second / 2), 1.0])


def test_an_input_is_judged_on_the_rows_that_have_it():
    assert coefficients(torch.tensor([[2.0, 3.0], [4.0, 6.0]]), 0.3) == [1.0, 1.0]
    assert coefficients(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), 0.3) == [1.0, 1.0]
    assert coefficients(torch.tensor([[2.0, 0.0, 1.0], [4.0, 0.0, 4.0]]), 0.3)[1] == 1.0


def test_confidence_is_the_sum_of_the_true_classes_probabilities():
    data = toys.xor(20, absent=0.3)
    outputs = {"y": toys.BINARY, "z": {"type": "regress", "mean": [0], "scale": [1]}}
    model = Model(toys.spec(outputs=outputs))
    batch = data.batch(torch.arange(20))
    target = batch.targets["y"].without(torch.arange(20) < 5)
    batch = Batch(batch.inputs, {"y": target, "z": target})
    answers = model(batch.inputs)
    found = confidence(model.spec, answers, batch)
    for i, name in enumerate("ab"):
        rows = batch.inputs[name].present & (torch.arange(20) >= 5)
        p = answers.single["y"][name].softmax(1)[rows, target.values[rows, 0]]
        torch.testing.assert_close(found[:, i], torch.stack([p.sum(), rows.sum().float()]).detach())


def test_slowed_vectors_of_an_encoder_go_their_share_of_the_step_and_the_rest_goes_all():
    model = Model(toys.spec())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with slowed(model, [0.25, 1.0]), torch.no_grad():
        for p in model.parameters():
            p += 1
    for name, p in model.named_parameters():
        share = 0.25 if name.startswith("encoders.@a") and p.ndim < 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] + share)


def test_matrices_are_slowed_and_their_noise_is_not():
    model = Model(toys.spec(dim=256))
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 3 + 1
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    enhance(model, [0.5, 1.0], torch.Generator().manual_seed(0))
    for name, p in model.named_parameters():
        if name.startswith("encoders.") and p.ndim > 1:
            noise = p.grad - plain[name] * (0.5 if name.startswith("encoders.@a") else 1.0)
            wanted = plain[name].std()
            assert noise.std() == pytest.approx(wanted.item(), rel=0.15)
            assert abs(noise.mean()) < 0.2 * wanted
        else:
            assert torch.equal(p.grad, plain[name])


# MMPareto ------------------------------------------------------------------------------------------------------------


def test_gradients_that_agree_are_added_and_lengthened():
    joint, own = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(pareto(joint, own), 1.5 * (joint + own))


def test_gradients_in_conflict_give_the_shortest_combination_made_as_long_as_the_sum():
    joint, own = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    share = (2 + 2) / (4 + 2 + 4)  # (|own|^2 - dot) / (|joint|^2 + |own|^2 - 2 dot)
    mixed = 2 * share * joint + 2 * (1 - share) * own
    assert mixed.norm() < (joint + own).norm()
    torch.testing.assert_close(pareto(joint, own), 1.5 * mixed * (joint + own).norm() / mixed.norm())
    assert pareto(joint, own) @ joint > 0
    assert pareto(joint, own) @ own > 0


def test_opposite_and_absent_gradients_give_no_step():
    x = torch.tensor([1.0, -2.0])
    assert not pareto(x, -2 * x).any()
    assert not pareto(x, -x).any()
    assert not pareto(0 * x, 0 * x).any()
    torch.testing.assert_close(pareto(x, 0 * x), 1.5 * x)


def test_mmpareto_resolves_encoders_only():
    first = trainer("mmpareto", epochs=1, clip=0.0)
    plain = trainer("auxiliary", epochs=1, clip=0.0)
    grads = {}
    for name, one in (("mmpareto", first), ("auxiliary", plain)):
        one.optimizer.step = lambda _: None
        one._step(torch.arange(30), 0, 10, torch.zeros(2))
        grads[name] = {n: p.grad for n, p in one.model.named_parameters() if p.grad is not None}
    assert grads["mmpareto"].keys() == grads["auxiliary"].keys()
    for name, grad in grads["auxiliary"].items():
        same = torch.allclose(grads["mmpareto"][name], grad, atol=1e-6)
        assert same != name.startswith("encoders."), name


# Gradient blending ---------------------------------------------------------------------------------------------------


def test_weights_are_gain_over_squared_overfitting():
    before = {"y": (1.0, 1.0), "y from a": (1.0, 1.1), "y from b": (1.0, 1.0)}
    after = {"y": (0.2, 0.5), "y from a": (0.1, 0.7), "y from b": (0.8, 0.9)}
    raw = [0.5 / 0.3**2, 0.4 / 0.5**2, 0.1 / 0.1**2]
    found = blend(before, after)
    assert list(found) == list(before)
    assert list(found.values()) == pytest.approx([w / sum(raw) for w in raw])


def test_a_branch_that_gains_nothing_counts_nothing_and_no_overfitting_is_bounded():
    before = {"y": (1.0, 1.0), "y from a": (1.0, 1.0), "y from b": (1.0, 1.0)}
    after = {"y": (0.5, 0.5), "y from a": (0.5, 1.2), "y from b": (0.8, 0.8)}
    assert blend(before, after) == pytest.approx({"y": 5 / 7, "y from a": 0.0, "y from b": 2 / 7})


def test_an_answer_that_gains_nothing_leaves_all_weights_equal_with_a_warning():
    before, after = {"y": (1.0, 1.0), "y from a": (1.0, 1.0)}, {"y": (0.5, 1.5), "y from a": (0.5, 0.8)}
    with pytest.warns(UserWarning, match=r"loss of 'y' .* must fall .* \+0\.5"):
        assert blend(before, after) == {"y": 0.5, "y from a": 0.5}


def test_an_input_that_only_overfits_gets_less_than_one_that_generalises():
    generator = torch.Generator().manual_seed(0)
    sides = []
    for rows in (120, 120):  # 40 random features of a say everything about the training rows, and nothing else
        label, known = torch.randint(2, (rows, 1), generator=generator), torch.ones(rows, 1, dtype=torch.bool)
        a, b = torch.randn(rows, 1, 40, generator=generator), torch.randn(rows, 1, 40, generator=generator)
        b[:, 0, 0] += 2.0 * label[:, 0] - 1
        a[:, 0, 1] += 0.4 * (2.0 * label[:, 0] - 1)
        sides.append(toys.prepared({"a": Masked(a, known), "b": Masked(b, known)}, {"y": Masked(label, known)}))
    inputs = {name: {"type": "test-vectors", "width": 40} for name in "ab"}
    plan = {"balance": "gradient_blending", "epochs": 6, "batch_size": 20}
    spec = toys.Spec.parse({"inputs": inputs, "outputs": {"y": toys.BINARY}, "dim": 16, "training": plan})
    torch.manual_seed(0)
    model = Model(spec)
    weights = [p.clone() for p in model.parameters()]
    found = blending(model, *sides, CPU)
    assert sum(found.values()) == pytest.approx(1)
    assert found["y from b"] > 2 * found["y from a"]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True)), "the model stays"
    assert found == blending(model, *sides, CPU), "the same every time"


def test_the_weights_are_used_given_ones_too_and_need_validation_rows():
    given = {"y": 0.5, "y from a": 0.25, "y from b": 0.25}
    one = trainer("gradient_blending", epochs=1)
    one.blend = given
    (epoch,) = one.run()
    assert epoch.train_loss == pytest.approx(sum(w * epoch.terms[name] for name, w in given.items()), rel=1e-5)
    with pytest.raises(SpecError, match="gradient_blending must have validation rows"):
        Trainer(Model(one.spec), shortcut(), None, CPU).run()
    assert Trainer(Model(one.spec), shortcut(), None, CPU, blend=given).run()


def test_branches_are_trained_apart():
    seen = []
    data = shortcut()
    spec = toys.spec(training={"balance": "gradient_blending", "epochs": 1, "averaging": 0.0})
    for chosen in ({"y": 1.0, "y from a": 0.0, "y from b": 0.0}, {"y": 0.0, "y from a": 1.0, "y from b": 1.0}):
        torch.manual_seed(0)
        model = Model(spec)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        Trainer(model, data, None, CPU, blend=chosen).run()
        seen.append({n for n, p in model.named_parameters() if not torch.equal(p, start[n])})
    assert not any(name.startswith(("fusion.", "heads.")) for name in seen[1])
    assert any(name.startswith("fusion.") for name in seen[0])
    assert any(name.startswith("single.") for name in seen[1])
