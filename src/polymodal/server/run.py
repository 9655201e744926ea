"""Run: a server from its settings, in one process or with a front and several workers, until a signal ends it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from polymodal.errors import SpecError
from polymodal.server.settings import Settings

PACKAGES = ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client", "aiohttp")
"""That the extra ``serve`` installs."""


def run(settings: Settings, tell: Callable[[str], None] = print) -> None:
    """Answer over HTTP until SIGTERM or SIGINT, then answer what was taken in, and return.

    A second signal ends the process at once; SIGHUP looks for new versions of the bundles.

    Args:
        settings: of the server.
        tell: takes the lines that say where the server is and how to ask it, when it answers.

    Raises:
        BundleError: a bundle cannot be loaded.
        SpecError: the packages for serving are not installed, the port is taken, or this is not the main thread.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise SpecError(
            f"a server needs packages that are not installed: {missing}. Run: pip install 'polymodal[serve]'"
        )
    if settings.workers > 1:
        _many(settings, tell)
    else:
        _one(settings, tell)


def _one(settings: Settings, tell: Callable[[str], None]) -> None:
    from polymodal.server import hosting, worker  # which needs the extra

    with hosting.listen(settings.host, settings.port) as listener:
        base = hosting.address(settings.host, listener.getsockname()[1])
        hosting.run(worker.Answering(settings, base, tell), listener, settings.drain)


def _many(settings: Settings, tell: Callable[[str], None]) -> None:
    from polymodal.server import front, hosting  # which needs the extra, and not the models' libraries

    with hosting.listen(settings.host, settings.port) as listener:
        base = hosting.address(settings.host, listener.getsockname()[1])
        hosting.run(front.Front(settings, base, tell), listener, settings.drain)
