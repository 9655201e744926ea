"""The HTML report: what it says, what it draws, what it survives. Needs no browser."""

import copy
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from polymodal.report.markup import Markup, number, significant, table, tag
from polymodal.report.page import duration, page, save_page
from polymodal.report.plots import bar, calibration, curves, stack, ticks_of
from polymodal.report.scores import scale, variants
from polymodal.report.words import change, lower_is_better, metric_name, verdict

CLASSES = ["album", "book", "camera", "clock", "guitar", "lamp", "shoe", "violin"]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Document(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words, self.attributes = [], [], [], []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in {"td", "th", "p", "li", "small", "caption"}:
            self.words.append(" ")

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def confusion(k: int, rows: int, right: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    share = np.full(k, (1 - right) / (k - 1))
    return np.stack([rng.multinomial(rows, np.where(np.arange(k) == i, right, share)) for i in range(k)])


def classified(classes: list, right: float = 0.93, rows: int = 22, inputs=("text", "image", "table")) -> dict:
    """One task's evaluation, as evaluate() gives it."""
    counts = confusion(len(classes), rows, right, 0)
    accuracy = counts.trace() / counts.sum()
    bins = [(0.4, 3, 0.33), (0.55, 9, 0.44), (0.68, 12, 0.75), (0.83, 31, 0.84), (0.97, 121, 0.992)]

    def scores(value: float) -> dict:
        return {"accuracy": value, "macro_f1": value - 0.01, "auroc": min(1, value + 0.05), "nll": 2 - 1.8 * value}

    per_class = [
        {
            "class": name, "precision": 0.9 + 0.01 * (i % 9), "recall": counts[i, i] / counts[i].sum(), "f1": 0.91,
            "support": int(counts[i].sum()), "auroc": 0.99, "average_precision": 0.97,
        }
        for i, name in enumerate(classes)
    ]  # fmt: skip
    return {
        "kind": "classify",
        "headline": "accuracy",
        "scores": {**scores(accuracy), "brier": 0.061, "ece": 0.024},
        "interval": {"accuracy": [accuracy - 0.04, min(1, accuracy + 0.035)]},
        "without": {name: scores(accuracy - 0.02 - 0.15 * (i == 1)) for i, name in enumerate(inputs)},
        "alone": {name: scores(0.41 + 0.36 * (i == 1) + 0.1 * (i == 0)) for i, name in enumerate(inputs)},
        "baselines": {
            "fusion model": scores(accuracy - 0.004),
            "linear on all inputs": scores(accuracy - 0.009),
            **{f"linear on {name} only": scores(0.38 + 0.35 * (i == 1)) for i, name in enumerate(inputs)},
        },
        "share": 0.25,
        "details": {
            "classes": classes,
            "confusion": counts.tolist(),
            "per_class": per_class,
            "reliability": [
                {"low": c - 0.05, "high": c + 0.05, "count": float(n), "confidence": c, "accuracy": a}
                for c, n, a in bins
            ],
        },
    }


def regressed() -> dict:
    """One regression task whose headline is an error."""
    return {
        "kind": "regress",
        "headline": "mae",
        "scores": {"mae": 12.4, "r2": 0.71, "rmse": 17.8, "coverage": 0.91},
        "interval": {"mae": [11.2, 13.9]},
        "without": {"text": {"mae": 14.1, "r2": 0.6}, "image": {"mae": 12.2, "r2": 0.7}},
        "alone": {"text": {"mae": 15.0, "r2": 0.5}, "image": {"mae": 31.0, "r2": -0.2}},
        "baselines": {"linear on all inputs": {"mae": 13.0, "r2": 0.69}},
        "share": 0.0,
        "details": {
            "targets": ["price", "weight"],
            "levels": [{"level": p, "coverage": p**1.1} for p in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)],
            "correlation": [[1.0, -0.42], [-0.42, 1.0]],
        },
    }


def sample_data() -> dict:
    """A data report, as DataReport.to_dict() gives it."""
    broken = [
        {"row": 17, "column": "photo", "origin": "photos/0017.jpg", "reason": "truncated JPEG: 2,113 bytes missing"},
        {"row": 402, "column": "photo", "origin": "photos/0402.png", "reason": "not an image: starts with '<html>'"},
    ]

    def one(kind: str, present: int, repaired: dict, rows: list, ranges: dict, duplicates: int) -> dict:
        return {
            "kind": kind, "present": present, "absent": 1180 - present, "repaired": repaired, "quarantined": len(rows),
            "quarantined_rows": rows, "ranges": ranges, "duplicates": duplicates, "missing_column": False,
        }  # fmt: skip

    return {
        "source": "things/train.csv",
        "rows": 1180,
        "inputs": {
            "text": one("text", 1102, {"markup removed": 214}, [], {"words": {"min": 1, "mean": 21.4, "max": 188}}, 12),
            "image": one(
                "image", 1001, {"turned upright": 96, "transparent on white": 31}, broken,
                {"width": {"min": 48, "mean": 803.2, "max": 4032}, "height": {"min": 40, "mean": 612.9, "max": 3024}},
                3,
            ),
            "table": one("table", 1180, {}, [], {}, 0),
        },
        "targets": {
            "label": {
                "kind": "classify", "labelled": 1174, "unlabelled": 6,
                "balance": {name: 260 - 28 * i for i, name in enumerate(CLASSES)},
            }
        },
        "leaks": ["4 of 176 test rows have an image that a train row has too (first: train row 12, test row 893)."],
        "unused_columns": ["id", "url"],
    }  # fmt: skip


def sample() -> dict:
    """A whole report: 8 classes, 3 inputs, everything present."""
    epochs = [
        {
            "number": i,
            "train_loss": 2.1 * math.exp(-i / 5) + 0.12,
            "valid_loss": 2.1 * math.exp(-i / 4) + 0.3 + 0.008 * i,
            "terms": {"label": 2.0 * math.exp(-i / 5)},
        }
        for i in range(20)
    ]
    data = sample_data()
    return {
        "spec": "inputs:\n  text: {type: text}\n  image: {type: image, column: photo}\noutputs:\n  label: classify\n",
        "data": data,
        "valid": {
            "rows": 170, "source": data["source"], "inputs": list(data["inputs"]),
            "tasks": {"label": classified(CLASSES, 0.9)}, "data": data,
        },
        "test": {
            "rows": 176, "source": data["source"], "inputs": list(data["inputs"]),
            "tasks": {"label": classified(CLASSES)}, "data": data,
        },
        "fit": {
            "rows": {"train": 828, "valid": 170, "test": 176}, "history": epochs, "seconds": 74.2, "cpu_seconds": 141.0,
            "device": "cpu", "parameters": 812_344,
        },
    }  # fmt: skip


def with_task(task: dict, name: str = "label") -> dict:
    return {"test": {"rows": 176, "tasks": {name: task}}}


def test_a_whole_report_is_one_offline_page(tmp_path):
    path = save_page(sample(), tmp_path / "new" / "report.html")
    source = path.read_text(encoding="utf-8")
    document = Document(source)
    assert source.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe"} & set(document.tags)
    assert not re.search(r"https?://|@import|url\(", source)
    assert not [name for _, name, _ in document.attributes if name in {"src", "href"} or name.startswith("on")]
    for words in ("things/train.csv", "812,344", "1 min 14 s", "truncated JPEG", "type: image", "album", "id, url"):
        assert words in document.text
    assert len(source) < 200_000


def test_the_verdict_is_one_sentence_with_every_number():
    task = classified(CLASSES) | {
        "scores": {"accuracy": 0.932},
        "interval": {"accuracy": [0.89, 0.97]},
        "without": {"text": {"accuracy": 0.91}, "image": {"accuracy": 0.744}},
        "baselines": {"linear on all inputs": {"accuracy": 0.92}, "fusion model": {"accuracy": 0.99}},
    }
    assert Document(verdict("label", task, 176, "test")).text == (
        "label: accuracy 0.93 (95 % 0.89 to 0.97) on 176 test rows; without text 0.91, without image 0.74; "
        "the best baseline (linear on all inputs) has 0.92."
    )


def test_the_verdict_names_a_better_baseline_and_the_direction():
    task = regressed() | {"baselines": {"linear": {"mae": 11.0}, "mean": {"mae": 40.0}}}
    said = Document(verdict("price", task, 90, "valid")).text
    assert "MAE 12.4 (lower is better; 95 % 11.2 to 13.9) on 90 valid rows" in said
    assert "the best baseline (linear) is better with 11.0." in said


def test_the_verdict_names_the_costliest_of_many_inputs():
    task = {"headline": "accuracy", "scores": {"accuracy": 0.9}}
    task["without"] = {f"i{k}": {"accuracy": 0.9 - 0.01 * k} for k in range(12)}
    said = Document(verdict("y", task, 50, "test")).text
    assert "without i11 0.79, without i10 0.80, without i9 0.81, without any one of the 9 others 0.82 to 0.90" in said


def test_losses_of_both_sides_are_drawn_so_that_they_compare():
    report = sample()
    report["spec"] = "outputs:\n  label: {type: classify, weight: 2}\n"
    terms = {"label": 0.5, "label from text": 4.0}
    report["fit"]["history"] = [{"number": 0, "train_loss": 5.0, "valid_loss": 1.1, "terms": terms}]
    said = Document(page(report)).text
    assert "Loss of the tasks over 1 epoch: train 1.00 to 1.00, lowest in epoch 1; valid 1.10" in said
    assert "All that is minimised, further terms included: 5.00 to 5.00" in said
    for spec in ("{", "outputs: {other: classify}", "outputs: {label: {weight: x}}", "7"):
        report["spec"] = spec
        assert "Loss over 1 epoch: train 5.00 to 5.00" in Document(page(report)).text


def test_scores_on_rows_that_chose_the_model_say_so():
    report = sample()
    assert "a little too good" not in Document(page(report)).text
    del report["test"]
    assert "a little too good . Rows kept for a test would tell" in Document(page(report)).text.replace(
        "good.", "good ."
    )
    report["fit"]["refitted"] = True
    assert "learned from these rows too" in Document(page(report)).text


def test_test_rows_are_preferred_and_valid_is_enough():
    assert "176 test rows" in Document(page(sample())).text
    only = sample()
    del only["test"]
    assert "170 valid rows" in Document(page(only)).text


def test_all_user_text_is_escaped():
    evil = '<script>alert("1")</script>\'"&<b>'
    report = sample()
    report["spec"] = report["data"]["source"] = evil
    for side in ("test", "valid"):
        task = classified([evil, *CLASSES[1:]], inputs=(evil, "image"))
        task["baselines"][evil] = {"accuracy": 0.5, evil: 0.1}
        task["scores"][evil] = 0.5
        task["details"][evil] = [{evil: evil}]
        report[side]["tasks"] = {evil: task | {"kind": evil}}
    seen = report["data"]["inputs"].pop("image")
    seen["quarantined_rows"] = [{"row": evil, "column": evil, "origin": evil, "reason": evil}]
    seen |= {"kind": evil, "repaired": {evil: 3}, "ranges": {evil: {"min": 0, "mean": 1, "max": 2}}}
    report["data"]["inputs"][evil] = seen
    report["data"]["targets"] = {evil: {"labelled": 3, "unlabelled": 0, "balance": {evil: 3}}}
    report["data"]["leaks"], report["data"]["unused_columns"] = [evil], [evil]
    report["fit"] |= {"device": evil, "rows": {evil: 3}}
    source = page(report)
    document = Document(source)
    assert "<script" not in source
    assert "script" not in document.tags
    assert document.text.count(evil) > 20


def test_odd_file_names_can_be_written(tmp_path):
    report = sample()
    report["data"]["source"] = "caf\udce9.csv"
    assert "caf\\udce9.csv" in save_page(report, tmp_path / "page.html").read_text(encoding="utf-8")


def widths(source: str, cls: str) -> list[float]:
    return [float(w) for w in re.findall(rf'width="([\d.]+)" height="8" class="{cls}"', source)]


def test_bars_are_as_long_as_their_scores():
    task = classified(CLASSES)
    drawn = variants(task)
    assert widths(drawn, "own") == [pytest.approx(100 * task["scores"]["accuracy"], abs=0.01)]
    assert widths(drawn, "alone") == pytest.approx([51, 77, 41])
    assert len(widths(drawn, "baseline")) == 5


def test_the_fusion_model_is_a_bar_of_its_own_only_where_it_was_blended():
    task = classified(CLASSES)
    assert "fusion model" in variants(task)
    assert "share of 0.25" in variants(task)
    assert "fusion model" not in variants(task | {"share": 0.0})


def test_lower_is_better_is_said_and_told_apart():
    drawn = Document(variants(regressed())).text
    assert "Lower is better: shorter bars" in drawn
    assert "without text 14.1 1.70 worse" in drawn
    assert "without image 12.2 0.200 better" in drawn
    assert "Higher is better" in Document(variants(classified(CLASSES))).text
    assert [lower_is_better(m) for m in ("mae", "price/rmse", "r2", "hamming_loss", "auroc")] == [1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("value", "base", "metric", "said"),
    [
        (0.8, 0.9, "accuracy", "0.100 worse"),
        (0.95, 0.9, "accuracy", "0.050 better"),
        (3.0, 2.0, "mae", "1.00 worse"),
        (1.0, 2.0, "x/nll", "1.00 better"),
        (0.9, 0.9, "accuracy", "same"),
    ],
)
def test_change_is_in_words(value, base, metric, said):
    assert change(value, base, metric) == said


def test_bar_scales_hold_zero_and_are_cut_off_below():
    assert scale([0.2, 0.9], "accuracy") == (0.0, 1.0)
    assert scale([0.2, -7.0], "r2") == (-1.0, 1.0)
    assert scale([3.0, 31.0], "mae") == (0.0, 31.0)
    assert scale([-2.0, 5.0], "nll") == (-2.0, 5.0)
    assert scale([0.0], "mae") == (0.0, 1.0)
    assert widths(bar(-0.5, -1.0, 1.0, "x"), "x") == [25.0]
    assert widths(bar(-9.0, -1.0, 1.0, "x"), "x") == [50.0]
    assert widths(stack([(0.25, "x"), (0.75, "x")]), "x") == [25.0, 75.0]


def test_the_confusion_matrix_is_a_table_with_its_mistakes_in_words():
    task = classified(["cat", "dog", "owl"])
    task["details"]["confusion"] = [[30, 7, 0], [1, 20, 0], [0, 0, 9]]
    source = page(with_task(task))
    said = Document(source).text
    assert "cat taken for dog: 7 of 37" in said
    assert '<td class="miss" style="--h:19%">7</td>' in source
    assert '<td class="hit" style="--h:100%">9</td>' in source
    task["details"]["confusion"] = [[30, 0, 0], [0, 20, 0], [0, 0, 9]]
    assert "Nothing was taken for anything else." in Document(page(with_task(task))).text


def test_many_classes_show_those_with_the_most_errors():
    names = [f"class {i}" for i in range(50)]
    task = classified(names)
    counts = np.diag(np.full(50, 30))
    counts[41, 3], counts[7, 41] = 9, 4
    task["details"]["confusion"] = counts.tolist()
    source = page(with_task(task))
    matrix = source[source.index("heat dense") :].split("</table>")[0]
    assert matrix.count('scope="row"') == 20
    assert "20 of 50 classes: those with the most errors" in matrix
    assert all(f'title="class {k}"' in matrix for k in (3, 7, 41))
    assert "any other" in matrix
    assert "Scores per class (50 rows)" in Document(source).text


def test_plots_have_a_name_and_a_table():
    source = page(sample())
    plots = re.findall(r'<svg viewBox="0 0 360 270".*?</svg>', source)
    assert len(plots) == 2
    assert all('role="img"' in plot and "<title>" in plot and "aria-label" in plot for plot in plots)
    assert source.count("As a table") == 2
    assert all('aria-hidden="true"' in strip for strip in re.findall(r'<svg[^>]*class="strip"[^>]*>', source))


def test_calibration_puts_points_where_they_belong():
    drawn = calibration([(0.0, 0.0, 1), (1.0, 1.0, 4)], "x", "y", "t")
    places = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', drawn)
    assert places == [("46", "230", "5.25"), ("346", "14", "8")]


def test_learning_curves_reach_from_corner_to_corner():
    drawn = curves([("train", [(1, 2.0), (2, 1.0)]), ("valid", [(1, 1.5), (2, 1.5)])], "epoch", "loss", "t")
    lines = re.findall(r'points="([^"]*)"', drawn)
    assert lines == ["50,14 308,230", "50,122 308,122"]
    one = curves([("train", [(1, 2.0)])], "epoch", "loss", "t")
    assert "polyline" not in one
    assert "circle" in one


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.118, 2.17), (-3, 250), (1e-6, 3e-6), (5, 5), (0, 0), (1, 1e6)])
def test_ticks_span_the_values(low, high):
    ticks = ticks_of(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))


