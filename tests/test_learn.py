"""Learning: what is chosen on validation rows, carried over to the second training, and told on the way."""

import pytest
import torch

import toys
from polymodal.data.gather import silent
from polymodal.errors import SpecError
from polymodal.learn import Learner
from polymodal.model import Model
from polymodal.objectives.monitor import best_epoch
from polymodal.train import Trainer, blending


def learner(told=None, resume=None, **training):
    plan = {"epochs": 4, "batch_size": 16, "patience": 0, **training}
    return Learner(toys.spec(training=plan), torch.device("cpu"), resume, "this fit", silent, told)


def sides(rows=64):
    data = toys.xor(rows)
    return data.select(torch.arange(48)), data.select(torch.arange(48, rows))


def test_every_epoch_is_told_with_its_stage():
    told = []
    learned = learner(lambda stage, epoch: told.append((stage, epoch))).learn(*sides())
    assert learned.refitted
    assert [epoch for stage, epoch in told if stage == "train"] == learned.history
    assert len([stage for stage, _ in told if stage == "refit"]) == best_epoch(learned.history).number + 1
    assert {stage for stage, _ in told} == {"train", "refit"}


def test_the_second_training_has_as_many_epochs_as_the_best_by_the_monitored_score():
    told = []
    learned = learner(lambda stage, _: told.append(stage), monitor="brier", learning_rate=0.05, epochs=6).learn(
        *sides()
    )
    assert told.count("refit") == best_epoch(learned.history, "brier").number + 1


def test_blended_weights_are_estimated_once_and_used_in_both_trainings(monkeypatch):
    used = []
    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, *args: (run(self, *args), used.append(self.blend))[0])
    one = learner(balance="gradient_blending")
    assert one.learn(*sides()).refitted
    *estimates, first, second = used
    assert len(estimates) == 2
    assert first == second
    torch.manual_seed(one.spec.seed)
    assert first == blending(Model(one.spec), *sides(), torch.device("cpu"))


def test_a_score_cannot_be_watched_without_validation_rows():
    with pytest.raises(SpecError, match=r"training\.monitor must have validation rows, got 'accuracy'"):
        learner(monitor="accuracy").learn(sides()[0], None)
