"""The page of a diagnosis and of an improvement: what it says, what it draws, what it survives. Needs no browser."""

import copy
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from polymodal.errors import DataError
from polymodal.report.diagnosis import diagnosis_page, save_diagnosis
from polymodal.report.improvement import improvement_page, save_improvement
from polymodal.report.page import page
from polymodal.report.plots import bar, decline, twin
from polymodal.report.shell import POLICY
from test_report import Document as Tags
from test_report import widths


class Document(Tags):
    """As for the other page; columns of a table have no end tag either."""

    def handle_starttag(self, tag, attrs):
        if tag != "col":
            super().handle_starttag(tag, attrs)


EVIL = '<script>alert("1")</script>\'"&<b>'
NOISES = {
    "image": {"blur": ("pixels", 8.0, 0.5), "noise": ("share of the range", 0.4, 0.8), "jpeg": ("quality", 5.0, 0.2),
              "contrast": ("share kept", 0.05, 0.3), "occlusion": ("share of the area", 0.9, 0.6)},
    "voice": {"noise": ("dB", -10.0, 0.9), "dropouts": ("share of the time", 0.8, 0.5), "reverb": ("seconds", 2.0, 0.3),
              "low_pass": ("Hz", 300.0, 0.4)},
    "text": {"typos": ("share of letters", 0.5, 0.9), "ocr": ("share of letters", 0.5, 0.7),
             "dropped": ("share of words", 0.9, 0.8)},
    "table": {"missing": ("share of cells", 1.0, 0.2), "noise": ("scales", 3.0, 0.1),
              "outliers": ("share of cells", 0.5, 0.2), "swapped": ("share of cells", 1.0, 0.2)},
}  # fmt: skip
"""Per input: noises with their unit, strongest step and share of the gain that is then lost."""


def ends(value: float, half: float = 0.035) -> list:
    return [round(value - half, 4), round(value + 0.9 * half, 4)]


def subset_scores(carries: dict, chance: float, lower: bool = False) -> dict:
    """A score for every subset: what each input carries saturates."""
    found = {}
    for size in range(len(carries) + 1):
        for names in itertools.combinations(carries, size):
            left = math.prod(1 - carries[name] for name in names)
            share = 1 - (1 - chance) * left
            found[names] = 40 * (1 - share) if lower else share
    return found


def shapley(scores: dict, names: list, name: str) -> float:
    total = 0.0
    others = [other for other in names if other != name]
    for size in range(len(others) + 1):
        weight = math.factorial(size) * math.factorial(len(others) - size) / math.factorial(len(names))
        for subset in itertools.combinations(others, size):
            both = tuple(other for other in names if other in subset or other == name)
            total += weight * (scores[both] - scores[subset])
    return total


def gain(value: float, half: float = 0.022) -> dict:
    return {"value": round(value, 4), "interval": ends(value, half), "noise": abs(value) < half}


def curve(unit: str, most: float, clean: float, lost: float, rows: int = 32) -> dict:
    steps = [
        {
            "level": k / 10,
            "severity": most * k / 10,
            "score": round(clean - lost * (k / 10) ** 1.5 - 0.004 * (k % 3), 4),
        }
        for k in range(1, 11)
    ]
    area = sum(step["score"] for step in steps) / 10
    return {"unit": unit, "rows": rows, "clean": clean, "steps": steps, "area": round(area, 4)}


