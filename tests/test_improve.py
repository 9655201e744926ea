"""improve: one input trained further, accepted only if the whole model proves better, and nothing else changed."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import polymodal as pm
import shy
import toys
from polymodal.data.gather import silent
from polymodal.data.loader import prepare
from polymodal.data.source import Source
from polymodal.data.table import Table
from polymodal.diagnose.run import Diagnosis
from polymodal.errors import BundleError, DataError, SpecError
from polymodal.evaluate import Answers
from polymodal.improving.alone import Alone, Cells, Plan
from polymodal.improving.compare import WHOLE, Judged, judge
from polymodal.improving.ground import Ground
from polymodal.improving.make import divided
from polymodal.improving.refit import of_others
from polymodal.improving.run import improve
from polymodal.improving.teacher import augmented, better_teachers, lessons
from polymodal.metrics import bootstrap
from polymodal.modalities.image.augment import ImageAugmentation
from polymodal.model import Model
from polymodal.part import Modality
from polymodal.sides import Tables
from polymodal.types import Masked
from tiny import SCRATCH, picture

FAST = {"epochs": 3, "learning_rate": 0.05}
COUNT = 160
ROWS = shy.table(COUNT)


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals of metrics are not what is tested here, and cost most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polymodal.evaluate.REPEATS", 10)
        patch.setattr("polymodal.improving.compare.METRIC_REPEATS", 20)
        yield


@pytest.fixture(scope="module")
def bundle():
    return shy.fitted(ROWS)


@pytest.fixture(scope="module")
def untouched(bundle):
    """Copies from before the bundle was improved."""
    return copy.deepcopy((bundle.model.state_dict(), bundle.report, shy.deaf().state_dict())), bundle.spec


@pytest.fixture(scope="module")
def improved(bundle, untouched):
    return improve(bundle, ROWS, input="a", **FAST)


@pytest.fixture(scope="module")
def unseen():
    """A bundle that has not learned from its validation rows."""
    return shy.fitted(ROWS, training={"epochs": 8, "batch_size": 32, "refit": 0})


def parts(model, name):
    return [copy.deepcopy(part.state_dict()) for part in of_others(model, name)]


def equal(one, other):
    return len(one) == len(other) and all(toys.same(a, b) for a, b in zip(one, other, strict=True))


def test_thawing_lets_through_what_the_label_needs(bundle, improved):
    assert improved.accepted
    content, other = improved.content, shy.table(100, seed=9)
    assert content["before"]["score"] < 0.95
    assert content["after"]["score"] == 1.0
    assert content["before"]["alone"]["a"] < 0.7 < content["after"]["alone"]["a"]
    assert content["difference"]["loss"]["interval"][1] < 0 < content["difference"]["value"]
    scores = [b.evaluate(other).to_dict()["tasks"]["y"]["scores"]["accuracy"] for b in (bundle, improved.bundle)]
    assert scores[0] < 0.9 < 0.97 < scores[1]


def test_the_content_is_json_and_says_what_was_done(improved):
    content = json.loads(json.dumps(improved.content))
    assert (content["input"], content["method"]) == ("a", "lora")
    low, high = content["before"]["interval"]
    assert low <= content["before"]["score"] <= high
    assert content["accepted"] is True
    assert (content["task"], content["metric"], content["rows"], content["folds"]) == ("y", "accuracy", 24, 1)
    assert content["frozen"] == ["b"]
    assert content["changed"][0] == "a backbone (LoRA)"
    assert [epoch["number"] for epoch in content["history"]] == list(range(len(content["history"])))
    assert content["own_loss"]["after"] == min(epoch["valid_loss"] for epoch in content["history"])
    assert content["refitted"] is True
    assert content["parameters"] == 32  # 4 x 4 twice
    assert improved.reason == content["reason"]
    assert "changed by -" in improved.reason


def test_nothing_else_in_the_model_changes(bundle, improved):
    """The bundle that learned from all rows, and what it is made into, again from all rows."""
    assert equal(parts(bundle.model, "a"), parts(improved.bundle.model, "a"))
    assert not equal(parts(bundle.model, "b"), parts(improved.bundle.model, "b"))
    assert not toys.same(bundle.model.fusion, improved.bundle.model.fusion)
    assert improved.bundle.embedder.digests.keys() == {"a"}
    assert improved.bundle.embedder.digests != bundle.embedder.digests
    assert bundle.spec.inputs == improved.bundle.spec.inputs
    assert all(p.requires_grad for n, p in improved.bundle.model.named_parameters() if not n.startswith("linear"))


def test_nor_where_the_bundle_itself_is_compared(unseen):
    found = improve(unseen, ROWS, input="a", **FAST)
    assert found.accepted
    assert found.content["refitted"] is False
    assert equal(parts(unseen.model, "a"), parts(found.bundle.model, "a"))
    side = unseen.report["valid"]["tasks"]["y"]
    assert found.content["before"]["score"] == side["scores"]["accuracy"]  # before is the bundle as it is


def test_the_old_bundle_and_the_cached_backbone_stay(bundle, untouched, improved):
    (state, report, weights), spec = untouched
    assert improved.accepted
    assert toys.same(bundle.model, state)
    assert toys.same(shy.deaf(), weights)
    assert (bundle.spec, bundle.report, bundle.adapters) == (spec, report, {})
    assert bundle.embedder.adapted == {}


def test_a_useless_input_is_refused_and_the_old_bundle_comes_back():
    rows = shy.table(COUNT, useless=True)
    bundle = shy.fitted(rows)
    found = improve(bundle, rows, input="a", **FAST)
    assert found.bundle is bundle
    assert not found.accepted
    assert not found.content["accepted"]
    assert found.content["after"]["score"] is not None
    assert "so the old model is kept" in found.reason
    assert "improvements" not in bundle.report


def test_the_same_seed_gives_the_same_model(bundle, improved):
    again = improve(bundle, ROWS, input="a", **FAST)
    assert toys.same(again.bundle.model, improved.bundle.model)
    assert again.bundle.embedder.digests == improved.bundle.embedder.digests
    times = {"cpu_seconds"}
    assert {k: v for k, v in again.content.items() if k not in times} == {
        k: v for k, v in improved.content.items() if k not in times
    }


def test_saved_loaded_and_in_another_process(improved, tmp_path, own_environment):
    place = improved.bundle.save(tmp_path / "model")
    rows = {name: ROWS[name][:8] for name in "ab"}
    here = list(improved.bundle.predict(rows))
    loaded = pm.load(place, device="cpu")
    assert list(loaded.predict(rows)) == here
    assert loaded.embedder.digests == improved.bundle.embedder.digests
    assert loaded.evaluate(ROWS).to_dict() == improved.bundle.evaluate(ROWS).to_dict()
    code = f"import json, shy, polymodal as pm; print(json.dumps(list(pm.load({str(place)!r}).predict({rows!r}))))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=own_environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


def test_the_report_and_the_card_tell(bundle, improved, tmp_path):
    report = improved.bundle.report
    assert [entry["input"] for entry in report["improvements"]] == ["a"]
    assert "improvements" not in bundle.report
    assert report["valid"]["tasks"]["y"]["scores"]["accuracy"] == improved.content["after"]["score"]
    place = improved.bundle.save(tmp_path / "model")
    assert "## Improvements" in (place / "README.md").read_text()
    assert "a (lora)" in (place / "README.md").read_text()
    assert json.loads((place / "report.json").read_text())["improvements"] == json.loads(json.dumps([improved.content]))


def test_a_test_side_is_scored_anew():
    rows = shy.table(180)
    split = {"valid": 0.2, "test": 0.2, "by": "random"}
    bundle = shy.fitted(rows, split=split)
    found = improve(bundle, rows, input="a", **FAST)
    assert found.accepted
    assert found.bundle.report["test"]["rows"] == bundle.report["test"]["rows"]
    scores = [b.report["test"]["tasks"]["y"]["scores"]["accuracy"] for b in (bundle, found.bundle)]
    assert scores[0] < scores[1]


def test_twice(improved):
    again = improve(improved.bundle, ROWS, input="b")
    assert again.content["method"] is None
    assert again.content["changed"][0] == "b encoder"
    assert again.bundle.embedder.digests == improved.bundle.embedder.digests


def test_the_seed_is_of_the_training(bundle, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "polymodal.improving.run._Attempt.run", lambda self, folds: seen.append(self.plan) or _Nothing()
    )
    for more in ({}, {"seed": 3}):
        improve(bundle, ROWS, input="a", **more)
    assert [plan.seed for plan in seen] == [bundle.spec.seed, 3]
    source = Source("a", bundle.spec.inputs["a"], Table.read(ROWS))
    known = Masked(torch.zeros(COUNT, 1, dtype=torch.long), torch.ones(COUNT, 1, dtype=torch.bool))
    cells = Cells(source, torch.arange(COUNT), {"y": known}, {})
    adapters = []
    for plan in (*seen, seen[0]):
        alone = Alone(bundle.model, "a", shy.deaf(), plan, torch.device("cpu"))
        adapters.append(alone.train(cells, None, 1, lambda *_: None).adapter)
    assert len({adapter.digest("") for adapter in adapters if adapter}) == 2


def test_an_input_without_a_backbone_learns_anew():
    rows = shy.table(COUNT)
    hard = copy.deepcopy(rows)
    hard["b"] = [
        [(2.0 * y - 1) * x, x] for y, x in zip(rows["y"], np.random.default_rng(0).normal(size=COUNT), strict=True)
    ]
    training = {"epochs": 1, "batch_size": 32, "refit": 0}
    bundle = pm.fit(shy.spec(training=training), hard, cache=False)
    found = improve(bundle, hard, input="b", epochs=60)
    assert found.content["changed"][0] == "b encoder"
    assert found.content["own_loss"]["after"] < 0.5 < found.content["own_loss"]["before"]  # a product: not linear
    assert found.bundle.embedder.digests == bundle.embedder.digests


def test_a_bundle_is_judged_by_itself_only_on_the_rows_that_it_was_not_fitted_to(unseen):
    def ground(rows):
        return Ground(unseen, Tables(Table.read(rows), {}), False, silent)

    assert ground(ROWS).before() is unseen.model
    turned = {name: cells[::-1] for name, cells in ROWS.items()}
    assert ground(turned).seen  # as many rows, but others of them validate


# What is asked


def test_wrong_questions(bundle):
    with pytest.raises(SpecError, match=r"input must be one of \['a', 'b'\], got 'c'"):
        improve(bundle, ROWS, input="c")
    with pytest.raises(SpecError, match="seed must be 0 or more, got -1"):
        improve(bundle, ROWS, seed=-1)
    with pytest.raises(SpecError, match=r"method must be one of .* got 'lor'"):
        improve(bundle, ROWS, input="a", method="lor")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="method has no effect on 'b', which has no backbone"):
        improve(bundle, ROWS, input="b", method="lora")
    with pytest.raises(SpecError, match="rank has no effect with method last"):
        improve(bundle, ROWS, input="a", method="last", rank=2)
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"rank": 0}, {"seed": -1}, {"learning_rate": 0.0}, {"folds": 0}):
        with pytest.raises(SpecError, match=f"{next(iter(wrong))} must be"):
            improve(bundle, ROWS, input="a", **wrong)
    with pytest.raises(SpecError, match="folds must be 1 with a table to validate on"):
        improve(bundle, ROWS, input="a", folds=2, valid=shy.table(30, seed=4))


def test_the_weakest_is_found_on_validation_rows_by_a_model_that_does_not_know_them(bundle, monkeypatch):
    asked = []

    def diagnose(model, rows, *_, **__):
        asked.append((model, len(rows)))
        return Diagnosis({"weakest": "b"})

    monkeypatch.setattr("polymodal.improving.ground.diagnose", diagnose)
    monkeypatch.setattr("polymodal.improving.run._Attempt.run", lambda self, folds: _Nothing(self.name))
    assert improve(bundle, ROWS).reason == "b"
    (model, count), *more = asked
    assert not more
    assert count == bundle.report["fit"]["rows"]["valid"]
    assert not toys.same(model, bundle.model)


def test_the_weakest_by_a_diagnosis(bundle, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "polymodal.improving.run._Attempt.run", lambda self, folds: asked.append(self.name) or _Nothing()
    )
    improve(bundle, ROWS, diagnosis={"weakest": "b"})
    improve(bundle, ROWS, diagnosis={"weakest": "b"}, input="a")
    assert asked == ["b", "a"]
    found = improve(bundle, ROWS, diagnosis={"weakest": None})
    assert found.bundle is bundle
    assert not found.accepted
    assert "no weak input" in found.reason
    assert found.content["input"] is None
    assert asked == ["b", "a"]


class _Nothing:
    def __init__(self, reason=""):
        self.content, self.reason = {}, reason


def test_without_labelled_validation_rows():
    bundle = shy.fitted(ROWS, split={"valid": 0.0, "by": "random"})
    with pytest.raises(DataError, match="must have labelled validation rows to prove an improvement on, got none"):
        improve(bundle, ROWS, input="a")
    found = improve(bundle, ROWS, input="a", valid=shy.table(60, seed=4), **FAST)
    assert found.accepted
    assert found.content["rows"] == 60


def test_without_the_input_in_any_training_row(bundle):
    rows = ROWS | {"a": [None] * COUNT}
    with pytest.raises(DataError, match="train rows must have 'a' and a target, got none"):
        improve(bundle, rows, input="a")


def test_folds_compare_on_every_row(unseen):
    found = improve(unseen, ROWS, input="a", folds=2, **FAST)
    assert found.content["rows"] == COUNT
    assert found.content["folds"] == 2
    assert found.accepted


def test_folds_divide_the_rows():
    whole = toys.xor(50)
    train, valid = whole.select(torch.arange(40)), whole.select(torch.arange(40, 50))
    found = list(divided(train, valid, 4, 0))
    assert torch.equal(found[0][0].rows, train.rows)
    held = torch.cat([out.rows for _, out in found])
    assert sorted(held.tolist()) == list(range(50))
    assert all(not set(rest.rows.tolist()) & set(out.rows.tolist()) for rest, out in found)
    assert all(len(rest) + len(out) == 50 for rest, out in found)
    assert list(divided(train, valid, 4, 1))[1][1].rows.tolist() != found[1][1].rows.tolist()


def test_folds_keep_groups_whole():
    whole = toys.xor(50)
    train, valid = whole.select(torch.arange(40)), whole.select(torch.arange(40, 50))
    groups = [f"g{i // 4}" for i in range(50)]
    found = list(divided(train, valid, 4, 0, groups))
    assert sorted(torch.cat([out.rows for _, out in found]).tolist()) == list(range(50))
    for rest, out in found[1:]:
        assert not {groups[i] for i in rest.rows.tolist()} & {groups[i] for i in out.rows.tolist()}
    with pytest.raises(SpecError, match=r"folds must be in 1\.\.11, got 12"):
        list(divided(train, valid, 12, 0, groups))


def test_folds_are_of_the_groups_and_times_that_the_rows_were_split_by(monkeypatch):
    rows = ROWS | {"g": [i // 8 for i in range(COUNT)]}
    grouped = shy.fitted(rows, split={"by": "group", "column": "g"}, training={"epochs": 1, "batch_size": 32})
    given = []
    monkeypatch.setattr("polymodal.improving.run.divided", lambda *all: given.append(all[-1]) or iter(()))
    with pytest.raises(ValueError, match="unpack"):
        improve(grouped, rows, input="a", folds=3)
    assert given == [rows["g"]]
    timed = shy.fitted(rows, split={"by": "time", "column": "g"}, training={"epochs": 1, "batch_size": 32})
    with pytest.raises(SpecError, match="folds must be 1 with split by time"):
        improve(timed, rows, input="a", folds=3)


def test_nothing_of_a_refused_candidate_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    rows = shy.table(120, useless=True)
    bundle = shy.fitted(rows, cache=True)
    before = sorted(path.name for path in (*tmp_path.iterdir(), *(tmp_path / "graphs").iterdir()))
    assert not improve(bundle, rows, input="a", **FAST).accepted
    assert before == sorted(path.name for path in (*tmp_path.iterdir(), *(tmp_path / "graphs").iterdir()))


# The verdict


def judged(losses, right=None, whole=None, alone=None):
    losses = np.asarray(losses, float)
    labels = torch.zeros(len(losses), 1, dtype=torch.long)
    output = torch.tensor([[2.0, 0.0] if ok else [0.0, 2.0] for ok in (right or [True] * len(losses))])
    task = pm.Spec.parse({"inputs": {"a": "test-vectors"}, "outputs": {"y": toys.BINARY}}).outputs["y"]
    seen = Answers({"y": output}, {"y": Masked(labels, torch.ones_like(labels, dtype=torch.bool))})
    return Judged(
        {"y": task}, {WHOLE: seen}, losses, losses if whole is None else np.asarray(whole, float), alone or {}
    )


def against(before, after, seed=0):
    """The verdict where training on without the change gives nothing."""
    return judge(before, after, before, "a", seed)


def test_what_training_on_gives_alone_does_not_count():
    base = np.ones(50) + 0.01 * np.random.default_rng(0).normal(size=50)
    found = judge(judged(base), judged(base - 0.5), judged(base - 0.5), "a", 0)
    assert not found.accepted
    assert "no more than training on without the change gives: +0.0000" in found.reason
    assert judge(judged(base), judged(base - 0.5), judged(base - 0.2), "a", 0).accepted
    assert found.tasks["y"]["difference"]["loss"]["control"]["value"] == 0


def test_the_interval_is_of_the_paired_difference():
    rng = np.random.default_rng(0)
    hard, gain = rng.gamma(1.0, 2.0, 60), 0.1 + 0.05 * rng.normal(size=60)  # rows differ far more than the models do
    found = against(judged(hard), judged(hard - gain))
    assert found.accepted
    low, high = found.tasks["y"]["difference"]["loss"]["interval"]
    assert (low, high) == pytest.approx(bootstrap(lambda rows: float(-gain[rows].mean()), 60, 2000, 0))
    assert low < -gain.mean() < high < 0


def test_noise_harm_and_fallen_scores_are_refused():
    rng = np.random.default_rng(1)
    base, noise = np.ones(50), rng.normal(size=50)
    assert "is within noise" in against(judged(base), judged(base + noise - noise.mean())).reason
    assert "is for the worse" in against(judged(base), judged(base + 0.5)).reason
    worse = [False, *[True] * 49]
    fallen = against(judged(base), judged(base - 0.5, right=worse))
    assert not fallen.accepted
    assert "lower score (y: accuracy 1.000 -> 0.980)" in fallen.reason
    dearer = against(judged(base), judged(base - 0.5, whole=base + 0.1))
    assert not dearer.accepted
    assert "higher loss with every input (+0.1000)" in dearer.reason
    assert not against(judged(base), judged(base)).accepted
    sides = [
        judged(loss, alone={"a": base + more}) for loss, more in ((base, 0.0), (base - 0.5, 0.2), (base - 0.5, -0.2))
    ]
    spoiled = against(sides[0], sides[1])
    assert not spoiled.accepted
    assert "higher loss with a alone (+0.2000)" in spoiled.reason
    assert against(sides[0], sides[2]).accepted


def test_an_unchanged_recipe_is_accepted_no_more_often_than_promised(monkeypatch):
    rng, accepted = np.random.default_rng(2), 0
    monkeypatch.setattr("polymodal.improving.compare.METRIC_REPEATS", 2)
    monkeypatch.setattr("polymodal.improving.compare.REPEATS", 300)
    for seed in range(60):
        one, other = rng.gamma(1.0, 1.0, (2, 60))
        accepted += against(judged(one), judged(other), seed).accepted
    assert accepted <= 4  # 2.5 % expected


def test_row_losses_add_up_to_the_loss_of_the_calibrated_answer(unseen):
    prepared = _prepared(unseen, ROWS)
    found = Judged.of(unseen.model, prepared, torch.device("cpu"))
    metrics = unseen.evaluate(ROWS).to_dict()["tasks"]["y"]
    assert found.whole.mean() == pytest.approx(metrics["scores"]["nll"], abs=1e-5)
    without = np.mean([scores["nll"] for scores in metrics["without"].values()])
    assert found.losses.mean() == pytest.approx((metrics["scores"]["nll"] + without) / 2, abs=1e-5)


# The input by itself


def _prepared(bundle, rows):
    return prepare(bundle.spec, Table.read(rows), bundle.embedder)


def test_a_linear_model_that_knows_better_is_the_teacher(unseen):
    prepared, model = _prepared(unseen, ROWS), copy.deepcopy(unseen.model)
    cpu = torch.device("cpu")
    soft = lessons(model, prepared, "b", cpu)["y"]
    batch = prepared.batch(torch.arange(COUNT))
    assert torch.equal(soft, model.baselines()["b"](batch)["y"])
    with torch.no_grad():
        for p in model.single["y"]["b"].parameters():
            p.fill_(9.0)
        model.single["y"]["b"].project.bias[0] = -9.0
    assert better_teachers(model, prepared, "b", cpu) == ("y",)
    fooled = copy.deepcopy(unseen.model)
    fooled.linear["y"]["b"].bias.copy_(torch.tensor([-50.0, 50.0]))
    assert better_teachers(fooled, prepared, "b", cpu) == ()


def test_the_teachers_answers_draw_the_own_head():
    """With labels that say nothing, only the teacher can be learned from."""
    rows = shy.table(120, seed=5)
    bundle = shy.fitted(rows, training={"epochs": 1, "batch_size": 32})
    goal = torch.tensor([[1.0 - 2 * y, 2.0 * y - 1] for y in rows["y"]])
    nothing = Masked(torch.zeros(120, 1, dtype=torch.long), torch.zeros(120, 1, dtype=torch.bool))
    source = Source("a", bundle.spec.inputs["a"], Table.read(rows))
    plan = Plan("all", 8, 6, 16, 0.03, 9, 0)
    distances = []
    for soft in ({}, {"y": goal}):
        alone = Alone(bundle.model, "a", shy.deaf(), plan, torch.device("cpu"))
        cells = Cells(source, torch.arange(120), {"y": nothing}, soft)
        alone.train(cells, None, 6, lambda *_: None)
        alone.parts.eval()
        with torch.no_grad():
            outputs = alone._outputs(cells.batch(torch.arange(120), 0, None))["y"]
        distances.append(float((outputs - goal).square().mean()))
    assert distances[1] < 0.5 * distances[0]


def test_cells_are_varied_in_training_only():
    part = augmented(Modality.parse(SCRATCH["image"]).fit([]))
    assert part.augmentation == ImageAugmentation()
    given = Modality.parse(SCRATCH["image"] | {"augmentation": {"flip": 1.0}})
    assert augmented(given) is given
    plain = Modality.parse("test-shy")
    assert augmented(plain) is plain
    cells = Cells(Source("it", part, Table.read({"it": [picture(1), picture(2)]})), torch.tensor([1, 0]), {}, {})
    pick = torch.tensor([0])
    still, varied = cells.batch(pick, 0, None), cells.batch(pick, 0, 3)
    assert torch.equal(still.values[0], part.collate([part.read(picture(2)).value]).values[0])
    assert not torch.equal(still.values, varied.values)
    assert torch.equal(varied.values, cells.batch(pick, 0, 3).values)
    assert not torch.equal(varied.values, cells.batch(pick, 0, 4).values)


def test_a_model_is_trained_by_itself_without_touching_the_one_it_starts_from(bundle):
    state = copy.deepcopy(bundle.model.state_dict())
    alone = Alone(bundle.model, "a", shy.deaf(), Plan("lora", 8, 1, 16, 0.1, 1, 0), torch.device("cpu"))
    assert isinstance(alone.model, Model)
    with torch.no_grad():
        for p in alone.parts.parameters():
            p.add_(1.0)
    assert toys.same(bundle.model, state)


def test_ranks_are_refused(bundle, monkeypatch):
    monkeypatch.setattr(pm.Ranks, "current", classmethod(lambda cls: pm.Ranks(0, 2)))
    with pytest.raises(SpecError, match="must run in one process"):
        improve(bundle, ROWS, input="a")


def test_a_bundle_that_has_lost_its_adapters_is_refused(improved, tmp_path):
    place = improved.bundle.save(tmp_path / "model")
    (place / "adapters.safetensors").unlink()
    with pytest.raises(BundleError, match=r"adapters\.safetensors must be readable"):
        pm.load(place)
