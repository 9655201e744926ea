"""Permuted inputs and ceilings: what is dealt out anew, what stays, and what each input could give."""

import numpy as np
import pytest
import torch

import toys
from polymodal.diagnose.ceilings import ceilings, constant
from polymodal.diagnose.permute import permute, permuted, presence
from polymodal.diagnose.scores import Scorer
from polymodal.evaluate import answers
from polymodal.model import ALL, Model
from polymodal.tasks.classify import Classify
from polymodal.tasks.regress import Regress
from polymodal.types import Masked

CPU = torch.device("cpu")


def scorers_of(model, rows, metric="accuracy", repeats=20):
    return {"y": Scorer(model.spec.outputs["y"], metric, rows.targets["y"][rows.rows], repeats, 0)}


def model_that_reads(name, names=("a", "b")):
    """A model whose answer is the linear one: class 1 where the input's first feature is positive."""
    torch.manual_seed(0)
    model = Model(toys.spec(names)).eval()
    labels = [ALL, *names] if len(names) > 1 else [ALL]
    column = 2 * names.index(name)
    for label in labels:
        model.linear["y"][label].weight[column] = torch.tensor([-9.0, 9.0])
    model.share.fill_(1.0)
    return model


def test_an_input_is_dealt_out_among_the_rows_that_have_it():
    rows = toys.xor(60, absent=0.3).select(torch.arange(10, 60))
    here = presence(rows)
    mixed = permute(rows, "a", here["a"], np.random.default_rng(0))
    before, after = (x.batch(torch.arange(50)).inputs for x in (rows, mixed))
    assert torch.equal(after["b"].values, before["b"].values)
    assert torch.equal(after["a"].present, before["a"].present)
    kept, dealt = (x["a"].values[here["a"], 0, 0] for x in (before, after))
    assert torch.equal(kept.sort().values, dealt.sort().values)
    assert (kept != dealt).float().mean() > 0.8
    assert 0 < int((~here["a"]).sum()) < 50


def test_permuting_what_carries_the_answer_leaves_chance_and_the_rest_changes_nothing():
    rows = toys.xor(400)
    a = rows.inputs["a"].whole.values[:, 0, :1]
    rows = toys.prepared({n: r.whole for n, r in rows.inputs.items()}, {"y": Masked((a > 0).long(), a > -9)})
    model = model_that_reads("a")
    scorers = scorers_of(model, rows)
    full = scorers["y"](answers(model, rows, CPU).outputs["y"])
    found = permuted(model, rows, CPU, scorers, presence(rows), 0)["y"]
    assert full[0] == 1.0
    assert found["a"][0] == pytest.approx(0.5, abs=0.06)
    assert np.array_equal(found["b"], full)
    again = permuted(model, rows, CPU, scorers, presence(rows), 0)["y"]
    assert np.array_equal(found["a"], again["a"])
    assert found["a"][0] != permuted(model, rows, CPU, scorers, presence(rows), 1)["y"]["a"][0]


def test_an_input_that_fewer_than_two_rows_have_is_not_permuted():
    rows = toys.xor(20)
    a = rows.inputs["a"].whole
    inputs = {"a": Masked(a.values, torch.arange(20)[:, None] == 3), "b": rows.inputs["b"].whole}
    rows = toys.prepared(inputs, rows.targets)
    model = model_that_reads("b")
    assert permuted(model, rows, CPU, scorers_of(model, rows), presence(rows), 0)["y"]["a"] is None


def test_ceilings_are_the_scores_of_the_own_heads_and_of_the_linear_models():
    rows = toys.xor(50, absent=0.2)
    model = model_that_reads("b")
    tops = ceilings(model, rows, CPU, scorers_of(model, rows, "nll"))["y"]
    batch, task = rows.batch(torch.arange(50)), model.spec.outputs["y"]
    with torch.no_grad():
        single, linear = model(batch.inputs).single["y"], model.baselines()
        for name in "ab":
            own = task.metrics(single[name], batch.targets["y"])["nll"]
            flat = task.metrics(linear[name](batch)["y"], batch.targets["y"])["nll"]
            assert tops[name].own_head[0] == pytest.approx(own, rel=1e-5)
            assert tops[name].linear[0] == pytest.approx(flat, rel=1e-5)


def test_the_ceiling_of_an_only_input_is_the_linear_model_of_everything():
    rows = toys.xor(30)
    rows = toys.prepared({"a": rows.inputs["a"].whole}, rows.targets)
    model = model_that_reads("a", ("a",))
    tops = ceilings(model, rows, CPU, scorers_of(model, rows))["y"]["a"]
    output = answers(model, rows, CPU, decode=model.baselines()[ALL]).outputs["y"]
    assert tops.linear[0] == model.spec.outputs["y"].metrics(output, rows.targets["y"])["accuracy"]


def test_the_best_constant_is_the_frequencies_and_the_mean():
    label = torch.tensor([[0], [1], [1], [1], [2], [0]])
    known = torch.tensor([[True]] * 5 + [[False]])
    task = Classify(classes=(0, 1, 2), label_smoothing=0.0)
    output = constant(task, Masked(label, known))
    assert output.shape == (6, 3)
    assert output[0].softmax(0).tolist() == pytest.approx([0.2, 0.6, 0.2], abs=1e-3)
    numbers = Masked(torch.tensor([[0.0], [1.0], [5.0]]), torch.ones(3, 1, dtype=torch.bool))
    assert constant(Regress(objective="squared", mean=(0.0,), scale=(1.0,)), numbers)[0].item() == pytest.approx(2.0)
