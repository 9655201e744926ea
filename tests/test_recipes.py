"""Every recipe runs to its end on a few rows of its data."""

import ast
import importlib.util
import os
from pathlib import Path

import pytest

from polymodal.nn.language import loading
from polymodal.nn.language.loading import load_language
from talker import tiny_language

FOLDER = Path(__file__).parents[1] / "recipes"
DATA = Path(os.environ.get("POLYMODAL_DATA") or FOLDER.parents[1] / "shared" / "data")
RECIPES = {
    "entities": "wnut17", "intents": "snips_nlu", "find_stamps": "stamps",
    "describe_stamps": "stamps", "ask_stamps": "stamps", "speech_commands": "speech_commands",
}  # fmt: skip


def load(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_a_few_rows(name, tmp_path, monkeypatch):
    small = load_language(tiny_language(tmp_path / "talker", context=2048))
    monkeypatch.setitem(loading._LOADED, ("smollm2", ""), small)  # which would take minutes
    data = DATA / RECIPES[name]
    if not data.is_dir():
        pytest.skip(f"{RECIPES[name]} is not there: set POLYMODAL_DATA")
    found = load(name).main(["--data", str(data), "--tiny", "--out", str(tmp_path / "model")])
    assert found
    assert all(0 <= value <= 1 for value in found.values()), found
    assert (tmp_path / "model" / "spec.json").is_file()


@pytest.mark.parametrize("name", [*RECIPES, "digits"])
def test_a_recipe_uses_public_names_only(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not any(module.startswith("polymodal") for module in modules)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_thin(name):
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 80