def test_warnings_come_first():
    report = sample()
    report["data"]["inputs"]["table"] |= {"present": 0, "missing_column": True}
    report["data"]["leaks"] = [f"leak {i}" for i in range(9)]
    source = page(report)
    said = Document(
        source[source.index('class="warning"') - 5 : source.index('class="bars"')].rsplit("</section>")[0]
    ).text
    for words in ("leak 0", "4 more leaks", "the table has no such column", "image: 2 broken cells"):
        assert words in said
    del report["data"]["inputs"], report["data"]["leaks"]
    report["valid"]["data"] = report["test"]["data"] = report["data"]
    assert 'class="warning"' not in page(report)


def test_a_table_of_its_own_is_told_apart():
    report = sample()
    assert Document(page(report)).text.count("What each input has") == 1
    report["test"]["data"] = sample_data() | {"source": "things/test.csv", "leaks": []}
    assert "Data: test table" in Document(page(report)).text


def test_regression_shows_coverage_and_correlation():
    said = Document(page(with_task(regressed(), "price"))).text
    assert "Interval coverage" in said
    assert "Correlation of the errors" in said
    assert "−0.42" in said


def test_whatever_is_missing_is_left_out():
    whole = sample()
    for report in ({}, {"fit": {}}, {"data": {}}, {"test": {}}, {"test": {"tasks": {}}}, {"fit": {"history": []}}):
        assert "No labelled rows were held out" in Document(page(report)).text
    for key in whole:
        Document(page({name: value for name, value in whole.items() if name != key}))
        Document(page({key: whole[key]}))
    for key in whole["test"]["tasks"]["label"]:
        task = copy.deepcopy(whole["test"]["tasks"]["label"])
        del task[key]
        Document(page(with_task(task)))
        Document(page(with_task({key: whole["test"]["tasks"]["label"][key]})))
    for key in whole["data"]["inputs"]["image"]:
        report = sample()
        del report["data"]["inputs"]["image"][key]
        Document(page(report))


