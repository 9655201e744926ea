"""Verify finds what agrees, what differs, and says what could not be asked."""

import json

import pytest
import torch

import polymodal as pm
import tiny
from polymodal import verifying
from polymodal.trials.probe import Probe
from polymodal.verifying import verify

OUTPUTS = {"label": "classify", "price": "regress", "tags": "multilabel"}
WAYS = [
    "torch, float32 (reference)",
    "model as one ONNX graph",
    "one row at a time",
    "saved and loaded again",
    "server, JSON",
    "server, multipart",
    "server, inference protocol",
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "bundle"
    return tiny.fitted("text", "image", "table", outputs=OUTPUTS).save(folder)


def checks(found):
    return {check.name: check for check in found.checks}


def test_every_way_agrees_on_made_up_rows(bundle):
    seen = []
    found = verify(bundle, progress=lambda what, done, total: seen.append((done, total)))
    assert found.ok, found.lines()
    assert list(checks(found)) == WAYS  # no backbones, so no runtimes
    assert {check.verdict for check in found.checks} == {"ok"}, found.lines()
    assert found.lines()[-1] == "all agree"
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True
    assert seen[-1] == (5, 5)


def test_with_a_labelled_table_scores_are_told_and_broken_cells_left_out(bundle, monkeypatch):
    monkeypatch.setattr(verifying, "PACKAGES", ())  # the server is asked above
    monkeypatch.setattr(Probe, "protocols", lambda self, spec: {})
    table = tiny.columns(12, media=True)
    table["image"][3] = b"broken"
    found = verify(bundle, table)
    assert found.ok, found.lines()
    assert found.rows == "12 rows of the table, 1 broken cells left out"
    assert checks(found)[WAYS[0]].scores.keys() == OUTPUTS.keys()
    assert checks(found)[WAYS[1]].scores == pytest.approx(checks(found)[WAYS[0]].scores)
    unlabelled = verify(bundle, {name: table[name] for name in ("text", "x")})
    assert not checks(unlabelled)[WAYS[0]].scores


def test_what_differs_is_named_and_what_lacks_a_package_is_no_difference(bundle, monkeypatch):
    def shifted(model, folder):
        return lambda inputs: {n: x + torch.arange(x.shape[1]) for n, x in model.answer(inputs).decoded.items()}

    monkeypatch.setattr(verifying, "answerer", shifted)
    monkeypatch.setattr(verifying, "PACKAGES", ("no_such_package",))
    found = verify(bundle)
    assert not found.ok
    assert checks(found)["model as one ONNX graph"].verdict == "differs"
    assert checks(found)["model as one ONNX graph"].difference > 0.01
    assert checks(found)["server"].verdict == "not installed"
    assert "pip install 'polymodal[serve]'" in checks(found)["server"].line()
    assert found.lines()[-1] == "1 differ: model as one ONNX graph"


def test_a_model_that_cannot_be_traced_is_left_out(bundle, monkeypatch):
    def refuse(model, folder):
        raise pm.SpecError("encoders.text must be traceable.")

    monkeypatch.setattr(verifying, "answerer", refuse)
    monkeypatch.setattr(verifying, "PACKAGES", ("no_such_package",))
    found = verify(bundle)
    assert found.ok
    assert checks(found)["model as one ONNX graph"].verdict == "left out"
    assert "must be traceable" in checks(found)["model as one ONNX graph"].note


def test_a_server_that_refuses_or_loses_a_row_differs(bundle, monkeypatch):
    def refuse(self, rows):
        raise pm.SpecError("/v1/predict must answer 200, got 500")

    monkeypatch.setattr(Probe, "multipart", refuse)
    whole = Probe.json
    monkeypatch.setattr(Probe, "json", lambda self, rows: whole(self, rows)[:-1])
    found = checks(verify(bundle))
    assert (found["server, multipart"].verdict, found["server, multipart"].ms) == ("differs", None)
    assert "got 500" in found["server, multipart"].line()
    assert (found["server, JSON"].verdict, found["server, JSON"].difference) == ("differs", float("inf"))


def test_the_tolerance_decides(bundle, monkeypatch):
    def nudged(model, folder):
        return lambda inputs: {n: x + 1e-3 * torch.arange(x.shape[1]) for n, x in model.answer(inputs).decoded.items()}

    monkeypatch.setattr(verifying, "answerer", nudged)
    monkeypatch.setattr(verifying, "PACKAGES", ("no_such_package",))
    assert verify(bundle, tolerance=0.1).ok
    assert not verify(bundle, tolerance=1e-6).ok


def test_bad_arguments_are_refused(bundle, tmp_path):
    with pytest.raises(pm.SpecError, match="tolerance must be 0 or more"):
        verify(bundle, tolerance=-1.0)
    with pytest.raises(pm.BundleError):
        verify(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(pm.PACKAGED["minilm"].locate() is None, reason="the weights are not installed")
def test_every_installed_runtime_of_a_backbone_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(verifying, "PACKAGES", ("no_such_package",))
    spec = {"inputs": {"text": {"type": "text", "backbone": "minilm"}}, "outputs": {"label": "classify"}}
    folder = pm.fit(spec | {"training": tiny.FAST}, tiny.columns(16), cache=False).save(tmp_path / "bundle")
    found = verify(folder)
    assert found.ok, found.lines()
    assert checks(found)["backbones in onnxruntime"].verdict == "ok"
    assert checks(found)["backbones in openvino"].verdict in ("ok", "not installed")
    assert not any("int8" in name for name in checks(found))  # it holds none
    monkeypatch.setattr("polymodal.nn.provider.installed", lambda runtime: runtime != "openvino")
    missing = checks(verify(folder))["backbones in openvino"]
    assert (missing.verdict, "pip install 'polymodal[openvino]'" in missing.note) == ("not installed", True)
