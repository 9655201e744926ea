"""Objectives: the published formulas, torchjd's own step as the reference, and two tasks of very different scale."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

import toys
from polymodal.errors import SpecError
from polymodal.metrics import higher_is_better
from polymodal.mixing import Mixing
from polymodal.model import Model
from polymodal.objectives.gradients import Gradients
from polymodal.objectives.methods import objective
from polymodal.objectives.terms import Losses, Term, mixed_loss, terms
from polymodal.ranks import Ranks
from polymodal.settings import GRADIENT_METHODS
from polymodal.train import Trainer
from polymodal.types import Masked

CPU = torch.device("cpu")
SQUARED = {"type": "regress", "objective": "squared", "mean": [0], "scale": [1]}


def two(method, weight=1.0, **training):
    return toys.spec(
        outputs={"y": toys.BINARY, "z": {**SQUARED, "weight": weight}}, training={"objective": method, **training}
    )


def rows(count=200, seed=0):
    """XOR of both inputs, and a number that one of them says."""
    data = toys.xor(count, seed=seed)
    inputs = {name: kept.whole for name, kept in data.inputs.items()}
    known = torch.ones(count, 1, dtype=torch.bool)
    return toys.prepared(inputs, {"y": data.targets["y"], "z": Masked(inputs["a"].values[:, 0, 1:2] * 10, known)})


def losses(*values, known=None):
    return Losses({}, {}, {}, torch.tensor(values), torch.tensor(known or [True] * len(values)))


def benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "gradients.py"
    spec = importlib.util.spec_from_file_location("gradients", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Weights of losses ---------------------------------------------------------------------------------------------------


def test_uncertainty_settles_where_the_variances_are_the_losses():
    method = objective(two("uncertainty"), torch.Generator())
    for _ in range(3000):
        method.weigh(losses(0.7, 4.0))
        method.step(0.01)
    # classes: exp(-s) L + s / 2 is least at s = log 2 L; squares: exp(-s) L / 2 + s / 2 at s = log L
    assert method.log_variance.tolist() == pytest.approx([math.log(1.4), math.log(4.0)], abs=1e-3)
    assert method.weigh(losses(0.7, 4.0)).tolist() == pytest.approx([1 / 1.4, 1 / 8], rel=1e-2)
    assert method.penalty == pytest.approx((math.log(1.4) + math.log(4.0)) / 2, abs=1e-3)


def test_a_task_without_a_label_leaves_its_variance_alone():
    method = objective(two("uncertainty"), torch.Generator())
    method.weigh(losses(0.7, 0.0, known=[True, False]))
    method.step(0.1)
    assert method.log_variance[1] == 0
    assert method.log_variance[0] != 0
    method.weigh(losses(0.7, 4.0))
    method.step(0.1)
    first, second = method.log_variance.tolist()
    method.weigh(losses(0.7, 0.0, known=[True, False]))
    method.step(0.1)
    assert method.log_variance[1] == second  # not by momentum either
    assert method.log_variance[0] != first


def test_what_uncertainty_minimises_is_reported():
    trainer = Trainer(Model(two("uncertainty", epochs=1, batch_size=200, balance="none")), rows(), None, CPU)
    trainer.objective.log_variance.copy_(torch.tensor([0.3, -0.2]))
    (epoch,) = trainer.run()
    wanted = math.exp(-0.3) * epoch.terms["y"] + math.exp(0.2) / 2 * epoch.terms["z"] + (0.3 - 0.2) / 2
    assert epoch.train_loss == pytest.approx(wanted, rel=1e-5)


def test_dynamic_averages_follow_the_ratio_of_the_last_two_epochs():
    method = objective(two("dwa"), torch.Generator())
    for epoch in ([(1.0, 2.0), (3.0, 2.0)], [(1.0, 3.0)]):
        method.start()
        assert all(method.weigh(losses(*step)).tolist() == [1.0, 1.0] for step in epoch)
    method.start()
    raw = [math.exp(0.5 / 2), math.exp(1.5 / 2)]
    assert method.weigh(losses(9.0, 9.0)).tolist() == pytest.approx([2 * w / sum(raw) for w in raw])


def test_gradnorm_moves_by_the_papers_gradient_and_its_weights_add_up():
    method = objective(two("gradnorm"), torch.Generator())
    gradients = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 7.0]])  # of two shared columns and one other
    method.first = torch.tensor([2.0, 2.0])
    combined = method.combine(gradients, 2, losses(1.0, 2.0))
    torch.testing.assert_close(combined, gradients.sum(0))
    # norms 5 and 1, mean 3; paces 1/2 and 1, relative 2/3 and 4/3; wanted 3 (2/3)^1.5 = 1.63 and 3 (4/3)^1.5 = 4.62
    assert method.weights.grad.tolist() == [5.0, -1.0]
    method.step(0.0)
    assert method.weights.sum() == pytest.approx(2)
    assert method.weights[0] < 1 < method.weights[1]


def test_gradnorm_evens_out_gradients_of_different_size():
    method = objective(two("gradnorm"), torch.Generator())
    for _ in range(400):
        method.combine(torch.tensor([[8.0, 0.0], [0.0, 1.0]]), 2, losses(1.0, 1.0))
        method.step(0.0)
    assert (method.weights[1] / method.weights[0]).item() == pytest.approx(8, rel=0.15)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["concat", "attention"])
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_gradients_equal_the_librarys_own_step(method, fusion, recwarn):
    module = benchmark()
    model, batch = module.generated(method, fusion, 12, 8)
    model.eval()
    found = []
    for step in (module.ours(model, batch), module.theirs(model, batch, method)):
        model.zero_grad()
        torch.default_generator.manual_seed(int(torch.randint(2**31, (), generator=torch.Generator())))
        step()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() <= found[1].keys()
    for name, grad in found[1].items():  # the library gives zeros to what no task uses
        torch.testing.assert_close(found[0].get(name, torch.zeros_like(grad)), grad, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_only_shared_parameters_are_aggregated(method):
    grads = {}
    for name in ("joint", method):
        torch.manual_seed(0)
        trainer = Trainer(Model(two(name, 20.0, clip=0.0, batch_size=20, modality_dropout=0.0)), rows(20), None, CPU)
        trainer.optimizer.step = lambda _: None
        trainer._step(torch.arange(20), 0, 10, torch.zeros(2))
        grads[name] = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert grads["joint"].keys() == grads[method].keys()
    shared = {name for name in grads["joint"] if name.startswith(("encoders.", "fusion."))}
    changed = {
        name for name, grad in grads["joint"].items() if not torch.allclose(grads[method][name], grad, atol=1e-6)
    }
    assert changed <= shared
    assert len(changed) > len(shared) / 2 or method == "pcgrad"  # which adds where nothing is in conflict


def test_known_aggregates_of_two_gradients_in_conflict():
    gradients = torch.tensor([[1.0, 0.0, 5.0], [-1.0, 1.0, 0.0]])  # the last column is not shared
    wanted = {"mgda": [0.2, 0.4], "pcgrad": [0.5, 1.5], "upgrad": [0.25, 0.75]}
    for name, shared in wanted.items():
        method = objective(two(name), torch.Generator())
        found = method.combine(gradients, 2, losses(1.0, 1.0))
        assert found.tolist() == pytest.approx([*shared, 5.0], abs=2e-3), name


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_a_task_without_labels_in_a_step_has_no_say(method):
    gradients = torch.tensor([[1.0, 0.5, 5.0], [0.0, 0.0, 0.0]])
    found = objective(two(method), torch.Generator()).combine(gradients, 2, losses(1.0, 0.0, known=[True, False]))
    assert torch.equal(found, gradients[0])


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(SpecError, match=r"upgrad must have torchjd, got: .* pip install 'polymodal\[objectives\]'"):
        objective(two("upgrad"), torch.Generator())


def test_gradients_lie_side_by_side_and_frozen_parameters_are_left_out():
    model = Model(toys.spec())
    for p in model.encoders["a"].parameters():
        p.requires_grad_(False)
    gradients = Gradients(model, Ranks())
    assert gradients.encoders["a"] == slice(0, 0)
    batch = toys.xor(8).batch(torch.arange(8))
    found = Losses.of(terms(model, model(batch.inputs), batch), ["y"], Ranks())
    summed = gradients.of([found.add({"y": 1.0}), None])
    assert summed.shape[0] == 2
    assert not summed[1].any()
    gradients.give(summed.sum(0))
    mine = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    found = Losses.of(terms(model, model(batch.inputs), batch), ["y"], Ranks())
    found.add({"y": 1.0}).backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == (mine[name] is None), name
        if p.grad is not None:
            torch.testing.assert_close(mine[name], p.grad)


# In training ---------------------------------------------------------------------------------------------------------


def label_loss(method, weight=300.0, epochs=7):
    """Loss of the label on validation rows, where the number's loss is heavy and both need the same encoder."""
    more = {"averaging": 0.0, "modality_dropout": 0.0, "learning_rate": 1e-2, "balance": "none", "batch_size": 25}
    torch.manual_seed(0)
    trainer = Trainer(Model(two(method, weight, epochs=epochs, **more)), rows(), rows(100, 1), CPU)
    return trainer.run()[-1].valid_terms["y"]