def task_of(carries: dict, *, chance: float = 0.352, metric: str = "accuracy", kind: str = "classify") -> dict:
    """One task of a diagnosis with figures that fit together."""
    lower, names = metric == "mae", list(carries)
    scores = subset_scores(carries, chance, lower)
    sign = -1 if lower else 1
    full = scores[tuple(names)]
    inputs = {}
    for name in names:
        rest, share = tuple(other for other in names if other != name), sign * shapley(scores, names, name)
        noises = NOISES.get(name, {"missing": ("share of cells", 1.0, 0.4)}) | {"removed": ("share of rows", 1.0, 1.0)}
        head, linear = scores[(name,)] + 0.02 * sign, scores[(name,)] + sign * (0.23 if name == "image" else 0.01)
        best = (min if lower else max)(head, linear)
        inputs[name] = {
            "present": 0.97 if name == "image" else 1.0,
            "broken": 0.02 if name == "image" else 0.0,
            "alone": {"score": scores[(name,)], "interval": ends(scores[(name,)], 0.06 * (20 if lower else 1))},
            "own_head": head,
            "linear": linear,
            "ceiling": {"score": best, "by": "linear" if best == linear else "own_head"},
            "headroom": gain(sign * (best - scores[(name,)]), 0.5 if lower else 0.05),
            "contribution": gain(sign * (full - scores[rest]), 0.5 if lower else 0.022),
            "shapley": gain(share, 0.5 if lower else 0.03),
            "permuted": {
                "score": full - 0.8 * share * sign, "loss": 0.8 * share, "interval": ends(0.8 * share),
                "noise": abs(0.8 * share) < 0.03,
            },
            "curves": {
                noise: curve(unit, most, full, sign * lost * min(1.0, 3 * abs(full - scores[rest])))
                for noise, (unit, most, lost) in noises.items()
            },
        }  # fmt: skip
    pairs = []
    for one, other in itertools.combinations(names, 2):
        both = tuple(name for name in names if name in (one, other))
        value = sign * (scores[both] - scores[(one,)] - scores[(other,)] + scores[()])
        noise = abs(value) < 0.03
        word = "independent" if noise else "synergy" if value > 0 else "redundancy"
        pairs.append(
            {"inputs": [one, other], "interaction": value, "interval": ends(value), "noise": noise, "kind": word}
        )
    return {
        "kind": kind, "metric": metric, "higher_is_better": not lower, "rows": 176, "score": full,
        "interval": ends(full, 1.5 if lower else 0.03), "chance": scores[()],
        "floor": {"score": scores[()], "by": "constant"}, "sampled": False,
        "scores": {metric: full, "auroc": 0.99, "nll": 0.21} if not lower else {metric: full, "r2": 0.71, "rmse": 9.1},
        "subsets": [
            {"inputs": list(subset), "score": value, "interval": ends(value, 0.04 * (20 if lower else 1))}
            for subset, value in scores.items()
        ],
        "inputs": inputs, "pairs": pairs,
    }  # fmt: skip


def problems() -> dict:
    rng = np.random.default_rng(0)
    names = ["animals", "food", "sport", "flowers"]
    worst = [
        {
            "row": int(rng.integers(176)), "loss": 5.1 * 0.85**k,
            "truth": names[k % 4], "predicted": names[(k + 1) % 4],
            "by_input": {"image": 4.2 * 0.9**k, "text": 5.0 * 0.8**k, "voice": 1.1, "table": 1.9},
        }
        for k in range(14)
    ]  # fmt: skip
    slices = [
        ("colour = red", "column", 20, 0.5, True), ("label = sport", "class", 31, 0.71, True),
        ("voice and text absent", "presence", 12, 0.75, False), ("year in 1961 to 1975", "column", 44, 0.89, False),
    ]  # fmt: skip
    return {
        "notes": ["slices of label: 41 of at least 10 rows were tested"],
        "worst": {"label": worst},
        "labels": {
            "label": [
                {"row": 3, "given": "animals", "suggested": "food", "quality": 0.02},
                {"row": 117, "given": "sport", "suggested": "animals", "quality": 0.04},
            ]
        },
        "conflicts": [
            {"input": "image", "task": "label", "rows": [3, 9], "similarity": 0.999, "labels": ["animals", "food"]},
            {"input": "text", "task": "label", "rows": list(range(40, 57)), "similarity": 1.0, "labels": ["a", "b"]},
        ],
        "leakage": ["4 of 176 rows have an image that a train row has too (first: train row 12, row 93)."],
        "slices": {
            "label": [
                {"slice": s, "by": by, "rows": n, "metric": "accuracy", "score": v, "rest": 0.95,
                 "interval": ends(v, 0.1), "significant": k}
                for s, by, n, v, k in slices
            ]
        },
    }  # fmt: skip


