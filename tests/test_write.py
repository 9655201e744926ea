"""Writing tables of results."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

import polymodal as pm
from polymodal.errors import DataError

COLUMNS = {"label": ["a", 'ü, "b"\n', None], "p": [0.1, 1.0, None], "tags": [["x", "y"], [], None], "n": [1, 2, 3]}


def test_parquet(tmp_path):
    pm.write_table(COLUMNS, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == COLUMNS


def test_json_lines(tmp_path):
    pm.write_table(COLUMNS, str(tmp_path / "t.JSONL"))
    lines = (tmp_path / "t.JSONL").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {name: [row[name] for row in rows] for name in COLUMNS} == COLUMNS
    assert "ü" in lines[1]


def test_csv_holds_lists_as_json(tmp_path):
    pm.write_table(COLUMNS, tmp_path / "t.csv")
    frame = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert list(frame["label"]) == ["a", 'ü, "b"\n', ""]
    assert list(frame["tags"]) == ['["x", "y"]', "[]", ""]
    assert list(pm.Table.read(tmp_path / "t.csv").column("n")) == [1, 2, 3]


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.csv.gz"])
def test_an_unknown_ending(tmp_path, name):
    with pytest.raises(DataError, match=r"must end in one of \['\.conll', '\.csv', '\.jsonl', '\.parquet'\], got"):
        pm.write_table(COLUMNS, tmp_path / name)


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match="must lie in a folder that exists"):
        pm.write_table(COLUMNS, tmp_path / "no" / "t.csv")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, ending):
    file = tmp_path / f"t.{ending}"
    file.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DataError, match="could not be written: No space left on device"):
        pm.write_table(COLUMNS, file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_columns_of_mixed_types(tmp_path):
    with pytest.raises(DataError, match="columns must have one type and one length"):
        pm.write_table({"x": [1, "a"]}, tmp_path / "t.csv")
    with pytest.raises(DataError, match="columns must have one type and one length"):
        pm.write_table({"x": [1], "y": [1, 2]}, tmp_path / "t.parquet")


def test_conll(tmp_path):
    columns = {
        "tags": ["[]", "[]", None, None],
        "tags.tags": [["B-org", "O"], ["O"], [], None],
        "words": [["EU", "New York"], ["#"], [], None],
        "absent": ["", "", "words", "words"],
    }
    pm.write_table(columns, tmp_path / "t.conll")
    assert (tmp_path / "t.conll").read_bytes() == b"EU\tB-org\nNew York\tO\n\n#\tO\n"
    back = pm.Table.read(tmp_path / "t.conll")
    assert list(back.column("words")) == columns["words"][:2]
    assert list(back.column("tags")) == columns["tags.tags"][:2]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": ["a"]}, "must hold lists of words or tags"),
        ({"words": [["a"]], "tags": [["O", "O"]]}, "row 0 must have as many tags as words"),
        ({"words": [["a"], ["b"]], "tags": [["O"], None]}, "row 1 must have as many"),
        ({"words": [["a\tb"]], "tags": [["O"]]}, r"without tabs and line breaks, got 'a\\tb'"),
        ({"words": [["a"]], "tags": [["O"], ["O"]]}, "must have one length"),
    ],
)
def test_what_is_no_conll(tmp_path, columns, said):
    with pytest.raises(DataError, match=said):
        pm.write_table(columns, tmp_path / "t.conll")
    assert not list(tmp_path.iterdir())


def test_conll_tells_how_many_rows_have_no_place_in_it(tmp_path):
    columns = {"words": [["EU"], [], ["so"], None], "tags": [["B-org"], [], ["O"], None]}
    assert pm.write_table(columns, tmp_path / "t.conll") == 2
    assert pm.write_table(columns, tmp_path / "t.jsonl") == 0
    assert len(pm.Table.read(tmp_path / "t.conll")) == 2


def test_words_that_look_like_comments_come_back_or_are_refused(tmp_path):
    columns = {"words": [["Ada", "met"], ["#a=", "x"], ["# a = b"]], "tags": [["B-p", "O"], ["O", "O"], ["O"]]}
    pm.write_table(columns, tmp_path / "t.conll")
    back = pm.Table.read(tmp_path / "t.conll")
    assert list(back.column("words")) == columns["words"]
    for bad in ({"words": [["-DOCSTART-"]], "tags": [["O"]]}, {"words": [["# a"]]}):
        with pytest.raises(DataError, match="takes for a comment"):
            pm.write_table(bad, tmp_path / "t.conll")


def test_conll_holds_the_tags_of_one_task(tmp_path):
    columns = {"a.words": [["EU"]], "a.tags": [["O"]], "b.words": [["EU"]], "b.tags": [["B-org"]]}
    with pytest.raises(DataError, match="must hold the tags of one task"):
        pm.write_table(columns, tmp_path / "t.conll")


def test_conll_is_an_ending_only_where_there_are_words(tmp_path):
    with pytest.raises(DataError, match="It takes words and their tags only"):
        pm.check_ending(tmp_path / "t.conll")
    assert pm.check_ending(tmp_path / "t.conll", [".conll"])
