"""The commands embed, index, find and classify."""

import csv
import json
import sys
import warnings

import numpy as np
import pytest

import polymodal as pm
import tiny
from polymodal import cli


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command as the entry point does: (status, standard output, standard error)."""

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["polymodal", *map(str, arguments)])
        monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        seen = capsys.readouterr()
        return stop.value.code, seen.out, seen.err

    return go


@pytest.fixture
def good(run):
    def go(*arguments):
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return go


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, items.csv with pictures, and an index of it."""
    place = tmp_path_factory.mktemp("find")
    table = tiny.columns(24, media=True)
    tiny.fitted("text", "image", outputs={"pairs": "match"}).save(place / "model")
    with (place / "items.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image", "colour"])
        for i, text in enumerate(table["text"]):
            (place / f"{i}.png").write_bytes(table["image"][i])
            lines.writerow([f"i{i}", text, f"{i}.png", table["colour"][i]])
        lines.writerow(["empty", "", "", "red"])
    pm.Index.create(place / "model", place / "items.csv").save(place / "index")
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_embed_writes_vectors(here, run, good, tmp_path):
    status, out, err = run("embed", "model", "items.csv", "--out", tmp_path / "v.npz", "--input", "image")
    assert (status, out) == (0, f"25 vectors of length 16 in {tmp_path / 'v.npz'}\n")
    assert "1 of 25 rows have no vector, the first is row 24" in err
    whole = pm.embed(here / "model", here / "items.csv", inputs=["image"]).vectors
    np.testing.assert_array_equal(np.load(tmp_path / "v.npz")["vectors"], whole)
    told = good("embed", "model", "items.csv", "--out", tmp_path / "v.csv", "--width", "4", "--task", "pairs")
    assert (told["rows"], told["width"], told["without"]) == (25, 4, 1)


def test_find_takes_each_input_as_an_option(here, run, good):
    made = pm.Index.load("index")
    for arguments, query in (
        (["--text", "a red apple"], {"text": "a red apple"}),
        (["--text=a red apple"], {"text": "a red apple"}),
        (["--text", "--odd--"], {"text": "--odd--"}),
        (["--image", "3.png"], {"image": "3.png"}),
        (["--image", "3.png", "--text", "grey"], {"image": "3.png", "text": "grey"}),
    ):
        found = good("find", "index", "--count", "3", *arguments)
        assert found == {"items": [[hit._asdict() for hit in made.find(query, 3)[0]]]}
    status, out, _ = run("find", "index", "--text", "a red apple", "--count", "2", "--model", "model")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["score", "id", "text", "image", "colour"]
    assert len(lines) == 3


def test_many_queries_go_to_a_file(here, run, tmp_path):
    (tmp_path / "queries.csv").write_text("text\nred apple\ngrey stone\n")
    out_file = tmp_path / "hits.csv"
    status, out, _ = run("find", "index", "--queries", tmp_path / "queries.csv", "--count", "2", "--out", out_file)
    assert (status, out) == (0, f"4 items for 2 queries in {out_file}\n")
    found = pm.Table.read(out_file)
    assert found.columns == ("query", "rank", "id", "score", "item.text", "item.image", "item.colour")
    assert list(found.column("query")) == [0, 0, 1, 1]
    made = pm.Index.load("index")
    [hits] = made.find({"text": "grey stone"}, 2)
    assert list(found.column("id"))[2:] == [hit.id for hit in hits]
    status, out, _ = run("find", "index", "--queries", tmp_path / "queries.csv", "--count", "1")
    assert out.split()[0] == "query"


def test_an_index_is_made_and_changed(here, run, good, tmp_path):
    place = tmp_path / "index"
    told = good("index", "model", "items.csv", "--out", place, "--input", "text", "--keep", "colour", "--width", "8")
    assert (told["items"], told["width"], told["added"]) == (24, 8, 24)
    assert told["refused"] == {"empty": "it has none of the inputs ['text']"}
    made = pm.Index.load(place)
    assert made.items.columns[0] == {"colour": tiny.columns(24)["colour"][0]}
    status, out, _ = run("index", "model", "--out", place, "--remove", "i0,i1", "--remove", "i2")
    assert (status, out) == (0, f"21 items in {place}\n")
    (tmp_path / "more.csv").write_text('id,text,colour\ni0,red,blue\n"a,b",grey,red\n')
    assert good("index", "model", tmp_path / "more.csv", "--out", place, "--add")["items"] == 23
    told = good("index", "model", tmp_path / "more.csv", "--out", place, "--add", "--remove", "i0", "--remove", "a,b")
    assert (told["items"], told["added"]) == (23, 2)
    told = good("index", "model", tmp_path / "more.csv", "--out", place, "--id", "text", "--approximate", "never")
    assert pm.Index.load(place).items.ids == ["red", "grey"]
    assert pm.Index.load(place).note.approximate == "never"