def verdicts(task: str = "label") -> list:
    return [
        {
            "task": task, "input": "text", "kind": "fine", "text": "text: fine. Alone .85, contribution +.07.",
            "numbers": {"alone": 0.85, "contribution": 0.07}, "try": None,
        },
        {
            "task": task, "input": "image", "kind": "under-trained",
            "text": "image: under-trained. Alone .44, its features could give .67 (linear), contribution +.00.",
            "numbers": {"alone": 0.44, "linear": 0.67, "contribution": 0.0},
            "try": "polymodal improve model/ train.csv --input image",
        },
        {
            "task": task, "input": "voice", "kind": "redundant", "numbers": {"alone": 0.81, "contribution": 0.01},
            "text": "voice: redundant. Alone .81, but text tells the same: interaction −.32, contribution +.01.",
            "try": None,
        },
        {
            "task": task, "input": "table", "kind": "noisy",
            "text": "table: noisy. Alone .38, against .35 with no input.",
            "numbers": {"alone": 0.38, "contribution": 0.002}, "try": None,
        },
    ]  # fmt: skip


def sample() -> dict:
    """Four inputs, one task, everything present."""
    task = task_of({"image": 0.12, "text": 0.78, "voice": 0.7, "table": 0.03})
    learned = {
        "image": {"gradient_share": 0.11, "speed": None, "fall": 0.08, "use": "under"},
        "text": {"gradient_share": 0.52, "speed": 4, "fall": 1.21, "use": "over"},
        "voice": {"gradient_share": 0.3, "speed": 9, "fall": 0.97, "use": "even"},
        "table": {"gradient_share": 0.07, "speed": 21, "fall": 0.03, "use": "unknown"},
    }
    return {
        "source": "stamps/valid.csv", "rows": 176, "inputs": list(task["inputs"]), "seed": 0,
        "kinds": {"image": "image", "text": "text", "voice": "audio", "table": "table"},
        "settings": {"repeats": 300, "curve_rows": 32, "permutations": 10, "curves": True, "metric": None},
        "cpu_seconds": 41.3, "tasks": {"label": task}, "learning": {"label": learned}, "problems": problems(),
        "verdict": verdicts(), "weakest": "image",
        "summary": "Text and voice carry the label, and tell much the same. The image could give far more.",
    }  # fmt: skip


def single() -> dict:
    """One input only."""
    task = task_of({"text": 0.8})
    found = {"source": "valid.csv", "rows": 90, "inputs": ["text"], "kinds": {"text": "text"}, "tasks": {"label": task}}
    return found | {"verdict": verdicts()[:1], "summary": "The text is all there is."}


def double() -> dict:
    """Two tasks, one of them with an error as its score."""
    found = sample()
    found["tasks"]["price"] = task_of(
        {"image": 0.3, "text": 0.4, "voice": 0.0}, chance=0.2, metric="mae", kind="regress"
    )
    found["verdict"] += [one | {"text": f"price, {one['text']}"} for one in verdicts("price")[:3]]
    found["learning"]["price"] = found["learning"]["label"]
    found["problems"]["labels"]["price"] = {"unavailable": "price is no class."}
    return found


def wide() -> dict:
    """Ten inputs, their subsets sampled."""
    task = task_of({f"sensor_{k}": 0.05 * k for k in range(10)}, chance=0.1)
    order = np.random.default_rng(1).permutation(len(task["subsets"]))
    task["subsets"] = [task["subsets"][k] for k in order[:300]]
    task["sampled"] = True
    return {
        "inputs": list(task["inputs"]), "kinds": {name: "series" for name in task["inputs"]}, "tasks": {"label": task},
        "verdict": [
            {"task": "label", "input": name, "kind": "fine" if k > 2 else "unused", "numbers": {"alone": k / 20}}
            for k, name in enumerate(task["inputs"])
        ],
    }  # fmt: skip


