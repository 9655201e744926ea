"""What each input says it takes: its columns, with examples that the fitted part reads."""

import json

import pytest

import radar
import tiny
from polymodal.data.cells import content
from polymodal.spec import Spec

INPUTS = {
    "text": {"type": "text", "backbone": "none", "min_count": 1},
    "story": {"type": "text", "backbone": "minilm", "column": "words"},
    "sentence": {"type": "words", "backbone": "none", "min_count": 1},
    "image": {"type": "image", "backbone": "none", "size": 32},
    "audio": {"type": "audio", "backbone": "none"},
    "table": {"type": "table", "numbers": ["x"], "categories": ["colour"], "booleans": ["sold"], "dates": ["day"]},
}
TABLE = {"x": [1, 3, 8], "colour": ["red", "red", "blue"], "sold": [True, False, None], "day": ["2020-01-01"] * 3}


def fitted(name):
    part = Spec.parse({"inputs": {name: INPUTS[name]}, "outputs": {"y": "classify"}}).inputs[name]
    if name == "table":
        rows = [dict(zip(TABLE, cells, strict=True)) for cells in zip(*TABLE.values(), strict=True)]
        return part.fit([part.read(row).value for row in rows])
    if part.worded:
        return part.fit([part.read(["red", "apple", "pie"]).value])
    return part.fit(["red apple pie", "red apple"] if "text" in part.type else [])


@pytest.mark.parametrize("name", INPUTS)
def test_examples_are_read_by_the_fitted_part(name):
    part = fitted(name)
    fields = part.fields(name)
    assert [field.column for field in fields] == list(part.columns(name))
    cells = {field.column: content(field.example, part.media, allow_paths=False).content for field in fields}
    reading = part.read(cells if part.spans else next(iter(cells.values())))
    assert reading.value is not None
    assert not reading.repairs
    assert not reading.broken
    assert bool(part.collate([reading.value]).mask.any())


def test_a_table_tells_its_kinds_levels_and_typical_values():
    fields = {field.column: field for field in fitted("table").fields("table")}
    assert [field.kind for field in fields.values()] == ["number", "category", "boolean", "date"]
    assert fields["x"].example == 3
    assert fields["colour"].levels == ("red",)
    json.dumps([field.example for field in fields.values()])


def test_words_of_the_example_are_known():
    part = fitted("text")
    assert part.fields("text")[0].example == "apple red pie"


def test_another_column_and_another_kind():
    assert fitted("story").fields("story")[0].column == "words"
    field = radar.Radar().fields("front")[0]
    assert (field.column, field.kind, field.example) == ("front", "radar", None)


def test_examples_of_media_are_made_up():
    """Those of media do not depend on what was learned."""
    one = tiny.fitted("image").spec.inputs["image"].fields("image")[0].example
    assert one == fitted("image").fields("image")[0].example