@pytest.mark.slow
def test_a_task_of_small_scale_is_not_lost_beside_a_large_one():
    starved = label_loss("joint")
    assert starved > 0.65
    for method in ("pcgrad", "mgda"):
        assert label_loss(method) < 0.8 * starved, method
    for method in ("cagrad", "nashmtl"):
        assert label_loss(method, epochs=3) < 0.8 * starved, method
    starved = label_loss("joint", 30.0, 16)
    assert label_loss("gradnorm", 30.0, 16) < 0.3 * starved
    assert label_loss("uncertainty", 30.0, 16) < 0.9 * starved
    assert label_loss("dwa", 30.0, 16) < 0.95 * starved


@pytest.mark.parametrize("method", ["joint", "uncertainty", "dwa", "gradnorm", *GRADIENT_METHODS])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_objective_trains_in_both_precisions_and_differs_from_joint(method, precision):
    models = []
    for name in ("joint", method):
        torch.manual_seed(0)
        plan = {"epochs": 3, "batch_size": 24, "precision": precision}
        trainer = Trainer(Model(two(name, 3.0, **plan)), rows(48), None, CPU)
        assert all(math.isfinite(epoch.train_loss) for epoch in trainer.run())
        models.append(trainer.model)
    assert toys.same(*models) == (method == "joint")