def improved(accepted: bool = True) -> dict:
    """The result of an improvement."""
    before = {
        "score": 0.949, "interval": [0.91, 0.98], "alone": {"image": 0.44, "text": 0.85, "voice": 0.81, "table": 0.38},
        "without": {"image": 0.949, "text": 0.87, "voice": 0.93, "table": 0.95},
    }  # fmt: skip
    after = copy.deepcopy(before) | {"score": 0.966, "interval": [0.93, 0.99]}
    after["alone"] |= {"image": 0.66}
    after["without"] |= {"text": 0.91}
    history = [
        {"number": k, "train_loss": 0.9 * 0.7**k + 0.1, "valid_loss": 0.8 * 0.75**k + 0.22 + 0.004 * k}
        for k in range(12)
    ]
    reason = "The loss on the validation rows fell by more than noise, and no score fell."
    return {
        "input": "image", "method": "lora", "accepted": accepted, "metric": "accuracy", "task": "label",
        "reason": reason if accepted else "The difference is within noise, so the old model is kept.",
        "before": before, "after": after, "rows": 79, "history": history, "teacher": "linear",
        "difference": {"value": 0.017, "interval": [-0.01, 0.04], "loss": {"value": -0.05, "interval": [-0.09, -0.01]}},
        "frozen": ["text", "voice", "table"],
        "changed": ["image backbone (LoRA)", "image encoder", "fusion", "label head"],
    }  # fmt: skip


def hostile() -> dict:
    """Every text that a user or a table can give is markup; every number that can be wrong is."""
    text = json.dumps(sample())
    for name in ("image", "animals", "stamps/valid.csv", "Text and voice", "blur", "colour", "train row", "pixels"):
        text = text.replace(name, json.dumps(EVIL)[1:-1])
    found = json.loads(text)
    found["verdict"][0]["kind"] = found["tasks"]["label"]["kind"] = found["settings"][EVIL] = EVIL
    found["tasks"] = {EVIL: found["tasks"].pop("label")}
    found["tasks"][EVIL]["metric"] = EVIL
    found["tasks"][EVIL]["pairs"][0]["kind"] = EVIL
    found["problems"]["worst"] = {EVIL: found["problems"]["worst"]["label"]}
    found["problems"]["worst"][EVIL][0] |= {"truth": [EVIL, {"a": math.nan}], "predicted": "x" * 5000, "row": EVIL}
    return found


ALL = [sample, single, double, wide, hostile]


@pytest.mark.parametrize("make", ALL)
def test_a_diagnosis_is_one_offline_page(make: Callable, tmp_path):
    path = save_diagnosis(make(), tmp_path / "new" / "diagnosis.html")
    source = path.read_text(encoding="utf-8")
    document = Document(source)
    assert source.startswith("<!doctype html>")
    assert POLICY in source
    assert not {"script", "link", "img", "iframe"} & set(document.tags)
    assert not re.search(r"https?://|@import|url\(", source)
    assert not [name for _, name, _ in document.attributes if name in {"src", "href"} or name.startswith("on")]
    assert len(source) < 500_000
    assert source == diagnosis_page(make())


def test_a_page_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    for save, content in ((save_diagnosis, single()), (save_improvement, improved())):
        with pytest.raises(DataError, match=r"must be writable, got .* Choose another place"):
            save(content, tmp_path / "file" / "page.html")


def test_the_verdict_comes_first_and_the_weakest_on_top():
    said = Document(diagnosis_page(sample())).text
    top = said[: said.index("What each input can give")]
    assert "The image could give far more. 176 rows, 4 inputs of stamps/valid.csv." in top
    assert "image under-trained Alone .44, its features could give .67 (linear), contribution +.00.".replace(
        " ", ""
    ) in (top.replace(" ", ""))
    places = [top.index(word) for word in ("image under", "voiceredundant", "tablenoisy", "textfine") if word in top]
    order = [top.replace(" ", "").index(word) for word in ("imageunder", "voiceredundant", "tablenoisy", "textfine")]
    assert places == sorted(places)
    assert order == sorted(order)
    assert "Leakage: 1 finding" in top


def test_a_command_is_copied_whole():
    source = diagnosis_page(sample())
    command = re.search(r"<code>(.*?)</code></span>", source[source.index('class="try"') :])
    assert command is not None
    assert re.sub("<[^>]+>", "", command[1]) == "polymodal improve model/ train.csv --input image"


