from __future__ import annotations

import csv
import os
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polymodal.data.infer import Guess, infer_inputs, infer_kinds, infer_task
from polymodal.errors import DataError

DATA = Path(os.environ.get("POLYMODAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
WORDS = ["red", "green", "blue", "round", "square", "tall", "deep", "wide", "old", "new"]


def kind(cells, name="x", exists=lambda path: False):
    return infer_kinds({name: cells}, exists)[name].kind


def phrases(n):
    return [" ".join(WORDS[(i // 10**k) % 10] for k in range(3)) for i in range(n)]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([None, "", "NA"], "ignored"),
        ([1, 2, 3, 1, 2, 3], "number"),
        ([0, 1, 0, 1, None], "number"),
        ([1.5, 2.5, None, float("nan")], "number"),
        (["1.5", "2.5", "-3", "1e3"], "number"),
        ([str(i * 7) for i in range(30)], "number"),
        ([*map(str, range(100, 119)), "broken"], "number"),
        (["1", "2", "3"] * 4, "category"),
        (["01069", "10115", "04109", "01069"] * 5, "category"),
        ([True, False, None], "boolean"),
        (["yes", "no", "No", ""], "boolean"),
        (["0", "1", "1", "0"], "boolean"),
        (["yes", "no", "maybe"] * 5, "category"),
        (["red", "green", "blue", "red"] * 5, "category"),
        (["2024-01-01", "2024-02-01 10:00", None], "date"),
        ([date(2024, 1, 1), datetime(2024, 1, 2, 3)], "date"),
        (phrases(40), "text"),
        (["a tall red house stands by the old green bridge over there"] * 20 + ["no"], "text"),
        (["hello there", "good day"], "text"),
        (["only one"], "text"),
        ([f"id_{i:04}" for i in range(20)], "ignored"),
        (["same"] * 5, "ignored"),
        ([7, 7, 7.0], "ignored"),
        ([[1, 2], [3, 4]], "ignored"),
        ([np.zeros(3), np.ones(3)], "ignored"),
        ([["EU", "rejects"], ["call"], None], "words"),
        ([np.array(["EU", "rejects"]), np.array(["call"])], "words"),
        (['["EU", "rejects"]', '["call"]'], "words"),
        ([["EU", "rejects"]] * 20 + [["a", None]], "words"),
        ([["EU", None], ["call"]], "ignored"),
        ([[["EU"], ["call"]]], "ignored"),
        ([["B-org", "O"], ["O"]], "ignored"),
        ([[], []], "ignored"),
    ],
)
def test_kinds(cells, expected):
    assert kind(cells) == expected


@pytest.mark.parametrize("name", ["id", "Index", "row_id", "Unnamed: 0", "", "uuid"])
def test_row_numbers_are_no_input(name):
    assert kind([0, 1, 2, 3], name) == "ignored"


def test_identifiers_that_repeat_are_categories_and_a_mere_ending_is_no_identifier():
    assert kind([11, 12, 11, 12, 13, 13], "store_id") == "category"
    assert kind([1, 2, 3, 4], "humid") == "number"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["a.jpg", "b.PNG", "c.webp"], "image"),
        (["s3://bucket/a.wav", "https://host/b.mp3?sig=1"], "audio"),
        (["data:image/png;base64,AA==", "data:image/jpeg;base64,AA=="], "image"),
        ([b"\x89PNG\r\n", b"\xff\xd8\xff\xe0"], "image"),
        ([b"RIFF\x10\0\0\0WAVEfmt ", b"OggS"], "audio"),
        ([b"RIFF\x10\0\0\0WEBPVP8 "], "image"),
        ([{"bytes": None, "path": "a.ogg"}, {"bytes": b"fLaC", "path": None}], "audio"),
        ([Path("a.jpg"), None], "image"),
        ([Image.new("RGB", (2, 2))], "image"),
        ([np.zeros((4, 4, 3), np.uint8)], "image"),
        (["a.mp4", "b.mov"], "ignored"),
        ([b"\x1aE\xdf\xa3webm"], "ignored"),
        ([b"PK\x03\x04"], "ignored"),
        (["data:application/pdf;base64,AA=="], "ignored"),
        (["a.jpg", "a.jpg"], "image"),
    ],
)
def test_media(cells, expected):
    assert kind(cells) == expected


def test_lost_files_are_told():
    guess = infer_kinds({"x": ["a.jpg", "b.jpg"]}, lambda path: path == "a.jpg")["x"]
    assert guess == Guess("image", "image files; 1 of 2 looked up do not exist")
    assert infer_kinds({"x": ["a.jpg"]}, lambda path: True)["x"].reason == "image files"


def test_existing_files_of_unknown_kind_are_no_text():
    cells = [f"scan {i}.nii" for i in range(6)]
    guess = infer_kinds({"x": cells}, lambda path: True)["x"]
    assert guess.kind == "ignored"
    assert "nii" in guess.reason
    assert kind(cells) == "text"


def test_texts_too_long_for_a_path_are_text(tmp_path):
    cells = [f"{'long ' * 80}{i}.end" for i in range(3)]
    assert kind(cells, exists=lambda path: (tmp_path / path).exists()) == "text"


def test_lookups_are_few():
    asked = []
    infer_kinds({"x": [f"{i}.jpg" for i in range(1000)]}, lambda path: not asked.append(path))
    assert 0 < len(asked) <= 32


def test_inputs():
    kinds = ["text", "image", "number", "category", "number", "boolean", "date", "ignored", "number"]
    guesses = {f"c{i}": Guess(kind, "") for i, kind in enumerate(kinds)}  # pyright: ignore
    table = {"type": "table", "numbers": ["c2", "c4"], "categories": ["c3"], "booleans": ["c5"], "dates": ["c6"]}
    assert infer_inputs(guesses, ["c8"]) == {"c0": {"type": "text"}, "c1": {"type": "image"}, "table": table}


def test_a_column_called_table_keeps_its_name():
    guesses = {"table": Guess("text", ""), "table_2": Guess("number", ""), "y": Guess("number", "")}
    inputs = infer_inputs(guesses, ["y"])
    assert inputs == {"table": {"type": "text"}, "table_3": {"type": "table", "numbers": ["table_2"]}}


def test_nothing_to_learn_from():
    with pytest.raises(DataError, match="a: constant"):
        infer_inputs({"a": Guess("ignored", "constant"), "y": Guess("number", "")}, ["y"])


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (["cat", "dog", None, "cat"], {"type": "classify"}),
        (["cat", "dog"], {"type": "classify"}),
        ([True, False], {"type": "classify"}),
        (["yes", "no"], {"type": "classify"}),
        ([0, 1, 2, 0, 1, 2], {"type": "classify"}),
        (["0", "1", "0", "1"], {"type": "classify"}),
        (list(range(40)) * 3, {"type": "regress"}),
        ([1, 2, 3, 4], {"type": "regress"}),
        ([0.5, 1.5, 0.5, 1.5], {"type": "regress"}),
        (["0.5", "1.25", "NA"], {"type": "regress"}),
        ([["a", "b"], ["a"], []], {"type": "multilabel"}),
        (["a|b", "a", "b|c", "c|a"], {"type": "multilabel"}),
        (["a; b", "a", "b; c", "c; a"], {"type": "multilabel", "separator": ";"}),
        (["a;x", "b", "a;x", "b"] + ["c"] * 4, {"type": "multilabel", "separator": ";"}),
    ],
)
def test_tasks(cells, task):
    assert infer_task(cells) == task