def test_what_is_not_a_number_is_never_shown():
    report = json.loads(json.dumps(sample()))
    task = report["test"]["tasks"]["label"]
    task["interval"] = {"accuracy": [math.nan, math.nan]}
    task["without"]["text"]["accuracy"] = math.nan
    task["scores"]["nll"] = math.inf
    task["details"]["per_class"][0]["auroc"] = math.nan
    task["details"]["reliability"][0]["accuracy"] = math.nan
    report["fit"]["history"][3]["valid_loss"] = math.nan
    report["fit"]["history"][4]["valid_loss"] = None
    said = Document(page(report)).text
    assert not re.search(r"\b(nan|inf|None)\b", said, re.IGNORECASE)
    assert "95 %" not in said.split("Look at this")[0]
    assert "without text" not in said.split("What the")[0]


def test_no_score_is_said():
    said = Document(page(with_task({"kind": "classify", "headline": None, "scores": {}}))).text
    assert "label: no score is defined on 176 test rows." in said
    both = sample()
    both["test"]["tasks"]["label"] |= {"headline": None, "scores": {}}
    assert "170 valid rows" in Document(page(both)).text


def test_long_histories_are_thinned_and_rising_losses_survive():
    report = sample()
    report["fit"]["history"] = [{"number": i, "train_loss": float(i), "valid_loss": None} for i in range(500)]
    said = Document(page(report)).text
    assert "one epoch in 9" in said
    assert "Loss over 500 epochs: train 0 to 499, lowest in epoch 1." in said