def test_a_verdict_without_words_shows_its_numbers():
    found = sample()
    found["verdict"] = [{"task": "label", "input": "image", "kind": "noisy", "numbers": {"alone": 0.4, "by": "linear"}}]
    said = Document(diagnosis_page(found)).text
    assert "alone 0.400" in said
    del found["verdict"]
    assert "No verdict" in Document(diagnosis_page(found)).text


def test_each_input_has_what_it_can_give_and_what_is_gained():
    found = sample()
    seen = found["tasks"]["label"]["inputs"]["image"]
    seen |= {"alone": {"score": 0.44, "interval": [0.37, 0.51]}, "own_head": 0.46, "linear": 0.67}
    seen["ceiling"] = {"score": 0.67, "by": "linear"}
    seen["headroom"] = {"value": 0.23, "interval": [0.15, 0.31], "noise": False}
    seen["contribution"] = {"value": -0.01, "interval": [-0.03, 0.01], "noise": True}
    seen["permuted"] = {"score": 0.9, "loss": 0.05, "interval": [0.02, 0.08], "noise": False}
    source = diagnosis_page(found)
    block = source[source.index('class="input"') :].split('class="input"')[1]
    assert re.search(r'alone</th>.*?0\.440</td><td class="aside">0\.370 to 0\.510', block)
    assert re.search(r"linear</th>.*?0\.670</td>.*?<b>ceiling</b> \+0\.230", block)
    assert re.search(r'class="quiet"><th scope="row">contribution.*?−0\.010</td>.*?−0\.030 to 0\.010.*?noise', block)
    assert re.search(r"<tr><th scope=\"row\">permuted.*?\+0\.050</td>", block)
    assert widths(block, "alone") == [44]
    assert widths(block, "ceiling") == [46, 67]
    assert len(widths(block, "harm")) == 1


def test_every_combination_is_drawn_the_best_first():
    found = sample()["tasks"]["label"]
    source = diagnosis_page(sample())
    matrix = source[source.index('class="upset"') :].split("</table>")[0]
    shown = [float(value) for value in re.findall(r'<td class="num">([\d.]+)</td>', matrix)]
    assert len(shown) == 16
    assert shown == sorted(shown, reverse=True)
    rows = re.findall(r"<tbody>(.*)</tbody>", matrix)[0].split("<tr>")[1:]
    assert '"unseen">image + text + voice + table<' in rows[0]
    assert '"unseen">no input<' in rows[-1]
    assert [len(re.findall(r'class="dot on', row)) for row in (rows[0], rows[-1])] == [4, 0]
    assert 'class="dot on from"' in rows[0]
    assert 'class="dot on to"' in rows[0]
    assert widths(matrix, "own") == [pytest.approx(100 * found["score"], abs=0.01)]
    assert len(widths(matrix, "alone")) == 5


def test_less_is_better_turns_the_order_and_is_said():
    source = diagnosis_page(double())
    price = source[source.index("<h2>price") :]
    matrix = price[price.index('class="upset"') :].split("</table>")[0]
    shown = [float(value) for value in re.findall(r'<td class="num">([\d.]+)</td>', matrix)]
    assert shown == sorted(shown)
    assert "MAE, where less is better" in Document(price[price.index("<h3>") : price.index("<h3>Where")]).text


def test_many_combinations_show_the_best_of_each_size():
    found = wide()
    source = diagnosis_page(found)
    matrices = [one.split("</table>")[0] for one in source.split('class="upset dense"')[1:]]
    sizes = {len(one["inputs"]) for one in found["tasks"]["label"]["subsets"]}
    assert [one.count('<th scope="row">') for one in matrices] == [len(sizes), 256]
    said = Document(source).text
    assert "a sample" in said
    assert "The best 256 of 300 combinations" in said
    assert "35 more pairs" in said


