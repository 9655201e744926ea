"""The spec that a table's columns suggest."""

import json

import pandas as pd
import pytest

from polymodal.data.guess import SAMPLE, guess_columns, infer_spec
from polymodal.data.table import Table
from polymodal.errors import DataError
from tiny import columns, picture


def test_every_kind_of_column():
    found = infer_spec(Table.read(columns(40, media=True)), ["label", "price", "tags"])
    assert {name: part.kind for name, part in found.inputs.items()} == {
        "text": "text", "image": "image", "audio": "audio", "table": "table",
    }  # fmt: skip
    assert {name: task.kind for name, task in found.outputs.items()} == {
        "label": "classify", "price": "regress", "tags": "multilabel",
    }  # fmt: skip
    assert found.inputs["table"].numbers == ("x",)
    assert found.inputs["table"].categories == ("colour",)


def test_paths_are_looked_up_beside_the_table(tmp_path):
    (tmp_path / "media").mkdir()
    for i in range(6):
        (tmp_path / "media" / f"{i}.png").write_bytes(picture(i))
    cells = [f"media/{i}.png" for i in range(6)]
    pd.DataFrame({"photo": cells}).to_csv(tmp_path / "t.csv", index=False)
    assert guess_columns(Table.read(tmp_path / "t.csv"))["photo"].reason == "image files"
    lost = guess_columns(Table.read({"photo": cells}))["photo"]
    assert lost.kind == "image"
    assert "6 of 6 looked up do not exist" in lost.reason


def test_a_long_table_is_sampled_evenly():
    late = [None] * (3 * SAMPLE) + [f"a text of many words, the {i}th of them" for i in range(SAMPLE)]
    assert guess_columns(Table.read({"late": late}))["late"].kind == "text"


WORDS = [["EU", "rejects"], ["a", "German", "call"]] * 3
TAGS = [["B-org", "O"], ["O", "B-misc", "O"]] * 3


@pytest.mark.parametrize(
    ("columns", "target", "tag"),
    [
        ({"words": WORDS, "tags": TAGS}, "tags", "words"),
        (
            {"tokens": WORDS, "pos": [["X"] * len(row) for row in WORDS], "ner": TAGS, "n": [1.5, 2, 3] * 2},
            "ner",
            "tokens",
        ),
        ({"words": [json.dumps(row) for row in WORDS], "tags": [json.dumps(row) for row in TAGS]}, "tags", "words"),
        (
            {"text": ["EU rejects", "a German call"] * 3, "spans": [[{"start": 0, "end": 2, "type": "org"}], []] * 3},
            "spans",
            "text",
        ),
    ],
)
def test_a_tag_for_each_word(columns, target, tag):
    found = infer_spec(Table.read(columns), [target])
    assert found.outputs[target].kind == "tag"
    assert found.outputs[target].about == tag
    assert [name for name, part in found.inputs.items() if part.worded] == [tag]
    assert ("table" in found.inputs) == ("n" in columns)


def test_a_conll_file(tmp_path):
    rows = ["".join(f"{w}\t{t}\n" for w, t in zip(a, b, strict=True)) for a, b in zip(WORDS, TAGS, strict=True)]
    (tmp_path / "t.conll").write_text("\n".join(rows))
    found = infer_spec(Table.read(tmp_path / "t.conll"), ["tags"])
    assert (list(found.inputs), found.inputs["words"].kind, found.outputs["tags"].kind) == (["words"], "words", "tag")


@pytest.mark.parametrize(
    ("table", "target", "said"),
    [
        ({"x": [1.5, 2.5]}, "y", r"must have a column 'y'"),
        ({"x": [1.5, 2.5], "y": [None, ""]}, "y", r"target 'y': a target must have labelled rows"),
        (
            {"x": [1.5, 2.5], "y": [b"1", b"2"]},
            "y",
            r"target 'y': a target must be a class, classes or a number, got bytes",
        ),
        ({"y": ["a", "b"] * 3}, "y", r"the table: a table must have a column to learn from besides its targets"),
        ({"x": ["same"] * 6, "y": ["a", "b"] * 3}, "y", r"x: constant"),
        ({"w": WORDS, "y": [row[:1] for row in TAGS]}, "y", r"target 'y': a target of tags must have as many"),
        (
            {"w": WORDS, "y": [[0] * len(row) for row in WORDS]},
            "y",
            r"must hold the names of tags, one for each of the w",
        ),
    ],
)
def test_what_cannot_be_learnt(table, target, said):
    with pytest.raises(DataError, match=said):
        infer_spec(Table.read(table), [target])
