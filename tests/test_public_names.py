"""The public names: they resolve, they are documented, and naming them costs nothing."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import polymodal as pm

FILES = sorted(Path(pm.__file__).parent.rglob("*.py"))
HEAVY = ("torch", "numpy", "pyarrow", "onnxruntime", "PIL", "av", "pandas", "sklearn", "transformers", "pydantic")


@pytest.mark.parametrize("name", pm.__all__)
def test_a_public_name_resolves_and_says_what_it_is(name):
    thing = getattr(pm, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__doc__, f"{name} has no docstring"


def test_names_are_given_once_to_readers_of_types_and_to_the_interpreter():
    tree = ast.parse(Path(pm.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == {name: f"polymodal.{home}" for name, home in pm._HOMES.items()}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        pm.fitt  # noqa: B018


def loaded_after(code: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout
    return set(json.loads(told.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import polymodal",
        "import sys\nsys.argv = ['polymodal', '--help']\nfrom polymodal.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
    ],
    ids=["import", "help"],
)
def test_importing_and_asking_for_help_load_nothing_heavy(code):
    modules = loaded_after(code)
    assert not modules & set(HEAVY)
    assert "polymodal" in modules


@pytest.mark.slow
def test_the_core_loads_nothing_that_only_extras_or_tests_need():
    modules = loaded_after("import polymodal as pm\nfor name in pm.__all__: getattr(pm, name)")
    assert "torch" in modules
    assert not modules & {"sklearn", "scipy", "pandas", "polars", "transformers", "torchvision", "matplotlib"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_module_says_what_it_is(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc
    assert doc.splitlines()[0].endswith("."), f"{path}: {doc.splitlines()[0]}"


def test_every_part_lists_its_options_in_its_docstring():
    for kind in (pm.Modality, pm.Fusion, pm.Task):
        pm.Spec  # noqa: B018  (loads every part)
        for name, part in kind.known.items():
            if not part.__module__.startswith("polymodal."):
                continue
            own = set(part.model_fields) - set(kind.model_fields) - {"type"}
            missing = [field for field in own if f"{field}:" not in (part.__doc__ or "")]
            assert not missing, f"{name} does not describe {missing}"