def test_pairs_say_what_they_are_and_noise_comes_last():
    source = diagnosis_page(sample())
    drawn = source[source.index('class="bars pairs"') :].split("</table>")[0]
    kinds = re.findall(r'<td class="word">([^<]*)</td>', drawn)
    assert kinds[0] == "redundancy"
    assert kinds == sorted(kinds, key=lambda word: word == "independent")
    assert drawn.count('class="quiet"') == kinds.count("independent")
    found = sample()
    found["tasks"]["label"]["pairs"] = [
        {"inputs": ["image", "text"], "interaction": 0.4, "interval": [0.3, 0.5], "noise": False, "kind": "synergy"},
        {"inputs": ["image", "voice"], "interaction": 0.4, "interval": [-0.3, 0.5], "noise": True, "kind": None},
    ]
    said = Document(diagnosis_page(found)).text
    assert "+0.400 0.300 to 0.500 synergy" in said
    assert "–, noise" in said


def test_curves_are_small_multiples_with_their_table():
    found = sample()
    source = diagnosis_page(found)
    curves = sum(len(seen["curves"]) for seen in found["tasks"]["label"]["inputs"].values())
    plots = re.findall(r'<svg viewBox="0 0 130 74".*?</svg>', source)
    assert len(plots) == curves == 20
    assert all('role="img"' in plot and "<title>" in plot and "aria-label" in plot for plot in plots)
    assert source.count("As a table") == 4
    said = Document(source).text
    for words in (
        "40 % of the range",
        "quality 5",
        "8 pixels",
        "−10 dB",
        "low pass",
        "typos costs most",
        "100 % of rows",
    ):
        assert words in said
    levels = source[source.index("image: scores by level") :].split("</table>")[0]
    assert levels.count("<tr>") == 13, "a head, the clean level, ten steps and the area"
    first = found["tasks"]["label"]["inputs"]["image"]["curves"]["blur"]
    assert f">{first['steps'][9]['score']:.3f}<" in levels
    assert f">{first['area']:.3f}<" in levels


def test_a_curve_goes_from_its_clean_level_to_its_end():
    drawn = decline([(0, 1.0), (0.5, 0.5), (1, 0.0)], 1.0, (0, 1), "8 px", ("0.00", "area 0.50"), "t")
    assert 'points="2,6 50,32 98,58"' in drawn
    assert 'points="2,6 50,32 98,58 98,6 2,6"' in drawn
    assert '<line x1="2" y1="6" x2="98" y2="6" class="level">' in drawn
    without = decline([(1, 0.3)], None, (0, 1), "", ("0.30", None), "t")
    assert "level" not in without
    assert "area" not in without


def test_a_bar_has_a_dotted_line_at_chance_and_twins_are_two_bars():
    assert '<line x1="25" y1="0" x2="25" y2="12" class="chance">' in bar(0.5, 0, 1, "x", chance=0.25)
    assert re.findall(r'width="([\d.]+)" height="4.5" class="(\w+)"', twin(0.5, 0.75, 0, 1)) == [
        ("50", "alone"), ("75", "own"),
    ]  # fmt: skip


def test_learning_and_problems_are_told():
    said = Document(diagnosis_page(double())).text
    for words in (
        "image 11 % – 0.08 under-used", "text 52 % 4 1.21 over-used", "8 more rows",
        "animals food image 4.20 text 5.00",
        "3 animals food 0.020", "40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51 and 5 more", "price is no class.",
        "colour = red column, 20 rows", "0.500 0.950 −0.450", "−0.060 noise", "41 of at least 10 rows were tested",
        "4 of 176 rows have an image that a train row has too",
    ):  # fmt: skip
        assert words in said, words


def test_only_measures_and_kinds_of_the_page_are_explained():
    said = Document(diagnosis_page(sample())).text
    explained = said[said.index("How it was measured") :]
    assert "repeats300" in explained.replace(" ", "")
    assert all(word in explained for word in ("Shapley", "interaction", "gradient share", "redundant"))
    assert "harmful" not in explained
    few = single()
    few["tasks"]["label"]["inputs"]["text"] = {"alone": {"score": 0.5}}
    explained = Document(diagnosis_page(few)).text.split("How it was measured")[1]
    assert "by itself" in explained
    assert not any(word in explained for word in ("Shapley", "interaction", "gradient share", "linear"))


