"""Rows become bodies that a server reads back as the same rows."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pytest

import polymodal as pm
import tiny
from polymodal.server.requests import Intake
from polymodal.server.settings import Settings
from polymodal.server.tensors import usual
from polymodal.trials.ask import as_form, as_json, as_tensors, best_form, fields, made_up, table_rows


@pytest.fixture(scope="module")
def bundle():
    return tiny.fitted("text", "image", "audio", "table")


def intake(spec):
    return Intake(spec, Settings.make("model=here"))


def present(row):
    return {column: cell for column, cell in row.items() if cell is not None}


def test_made_up_rows_have_everything_something_and_nothing(bundle):
    rows = made_up(bundle.spec)
    columns = frozenset({"text", "image", "audio", "x", "colour"})
    assert all(row.keys() == columns for row in rows)
    assert present(rows[0]).keys() == columns
    assert not present(rows[-1])
    held = {frozenset(present(row)) for row in rows}
    assert {columns - {"image"}, columns - {"x", "colour"}, frozenset({"image"})} <= held  # without each, alone
    assert len({repr(row) for row in rows}) > len(held)  # and varied
    assert len(bundle.predict(rows, strict=True)) == len(rows)


def test_a_column_of_two_inputs_is_one_field():
    spec = pm.Spec(
        inputs={"words": {"type": "text", "column": "text"}, "again": {"type": "text", "column": "text"}},
        outputs={"label": "classify"},
    )
    assert [field.column for field in fields(spec)] == ["text"]


def test_a_json_body_is_read_as_the_same_rows(bundle):
    rows = made_up(bundle.spec)
    request = as_json(rows, first=3)
    asked = intake(bundle.spec).parse(request.body, request.content_type)
    assert asked.rows == [present(row) for row in rows]
    assert (request.first, request.rows) == (3, len(rows))


def test_a_form_is_read_as_the_same_row_with_numbers_as_text(bundle):
    for row in made_up(bundle.spec)[:-1]:
        request = as_form(row, first=2)
        (asked,) = intake(bundle.spec).parse(request.body, request.content_type).rows
        expected = {c: v if isinstance(v, bytes | str) else json.dumps(v) for c, v in present(row).items()}
        assert asked == expected
        assert (request.first, request.rows) == (2, 1)


def test_odd_names_survive_a_form():
    spec = pm.Spec(inputs={"t": {"type": "text", "column": 'the "café"'}}, outputs={"label": "classify"})
    request = as_form({'the "café"': "ü\r\n--x"})
    assert intake(spec).parse(request.body, request.content_type).rows == [{'the "café"': "ü\r\n--x"}]


def test_files_go_as_a_form_and_the_rest_as_json(bundle):
    assert best_form({"image": b"x", "text": None}, 1).content_type.startswith("multipart/form-data")
    assert best_form({"image": None, "text": "a"}, 1).content_type == "application/json"


def test_tensors_hold_a_column_each(bundle):
    rows = made_up(bundle.spec)
    request = as_tensors(bundle.spec, rows, usual)
    tensors = {tensor["name"]: tensor for tensor in json.loads(request.body)["inputs"]}
    assert tensors.keys() == {"text", "image", "audio", "x", "colour"}
    assert tensors["x"]["datatype"] == "FP64"
    assert tensors["x"]["data"][-1] is None
    assert all(tensor["shape"] == [len(rows)] == [len(tensor["data"])] for tensor in tensors.values())


def test_table_rows_are_spread_evenly_and_lose_what_is_broken(bundle):
    table = tiny.columns(10, media=True)
    table["image"][9], table["x"][0] = b"no image", "twelve"
    rows, index, broken = table_rows(bundle.spec, table, 4)
    assert index.tolist() == [0, 3, 6, 9]
    assert broken == 2
    assert (rows[3]["image"], rows[0]["x"]) == (None, None)
    assert rows[1]["image"] == table["image"][3]
    assert "label" not in rows[0]
    assert len(bundle.predict(rows, strict=True)) == 4
    assert len(table_rows(bundle.spec, table, 100)[0]) == 10


def test_cells_of_a_table_become_json():
    spec = pm.Spec(
        inputs={"table": {"type": "table", "numbers": ["a", "b", "c"], "dates": ["d", "e"]}},
        outputs={"label": "classify"},
    )
    day = datetime.date(2024, 5, 17)
    row = {"a": np.float32(1.5), "b": Decimal("2.5"), "c": float("nan"), "d": day, "e": datetime.datetime(2024, 1, 2)}
    (found,), _, broken = table_rows(spec, [row], 1)
    assert found == {"a": 1.5, "b": 2.5, "c": None, "d": "2024-05-17", "e": "2024-01-02T00:00:00"}
    assert not broken
    assert json.loads(as_json([found]).body)["inputs"][0]["a"] == 1.5
