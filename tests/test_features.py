import hashlib
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from polymodal.data import shards, shelf
from polymodal.data.features import FeatureStore, cache_folder, cache_limit
from polymodal.data.shelf import rounded
from polymodal.types import Masked

BIG = 1 << 30


def digests(n, start=0):
    raw = b"".join(hashlib.blake2b(str(i).encode(), digest_size=16).digest() for i in range(start, start + n))
    return np.frombuffer(raw, np.uint8).reshape(n, 16)


def random_rows(n, width=8, longest=5, at=True, seed=0):
    """Rows of 1 to ``longest`` positions, with holes behind and between."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n,), generator=g)
    mask = (torch.arange(longest) < lengths[:, None]) & (torch.rand(n, longest, generator=g) < 0.9)
    where = torch.rand(n, longest, 2, generator=g) if at else None
    return Masked(torch.randn(n, longest, width, generator=g) * 10, mask, where)


def fill(target, x, start=0, step=7, notes=None):
    keys = digests(len(x), start)
    with target.writer() as writer:
        for i in range(0, len(x), step):
            writer.add(keys[i : i + step], x[i : i + step], notes[i : i + step] if notes else None)
    return keys


def same(x, y):
    assert torch.equal(x.mask, y.mask)
    real = x.mask
    assert torch.equal(x.values[real], y.values[real])
    assert x.values.dtype == y.values.dtype
    assert (x.at is None) == (y.at is None)
    if x.at is not None:
        assert torch.equal(x.at[real], y.at[real])


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shelf, "_SHARD_ROWS", 10)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("at", [False, True])
def test_kept_rows_are_bit_for_bit_the_fresh_ones(mapped, at, tmp_path, monkeypatch, small_shards):
    monkeypatch.setattr(shelf, "_IN_MEMORY", 0 if mapped else BIG)
    x = random_rows(100, at=at)
    fill(FeatureStore(tmp_path, BIG).open("k"), x)
    again = FeatureStore(tmp_path, BIG).open("k")
    assert len(again) == 100
    assert len(again.shards) > 3
    rows = again.rows(again.find(digests(100)))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    for pick in (order[:17], order[17:18], order[18:]):
        same(rows.batch(pick), Masked.join([rounded(row) for row in x[pick].split()]))


def test_padding_is_zero_and_absent_rows_are_masked(tmp_path):
    box = FeatureStore(tmp_path, BIG).open("k")
    x = random_rows(20)
    fill(box, x)
    places = box.find(np.concatenate([digests(5), digests(3, 1000), digests(5)]))
    assert (places == -1).tolist() == [False] * 5 + [True] * 3 + [False] * 5
    assert places[:5].tolist() == places[8:].tolist()
    got = box.rows(places).batch(torch.arange(13))
    assert len(box.rows(places)) == 13
    assert not got.mask[5:8].any()
    assert (got.values[5:8] == 0).all()
    only = box.rows(places).batch(torch.tensor([6]))
    assert only.values.shape == (1, 1, 8)
    assert not only.mask.any()


def test_nothing_stored_at_all(tmp_path):
    box = FeatureStore(tmp_path, BIG).open("k")
    assert box.find(digests(3)).tolist() == [-1, -1, -1]
    like = Masked(torch.zeros(1, 1, 6, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 1, 2))
    got = box.rows(box.find(digests(3)), like).batch(torch.tensor([2, 0]))
    assert (got.values.shape, got.values.dtype) == ((2, 1, 6), torch.int64)
    assert not got.mask.any()
    assert got.at is not None
    assert not box.rows(box.find(digests(3))).batch(torch.tensor([0])).mask.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_dtypes_stay_without_half(dtype, tmp_path):
    values = (torch.rand(6, 3, 2, 2) * 200).to(dtype)
    x = Masked(values, torch.ones(6, 3, dtype=torch.bool))
    box = FeatureStore(tmp_path, BIG).open("k", half=False)
    keys = fill(box, x)
    same(box.rows(box.find(keys)).batch(torch.arange(6)), x)


def test_half_rounds_and_never_overflows(tmp_path):
    x = Masked(torch.tensor([[[1e6, -1e6, 1.0001, 0.1]]]), torch.ones(1, 1, dtype=torch.bool))
    box = FeatureStore(tmp_path, BIG).open("k", half=True)
    got = box.rows(box.find(fill(box, x))).batch(torch.tensor([0])).values
    assert torch.isfinite(got).all()
    assert got.dtype == torch.float32
    assert not torch.equal(got, x.values)
    assert torch.equal(got, rounded(x).values)
    assert torch.equal(rounded(rounded(x)).values, got)


def test_notes_come_back(tmp_path, small_shards):
    notes = [{"repairs": ["clipped"], "facts": {"i": i}, "text": "line\nbreak é"} for i in range(35)]
    fill(FeatureStore(tmp_path, BIG).open("k"), random_rows(35), notes=notes)
    box = FeatureStore(tmp_path, BIG).open("k")
    got = box.notes(box.find(np.concatenate([digests(35)[::-1], digests(1, 99)])))
    assert got == [*notes[::-1], None]


def test_found_at_once_after_writing_and_what_was_added_survives_an_error(tmp_path):
    box = FeatureStore(tmp_path, BIG).open("k")
    with pytest.raises(KeyError), box.writer() as writer:  # noqa: PT012
        writer.add(digests(4), random_rows(4))
        raise KeyError
    assert (box.find(digests(4)) >= 0).all()
    assert len(FeatureStore(tmp_path, BIG).open("k")) == 4


def test_rows_of_another_shape_need_another_key(tmp_path):
    store = FeatureStore(tmp_path, BIG)
    fill(store.open("k"), random_rows(3, width=8))
    with pytest.raises(ValueError, match="Use another key"):
        fill(store.open("k"), random_rows(3, width=9), start=50)
    with pytest.raises(ValueError, match="key must be"):
        store.open("../k")


WRITERS = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_features import digests, random_rows
from polymodal.data import shards, shelf
from polymodal.data.features import FeatureStore
shelf._SHARD_ROWS = 10

def write(start, stop):
    box = FeatureStore({folder!r}, 1 << 30).open("k")
    with box.writer() as writer:
        for i in range(start, stop):
            writer.add(digests(1, i), random_rows(1, seed=i))
            print(i, flush=True)

def die_in_the_fourth_shard(real, calls=[]):
    def sync(handle):
        calls.append(handle)
        return os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 4 else real(handle)
    return sync

children = []
for start, stop in ((0, 60), (30, 90), (200, 300)):
    if (child := os.fork()) == 0:
        if start == 200:
            shards.os.fsync = die_in_the_fourth_shard(os.fsync)
        write(start, stop)
        os._exit(0)
    children.append(child)
print("status", *[os.waitpid(child, 0)[1] for child in children])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_writers_at_once_and_one_killed_in_the_middle_of_a_shard(tmp_path):
    code = WRITERS.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"status 0 0 {int(signal.SIGKILL)}"
    assert len(list((tmp_path / "k").glob(".tmp-*"))) == 1
    box = FeatureStore(tmp_path, BIG).open("k")
    assert (box.find(digests(90)) >= 0).all()
    lost = box.find(digests(100, 200)) < 0
    assert not lost[:30].any()
    assert lost[40:].all()
    got = box.rows(box.find(digests(90))).batch(torch.arange(90))
    same(got, Masked.join([rounded(row) for i in range(90) for row in random_rows(1, seed=i).split()]))


@pytest.mark.parametrize("damage", ["cut", "empty", "rubbish", "header"])
def test_a_broken_shard_is_left_out_and_removed(damage, tmp_path, small_shards):
    fill(FeatureStore(tmp_path, BIG).open("k"), random_rows(30))
    file = sorted((tmp_path / "k").glob("*.safetensors"))[0]
    data = file.read_bytes()
    broken = {"cut": data[:-50], "empty": b"", "rubbish": b"x" * len(data), "header": data[:8] + b"{" * 20 + data[28:]}
    file.write_bytes(broken[damage])
    box = FeatureStore(tmp_path, BIG).open("k")
    assert len(box) in (16, 24, 28)
    assert not file.exists()
    missing = box.find(digests(30)) < 0
    assert missing.sum() == 30 - len(box)


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_not(tmp_path):
    (tmp_path / "k").mkdir()
    for name, age in ((".tmp-dead", 10_000), (".tmp-alive", 1)):
        (tmp_path / "k" / name).write_bytes(b"x")
        os.utime(tmp_path / "k" / name, (time.time() - age,) * 2)
    FeatureStore(tmp_path, BIG).open("k")
    assert not (tmp_path / "k" / ".tmp-dead").exists()
    assert (tmp_path / "k" / ".tmp-alive").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    store = FeatureStore(tmp_path / "cache", BIG)
    with pytest.warns(RuntimeWarning, match=r"cannot be written, so features stay in memory.*POLYMODAL_CACHE"):
        box = store.open("k")
    x = random_rows(10)
    keys = fill(box, x)  # a second warning would be an error
    store.open("other")
    assert store.open("k") is box
    same(box.rows(box.find(keys)).batch(torch.arange(10)), Masked.join([rounded(r) for r in x.split()]))
    assert store.usage() == []


def test_a_full_disk(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, BIG)
    box = store.open("k")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    x = random_rows(10)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        keys = fill(box, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(box, x, start=100)
    assert len(box.rows(box.find(keys)).batch(torch.arange(10))) == 10
    assert [p.name for p in (tmp_path / "k").iterdir()] == ["shelf.json"]


def test_the_shelf_used_longest_ago_makes_room(tmp_path):
    store = FeatureStore(tmp_path, BIG)
    for i, name in enumerate(("old", "new", "held")):
        fill(store.open(name, f"the {name} one"), random_rows(50))
        os.utime(tmp_path / name / "shelf.json", (1000 - i,) * 2 if name == "held" else (1000 + i,) * 2)
    held = store.open("held")
    os.utime(tmp_path / "held" / "shelf.json", (1, 1))
    usage = {u.key: u for u in store.usage()}
    assert [u.key for u in store.usage()] == ["new", "old", "held"]
    assert usage["old"].label == "the old one"
    assert usage["old"].rows == 50
    assert usage["old"].bytes == sum(f.stat().st_size for f in (tmp_path / "old").glob("*.safetensors"))
    tight = FeatureStore(tmp_path, usage["new"].bytes + usage["held"].bytes)
    tight.evict()
    assert {u.key for u in tight.usage()} == {"new", "held"}
    none = FeatureStore(tmp_path, 1)
    with pytest.warns(RuntimeWarning, match="above its limit of 1"):
        none.evict()
    assert [u.key for u in none.usage()] == ["held"]
    assert len(held.rows(held.find(digests(50))).batch(torch.arange(50))) == 50


def test_clear(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "_IN_MEMORY", 0)
    store = FeatureStore(tmp_path, BIG)
    boxes = [store.open(name) for name in "abc"]
    for box in boxes:
        fill(box, random_rows(5))
    view = boxes[0].rows(boxes[0].find(digests(5)))
    size = {u.key: u.bytes for u in store.usage()}
    assert store.clear("a") == size["a"]
    assert len(view.batch(torch.arange(5))) == 5
    assert {u.key for u in store.usage()} == {"b", "c"}
    assert store.clear() == size["b"] + size["c"]
    assert store.usage() == []
    assert store.clear("a") == 0


def test_the_default_place_and_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("POLYMODAL_CACHE_LIMIT", "1e6")
    assert FeatureStore().folder == tmp_path / "a"
    assert FeatureStore().limit_bytes == 1_000_000
    monkeypatch.delenv("POLYMODAL_CACHE")
    assert cache_folder() == tmp_path / "b" / "polymodal"
    monkeypatch.setenv("POLYMODAL_CACHE_LIMIT", "ten")
    with pytest.raises(ValueError, match="must be a number of bytes above 0, got 'ten'"):
        cache_limit()
    monkeypatch.delenv("POLYMODAL_CACHE_LIMIT")
    assert cache_limit() == 10_000_000_000


def test_many_small_rows_take_few_files(tmp_path):
    box = FeatureStore(tmp_path, BIG).open("k", half=False)
    n = 120_000
    keys = np.random.default_rng(0).integers(0, 256, (n, 16), dtype=np.uint8)
    x = Masked(torch.arange(n, dtype=torch.int32).view(n, 1, 1), torch.ones(n, 1, dtype=torch.bool))
    with box.writer() as writer:
        for i in range(0, n, 1000):
            writer.add(keys[i : i + 1000], x[i : i + 1000])
    assert len(box.shards) < 20
    places = box.find(keys[::-1])
    assert torch.equal(box.rows(places).batch(torch.arange(n)).values.flatten(), torch.arange(n - 1, -1, -1).int())


def test_clearing_all_takes_the_graphs_of_backbones_along(tmp_path):
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "a.onnx").write_bytes(b"123")
    (tmp_path / "graphs" / "openvino" / "a").mkdir(parents=True)
    (tmp_path / "graphs" / "openvino" / "a" / "1.blob").write_bytes(b"45")
    assert FeatureStore(tmp_path).clear() == 5
    assert not [file for file in (tmp_path / "graphs").rglob("*") if file.is_file()]