# Terms ---------------------------------------------------------------------------------------------------------------


def test_mixed_rows_learn_both_targets_each_by_its_share_and_where_it_is_known():
    task = toys.spec().outputs["y"]
    output = torch.randn(4, 2)
    target = Masked(torch.tensor([[0], [1], [1], [0]]), torch.tensor([[True], [True], [False], [True]]))
    partner, share = torch.tensor([2, 0, 3, 1]), 0.7
    mean, count = mixed_loss(task, output, target, Mixing(partner, torch.full((4,), share)))
    each = -output.log_softmax(1)
    total, weight = 0.0, 0.0
    for row in range(4):
        for other, part in ((row, share), (int(partner[row]), 1 - share)):
            if target.mask[other, 0]:
                total, weight = total + part * each[row, target.values[other, 0]], weight + part
    assert mean.item() == pytest.approx((total / weight).item(), rel=1e-5)
    assert count.item() == pytest.approx(weight)
    nothing = target.without(torch.ones(4, dtype=torch.bool))
    assert mixed_loss(task, output, nothing, Mixing(partner, torch.full((4,), share)))[0] == 0


def test_own_heads_stay_unmixed_and_mixup_changes_training():
    spec = toys.spec(training={"mixup": 0.4, "epochs": 2, "batch_size": 16})
    torch.manual_seed(0)
    trainer = Trainer(Model(spec), toys.xor(32), None, CPU)
    mixing = trainer._mixing(16)
    assert sorted(mixing.partner.tolist()) == list(range(16))
    assert len(set(mixing.share.tolist())) == 1
    assert mixing.share[0] >= 0.5
    batch = toys.xor(16).batch(torch.arange(16))
    model = trainer.model.eval()
    plain = terms(model, model(batch.inputs), batch)
    mixed = terms(model, model(batch.inputs, mixing), batch, mixing=mixing)
    assert mixed["y"].mean != plain["y"].mean
    assert all(torch.equal(mixed[name].mean, plain[name].mean) for name in ("y from a", "y from b"))
    trainer.run()
    torch.manual_seed(0)
    other = Trainer(Model(toys.spec(training={"epochs": 2, "batch_size": 16})), toys.xor(32), None, CPU)
    other.run()
    assert not toys.same(trainer.model, other.model)


@pytest.mark.parametrize("method", ["joint", "upgrad"])
def test_the_alignment_is_added_plain(method):
    plan = {"alignment": {"weight": 0.3}, "batch_size": 16, "epochs": 1, "objective": method, "balance": "none"}
    spec = toys.spec(outputs={"y": toys.BINARY, "z": SQUARED}, training=plan)
    trainer = Trainer(Model(spec), rows(16), None, CPU)
    (epoch,) = trainer.run()
    wanted = epoch.terms["y"] + epoch.terms["z"] + 0.3 * epoch.terms["alignment"]
    assert epoch.train_loss == pytest.approx(wanted, rel=1e-5)
    assert trainer.model.alignment.log_scale.grad.any()


def test_losses_know_which_tasks_have_labels():
    found = {
        "y": Term(2.0, torch.tensor(1.5, requires_grad=True), torch.tensor(4), "y"),
        "y from a": Term(0.5, torch.tensor(2.0, requires_grad=True), torch.tensor(3), "y", True),
        "z": Term(1.0, torch.tensor(0.0, requires_grad=True), torch.tensor(0), "z"),
        "alignment": Term(0.1, torch.tensor(5.0, requires_grad=True), torch.tensor(4), None),
    }
    one = Losses.of(found, ["y", "z"], Ranks())
    assert one.tasks.tolist() == [4.0, 0.0]
    assert one.known.tolist() == [True, False]
    assert one.beside == pytest.approx(0.5)
    assert one.add({"y": 2.0, "z": 1.0}) == 8.0
    assert one.add({"y": 1.0}, own=True) == 1.0
    assert one.add({"y": 1.0}, own=False) == 3.0
    assert one.add({"x": 1.0}) is None


@pytest.mark.parametrize(
    "name", ["nll", "y.brier", "price/mae", "y.price/rmse", "hamming_loss", "ece", "width", "loss"]
)
def test_errors_are_better_when_they_are_low(name):
    assert not higher_is_better(name)
    assert higher_is_better(name.replace(name.replace(".", "/").split("/")[-1], "macro_f1"))


def test_the_benchmark_prints_a_ratio_for_every_method(capsys):
    module = benchmark()
    module.main(["--repeats", "1", "--rows", "8", "--dim", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(module.FUSIONS) * len(GRADIENT_METHODS)
    assert all(float(line.split()[4]) > 0 for line in lines[1:])