def test_numbers_are_for_people():
    assert [number(v) for v in (1234567, 0.12345, -2.5, 12345.6, 3, math.nan, None, True)] == [
        "1,234,567", "0.123", "−2.5", "12,346", "3", "–", "–", "–",
    ]  # fmt: skip
    assert [significant(v) for v in (13.0, 0.34, 2e-7, 4321.5, -99.96, 0)] == [
        "13.0", "0.340", "2e−07", "4,322", "−100.0", "0",
    ]  # fmt: skip
    assert number(0.5, 2) == "0.50"
    assert [duration(s) for s in (4.25, 75, 3720)] == ["4.25 s", "1 min 15 s", "1 h 2 min"]
    assert metric_name("price/mae") == "price MAE"
    assert metric_name("balanced_accuracy") == "balanced accuracy"


def test_markup_escapes_unless_it_is_markup():
    assert (
        tag("p", "<", Markup("<b>"), None, ["&", 1], cls='"', aria_label=None) == '<p class="&quot;">&lt;<b>&amp;1</p>'
    )


def test_a_table_keeps_numbers_right_and_labels_whole():
    drawn = table(["class", "n", "word"], [[0.1 + 0.2, 1234, "x"], [2020, None, "y"]])
    assert '<th scope="row">0.3</th><td class="num">1,234</td><td>x</td>' in drawn
    assert '<th scope="row">2020</th><td>–</td>' in drawn
    assert '<th scope="col">class</th><th scope="col" class="num">n</th><th scope="col">word</th>' in drawn


def test_the_same_report_gives_the_same_page():
    assert page(sample()) == page(sample())
