"""Linear baselines: they are logistic regressions, their penalty is chosen on validation, their cost is bounded."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

import toys
from polymodal import baselines
from polymodal.baselines import STRENGTHS, fit_baselines, summaries
from polymodal.model import ALL, Model
from polymodal.types import Masked

CPU = torch.device("cpu")
THREE = {"y": {"type": "classify", "classes": [0, 1, 2], "label_smoothing": 0.0}}


def data(rows=120, seed=0, absent=0.0, classes=3, scale=1.0):
    """Label from a noisy linear score of both inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, 2, generator=generator)
    score = x.flatten(1) @ torch.randn(4, classes, generator=torch.Generator().manual_seed(9))
    label = (scale * score + torch.randn(rows, classes, generator=generator)).argmax(1, keepdim=True)
    gone = torch.rand(rows, 2, generator=generator) < absent
    inputs = {name: Masked(x[:, i : i + 1], ~gone[:, i : i + 1]) for i, name in enumerate("ab")}
    return toys.prepared(inputs, {"y": Masked(label, torch.ones(rows, 1, dtype=torch.bool))})


def fitted(train, valid=None, monkeypatch=None, strengths=None, outputs=None, **changes) -> Model:
    if monkeypatch is not None:
        for name, value in ({"STRENGTHS": strengths} if strengths else {}).items():
            monkeypatch.setattr(baselines, name, value)
        for name, value in changes.items():
            monkeypatch.setattr(baselines, name, value)
    torch.manual_seed(0)
    model = Model(toys.spec(outputs=outputs or THREE)).eval()
    fit_baselines(model, train, valid, CPU)
    return model


@pytest.mark.parametrize("strength", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("absent", [0.0, 0.3])
def test_it_is_the_logistic_regression_of_the_same_penalty(strength, absent, monkeypatch):
    train = data(absent=absent)
    model = fitted(train, None, monkeypatch, (strength,), STEPS=300)
    linear = model.linear["y"][ALL]
    seen = summaries(model, train, CPU)
    design = linear.design(seen.features, seen.present).numpy()
    label = train.targets["y"].values[:, 0].numpy()
    reference = LogisticRegression(C=1 / (strength * len(label)), tol=1e-10, max_iter=5000).fit(design, label)
    ours = linear(seen.features, seen.present).softmax(1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(design), atol=2e-3)


def test_for_squared_errors_it_is_ridge_regression(monkeypatch):
    train = data()
    number = train.targets["y"].values.float() + 0.1 * torch.randn(120, 1)
    train = toys.prepared({n: r.whole for n, r in train.inputs.items()}, {"y": Masked(number, number < 99)})
    outputs = {"y": {"type": "regress", "objective": "squared", "mean": [0], "scale": [1]}}
    model = fitted(train, None, monkeypatch, (0.1,), outputs, STEPS=300)
    linear = model.linear["y"][ALL]
    seen = summaries(model, train, CPU)
    design = linear.design(seen.features, seen.present).numpy()
    reference = Ridge(alpha=0.05 * len(number), tol=1e-12).fit(design, number.numpy())
    ours = linear(seen.features, seen.present).numpy().ravel()
    np.testing.assert_allclose(ours, reference.predict(design).ravel(), atol=1e-3)


@pytest.mark.parametrize(("rows", "scale"), [(20, 0.0), (400, 100.0)])
def test_the_penalty_is_the_best_on_validation(rows, scale, monkeypatch):
    train, valid = data(rows, 1, scale=scale), data(300, 2, scale=scale)
    losses = {}
    for strength in STRENGTHS:
        model = fitted(train, None, monkeypatch, (strength,))
        seen = summaries(model, valid, CPU)
        output = model.linear["y"][ALL](seen.features, seen.present)
        losses[strength] = model.spec.outputs["y"].loss(output, valid.targets["y"]).item()
    best = min(losses, key=losses.__getitem__)
    assert best == (STRENGTHS[0] if scale == 0 else STRENGTHS[-1])
    model = fitted(train, valid, monkeypatch, STRENGTHS)
    seen = summaries(model, valid, CPU)
    output = model.linear["y"][ALL](seen.features, seen.present)
    chosen = model.spec.outputs["y"].loss(output, valid.targets["y"]).item()
    assert chosen == pytest.approx(losses[best], abs=0.02)


def test_without_labelled_validation_rows_the_middle_penalty_is_taken():
    train, valid = data(), data(20, 3)
    inputs = {n: r.whole for n, r in valid.inputs.items()}
    nothing = toys.prepared(inputs, {"y": valid.targets["y"].without(torch.ones(20, dtype=torch.bool))})
    for held in (None, nothing):
        taken = fit_baselines(Model(toys.spec(outputs=THREE)), train, held, CPU)
        assert set(taken.values()) == {STRENGTHS[len(STRENGTHS) // 2]}
        assert set(taken) == {("y", label) for label in (ALL, "a", "b")}


def test_a_penalty_that_was_chosen_before_is_kept():
    taken = fit_baselines(Model(toys.spec(outputs=THREE)), data(), data(20, 3), CPU, {("y", "a"): 7.0})
    assert taken["y", "a"] == 7.0
    assert taken["y", "b"] in STRENGTHS


def test_a_baseline_of_one_input_sees_no_other():
    model = fitted(data(absent=0.2))
    for label, other in (("a", slice(2, 4)), ("b", slice(0, 2))):
        linear = model.linear["y"][label]
        assert not linear.weight[other].any()
        batch = data(30, 4).batch(torch.arange(30))
        own = model.baselines()[label](batch.without("b" if label == "a" else "a"))["y"]
        torch.testing.assert_close(model.baselines()[label](batch)["y"], own, atol=1e-5, rtol=1e-5)


def test_rows_are_capped_and_chosen_by_the_seed(monkeypatch):
    train = data(100)
    asked = []
    plain = baselines.summaries

    def spy(model, prepared, device):
        asked.append(prepared.rows.tolist())
        return plain(model, prepared, device)

    monkeypatch.setattr(baselines, "summaries", spy)
    fitted(train, None, monkeypatch, ROWS=30)
    fitted(train, None, monkeypatch, ROWS=30)
    assert len(asked[0]) == 30
    assert asked[0] == asked[1] == sorted(set(asked[0]))
    assert max(asked[0]) > 30


def test_batches_do_not_matter_and_progress_is_told(monkeypatch):
    train, told = data(50, absent=0.3), []
    model = Model(toys.spec(outputs=THREE))
    whole = summaries(model, train, CPU)
    monkeypatch.setattr(baselines, "BATCH", 7)
    parts = summaries(model, train, CPU)
    assert torch.equal(parts.features, whole.features)
    assert torch.equal(parts.present, whole.present)
    assert torch.equal(parts.targets["y"].values, whole.targets["y"].values)
    fit_baselines(model, train, None, CPU, progress=lambda *args: told.append(args))
    assert told == [("baselines", i, 3) for i in (1, 2, 3)]
