"""The crew: what keeps a worker from being started ends nothing else."""

import asyncio
import errno
import io
import json

import pytest

from polymodal.errors import SpecError
from polymodal.server import crew
from polymodal.server.logs import Log
from polymodal.server.settings import Settings


def make(sink):
    return crew.Crew(Settings.make("model", workers=2), "http://a", lambda line: None, Log(sink))


def test_a_place_is_filled_again_after_the_system_refused_a_process(monkeypatch):
    async def run():
        sink, tries, filled = io.StringIO(), [], asyncio.Event()
        found = make(sink)
        found._opened = asyncio.get_running_loop().create_future()
        found._opened.set_result(None)

        async def spawn():
            tries.append(1)
            if len(tries) > 2:
                filled.set()
                await asyncio.Event().wait()
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(crew, "PAUSE", 0.0)
        monkeypatch.setattr(found, "_spawn", spawn)
        keeper = asyncio.create_task(found._keep(found.workers[0]))
        await asyncio.wait({keeper, asyncio.create_task(filled.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert not keeper.done()
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        found.kill()
        return [json.loads(line) for line in sink.getvalue().splitlines()]

    lines = asyncio.run(asyncio.wait_for(run(), 20))
    assert [line["event"] for line in lines] == ["worker_ended"] * 2
    assert all("Too many open files" in line["error"] for line in lines)


def test_a_server_whose_first_worker_cannot_be_started_says_why(monkeypatch):
    async def run():
        found = make(io.StringIO())

        async def refuse(*args, **options):
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
        try:
            await found.open()
        finally:
            found.kill()

    with pytest.raises(SpecError, match=r"temporarily unavailable.*Raise the limits"):
        asyncio.run(asyncio.wait_for(run(), 20))


def test_counts_are_kept_in_memory_where_there_is_such_a_folder(tmp_path, monkeypatch):
    folders = []
    for place in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(crew, "MEMORY", str(place))
        found = make(io.StringIO())
        folders.append((found.folder.parent == tmp_path, found.folder.stat().st_mode & 0o777))
        found.kill()
        assert not found.folder.exists()
    assert folders == [(True, 0o700), (False, 0o700)]
