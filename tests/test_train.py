"""Training: what is learned, what every setting changes, and that chance is in the seed."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import polymodal as pm
import toys
from polymodal import train
from polymodal.errors import PolymodalError
from polymodal.model import Model
from polymodal.train import Trainer, decay_groups, hide, objective, schedule
from polymodal.types import Batch, Masked

CPU = torch.device("cpu")


def trained(rows=64, seed=0, valid=None, data=None, checkpoint=None, **training):
    """Train a small model; returns it, its history and its trainer."""
    training = {"epochs": 3, "batch_size": 16, "patience": 0, **training}
    spec = toys.spec(training=training, seed=seed)
    torch.manual_seed(seed)
    trainer = Trainer(Model(spec), data or toys.xor(rows), valid, CPU, checkpoint)
    history = trainer.run()
    return trainer.model, history, trainer


def accuracy(model, data, *hidden):
    batch = data.batch(torch.arange(len(data))).without(*hidden)
    with torch.no_grad():
        guess = model.eval()(batch.inputs).decoded["y"].argmax(1)
    return (guess == batch.targets["y"].values[:, 0]).float().mean().item()


def test_xor_of_two_inputs_is_learned_and_neither_alone_says_it():
    valid = toys.xor(200, seed=1)
    model, _, _ = trained(200, valid=valid, epochs=20, batch_size=25, learning_rate=1e-2)
    assert accuracy(model, valid) > 0.98
    assert accuracy(model, valid, "a") < 0.65
    assert accuracy(model, valid, "b") < 0.65


@pytest.mark.slow
def test_xor_of_a_picture_and_a_text_through_fit():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (320, 2))
    light = [rng.integers(0, 100, (16, 16, 3)) + 150 * a for a in bits[:, 0]]
    words = [["a calm grey sea", "the wild green hill"][b] for b in bits[:, 1]]
    table = {
        "photo": [x.astype(np.uint8) for x in light],
        "note": [f"{word} {rng.integers(9)}" for word in words],
        "label": (bits[:, 0] ^ bits[:, 1]).tolist(),
    }
    spec = {
        "inputs": {
            "photo": {"type": "image", "backbone": "none", "size": 16, "grid": 1},
            "note": {"type": "text", "backbone": "none"},
        },
        "outputs": {"label": "classify"},
        "dim": 32,
        "training": {"epochs": 20, "batch_size": 16},
        "split": {"valid": 0.2, "test": 0.25},
    }
    task = pm.fit(spec, table, cache=False).report["test"]["tasks"]["label"]
    assert task["scores"]["accuracy"] > 0.9
    assert all(scores["accuracy"] < 0.65 for scores in task["alone"].values())
    assert task["baselines"]["linear, all inputs"]["accuracy"] < 0.65


def test_hide_never_takes_the_last_input_of_a_row():
    x = Masked(torch.ones(4, 1, 1), torch.ones(4, 1, dtype=torch.bool))
    gone = x.without(torch.tensor([True, True, False, False]))
    batch = Batch({"a": x, "b": gone})
    both = hide(batch, torch.ones(2, 4, dtype=torch.bool))
    assert both.inputs["a"].present.all(), "a row whose inputs would all be hidden keeps everything"
    assert torch.equal(both.inputs["b"].present, gone.present)
    some = hide(batch, torch.tensor([[True, False, True, False], [False, False, False, True]]))
    assert some.inputs["a"].present.tolist() == [True, True, False, True]
    assert some.inputs["b"].present.tolist() == [False, False, True, False]
    assert torch.equal(some.inputs["a"].values, x.values)
    assert batch.inputs["a"].present.all()


def test_modality_dropout_hides_the_asked_share_in_training_only():
    data, counts = toys.xor(400), []
    spec = toys.spec(training={"epochs": 1, "modality_dropout": 0.5, "batch_size": 400})
    trainer = Trainer(Model(spec), data, None, CPU)
    trainer.model.encoders["a"].register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    trainer.run()
    assert counts[0] == pytest.approx(400 * (1 - 0.25), abs=40)  # hidden where a is drawn and b is not
    assert len(counts) == 1


def test_modality_dropout_makes_the_model_stand_a_missing_input():
    data = toys.xor(300)
    for name in "ab":  # the label is in both inputs, louder in a
        kept = data.inputs[name].whole
        kept.values[:, 0, 0] = (2.0 * data.targets["y"].values[:, 0] - 1) * (3 if name == "a" else 1)
    scores = {}
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        model, _, _ = trained(data=data, epochs=6, modality_dropout=dropout, balance="none", averaging=0.0)
        scores[dropout] = train.objective(model.spec, *_answered(model, data, "a"))["y"][1].item()
    assert scores[0.5] < scores[0.0]


def _answered(model, data, *hidden):
    batch = data.batch(torch.arange(len(data))).without(*hidden)
    with torch.no_grad():
        return model(batch.inputs), batch


def test_auxiliary_heads_are_on_by_default_and_are_means_over_rows_that_have_the_input():
    model, data = Model(toys.spec()).eval(), toys.xor(40, absent=0.4)
    outputs, batch = _answered(model, data)
    terms = objective(model.spec, outputs, batch)
    assert list(terms) == ["y", "y from a", "y from b"]
    here = batch.inputs["a"].present
    task = model.spec.outputs["y"]
    factor, mean, count = terms["y from a"]
    assert factor == 1.0
    assert int(count) == int(here.sum()) < 40
    torch.testing.assert_close(mean, task.loss(outputs.single["y"]["a"][here], batch.targets["y"][here]))
    off = toys.spec(training={"balance": "none"})
    assert list(objective(off, outputs, batch)) == ["y"]
    half = toys.spec(outputs={"y": {"type": "classify", "classes": [0, 1], "weight": 3}}, training={"auxiliary": 0.5})
    assert [f for f, _, _ in objective(half, outputs, batch).values()] == [3, 1.5, 1.5]


def test_the_loss_that_is_minimised_is_the_weighted_sum_of_the_terms():
    _, history, _ = trained(epochs=1, auxiliary=0.5)
    terms = history[0].terms
    expected = terms["y"] + 0.5 * (terms["y from a"] + terms["y from b"])
    assert history[0].train_loss == pytest.approx(expected, rel=1e-6)


def test_the_schedule_rises_linearly_then_falls_along_a_cosine():
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(x >= y for x, y in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01
    assert schedule(0, 100, 0.0) == 1.0
    assert schedule(0, 1, 0.9) > 0


def test_matrices_decay_and_vectors_do_not():
    model = Model(toys.spec())
    decayed, spared = decay_groups(model, 0.3)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_averaging_follows_the_weights_with_a_short_memory_at_first():
    spec = toys.spec(training={"averaging": 0.9, "epochs": 1})
    trainer = Trainer(Model(spec), toys.xor(16), None, CPU)
    reference = [p.detach().clone() for p in trainer.model.parameters()]
    for step in range(1, 200):
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.add_(torch.randn_like(p))
        trainer._update_average()
        decay = min(0.9, step / (step + 9))
        reference = [r * decay + p * (1 - decay) for r, p in zip(reference, trainer.model.parameters(), strict=True)]
    for mine, expected in zip(trainer.average.parameters(), reference, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


def test_without_averaging_the_last_weights_are_kept():
    spec = toys.spec(training={"averaging": 0.0, "epochs": 2})
    trainer = Trainer(Model(spec), toys.xor(32), None, CPU)
    trainer.run()
    assert all(torch.equal(x, y) for x, y in zip(trainer.average.parameters(), trainer.model.parameters(), strict=True))


def test_running_statistics_reach_the_kept_weights():
    model = Model(toys.spec(training={"epochs": 2}))
    model.encoders["a"].net.add_module("norm", Statistics(16))
    trainer = Trainer(model, toys.xor(32), None, CPU)
    trainer.run()
    assert trainer.model.encoders["a"].net.norm.count == 2


class Statistics(nn.Module):
    """Counts its steps in training, as a batch norm does."""

    def __init__(self, dim):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.count += 1
        return x


def test_early_stopping_keeps_the_best_epoch_and_waits_for_patience():
    valid = toys.xor(64, seed=5)
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.4, 9.0])
    spec = toys.spec(training={"epochs": 50, "patience": 3, "batch_size": 32})
    trainer = Trainer(Model(spec), toys.xor(64), valid, CPU)
    trainer._validate = lambda _: next(losses)
    kept = []
    history = trainer.run(lambda _: kept.append(copy.deepcopy(trainer.average.state_dict())))
    assert [epoch.number for epoch in history] == [0, 1, 2, 3, 4]
    assert toys.same(trainer.model, kept[1])
    assert not trainer.model.training


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_an_epoch_without_a_finite_validation_loss_is_never_the_best(worst):
    losses = iter([worst, 2.0, 3.0, worst])
    spec = toys.spec(training={"epochs": 4, "patience": 0})
    trainer = Trainer(Model(spec), toys.xor(64), toys.xor(8, seed=1), CPU)
    trainer._validate = lambda _: next(losses)
    kept = []
    trainer.run(lambda _: kept.append(copy.deepcopy(trainer.average.state_dict())))
    assert toys.same(trainer.model, kept[1])


def test_without_patience_or_validation_rows_every_epoch_is_trained():
    _, history, _ = trained(epochs=7, patience=0, valid=toys.xor(16, seed=3))
    assert len(history) == 7
    _, history, _ = trained(epochs=7, patience=1)
    assert len(history) == 7
    assert all(epoch.valid_loss is None for epoch in history)


def test_validation_loss_is_a_mean_over_rows_of_the_averaged_model(monkeypatch):
    monkeypatch.setattr(train, "EVALUATION_BATCH", 7)
    valid = toys.xor(31, seed=1)
    model, history, _ = trained(epochs=1, valid=valid)
    outputs, batch = _answered(model, valid)
    expected = model.spec.outputs["y"].loss(outputs.decoded["y"], batch.targets["y"]).item()
    assert history[0].valid_loss == pytest.approx(expected, rel=1e-5)


def test_clipping_bounds_the_gradient(monkeypatch):
    norms = []
    plain = nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        parameters = list(parameters)
        plain(parameters, limit)
        norms.append(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item())

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
    trained(epochs=1, clip=0.01)
    assert norms
    assert max(norms) <= 0.0101
    norms.clear()
    trained(epochs=1, clip=0.0)
    assert not norms


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 4},
        {"batch_size": 24},
        {"learning_rate": 1e-3},
        {"weight_decay": 0.5},
        {"warm_up": 0.5},
        {"clip": 0.05},
        {"averaging": 0.5},
        {"modality_dropout": 0.0},
        {"auxiliary": 0.2},
        {"precision": "bfloat16"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_weights(option):
    assert not toys.same(trained()[0], trained(**option)[0])


def test_auto_precision_on_a_cpu_is_float32():
    assert toys.same(trained(precision="auto")[0], trained(precision="float32")[0])


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    assert toys.same(trained()[0], trained()[0])
    assert not toys.same(trained()[0], trained(seed=1)[0])


def test_rows_without_a_label_of_one_task_teach_the_other():
    data = toys.xor(60)
    label = data.targets["y"]
    number = torch.randn(60, 1)
    first = torch.arange(60)[:, None] < 20
    targets = {"y": Masked(label.values, first), "z": Masked(number, ~first), "none": Masked(number, first & False)}
    data = toys.prepared({name: rows.whole for name, rows in data.inputs.items()}, targets)
    outputs = {
        "y": {"type": "classify", "classes": [0, 1]},
        "z": {"type": "regress", "mean": [0], "scale": [1]},
        "none": {"type": "regress", "objective": "squared", "mean": [0], "scale": [1]},
    }
    spec = toys.spec(outputs=outputs, training={"epochs": 2, "batch_size": 8})
    trainer = Trainer(Model(spec), data, data, CPU)
    before = copy.deepcopy(trainer.model)
    history = trainer.run()
    assert math.isfinite(history[-1].train_loss)
    assert history[-1].terms["none"] == 0
    assert not torch.equal(before.heads["y"].project.weight, trainer.model.heads["y"].project.weight)
    assert not torch.equal(before.heads["z"].project.weight, trainer.model.heads["z"].project.weight)
    hidden = trainer._validate(data)
    junk = {n: Masked(y.values.masked_fill(~y.mask, 1), y.mask) for n, y in targets.items()}
    again = toys.prepared({name: rows.whole for name, rows in data.inputs.items()}, junk)
    assert trainer._validate(again) == hidden


def test_divergence_is_an_error_that_says_what_to_do():
    data = toys.xor(32)
    data.inputs["a"].whole.values[3] = float("inf")
    with pytest.raises(
        PolymodalError, match=r"loss must be finite, got nan in epoch 0\. Lower training\.learning_rate"
    ):
        trained(data=data)


def test_each_row_is_seen_once_per_epoch_in_a_new_order():
    seen: list[list[int]] = []
    data = toys.xor(50)

    class Watched:
        def __len__(self):
            return len(data)

        def batch(self, rows, epoch=None):
            seen.append(rows.tolist())
            return data.batch(rows, epoch)

    trained(data=Watched(), epochs=2)
    first, second = (list(itertools.chain(*seen[i : i + 4])) for i in (0, 4))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_a_task_may_be_called_like_anything():
    spec = toys.spec(outputs={"total": {"type": "classify", "classes": [0, 1]}}, training={"epochs": 1})
    data = toys.xor(16)
    data = toys.prepared({name: rows.whole for name, rows in data.inputs.items()}, {"total": data.targets["y"]})
    epoch = Trainer(Model(spec), data, None, CPU).run()[0]
    assert epoch.train_loss == pytest.approx(sum(epoch.terms.values()), rel=1e-6)
    assert "total" in epoch.terms
