import importlib.util
import threading
import warnings

import pytest
import torch
from torch import nn

from polymodal.errors import SpecError
from polymodal.nn import runtime
from polymodal.nn.backbone import Backbone
from polymodal.nn.runtime import Session, accelerate
from polymodal.nn.weights import PACKAGED
from polymodal.types import Masked


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.project = nn.Embedding(50, width), nn.Linear(width, width)

    def forward(self, ids, mask):
        y = self.embed(ids) * mask.unsqueeze(-1)
        return torch.tanh(self.project(y + y.sum(1, keepdim=True)))


class Words(Backbone):
    def __init__(self, width=8, digest="words"):
        super().__init__()
        self.net, self.width, self.digest = Net(width).eval(), width, digest

    def tensors(self, x):
        return x.values, x.mask.float()

    def tokens(self, y, x):
        return Masked(y, x.mask, x.at)

    def dynamic(self):
        return [{1: "length"}, {1: "length"}]


def batch(rows, length):
    ids = torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(rows))
    return Masked(ids, torch.arange(length) < torch.arange(1, rows + 1).clamp(max=length)[:, None])


@pytest.fixture
def words():
    torch.manual_seed(0)
    return Words()


def test_agrees_on_every_batch_size_and_length(words, tmp_path):
    fast = accelerate(words, tmp_path, batch(1, 5))
    for rows, length in ((1, 5), (4, 3), (7, 11)):
        x = batch(rows, length)
        with torch.no_grad():
            slow = words(x)
        torch.testing.assert_close(fast(x).values, slow.values, atol=1e-5, rtol=0)
        assert torch.equal(fast(x).mask, slow.mask)


def test_copy_is_of_the_same_kind_and_leaves_the_original(words, tmp_path):
    net = words.net
    fast = accelerate(words, tmp_path, batch(2, 3))
    assert words.net is net
    assert isinstance(fast, Words)
    assert isinstance(fast.net, Session)
    assert (fast.width, fast.digest) == (words.width, words.digest)
    assert not list(fast.parameters())
    assert len(list(words.parameters())) == 3


def test_graph_is_exported_once_under_digest_and_torch_version(words, tmp_path, monkeypatch):
    accelerate(words, tmp_path / "deep" / "er", batch(2, 3))
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == [f"words-{torch.__version__}.onnx"]
    monkeypatch.setattr(runtime, "_export", lambda *_: pytest.fail("exported again"))
    accelerate(words, tmp_path / "deep" / "er", batch(2, 3))


@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_damaged_graph_is_built_anew(words, tmp_path, keep):
    x = batch(3, 4)
    want = accelerate(words, tmp_path, x)(x).values
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    assert torch.equal(accelerate(words, tmp_path, x)(x).values, want)
    assert len(path.read_bytes()) == len(content)


def test_graph_of_garbage_is_built_anew(words, tmp_path):
    x = batch(3, 4)
    want = accelerate(words, tmp_path, x)(x).values
    next(tmp_path.iterdir()).write_bytes(b"\x08\x01not a graph at all" * 50)
    assert torch.equal(accelerate(words, tmp_path, x)(x).values, want)