def test_classify_by_label_names(here, run, good, tmp_path):
    found = good("classify", "model", "items.csv", "--labels", "red apple, grey stone", "--input", "image")
    right = pm.zero_shot("model", "items.csv", ["red apple", "grey stone"])
    assert found["rows"] == right.rows()
    other = good(
        "classify", "model", "items.csv", "--labels", "apple,stone", "--template", "red {}", "--template", "{}"
    )
    right = pm.zero_shot("model", "items.csv", ["apple", "stone"], templates=["red {}", "{}"])
    assert other["rows"] == right.rows()
    status, out, _ = run("classify", "model", "items.csv", "--labels", "a,b", "--out", tmp_path / "l.csv")
    assert (status, out) == (0, f"25 rows in {tmp_path / 'l.csv'}\n")
    assert pm.Table.read(tmp_path / "l.csv").columns[:3] == ("label", "score", "probability")
    status, out, _ = run("classify", "model", "items.csv", "--labels", "a,b", "--text-input", "text")
    assert len(out.splitlines()) == 25


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["find", "index", "--txt", "a"], "got '--txt'. Did you mean '--text'?"),
        (["find", "index", "-t", "a"], "a query must be of options ['--text', '--image'], got '-t'."),
        (["find", "index", "--text"], "--text must have a value"),
        (["find", "index", "--text", "a", "--text", "b"], "--text must be given once"),
        (["find", "index", "--text", "a", "b"], "got 'b'"),
        (["find", "index"], "a query must be given either by --text or --image or as --queries, got none."),
        (["find", "index", "--text", "a", "--queries", "items.csv"], "got both"),
        (["find", "--text", "a", "index"], "INDEX must stand before"),
        (["find", "nowhere", "--text", "a"], "nowhere must be an index's folder"),
        (["find", "model", "--text", "a"], "model/index.json must be an index's JSON"),
        (["find", "index", "--image", "nowhere.png"], "nowhere.png must be a file"),
        (["find", "index", "--image", "items.csv"], "column 'image'"),
        (["find", "index", "--text", "a", "--out", "x.doc"], "must end in one of"),
        (["find", "index", "--text", "a", "--count", "0"], "Invalid value for '--count'"),
        (["find", "index", "--text", "a", "--model", "text"], "must be asked with the model that it was made by"),
        (["index", "model", "--out", "new"], "ITEMS must be a table"),
        (["index", "model", "--out", "index", "--add"], "ITEMS must be a table"),
        (["index", "model", "items.csv", "--out", "index", "--remove", "i0"], "Give --add with both"),
        (["index", "model", "items.csv", "--out", "index", "--add", "--input", "text"], "--input is settled"),
        (["index", "model", "items.csv", "--out", "index", "--add", "--id", "text"], "--id is settled"),
        (["index", "model", "items.csv", "--out", "index", "--add"], "ids must be new, got 'i0'"),
        (["index", "model", "--out", "index", "--remove", "i77"], "ids must be of items of the index, got 'i77'"),
        (["index", "model", "items.csv", "--out", "."], "would be lost"),
        (["index", "model", "items.csv", "--out", "new", "--approximate", "often"], "approximate must be one of"),
        (["embed", "{", "items.csv", "--out", "v.npz"], "MODEL must be a folder, a modality or JSON of one"),
        (["embed", '{"type": "txt"}', "items.csv", "--out", "v.npz"], "Did you mean 'text'?"),
        (["embed", "model", "items.csv", "--out", "v.doc"], "must end in one of"),
        (["classify", "model", "items.csv", "--labels", "a"], "labels must be two or more"),
        (["classify", "model", "items.csv", "--labels", "a,b", "--template", "c"], "templates must be"),
    ],
)
def test_bad_use_is_one_line_and_status_2(here, run, arguments, said):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err
    assert len(pm.Index.load("index")) == 24
    assert not (here / "new").exists()
