"""What every test shares: a cache folder of its own, no network, one thread, fixed seeds."""

import ipaddress
import os
import socket

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


LONG = (
    "test_docs.py::test_every_block_runs[serve.md]",
    "test_docs.py::test_every_block_runs[diagnose.md]",
    "test_docs.py::test_every_block_runs",
    "test_benchmarks.py",
    "test_recipes.py",
    "test_digits.py",
)
"""What takes longest, and so begins first: at the end of a run one worker would be waited for."""


def pytest_collection_modifyitems(items):
    """Put the long ones first; the others stay in order, so that what they share is made once."""

    def place(item):
        return next((i for i, name in enumerate(LONG) if name in item.nodeid), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Features and graphs of a test session stay apart from the user's; subprocesses inherit the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def _outside(address) -> bool:
    if not isinstance(address, tuple):
        return False  # a socket file
    host = address[0]
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host not in ("localhost", "")


@pytest.fixture(scope="session", autouse=True)
def _no_network():
    """Refuse every connection that leaves this machine."""

    def guard(original):
        def connect(self, address):
            if _outside(address):
                raise OSError(f"tests must not use the network, got a connection to {address}.")
            return original(self, address)

        return connect

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guard(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def own_environment(monkeypatch):
    """Environment of a subprocess that can import the test helpers."""
    folder = os.path.dirname(__file__)
    monkeypatch.setenv("PYTHONPATH", folder + os.pathsep + os.environ.get("PYTHONPATH", ""))
    return os.environ
