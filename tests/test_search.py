"""Search: trials, pruning, resuming, folds, spaces, and what is written down."""

import csv
import json
import sys
from statistics import fmean, stdev

import pytest

import polymodal as pm
from polymodal.errors import DataError, PolymodalError
from polymodal.ranks import Ranks
from polymodal.searching.run import search
from polymodal.searching.score import Judge
from polymodal.searching.space import change, default_space, knobs, look
from polymodal.sides import Sides, Tables
from polymodal.train import Trainer
from tiny import columns

SPACE = {
    "training.learning_rate": {"low": 1e-5, "high": 3e-2, "log": True},
    "dim": {"low": 8, "high": 32, "step": 8},
    "fusion": ["concat", "gated", {"type": "concat", "dropout": 0.3}],
}


def numbers(rows=60):
    """What tells the label (x), what tells a little of it (colour is noise), and the label."""
    table = columns(rows)
    return {name: table[name] for name in ("x", "colour", "label", "price")}


XOR = {"left": {"type": "table", "categories": ["a"]}, "right": {"type": "table", "categories": ["b"]}}


def xor(rows=60):
    """A label that no linear model of the two columns says."""
    bits = [(i % 2, i // 2 % 2) for i in range(rows)]
    names = {"a": [f"a{a}" for a, _ in bits], "b": [f"b{b}" for _, b in bits]}
    return names | {"label": ["even" if a == b else "odd" for a, b in bits]}


def start(training=None, **more):
    """Two inputs of one column each, two epochs of one step."""
    inputs = {"size": {"type": "table", "numbers": ["x"]}, "look": {"type": "table", "categories": ["colour"]}}
    plan = {"epochs": 2, "batch_size": 64, **(training or {})}
    settings = {"dim": 16, "split": {"valid": 0.3}, "outputs": {"label": "classify"}, **more}
    return {"inputs": inputs, "training": plan, **settings}


def run(space=SPACE, trials=4, spec=None, table=None, **more):
    table = numbers() if table is None else table
    return search(
        start() if spec is None else spec, table, space=space, trials=trials, cache=False, device="cpu", **more
    )


def known(result):
    """Everything but the time it took."""
    return {name: value for name, value in result.to_dict().items() if name != "cpu_seconds"}


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
def test_the_first_trial_is_the_start_and_scores_what_a_fit_reports(metric):
    result = run(metric=metric)
    fit = pm.fit(start({"monitor": metric}), numbers(), cache=False)
    first, *others = result.trials
    assert first["score"] == pytest.approx(fit.report["valid"]["tasks"]["label"]["scores"][metric], abs=1e-12)
    assert first["settings"] == {"training.learning_rate": 3e-3, "dim": 16, "fusion": "concat"}
    history = [epoch["score"] for epoch in fit.report["fit"]["history"]]
    assert first["epochs"] == [1 + history.index(min(history) if metric == "nll" else max(history))]
    assert [trial["number"] for trial in others] == [1, 2, 3]
    better = max if metric == "accuracy" else min
    assert result.content["best"]["score"] == better(t["score"] for t in result.trials)


def test_the_loss_is_the_weighted_sum_over_tasks_of_the_tuned_answers():
    outputs = {"label": {"type": "classify", "weight": 2.0}, "price": {"type": "regress", "objective": "squared"}}
    whole = run(trials=1, spec=start(outputs=outputs))
    one = run(trials=1, spec=start(outputs=outputs), metric="label.nll").trials[0]["score"]
    assert whole.content["metric"] == "loss"
    assert whole.trials[0]["score"] > 2.0 * 0.5 * one


def test_a_knob_with_a_known_best_is_turned_to_it():
    blind = start(inputs={"size": {"type": "table", "categories": ["colour"]}})
    ways = [{"type": "table", "categories": ["colour"]}, {"type": "table", "numbers": ["x"]}]
    result = run({"inputs.size": ways}, trials=4, spec=blind)
    assert result.content["best"]["settings"] == {"inputs.size": ways[1]}
    assert result.best.inputs["size"].numbers == ("x",)
    assert result.content["gain"]["value"] > 0.2
    assert result.content["gain"]["error"] is None
    assert result.content["importances"] is None, "too few trials"


def test_a_number_with_a_known_best_is_found_and_named_as_what_matters():
    plan = start({"learning_rate": 1e-4, "epochs": 9, "patience": 0}, inputs=XOR, outputs={"label": "classify"})
    space = {"training.learning_rate": {"low": 1e-5, "high": 3e-2, "log": True}, "training.clip": [1.0, 5.0]}
    result = run(space, trials=10, spec=plan, table=xor(), prune=False)
    assert result.best.training.learning_rate > 3e-3
    assert result.content["best"]["score"] < 0.5 * result.trials[0]["score"]
    shares = result.content["importances"]
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == list(space), "the rate matters, the clipping does not"


def test_seeds_decide_and_a_spec_that_nothing_beats_stays():
    one, again, other = (run(seed=seed, trials=3) for seed in (1, 1, 2))
    assert known(one) == known(again)
    assert [t["settings"] for t in one.trials[1:]] != [t["settings"] for t in other.trials[1:]]
    worse = {"training.learning_rate": [3e-3, 1e-7, 1e-8]}
    kept = run(worse, trials=3)
    assert kept.content["best"]["number"] == 0
    assert kept.content["gain"]["value"] == 0
    assert kept.best == pm.Spec.parse(start())
    assert "Folds make the choice steadier" in str(kept)


def test_a_search_that_goes_on_equals_one_that_was_never_interrupted(tmp_path, monkeypatch):
    whole, place = run(trials=10), tmp_path / "deep" / "study.journal"
    run(trials=3, study=place)
    score, calls = Judge.score, []

    def killed(self, spec, on_epoch):
        calls.append(spec)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return score(self, spec, on_epoch)

    monkeypatch.setattr(Judge, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        run(trials=10, study=place)
    with place.open("ab") as file:
        file.write(b'{"op_code":4,"half')  # of a line that a killed process was writing
    monkeypatch.setattr(Judge, "score", score)
    resumed = run(trials=10, study=place)
    assert known(resumed) == known(whole)
    monkeypatch.setattr(Judge, "score", lambda *_: pytest.fail("all trials are over"))
    assert known(run(trials=10, study=place)) == known(whole)
    assert {trial["state"] for trial in whole.trials} == {"complete", "pruned"}


def test_a_study_of_another_search_is_refused(tmp_path):
    place = tmp_path / "study.journal"
    run(trials=1, study=place, space=SPACE)
    changed = numbers()
    changed["x"][0] += 1.0
    others = {
        "spec": {"seed": 3},
        "space": {"space": {"dim": [8, 16]}},
        "table": {"table": changed},
    }
    for what, other in others.items():
        with pytest.raises(pm.SpecError, match=f"got one with another {what}. Choose another file"):
            run(**{"trials": 2, "study": place, **other})
    with pytest.raises(pm.SpecError, match="another spec"):
        run(trials=2, study=place, metric="accuracy")
    with pytest.raises(pm.SpecError, match="another table"):
        run(trials=2, study=place, folds=2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(pm.SpecError, match="must be a study of polymodal search, got: a file of another kind"):
        run(trials=2, study=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(pm.SpecError, match="must be a file that can be written"):
        run(trials=2, study=tmp_path / "notes.txt" / "study")


def test_pruning_stops_trials_early(monkeypatch):
    epoch, ran = Trainer._epoch, []
    monkeypatch.setattr(Trainer, "_epoch", lambda self, number: ran.append(number) or epoch(self, number))
    slow = {"training.learning_rate": [3e-2, 2e-2, 1e-2, 1e-6, 1e-7]}
    plan = start({"epochs": 6, "patience": 0, "learning_rate": 3e-2}, inputs=XOR)
    whole = run(slow, trials=10, spec=plan, table=xor(), prune=False)
    assert len(ran) == 60
    assert {trial["state"] for trial in whole.trials} == {"complete"}
    ran.clear()
    result = run(slow, trials=10, spec=plan, table=xor())
    pruned = [trial for trial in result.trials if trial["state"] == "pruned"]
    assert pruned
    assert all(1 < trial["epochs"][0] < 6 and trial["score"] is None for trial in pruned)
    assert len(ran) == 6 * (10 - len(pruned)) + sum(trial["epochs"][0] for trial in pruned) < 60
    assert result.content["best"]["score"] == whole.content["best"]["score"]
    assert "10 trials: " in str(result)
    assert f"{len(pruned)} pruned" in str(result)


def test_settings_that_do_not_go_together_fail_one_trial_only():
    space = {"training.balance": ["auxiliary", "none"], "training.auxiliary": [1.0, 0.5]}
    result = run(space, trials=8)
    failed = [trial for trial in result.trials if trial["state"] == "failed"]
    assert failed
    assert all(t["settings"] == {"training.balance": "none", "training.auxiliary": 0.5} for t in failed)
    assert all("auxiliary has no effect with balance=none" in trial["reason"] for trial in failed)
    with pytest.raises(PolymodalError, match="loss must be finite"):
        run({"dim": [16, 8]}, spec=start({"learning_rate": 1e30, "clip": 0.0, "epochs": 4}))


def test_what_does_not_change_is_prepared_once(monkeypatch):
    made, fitted = [], []
    of, fit = Sides.of, sys.modules["polymodal.searching.score"].fit_baselines
    monkeypatch.setattr(Sides, "of", lambda *args, **more: made.append(1) or of(*args, **more))
    monkeypatch.setattr("polymodal.searching.score.fit_baselines", lambda *args: fitted.append(1) or fit(*args))
    run(trials=3, folds=2)
    assert (len(made), len(fitted)) == (2, 2)
    made.clear()
    run({"inputs.look.categories": [["colour"], ["colour", "price"]]}, trials=6)
    assert len(made) == 2


@pytest.mark.parametrize("by", ["random", "stratified", "group", "time", "given"])
def test_folds_divide_the_rows_as_the_split_says(by):
    rows = 61
    table = {
        "x": list(range(rows)),
        "y": ["ab"[i % 3 == 0] for i in range(rows)],
        "who": [f"p{i // 4}" for i in range(rows)],
        "side": ["test" if i >= 50 else "valid" if i % 5 == 0 else "train" for i in range(rows)],
    }
    column = {"group": "who", "time": "x"}.get(by)
    chosen = {"by": by, "test": 0.2} | ({"column": column} if column else {})
    spec = {"inputs": {"x": {"type": "table", "numbers": ["x"]}}, "outputs": {"y": "classify"}}
    parsed = pm.Spec.parse(spec | {"split": {"given": "side"} if by == "given" else chosen})
    tables = Tables(pm.Table.read(table), {})
    test = set(tables.divide(parsed)["test"].tolist())
    folds = tables.folds(parsed, 4)
    held = [fold["valid"].tolist() for fold in folds]
    assert len(folds) == 4
    assert len(test) > 8
    assert sum(map(len, held)) == len({row for part in held for row in part})
    assert not test & {row for fold in folds for side in fold.values() for row in side.tolist()}
    rest = set(range(rows)) - test
    assert max(map(len, held)) - min(map(len, held)) <= (4 if by == "group" else 1)
    for fold in folds:
        train, valid = set(fold["train"].tolist()), set(fold["valid"].tolist())
        if by == "time":
            assert max(train) < min(valid)
        else:
            assert train == rest - valid
        if by == "group":
            assert not {row // 4 for row in train} & {row // 4 for row in valid}
        if by in ("stratified", "given"):
            assert sum(row % 3 == 0 for row in valid) == pytest.approx(len(valid) / 3, abs=1)
    if by != "time":
        assert {row for part in held for row in part} == rest
    if by != "time":
        other = tables.folds(parsed.model_copy(update={"seed": 5}), 4)
        assert [fold["valid"].tolist() for fold in other] != held


def test_folds_that_cannot_be_made_are_refused():
    with pytest.raises(DataError, match=r"folds: the rows must make 9 of them: .* groups"):
        run(trials=1, folds=9, table=numbers(24), spec=start(split={"by": "group", "column": "colour"}))
    with pytest.raises(pm.SpecError, match="folds must be 1 with a table to validate on, got 3"):
        run(trials=1, folds=3, valid=numbers(10))


def test_one_trial_and_several_folds_are_a_cross_validation():
    result = run(trials=1, folds=3, metric="nll")
    (trial,) = result.trials
    assert len(trial["folds"]) == len(trial["epochs"]) == 3
    assert trial["score"] == pytest.approx(fmean(trial["folds"]))
    assert trial["error"] == pytest.approx(stdev(trial["folds"]) / 3**0.5)
    assert result.content["rows"] == 60
    assert f"{trial['score']:.4f} +- {trial['error']:.4f}" in str(result)
    assert "nll on 3 folds (60 rows; lower is better)" in str(result)
    assert "optimistic" not in str(result)
    several = run(trials=3, folds=3, metric="nll")
    assert several.trials[0] == trial
    best, error = several.content["best"], several.content["gain"]["error"]
    gains = [a - b for a, b in zip(trial["folds"], best["folds"], strict=True)]
    assert several.content["gain"]["value"] == pytest.approx(fmean(gains))
    assert error == pytest.approx(stdev(gains) / 3**0.5)
    assert "is optimistic" in str(several)
    assert "Folds" not in several.content["note"]


def test_a_table_to_validate_on_judges():
    result = run(trials=1, valid=numbers(20), spec=start(split={}))
    assert result.content["rows"] == 20
    with pytest.raises(pm.SpecError, match="must have labelled rows to validate on, got none"):
        run(spec=start(split={"valid": 0.0}))


def test_no_trial_begins_after_the_time_is_over():
    assert len(run(trials=5, timeout=0.0).trials) == 1


def test_what_is_written_fits_again(tmp_path):
    np_table = numbers()
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(np_table), *zip(*np_table.values(), strict=True)])
    result = run(table=tmp_path / "train.csv", metric="nll")
    place = result.save(tmp_path / "out", {"train": tmp_path / "train.csv"})
    assert place == tmp_path / "out" / "best.yaml"
    fit = pm.fit(place, cache=False)
    scores = fit.report["valid"]["tasks"]["label"]["scores"]
    assert scores["nll"] == pytest.approx(result.content["best"]["score"], abs=1e-9)
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == result.to_dict()
    with (tmp_path / "out" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == [0, 1, 2, 3]
    assert {"state", "score", "error", *SPACE, "reason"} == rows[0].keys() - {"number"}
    assert float(rows[0]["score"]) == result.trials[0]["score"]
    result.save(tmp_path / "out")
    assert pm.Spec.parse(place) == result.best.model_copy(update={"data": None})
    with pytest.raises(PolymodalError, match="must be a folder that can be written"):
        result.save(tmp_path / "train.csv" / "out")


def test_a_space_from_a_file(tmp_path):
    (tmp_path / "space.yaml").write_text("search:\n  dim: [16, 8]\n  training.weight_decay: {low: 0.01, high: 0.1}\n")
    result = run(tmp_path / "space.yaml", trials=3)
    assert result.trials[1]["settings"].keys() == {"dim", "training.weight_decay"}
    assert all(0.01 <= trial["settings"]["training.weight_decay"] <= 0.1 for trial in result.trials[1:])
    with pytest.raises(pm.SpecError, match="space must be a readable YAML or JSON file"):
        run(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"training.learning_rat": [1e-3, 1e-2]}, "space: training.learning_rat: no such setting. Did you mean"),
        ({"training.learning_rate": [1e-3, -1.0]}, "space: training.learning_rate: Input should be greater than 0"),
        ({"training.epochs": {"low": 2.5, "high": 8}}, "space: training.epochs: Input should be a valid integer"),
        ({"fusion": ["concat", "gatd"]}, "space: fusion: fusion type must be one of .*Did you mean 'gated'"),
        ({"inputs.sizes.numbers": [["x"], ["price"]]}, "inputs must be one of .*got 'sizes'. Did you mean 'size'"),
        ({"dim": [16]}, "space: dim must be a list of two or more values, or low and high, got"),
        ({"dim": "16"}, "space: dim must be a list"),
        ({"fusion": ["concat", {"type": "concat"}]}, "space: fusion must be a list of different values"),
        ({"dim": {"low": 32, "high": 8}}, "space: dim: Value error, low must be below high"),
        ({"dim": {"low": 8, "hihg": 32}}, "space: dim.high: Field required"),
        ({"dim": {"low": 8, "high": 32, "log": True, "step": 8}}, "log must have a low above 0 and no step"),
        ({"training.dropout": {"low": 0.0, "high": 0.5, "log": True}}, "log must have a low above 0"),
        ({"dim": {"low": 8, "high": 32, "step": 7}}, "step must go into high - low without a rest"),
        ({"dim": {"low": 8, "high": 10, "step": 0.5}}, "dim.step must be a whole number"),
        ({"dim.x": [1, 2]}, "space: dim.x: no such setting"),
        ({"seed": [1, 2]}, "space: seed must stay as it is: it is the search's own"),
        ({"split.valid": [0.1, 0.2]}, "split.valid|split must stay as it is: trials on other rows"),
        ({"training.monitor": ["loss", "accuracy"]}, "give a metric instead"),
        ({"training.refit": [0, 10]}, "no trial trains once more"),
        ({"training": [{"epochs": 3}, {"epochs": 4}]}, "training must be followed by one of its settings"),
        ({"outputs.label.label_smoothing": [0.0, 0.1]}, "where trials are compared by their loss. Give a metric"),
        ({}, "space must be a mapping from settings to what to try"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(space, message):
    with pytest.raises(pm.SpecError, match=message):
        run(space)


def test_faults_of_a_space_are_told_together():
    with pytest.raises(pm.SpecError) as error:
        run({"dim": [16], "fusion": ["concat", "none"], "training.dropout": {"low": 0.1, "high": 1.5}})
    lines = str(error.value).splitlines()
    assert [line.split()[1].strip(":") for line in lines] == ["dim", "fusion", "training.dropout"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trials": 0}, "trials must be 1 or more, got 0"),
        ({"folds": 0}, "folds must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"metric": "accurac"}, "training.monitor must be loss or a score .*Did you mean 'accuracy'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(given, message):
    with pytest.raises(pm.SpecError, match=message):
        run(**given)


def test_settings_of_a_task_with_a_metric():
    result = run({"outputs.label.label_smoothing": [0.0, 0.2, 0.05]}, trials=3, metric="accuracy")
    assert result.trials[0]["settings"] == {"outputs.label.label_smoothing": 0.05}
    assert all(trial["state"] == "complete" for trial in result.trials)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(Ranks, "join", classmethod(lambda cls, device: Ranks(0, 2)))
    with pytest.raises(pm.SpecError, match="search must run in one process, got 2"):
        run()


def test_without_optuna_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(pm.SpecError, match=r"pip install 'polymodal\[search\]'"):
        run()


def test_what_is_changed_and_read_by_a_path():
    spec = pm.Spec.parse(start(inputs={"a.b": {"type": "text", "backbone": "none"}, "a": "text"}))
    changed = change(spec, {"inputs.a.b.min_count": 3, "fusion.dropout": 0.4, "training.alignment.weight": 0.7})
    assert changed.inputs["a.b"].min_count == 3
    assert changed.inputs["a"] == spec.inputs["a"]
    assert changed.fusion.dropout == 0.4
    assert changed.training.alignment.weight == 0.7
    assert look(changed, "inputs.a.b.min_count") == 3
    assert look(changed, "inputs.a.b.backbone") == "none"
    assert look(changed, "fusion") == {"type": "concat", "dropout": 0.4}
    assert look(spec, "fusion") == "concat"
    assert look(spec, "training.alignment.weight") is None
    both = change(spec, {"fusion.depth": 3, "fusion": "attention"})
    assert (both.fusion.kind, both.fusion.depth) == ("attention", 3)


def test_numbers_and_the_start_among_them():
    spec = pm.Spec.parse(start())
    space = {
        "dim": {"low": 8, "high": 32, "step": 8},
        "training.clip": {"low": 0, "high": 2},
        "training.epochs": [3, 4],
    }
    dim, clip, epochs = knobs(spec, space)
    assert (dim.whole, dim.start) == (True, 16)
    assert (clip.whole, clip.start) == (False, 1.0)
    assert (epochs.values, epochs.start) == ({"3": 3, "4": 4}, None)
    assert knobs(spec, {"dim": {"low": 10, "high": 30, "step": 10}})[0].start is None
    outside = run({"training.epochs": [3, 4], "dim": {"low": 8, "high": 32, "step": 8}}, trials=4)
    assert outside.trials[0]["settings"] == {"training.epochs": 2, "dim": 16}
    assert all(t["settings"]["dim"] in (8, 16, 24, 32) for t in outside.trials)
    assert all(t["settings"]["training.epochs"] in (3, 4) for t in outside.trials[1:])


def test_the_default_space_holds_the_start_and_only_what_has_an_effect():
    spec = pm.Spec.parse(start({"batch_size": 48, "learning_rate": 0.1, "weight_decay": 0.0}, fusion="tensor"))
    space = default_space(spec)
    assert all(knob.start is not None for knob in knobs(spec, space))
    assert {"fusion", "training.balance", "training.modality_dropout"} < space.keys()
    assert "training.dropout" not in space, "no input is summarised"
    assert "training.dropout" in default_space(pm.Spec.parse(start(inputs={"t": "text", "u": "text"})))
    single = default_space(pm.Spec.parse(start(inputs={"size": {"type": "table", "numbers": ["x"]}})))
    assert not {"fusion", "training.balance", "training.modality_dropout"} & single.keys()
    assert "fusion" not in default_space(pm.Spec.parse(start(fusion="attention")))
    fixed = pm.Spec.parse(start({"balance": "auxiliary", "auxiliary": 0.5}))
    assert "training.balance" not in default_space(fixed)
    result = run(None, trials=2)
    assert result.trials[1]["settings"].keys() == default_space(pm.Spec.parse(start())).keys()
