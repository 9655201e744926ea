"""Two ranks give the weights of one on the joined batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import rank
from polymodal.ranks import Ranks

SCRIPT = rank.__file__


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Weights and reports of two ranks, for every case."""
    folder = tmp_path_factory.mktemp("ranks")
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(SCRIPT), str(folder)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **variables, "RANK": str(i), "LOCAL_RANK": str(i)}, **pipes)
        for i in range(2)
    ]
    told = []
    for process in ranks:
        out, error = process.communicate(timeout=100)
        assert process.returncode == 0, error
        told.append(json.loads(out.splitlines()[-1]))
    return folder, told


@pytest.mark.slow
@pytest.mark.parametrize("case", rank.CASES)
def test_two_ranks_equal_one_on_the_joined_batch(case, group, tmp_path):
    folder, told = group
    alone = rank.train(case, tmp_path / "one")
    first, second = (load_file(folder / f"{case}-{i}") for i in range(2))
    for name, tensor in load_file(tmp_path / "one").items():
        assert torch.equal(first[name], second[name]), "ranks must never drift apart"
        torch.testing.assert_close(first[name], tensor, atol=1e-6, rtol=1e-5)
    for report in told:
        for mine, theirs in zip(report[case]["losses"], alone["losses"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    if case == "absent":
        assert told[0][case]["seen"] == 0
        assert told[1][case]["seen"] == alone["seen"] > 0


def test_rows_are_shared_out_without_loss_and_every_rank_gets_some():
    for count, size, world in ((48, 15, 2), (31, 10, 3), (5, 4, 2), (9, 4, 4)):
        order = torch.randperm(count)
        parts = Ranks(0, world).batches(order, size)
        assert torch.equal(torch.cat(parts), order)
        for part in parts:
            shares = [Ranks(rank, world).mine(part) for rank in range(world)]
            assert all(len(share) for share in shares)
            assert sorted(torch.cat(shares).tolist()) == sorted(part.tolist())


def test_the_share_of_a_matrix_is_along_its_last_axis():
    drop = torch.arange(12).view(2, 6)
    assert Ranks(1, 2).mine(drop).tolist() == [[1, 3, 5], [7, 9, 11]]


def test_one_rank_is_alone_and_first(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.join(torch.device("cpu"))
    assert (ranks, ranks.first, Ranks.current()) == (Ranks(), True, Ranks())
    assert ranks.shares({"y": torch.tensor(3)}) == {"y": 1.0}
    assert ranks.agree(None, torch.device("cpu")) is None
    assert ranks.agree(2.5, torch.device("cpu")) == 2.5
    assert ranks.add_up(torch.ones(2)).tolist() == [1, 1]
    ranks.wait()
