"""inspect: what is in a table."""

import pandas as pd
import pytest

import polymodal as pm
from polymodal.errors import DataError
from tiny import columns, picture


def test_spec_and_columns():
    table = columns(40, media=True) | {"key": list(range(40))}
    found = pm.inspect(table, ["label", "price"])
    kinds = {name: guess.kind for name, guess in found.guesses.items()}
    assert kinds["text"] == "text"
    assert kinds["image"] == "image"
    assert kinds["audio"] == "audio"
    assert set(found.spec.inputs) == {"text", "image", "audio", "table"}
    assert set(found.spec.outputs) == {
        "label",
        "price",
    }
    assert found.report.targets["label"].balance == {"a": 20, "b": 20}
    assert "key" not in found.spec.inputs["table"].columns("table")
    assert found.report.unused == ("key",)
    assert found.to_dict()["spec"] == found.spec.to_yaml()


def test_fit_uses_the_spec_that_inspect_shows():
    table = {name: columns()[name] for name in ("x", "colour", "label")}
    assert pm.fit(table, target="label", cache=False).report["spec"] == pm.inspect(table, "label").spec.to_yaml()


def test_without_a_target_every_column_is_an_input():
    found = pm.inspect(columns())
    assert found.spec is None
    assert found.to_dict()["spec"] is None
    assert set(found.report.inputs) == {"text", "table"}
    assert found.report.unused == ()
    assert not found.report.targets


def test_every_cell_is_read(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(picture(i % 2) if i else b"no picture")
    cells = [f"{i}.png" for i in range(5)] + [None, "gone.png"]
    pd.DataFrame({"image": cells, "label": list("abababa")}).to_csv(tmp_path / "t.csv", index=False)
    steps = []
    found = pm.inspect(tmp_path / "t.csv", "label", progress=lambda *step: steps.append(step))
    seen = found.report.to_dict()["inputs"]["image"]
    assert (seen["present"], seen["absent"], seen["quarantined"], seen["duplicates"]) == (4, 3, 2, 2)
    assert [row["row"] for row in seen["quarantined_rows"]] == [0, 6]
    assert seen["ranges"]["width"] == {"min": 24.0, "mean": 24.0, "max": 24.0}
    assert steps[-1] == ("read image", 7, 7)
    with pytest.raises(DataError, match=r"t\.csv: row 0, column 'image'.*\(and 1 more\)"):
        pm.inspect(tmp_path / "t.csv", "label", strict=True)


def test_an_unknown_target():
    with pytest.raises(DataError, match="Did you mean 'label'"):
        pm.inspect(columns(), "lable")


def test_a_table_of_which_nothing_can_be_used_is_still_described():
    found = pm.inspect({"key": list(range(30)), "same": ["x"] * 30})
    assert {name: guess.kind for name, guess in found.guesses.items()} == {"key": "ignored", "same": "ignored"}
    assert found.report.unused == ("key", "same")
    assert "constant" in found.guesses["same"].reason