def test_one_input_needs_no_pairs_and_two_tasks_have_their_own_sections():
    one = Document(diagnosis_page(single())).text
    assert "Pairs of inputs" not in one
    two = Document(diagnosis_page(double())).text
    assert two.count("Every combination of inputs") == 2
    assert "Suspect labels of price" in two
    assert "price, image" not in two, "the task stands above its verdicts"


def test_all_user_text_is_escaped():
    source = diagnosis_page(hostile())
    document = Document(source)
    assert "<script" not in source
    assert document.text.count(EVIL) > 30
    result = improved()
    text = json.dumps(result)
    for name in ("image", "lora", "accuracy", "label", "linear", "voice", "validation rows fell"):
        text = text.replace(name, json.dumps(EVIL)[1:-1])
    source = improvement_page(json.loads(text))
    assert "<script" not in source
    assert Document(source).text.count(EVIL) > 10


def broken(value: object, place: tuple = ()) -> Iterator[tuple]:
    """Places of all keys and entries."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from broken(inner, (*place, key))


def small() -> dict:
    """A diagnosis with everything in it, and little of it."""
    found = sample()
    task = found["tasks"]["label"]
    task["inputs"] = {"image": task["inputs"]["image"]}
    task["inputs"]["image"]["curves"] = {"blur": task["inputs"]["image"]["curves"]["blur"]}
    blur = task["inputs"]["image"]["curves"]["blur"]
    blur["steps"] = blur["steps"][:2]
    task["subsets"], task["pairs"] = task["subsets"][:3], task["pairs"][:2]
    found["learning"]["label"] = {"image": found["learning"]["label"]["image"]}
    found["problems"]["worst"]["label"] = found["problems"]["worst"]["label"][:1]
    return found


@pytest.mark.parametrize("make", [small, improved])
def test_whatever_is_missing_or_wrong_is_left_out(make: Callable):
    draw = diagnosis_page if make is small else improvement_page
    whole = make()
    draw({})
    for k, place in enumerate(broken(whole)):
        found = copy.deepcopy(whole)
        inner = found
        for key in place[:-1]:
            inner = inner[key]
        if k % 3:
            inner[place[-1]] = (None, {})[k % 2]
        else:
            del inner[place[-1]]
        said = Document(draw(found)).text
        assert not re.search(r"\b(nan|inf|None)\b", said), place


def test_what_is_not_a_number_is_as_what_is_missing():
    found = small()
    inputs = found["tasks"]["label"]["inputs"]["image"]
    inputs["shapley"]["value"], inputs["alone"]["interval"][0] = math.nan, math.inf
    inputs["curves"]["blur"]["steps"][1]["score"] = math.nan
    found["source"] = found["problems"]["worst"]["label"][0]["truth"] = math.nan
    said = Document(diagnosis_page(found)).text
    assert not re.search(r"\b(nan|inf|None)\b", said)
    assert found["source"] is not None, "the content stays as it was"


def test_the_page_of_an_improvement_says_what_happened():
    said = Document(improvement_page(improved())).text
    for words in (
        "image was improved by LoRA: accepted, the new model is kept.",
        "label: accuracy 0.949 → 0.966 on 79 validation rows; accuracy +0.017 (95 % −0.010 to 0.040), within noise; "
        "loss −0.05 (95 % −0.09 to −0.01).",
        "fell by more than noise", "only image 0.440 0.660 +0.220 better", "without voice 0.930 0.930 same",
        "Loss over 12 epochs: train 1.00 to 0.118", "image backbone (LoRA), image encoder", "linear",
    ):  # fmt: skip
        assert words in said, words
    said = Document(improvement_page(improved(False))).text
    assert "not accepted, the old model is kept." in said
    assert "The difference is within noise" in said
    assert "Nothing says whether that was accepted" in Document(improvement_page({"input": "x", "method": "all"})).text


def test_an_error_that_falls_is_better():
    result = improved() | {"metric": "mae"}
    result["after"]["alone"]["image"] = 0.4
    assert "0.44 0.4 −0.04 better" in Document(improvement_page(result)).text.replace("0.440", "0.44").replace(
        "0.400", "0.4"
    )


def test_the_other_page_has_nothing_of_this_style():
    assert "upset" not in page({})
