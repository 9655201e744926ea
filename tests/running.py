"""A server in a process of its own, for tests: ``python running.py SETTINGS [FILE]`` is one, `Running` starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

SECONDS = 60.0
"""After which a test that waits has failed."""


def until(condition, what: str):
    """Wait for something to be true, and give it back."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen within {SECONDS:g} s")


class Running:
    """A server, from its start to its end."""

    def __init__(self, *folders, hold=None, **options):
        """Start it; ``hold`` names a file as long as which is there, loading and answering wait."""
        places = [{"name": Path(folder).name, "folder": str(folder)} for folder in folders]
        settings = {"models": places, "port": 0, **options}
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(settings), *([] if hold is None else [str(hold)])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.lines, self.errors = [], []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe, lines):
        with pipe:
            for line in pipe:
                lines.append(line.rstrip("\n"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()

    @property
    def base(self) -> str:
        """Its address, when it answers."""
        self.told("Try:")
        return next(line for line in self.lines if line.startswith(("Docs:", "API:"))).split()[1].rpartition("/")[0]

    def told(self, start: str) -> str:
        """The first line that starts so."""
        ended = lambda: self.process.poll() is not None and f"ended: {self.errors}"  # noqa: E731
        found = until(lambda: [line for line in self.lines if line.startswith(start)] or ended(), start)
        assert isinstance(found, list), found
        return found[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, and give its status."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


def ask(url: str, body=None, **headers):
    """Status, headers and body of an answer; JSON is decoded."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    usual = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data, usual | headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.headers, _decoded(answer)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.status, answer.headers, _decoded(answer)


def _decoded(answer):
    content = answer.read()
    return json.loads(content) if answer.headers.get_content_type() == "application/json" else content


def _hold(kind, name, file):
    """Have a function wait while a file is there; another file tells that it waits."""
    real = getattr(kind, name)

    def held(*args, **options):
        while file.exists():
            file.with_suffix(".held").touch()
            time.sleep(0.01)
        return real(*args, **options)

    setattr(kind, name, held)


def _main(settings, file=None):
    from polymodal.errors import PolymodalError
    from polymodal.server.run import run
    from polymodal.server.settings import Settings

    if file is not None:
        from polymodal.bundle import Bundle
        from polymodal.server.engine import Engine

        _hold(Bundle, "load", Path(file))
        _hold(Engine, "answer", Path(file))

    def tell(line):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        run(Settings.model_validate_json(settings), tell)
    except PolymodalError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
