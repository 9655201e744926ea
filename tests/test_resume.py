"""Resume: a fit that was killed ends with the weights of one that was not."""

import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import killed
import toys
from polymodal.checkpoint import Checkpoint, pack, unpack
from polymodal.model import Model
from polymodal.train import Trainer
from polymodal.types import Masked


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_equals_uninterrupted(tmp_path):
    assert killed.main(tmp_path / "a.resume", tmp_path / "a") == (6, 48)
    command = [sys.executable, killed.__file__, str(tmp_path / "b.resume"), str(tmp_path / "b"), "3"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (tmp_path / "b.resume").is_file()
    assert not (tmp_path / "b").exists()
    assert killed.main(tmp_path / "b.resume", tmp_path / "b") == (6, 24)  # three epochs were kept
    assert toys.same(load_file(tmp_path / "a"), load_file(tmp_path / "b"))


class Killed(Exception):  # noqa: N818
    pass


def two_tasks(rows, seed=0):
    data = toys.xor(rows, seed=seed, absent=0.2)
    inputs = {name: kept.whole for name, kept in data.inputs.items()}
    number = Masked(inputs["a"].values[:, 0, 1:], torch.ones(rows, 1, dtype=torch.bool))
    return toys.prepared(inputs, {"y": data.targets["y"], "z": number})


def train(path, name="this fit", stop=None, **training):
    """Train four epochs with dropout; ``stop`` ends it after that many, as a kill would."""
    outputs = {"y": toys.BINARY, "z": {"type": "regress", "objective": "squared", "mean": [0], "scale": [1]}}
    plan = {"epochs": 4, "batch_size": 16, **training}
    spec = toys.spec(outputs=outputs, training=plan, fusion={"type": "attention", "dropout": 0.2})
    torch.manual_seed(0)
    checkpoint = Checkpoint(path, name)
    trainer = Trainer(Model(spec), two_tasks(64), two_tasks(32, 1), torch.device("cpu"), checkpoint)
    told = []

    def note(epoch):
        told.append(epoch.number)
        if stop is not None and epoch.number + 1 == stop:
            raise Killed

    try:
        trainer.run(note)
    except Killed:
        return None, told
    return trainer.model, told


@pytest.mark.parametrize("stop", [1, 3])
def test_every_kind_of_state_comes_back(stop, tmp_path):
    whole, _ = train(tmp_path / "a")
    train(tmp_path / "b", stop=stop)
    torch.manual_seed(99)
    resumed, told = train(tmp_path / "b")
    assert told == list(range(stop, 4))
    assert toys.same(resumed, whole)


@pytest.mark.parametrize(
    "plan",
    [
        *({"objective": name} for name in ("uncertainty", "dwa", "gradnorm", "pcgrad", "cagrad", "nashmtl")),
        *({"balance": name} for name in ("ogm_ge", "mmpareto", "gradient_blending")),
        {"mixup": 0.3, "alignment": {}},
        {"monitor": "y.accuracy"},
    ],
    ids=lambda plan: next(iter(plan.values())),
)
def test_state_of_every_objective_and_balance_comes_back(plan, tmp_path):
    whole, _ = train(tmp_path / "a", **plan)
    train(tmp_path / "b", stop=3, **plan)
    torch.manual_seed(99)
    resumed, told = train(tmp_path / "b", **plan)
    assert told == [3]
    assert toys.same(resumed, whole)
    assert not toys.same(whole, train(tmp_path / "c")[0]) or "monitor" in plan


def test_a_finished_training_is_not_repeated(tmp_path):
    whole, _ = train(tmp_path / "a")
    again, told = train(tmp_path / "a")
    assert told == []
    assert toys.same(again, whole)


def test_state_of_another_fit_is_left_alone(tmp_path):
    train(tmp_path / "a", "another fit", stop=2)
    fresh, _ = train(tmp_path / "b")
    other, told = train(tmp_path / "a")
    assert told == [0, 1, 2, 3]
    assert toys.same(other, fresh)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_file_is_as_none(damage, tmp_path):
    path = tmp_path / "a"
    train(path, stop=2)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 999}[damage])
    assert Checkpoint(path, "this fit").read() is None
    _, told = train(path)
    assert told == [0, 1, 2, 3]


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "new" / "a", "this fit")
    checkpoint.write({"x": torch.ones(2)}, {"step": 1})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        checkpoint.write({"x": torch.zeros(2)}, {"step": 2})
    found = checkpoint.read()
    assert found is not None
    assert found[0]["x"].tolist() == [1, 1]
    assert found[1] == {"step": 1}
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["a"], "no draft is left behind"


def test_clear_forgets_and_can_be_repeated(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a", "this fit")
    checkpoint.write({}, {})
    checkpoint.clear()
    checkpoint.clear()
    assert checkpoint.read() is None


def test_pack_and_unpack_are_inverse():
    flat: dict[str, torch.Tensor] = {}
    pack("optimizer", {0: {"step": 3.0, "m": torch.ones(2)}, 12: {"m": torch.zeros(1), "none": None}}, flat)
    pack("optimizer2", {"x": 1}, flat)
    assert set(unpack("optimizer", flat)) == {"0/step", "0/m", "12/m"}
    assert unpack("optimizer", flat)["0/step"] == 3.0
