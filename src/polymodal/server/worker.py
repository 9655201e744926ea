"""A process that answers: alone, or, as ``python -m polymodal.server.worker``, behind the front of several.

A worker is told what to do in one line of JSON on its standard input, a socket, and says there how it fares. When that
socket ends, so does the worker: it never outlives its front.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from pydantic import BaseModel

from polymodal.errors import PolymodalError
from polymodal.server.app import create_app
from polymodal.server.greeting import greeting
from polymodal.server.hosting import BACKLOG, Tell, run
from polymodal.server.logs import Log
from polymodal.server.metrics import Metrics
from polymodal.server.models import Models
from polymodal.server.settings import Settings


class Order(BaseModel):
    """What a worker is told.

    Attributes:
        settings: of the server.
        place: of its socket file.
        address: of the server, as clients know it.
    """

    settings: Settings
    place: Path
    address: str


class Answering:
    """The whole application in this process.

    Attributes:
        app: that answers.
    """

    def __init__(self, settings: Settings, address: str, tell: Tell, say: Callable[[bool], None] | None = None) -> None:
        """Load nothing yet.

        Args:
            settings: of the server.
            address: that clients call, to be told.
            tell: is told what a person should know once it answers.
            say: is told when it begins, and when it ceases, to take requests.
        """
        torch.set_num_threads(settings.call_threads)
        self._settings, self._address, self._tell, self._say = settings, address, tell, say or (lambda ready: None)
        self._metrics = metrics = Metrics()
        log = Log(on_drop=metrics.dropped.inc)
        self._models = Models(settings, metrics, lambda line: log.write("warning", event=line))
        self.app = create_app(settings, self._models, metrics=metrics, log=log)

    async def open(self) -> None:
        """Load and warm every bundle, and tell where the server is."""
        await self._models.start()
        for name, served in self._models.served.items():
            self._metrics.version(name, served.version)
        chosen = [(f"Runtimes of {name}:", *s.choice.lines()) for name, s in self._models.served.items()]
        lines = [line for told in chosen for line in told]
        for line in greeting(self._settings, self._address, self._models.find().bundle.spec, lines):
            self._tell(line)
        self._say(True)

    async def look(self) -> None:
        """Look for new versions now."""
        self._models.look_now()

    async def close(self, seconds: float) -> None:
        """Answer what was taken in; the models know themselves how long that may take."""
        self._say(False)
        await self._models.stop()

    def kill(self) -> None:
        """Leave nothing behind: there is no other process."""


def main() -> int:
    """Answer behind a front until it, or a signal, says to end.

    Returns:
        The exit status: 0 after a signal, 2 where the server could not start.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is handled
    channel = socket.socket(fileno=os.dup(0))
    heard = channel.makefile()
    order = Order.model_validate_json(heard.readline())
    threading.Thread(target=_end_with, args=(heard, order.place.parent), daemon=True).start()

    def say(**words: Any) -> None:
        channel.sendall(json.dumps(words).encode() + b"\n")

    answering = Answering(
        order.settings, order.address, lambda line: say(tell=line), lambda ready: say(ready=ready)
    )  # fmt: skip
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(order.place))
            listener.listen(BACKLOG)
            run(answering, listener, order.settings.drain, behind=True)
    except PolymodalError as error:
        say(failed=str(error), kind=type(error).__name__)
        return 2
    return 0


def _end_with(front: TextIO, folder: Path) -> None:
    """End this process at once when the front is no more, and what it can no longer clear away."""
    front.read()
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
