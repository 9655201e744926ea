"""The model card."""

import re

import polymodal as pm
from polymodal.card import card
from tiny import columns, fitted


def test_what_a_card_says(tmp_path):
    outputs = {"label": "classify", "price": "regress"}
    table = columns(40)
    table["text"][0] = None
    model = pm.fit(
        {
            "inputs": {
                "text": {"type": "text", "backbone": "none", "column": "text"},
                "numbers": {"type": "table", "numbers": ["x"]},
            },
            "outputs": outputs,
            "fusion": "gated",
            "training": {"epochs": 1},
        },
        table,
        test=columns(12),
        cache=False,
    )
    text = (model.save(tmp_path / "m") / "README.md").read_text(encoding="utf-8")
    assert text == card(model.spec, model.report)
    assert "text, numbers -> label, price" in text
    assert "Fusion: gated." in text
    for row in ("| text | text | text |", "| numbers | table | x |", "| label | classify | label |"):
        assert row in text
    score = model.report["test"]["tasks"]["label"]["scores"]["accuracy"]
    assert f"- label, 12 test rows: accuracy {score:.3f}, without text" in text
    assert "- price, 12 test rows: r2" in text
    assert "valid rows" in text
    assert "- text: 39 present, 1 absent, 0 broken." in text
    assert "40 rows from `the table`" in text


def test_the_example_of_a_card_runs(tmp_path):
    place = fitted("text", "table").save(tmp_path / "m")
    code = re.search(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)[1]
    values = {"text": "'red apple pie'", "x": "1.0", "colour": "'red'"}
    code = re.sub(r'"(\w+)": \.\.\.', lambda m: f'"{m[1]}": {values[m[1]]}', code)
    assert code.count("...") == 0
    exec(code.replace("path/to/this/folder", str(place)), {})  # noqa: S102


def test_without_held_out_rows():
    model = fitted("table", split={"valid": 0.0})
    assert "No labelled rows were held out." in card(model.spec, model.report)


def test_names_cannot_break_the_tables():
    table = {"a|b": [1.0, 2.0] * 10, "y": ["p", "q"] * 10}
    model = pm.fit(
        {
            "inputs": {"n": {"type": "table", "numbers": ["a|b"]}},
            "outputs": {"y": "classify"},
            "training": {"epochs": 1},
        },
        table,
        cache=False,
    )
    row = next(line for line in card(model.spec, model.report).splitlines() if line.startswith("| n "))
    assert row == r"| n | table | a\|b |"
