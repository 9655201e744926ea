"""What validation rows decide: the linear model's share, the votes' weights, the certainty."""

import math

import pytest
import torch

import toys
from polymodal.evaluate import answers
from polymodal.model import ALL, Model
from polymodal.tune import tune
from polymodal.types import Masked

CPU = torch.device("cpu")


def data(rows=200, absent=0.2):
    return toys.xor(rows, absent=absent)


def linear_data(rows=200):
    """The label is in input a alone; b is noise."""
    kept = toys.xor(rows)
    a = kept.inputs["a"].whole
    return toys.prepared(
        {"a": a, "b": Masked(torch.randn(rows, 1, 2), a.mask)},
        {"y": Masked((a.values[:, 0, :1] > 0).long(), a.mask)},
    )


def model_of(fusion="concat", outputs=None) -> Model:
    torch.manual_seed(0)
    return Model(toys.spec(outputs=outputs, fusion=fusion)).eval()


def teach_linear(model, sharpness=4.0):
    """Make the linear models say that a positive first feature of a means class 1."""
    for label in (ALL, "a"):
        model.linear["y"][label].weight[0] = torch.tensor([-sharpness, sharpness])


def loss_of(model, rows):
    seen = answers(model, rows, CPU)
    return model.spec.outputs["y"].loss(seen.outputs["y"], seen.targets["y"]).item()


def test_a_useless_linear_model_gets_no_share():
    model, rows = model_of(), linear_data()
    for name in "ab":
        model.single["y"][name].project.weight.data.zero_()
    model.linear["y"][ALL].weight[0] = torch.tensor([4.0, -4.0])  # the wrong way round
    tune(model, rows, CPU)
    assert model.share.tolist() == [0.0]


def test_a_better_linear_model_gets_a_share_that_lowers_the_loss():
    model, rows = model_of(), linear_data()
    teach_linear(model)
    before = loss_of(model, rows)
    tune(model, rows, CPU)
    assert model.share.item() > 0.5
    assert loss_of(model, rows) < before


def test_each_task_has_its_own_share_and_one_without_labels_has_none():
    one = toys.BINARY
    model, rows = model_of(outputs={"y": one, "other": one, "none": one}), linear_data()
    label = rows.targets["y"]
    targets = {"y": label, "other": label, "none": label.without(torch.ones(200, dtype=torch.bool))}
    rows = toys.prepared({n: r.whole for n, r in rows.inputs.items()}, targets)
    teach_linear(model)
    model.linear["other"][ALL].weight[0] = torch.tensor([9.0, -9.0])
    tune(model, rows, CPU)
    assert model.share[0] > 0.5
    assert model.share[1:].tolist() == [0.0, 0.0]
    assert model.spec.outputs["none"].temperature == 1.0


def test_the_share_also_counts_what_happens_when_an_input_is_gone():
    """With everything present the linear model is a little better, without a it is far worse."""
    model, rows = model_of(), linear_data()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    teach_linear(model, 0.2)
    tune(model, rows, CPU)
    alone = model.share.item()
    model.linear["y"][ALL].bias.copy_(torch.tensor([0.0, 0.0]))
    model.linear["y"][ALL].weight[4] = torch.tensor([8.0, -8.0])  # presence of a: balanced by the bias
    model.linear["y"][ALL].bias.copy_(torch.tensor([-8.0, 8.0]))
    tune(model, rows, CPU)
    assert model.share.item() < alone


def votes(model):
    return model.fusion.log_weights.exp()


def test_the_better_voter_weighs_more_and_weights_sum_to_one():
    model, rows = model_of("vote"), linear_data()
    with torch.no_grad():
        model.encoders["a"].net[0].weight[0] = torch.tensor([1.0, 0])
        head = model.single["y"]["a"].project
        head.weight.copy_(torch.randn_like(head.weight) * 0.01)
        encoded = model(rows.batch(torch.arange(200)).inputs).encoded["a"].mean()
        sign = 2.0 * rows.targets["y"].values[:, 0] - 1
        direction = torch.linalg.lstsq(encoded, sign[:, None]).solution[:, 0]
        head.weight.copy_(torch.stack([-3 * direction, 3 * direction]))
    tune(model, rows, CPU)
    weights = votes(model)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0] > 0.8
    inputs = rows.batch(torch.arange(4)).without("a").inputs
    assert model(inputs).fused.weights.tolist() == [[0.0, 1.0]] * 4


def test_a_voter_that_no_validation_row_has_could_prove_nothing():
    model, rows = model_of("vote"), linear_data()
    gone = rows.inputs["b"].whole.without(torch.ones(200, dtype=torch.bool))
    rows = toys.prepared({"a": rows.inputs["a"].whole, "b": gone}, rows.targets)
    tune(model, rows, CPU)
    weights = votes(model)
    assert weights.isfinite().all()
    assert weights[1] <= weights[0] + 1e-6


