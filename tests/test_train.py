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
from polymodal.errors import PolymodalError, SpecError
from polymodal.mixing import hide
from polymodal.model import Model
from polymodal.nn.optimise import decay_groups, schedule
from polymodal.objectives import terms as terms_module
from polymodal.objectives.monitor import best_epoch, monitored
from polymodal.objectives.terms import terms
from polymodal.train import Trainer
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
        scores[dropout] = terms(model, *_answered(model, data, "a"))["y"].mean.item()
    assert scores[0.5] < scores[0.0]


def _answered(model, data, *hidden):
    batch = data.batch(torch.arange(len(data))).without(*hidden)
    with torch.no_grad():
        return model(batch.inputs), batch


def test_auxiliary_heads_are_on_by_default_and_are_means_over_rows_that_have_the_input():
    model, data = Model(toys.spec()).eval(), toys.xor(40, absent=0.4)
    outputs, batch = _answered(model, data)
    found = terms(model, outputs, batch)
    assert list(found) == ["y", "y from a", "y from b"]
    here = batch.inputs["a"].present
    task, own = model.spec.outputs["y"], found["y from a"]
    assert (own.factor, own.task, own.own) == (1.0, "y", True)
    assert int(own.count) == int(here.sum()) < 40
    torch.testing.assert_close(own.mean, task.loss(outputs.single["y"]["a"][here], batch.targets["y"][here]))
    model.spec = toys.spec(training={"balance": "none"})
    assert list(terms(model, outputs, batch)) == ["y"]
    heavy = {"y": {"type": "classify", "classes": [0, 1], "weight": 3}}
    model.spec = toys.spec(outputs=heavy, training={"auxiliary": 0.5})
    assert [term.factor for term in terms(model, outputs, batch).values()] == [3, 1.5, 1.5]


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
    trainer._validate = lambda _: (next(losses), {}, None)
    kept = []
    history = trainer.run(lambda _: kept.append(copy.deepcopy(trainer.average.state_dict())))
    assert [epoch.number for epoch in history] == [0, 1, 2, 3, 4]
    assert toys.same(trainer.model, kept[1])
    assert not trainer.model.training


def scored(**training):
    """Train while the label's scores are watched; returns the trainer and its history."""
    plan = {"epochs": 6, "batch_size": 16, "patience": 0, **training}
    trainer = Trainer(Model(toys.spec(training=plan)), toys.xor(64), toys.xor(64, seed=4), CPU)
    return trainer, trainer.run()


def test_a_score_is_watched_in_its_own_direction():
    for monitor, best in (("accuracy", max), ("y.macro_f1", max), ("brier", min)):
        trainer, history = scored(monitor=monitor)
        scores = [epoch.score for epoch in history]
        assert all(isinstance(score, float) for score in scores)
        chosen = best_epoch(history, monitor)
        assert chosen.score == best(scores)
        assert chosen.number == scores.index(best(scores)), "the first of equals"
        found = trainer.spec.outputs["y"].metrics(*_raw(trainer))[monitor.removeprefix("y.")]
        assert found == pytest.approx(chosen.score), "the weights of that epoch are kept"


def _raw(trainer):
    outputs, batch = _answered(trainer.model, trainer.valid)
    return outputs.decoded["y"], batch.targets["y"]


def test_patience_follows_the_score_and_not_the_loss():
    spec = toys.spec(training={"epochs": 50, "patience": 2, "batch_size": 32, "monitor": "accuracy"})
    trainer = Trainer(Model(spec), toys.xor(64), toys.xor(64, seed=5), CPU)
    scores = iter([0.5, 0.9, 0.8, None, 0.7])
    trainer._validate = lambda _: (-float(len(trainer.history)), {}, next(scores))
    assert [epoch.number for epoch in trainer.run()] == [0, 1, 2, 3]
    assert best_epoch(trainer.history, "accuracy").number == 1


def test_an_unknown_score_is_refused_at_the_start_with_those_that_are_known():
    with pytest.raises(SpecError, match=r"got 'acuracy'. Did you mean 'accuracy'\? Known for y: accuracy, .*nll"):
        scored(monitor="acuracy")
    sets = toys.spec(outputs={"y": {**toys.BINARY, "coverage": 0.9}}, training={"epochs": 1, "monitor": "set_size"})
    with pytest.raises(SpecError, match="score that changes in training, got 'set_size'"):
        Trainer(Model(sets), toys.xor(40), toys.xor(20, seed=1), CPU).run()
    two = toys.spec(
        outputs={"y": toys.BINARY, "y.x": toys.BINARY}, training={"epochs": 1, "batch_size": 16, "monitor": "nll"}
    )
    with pytest.raises(SpecError, match=r"must be loss or a task and its score, as in y.NAME, got 'nll'"):
        Trainer(Model(two), toys.xor(16), None, CPU)
    plan = two.training.model_copy(update={"monitor": "y.x.nll"})
    assert monitored(two.model_copy(update={"training": plan})) == ("y.x", "nll")


def test_gradients_are_the_norms_of_the_encoders_before_clipping():
    _, history, trainer = trained(rows=16, epochs=1, batch_size=16, modality_dropout=0.0, clip=0.01)
    spec = toys.spec(training={"modality_dropout": 0.0})
    torch.manual_seed(0)
    model, batch = Model(spec), trainer.train.batch(torch.arange(16))
    sum(term.mean for term in terms(model, model(batch.inputs), batch).values()).backward()
    for name in "ab":
        norm = torch.stack([p.grad.norm() for p in model.encoders[name].parameters()]).norm().item()
        assert history[0].gradients[name] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_an_epoch_without_a_finite_validation_loss_is_never_the_best(worst):
    losses = iter([worst, 2.0, 3.0, worst])
    spec = toys.spec(training={"epochs": 4, "patience": 0})
    trainer = Trainer(Model(spec), toys.xor(64), toys.xor(8, seed=1), CPU)
    trainer._validate = lambda _: (next(losses), {}, None)
    kept = []
    trainer.run(lambda _: kept.append(copy.deepcopy(trainer.average.state_dict())))
    assert toys.same(trainer.model, kept[1])


def test_without_patience_or_validation_rows_every_epoch_is_trained():
    _, history, _ = trained(epochs=7, patience=0, valid=toys.xor(16, seed=3))
    assert len(history) == 7
    _, history, _ = trained(epochs=7, patience=1)
    assert len(history) == 7
    assert all(epoch.valid_loss is None for epoch in history)


def test_validation_losses_are_means_over_rows_of_the_averaged_model(monkeypatch):
    monkeypatch.setattr(terms_module, "EVALUATION_BATCH", 7)
    valid = toys.xor(31, seed=1, absent=0.3)
    model, history, _ = trained(epochs=1, valid=valid)
    found = terms(model, *_answered(model, valid))
    assert history[0].valid_loss == pytest.approx(found["y"].mean.item(), rel=1e-5)
    assert history[0].valid_terms == {name: pytest.approx(term.mean.item(), rel=1e-5) for name, term in found.items()}
    assert len(history[0].valid_terms) == 3
    assert history[0].score is None


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
        {"balance": "none"},
        {"balance": "ogm_ge"},
        {"balance": "ogm_ge", "modulation": 0.9},
        {"balance": "mmpareto"},
        {"mixup": 0.4},
        {"alignment": {}},
        {"manifold": {"noise": 0.1}},
    ],
    ids=str,
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