@pytest.mark.parametrize("cells", [[None, ""], [b"x"], [date(2024, 1, 1)], [{"a": 1}], phrases(30)])
def test_targets_that_cannot_be_learnt(cells):
    with pytest.raises(DataError, match="a target must"):
        infer_task(cells)


@pytest.mark.skipif(not (DATA / "stamps" / "train.csv").exists(), reason="the real table is not here")
def test_real_table():
    path = DATA / "stamps" / "train.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    guesses = infer_kinds(columns, lambda place: (path.parent / place).exists())
    numbers, booleans = [*columns][3:9], ["nomirror", "noflip", "sound"]
    assert numbers == ["width", "height", "aspect", "alpha", "file_kb", "n_langs"]
    assert infer_inputs(guesses, ["label"]) == {
        "image": {"type": "image"},
        "text": {"type": "text"},
        "voice": {"type": "audio"},
        "table": {"type": "table", "numbers": numbers, "booleans": booleans},
    }
    assert guesses["notint"] == Guess("ignored", "constant: every cell is 'no'")
    assert "do not exist" not in guesses["image"].reason
    assert infer_task(columns["label"]) == {"type": "classify"}


def test_of_lists_of_like_length_the_words_are_an_input():
    words, kinds = [["EU", "rejects"], ["a", "German", "call"]], [["N", "V"], ["D", "J", "N"]]
    guesses = infer_kinds({"kinds": kinds, "words": words, "tags": [["x"], ["x", "y"]]}, lambda _: False)
    assert [guess.kind for guess in guesses.values()] == ["ignored", "words", "words"]
    assert "one for each word of words" in guesses["kinds"].reason
    assert infer_inputs(guesses, ["tags"]) == {"words": {"type": "words"}}


def test_tags_without_words_are_refused():
    with pytest.raises(DataError, match="a target of tags must have as many as a column has words"):
        infer_task([["B-x", "O"], ["O"]])