@pytest.mark.parametrize(
    "task",
    [
        {"type": "regress", "mean": [0], "scale": [1]},
        {"type": "regress", "mean": [0], "scale": [1], "objective": "beta_nll"},
        {"type": "regress", "mean": [0], "scale": [1], "objective": "quantiles"},
        {"type": "regress", "mean": [0], "scale": [1], "objective": "squared"},
        {"type": "multilabel", "labels": ["u"], "coverage": 0.9},
    ],
)
def test_votes_of_every_kind_of_task_are_finite_with_gaps(task):
    model, rows = model_of("vote", {"y": task}), toys.xor(60, absent=0.4)
    inputs = {n: r.whole for n, r in rows.inputs.items()}
    target = rows.targets["y"]
    rows = toys.prepared(inputs, {"y": Masked(target.values.float(), target.mask)})
    tune(model, rows, CPU)
    assert votes(model).isfinite().all()
    assert model.share.isfinite().all()


def test_no_labels_at_all_leave_everything_as_it_was():
    model, rows = model_of("vote"), linear_data(20)
    rows = toys.prepared(
        {n: r.whole for n, r in rows.inputs.items()},
        {"y": rows.targets["y"].without(torch.ones(20, dtype=torch.bool))},
    )
    tune(model, rows, CPU)
    assert votes(model).tolist() == pytest.approx([0.5, 0.5])
    assert model.share.item() == 0


def test_certainty_is_calibrated_on_the_blended_answer():
    model, rows = model_of(), linear_data()
    flip = torch.rand(200, 1) < 0.25
    label = rows.targets["y"]
    rows = toys.prepared(
        {n: r.whole for n, r in rows.inputs.items()}, {"y": Masked(label.values ^ flip.long(), label.mask)}
    )
    teach_linear(model, 3.0)
    model.linear["y"][ALL].weight[4] = 0
    before = model.spec.outputs["y"]
    tune(model, rows, CPU)
    after = model.spec.outputs["y"]
    assert before.temperature == 1.0
    assert after.temperature != 1.0
    seen = answers(model, rows, CPU)
    truth = seen.targets["y"].values[:, 0]
    sure = after.probabilities(seen.outputs["y"])[torch.arange(200), truth].log().mean()
    unsure = before.probabilities(seen.outputs["y"])[torch.arange(200), truth].log().mean()
    assert sure > unsure


@pytest.mark.parametrize("fusion", ["concat", "vote"])
def test_sets_are_chosen_on_the_blended_answer(fusion):
    outputs = {"y": {**toys.BINARY, "coverage": 0.8}}
    model, rows = model_of(fusion, outputs), linear_data()
    label = rows.targets["y"]
    noisy = Masked(label.values ^ (torch.rand(200, 1) < 0.3).long(), label.mask)
    rows = toys.prepared({n: r.whole for n, r in rows.inputs.items()}, {"y": noisy})
    teach_linear(model)
    tune(model, rows, CPU)
    assert model.share.item() > 0
    seen, task = answers(model, rows, CPU), model.spec.outputs["y"]
    p = task.probabilities(seen.outputs["y"]).gather(1, noisy.values).flatten()
    assert task.set_threshold == p.sort(descending=True).values[math.ceil(0.8 * 201) - 1]
    assert task.metrics(seen.outputs["y"], noisy)["coverage"] >= 0.8
    assert (model.certainty != 1).all() == (fusion == "vote"), "only a vote needs the certainty of each own head"


@pytest.mark.parametrize(
    ("task", "fitted"),
    [
        ({"type": "regress", "mean": [0], "scale": [1]}, "spread"),
        ({"type": "regress", "mean": [0], "scale": [1], "objective": "beta_nll"}, "spread"),
        ({"type": "regress", "mean": [0], "scale": [1], "objective": "squared"}, "residual"),
        ({"type": "regress", "mean": [0], "scale": [1], "objective": "quantiles"}, "margin"),
        ({"type": "multilabel", "labels": ["u"]}, "temperature"),
        ({"type": "multilabel", "labels": ["u"], "coverage": 0.9}, "set_threshold"),
        (toys.BINARY, "temperature"),
    ],
)
def test_every_task_is_calibrated(task, fitted):
    model, rows = model_of("concat", {"y": task, "other": task}), linear_data()
    label = rows.targets["y"]
    target = label if task == toys.BINARY else Masked(label.values.float(), label.mask)
    rows = toys.prepared({n: r.whole for n, r in rows.inputs.items()}, {"y": target, "other": target})
    before = getattr(model.spec.outputs["y"], fitted)
    tune(model, rows, CPU)
    assert all(getattr(part, fitted) != before for part in model.spec.outputs.values())