def test_folder_that_cannot_be_written_warns_once(words, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    x = batch(2, 3)
    with pytest.warns(RuntimeWarning, match="must be writable"):
        fast = accelerate(words, blocked / "cache", x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accelerate(words, blocked / "cache", x)
    torch.testing.assert_close(fast(x).values, words(x).values.detach(), atol=1e-5, rtol=0)


def test_backbone_that_brings_its_graph_is_not_exported(words, tmp_path, monkeypatch):
    x = batch(3, 4)
    graph = runtime._export(words, x)
    monkeypatch.setattr(runtime, "_export", lambda *_: pytest.fail("exported"))
    file = tmp_path / "own.onnx"
    file.write_bytes(graph)
    for brought in (graph, file):
        words.graph = brought
        fast = accelerate(words, tmp_path / "cache", x)
        torch.testing.assert_close(fast(x).values, words(x).values.detach(), atol=1e-5, rtol=0)
    assert not (tmp_path / "cache").exists()


def test_session_has_no_gradient(words):
    x = batch(2, 3)
    session = Session(runtime._export(words, x), threads=1)
    with pytest.raises(RuntimeError, match="no gradient"):
        session(x.values, x.mask.float().requires_grad_())
    assert not session(x.values, x.mask.float()).requires_grad


def test_threads_reach_the_session(words, tmp_path):
    for threads in (1, 2):
        fast = accelerate(words, tmp_path, batch(2, 3), threads=threads)
        options = fast.net.engine.session.get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    fast = accelerate(words, tmp_path, batch(2, 3))
    assert fast.net.engine.session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_a_session_may_be_called_from_several_threads_at_once(words, tmp_path):
    providers = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    for provider in providers:
        fast = accelerate(words, tmp_path, batch(2, 3), provider, threads=1)
        rows = [batch(n, 4) for n in range(1, 7)]
        wanted, found, together = [fast(x).values for x in rows], {}, threading.Barrier(len(rows))

        def work(i, fast=fast, rows=rows, found=found, together=together):
            together.wait()
            found[i] = [fast(rows[i]).values for _ in range(20)]

        jobs = [threading.Thread(target=work, args=(i,)) for i in range(len(rows))]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        assert all(torch.allclose(y, wanted[i], atol=1e-5) for i in found for y in found[i])
        assert len(found) == len(rows)


def test_openvino_keeps_what_it_compiled_beside_the_graph(words, tmp_path):
    pytest.importorskip("openvino")
    x = batch(2, 3)
    wanted = words(x).values.detach()
    for _ in range(2):
        fast = accelerate(words, tmp_path, x, "openvino")
        torch.testing.assert_close(fast(x).values, wanted, atol=1e-4, rtol=0)
    (kept,) = (tmp_path / "openvino" / "words").glob("*.blob")
    kept.write_bytes(kept.read_bytes()[:100])
    torch.testing.assert_close(accelerate(words, tmp_path, x, "openvino")(x).values, wanted, atol=1e-4, rtol=0)
    runtime.forget(words, tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_openvino_runs_where_nothing_can_be_kept(words, tmp_path):
    pytest.importorskip("openvino")
    graph = tmp_path / "own.onnx"
    graph.write_bytes(runtime.graph_of(words, batch(2, 3)))
    (tmp_path / "cache").write_text("in the way")
    fast = accelerate(words, tmp_path / "cache", batch(2, 3), "openvino", graph=graph)
    x = batch(2, 3)
    torch.testing.assert_close(fast(x).values, words(x).values.detach(), atol=1e-4, rtol=0)


def test_a_given_graph_runs_instead_of_the_backbones_own(words, tmp_path):
    x, other = batch(2, 3), Words()
    graph = tmp_path / "other.onnx"
    graph.write_bytes(runtime.graph_of(other, x))
    fast = accelerate(words, tmp_path / "cache", x, graph=graph)
    torch.testing.assert_close(fast(x).values, other(x).values.detach(), atol=1e-5, rtol=0)
    assert not (tmp_path / "cache").exists()


def test_the_graph_of_a_backbone_is_its_own_or_exported(words, tmp_path):
    x = batch(2, 3)
    exported = runtime.graph_of(words, x)
    assert Session(exported)(x.values, x.mask.float()).shape == (2, 3, 8)
    file = tmp_path / "own.onnx"
    file.write_bytes(exported[:50])
    for brought in (exported[:50], file):
        words.graph = brought
        assert runtime.graph_of(words, x) == exported[:50]


def test_half_precision_shares_the_weights_and_gives_nearly_the_same(words):
    x = batch(3, 4)
    half = runtime.halve(words)
    assert half.net.net is words.net
    wanted, found = words(x).values.detach(), half(x).values.detach()
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=1e-2)
    assert not torch.equal(found, wanted)


def test_example_needs_a_present_row(words, tmp_path):
    x = batch(2, 3)
    with pytest.raises(ValueError, match="present row"):
        accelerate(words, tmp_path, x.without(x.present))


def test_openvino_agrees_or_says_what_to_install(words, tmp_path):
    x = batch(4, 6)
    try:
        import openvino  # noqa: F401
    except ImportError:
        with pytest.raises(SpecError, match=r"polymodal\[openvino\]"):
            accelerate(words, tmp_path, x, provider="openvino")
        return
    for graph in (None, runtime._export(words, x)):
        words.graph = graph
        fast = accelerate(words, tmp_path, batch(2, 3), provider="openvino")
        torch.testing.assert_close(fast(x).values, words(x).values.detach(), atol=1e-4, rtol=0)


@pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the weights of MiniLM are not installed")
def test_minilm_agrees(tmp_path):
    text = pytest.importorskip("polymodal.modalities.text").Text(backbone="minilm")
    example = text.collate(["one two", None, "three"])
    backbone = text.backbone()
    fast = accelerate(backbone, tmp_path, example)
    x = text.collate(["A red apple.", "An old stamp from a far country, with a perforated edge. " * 30, "b"])
    with torch.no_grad():
        slow = backbone(x)
    torch.testing.assert_close(fast(x).values, slow.values, atol=1e-4, rtol=0)
    assert torch.equal(fast(x).mask, slow.mask)
