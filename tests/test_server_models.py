"""Bundles behind a server: decoded beside the model, answered in time, replaced under load without a lost answer."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import polymodal as pm
import tiny
from polymodal.bundle import Bundle
from polymodal.errors import BundleError, DataError, SpecError
from polymodal.machine import processors
from polymodal.server import models as models_file
from polymodal.server import settings as settings_file
from polymodal.server.batching import Busy, Late, Stopping
from polymodal.server.models import Models
from polymodal.server.served import DECODE, version_of
from polymodal.server.settings import Place, Settings

FOR_EVER = float("inf")
ASKED = {"strict": True, "explain": False, "deadline": FOR_EVER}


def own_threads():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("polymodal-")}


def left_threads():
    """Threads of a server that is closed; those of a version that nobody holds any more get time to end."""
    for thread in threading.enumerate():
        if thread.name.startswith("polymodal-"):
            thread.join(5)
    return own_threads()


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Folders of two versions of a model, which answer differently, and the bundles."""
    home, found = tmp_path_factory.mktemp("versions"), SimpleNamespace(folders=[], bundles=[])
    for seed in (1, 2):
        bundle = tiny.fitted("text", "image", "table", outputs={"price": "regress"}, seed=seed)
        found.folders.append(bundle.save(home / str(seed)))
        found.bundles.append(bundle)
    return found


@pytest.fixture
def folder(versions, tmp_path):
    """A copy of the first version that a test may spoil."""
    return shutil.copytree(versions.folders[0], tmp_path / "shop")


def put(source, folder):
    """Put a bundle in the place of another as `Bundle.save` does."""
    new = shutil.copytree(source, folder.with_name("new"))
    folder.rename(folder.with_name("old"))
    new.rename(folder)
    shutil.rmtree(folder.with_name("old"))


class Counts:
    """Keeps what it is told."""

    def __init__(self):
        self.batches, self.inputs, self.swaps = [], Counter(), []

    def batch(self, model, size, seconds):
        self.batches.append((model, size, seconds > 0))

    def presence(self, model, name, present):
        self.inputs[model, name, present] += 1

    def swap(self, model, version, ok):
        self.swaps.append((model, version, ok))


LANE = processors()
"""Threads of a call, so that there is one lane."""


def serve(folder, main, metrics=None, tell=lambda line: None, **options):
    """Run ``main(models)`` in a loop of its own, and see that no thread is left."""

    async def whole():
        place = Place(name="shop", folder=folder)
        one_lane = {"device": "cpu", "watch": 0, "drain": 5, "threads": LANE}
        settings = Settings(models=(place,), **one_lane | options)
        models = Models(settings, metrics, tell)
        try:
            await models.start()
            return await asyncio.wait_for(main(models), 30)
        finally:
            await models.stop()

    try:
        return asyncio.run(whole())
    finally:
        assert left_threads() == set()


async def spin(times=20):
    for _ in range(times):
        await asyncio.sleep(0)


def blocked(served):
    """Make a model's engine stop before it answers: (says that it has begun, lets it go on)."""
    begun, go_on, answer = threading.Semaphore(0), threading.Event(), served.engine.answer

    def wait(rows):
        begun.release()
        assert go_on.wait(10)
        return answer(rows)

    served.batcher.run = wait
    return begun, go_on


def row(i):
    return {"image": tiny.picture(i), "text": f"old iron bridge number {i}", "x": i / 10}


def price(answer):
    return answer.prediction["price"]["value"]


def test_models_are_found_by_name_when_they_are_warm(versions):
    first, second = versions.folders

    async def main():
        places = (Place(name="a", folder=first), Place(name="b", folder=second))
        models = Models(Settings(models=places, device="cpu"))
        with pytest.raises(Stopping, match="a is not loaded"):
            models.find()
        assert not models.ready
        await models.start()
        assert models.ready
        assert models.waiting == {"a": 0, "b": 0}
        assert (models.find().name, models.find("b").name) == ("a", "b")
        assert (models.find().version, models.find("b").version) == (version_of(first), version_of(second))
        assert models.find().card == (first / "README.md").read_text()
        with pytest.raises(SpecError, match=r"must be one of.*'c'"):
            models.find("c")
        held = models.find()
        await models.stop()
        assert not models.ready
        with pytest.raises(Stopping):
            models.find()
        with pytest.raises(Stopping):
            await held.predict([{"x": 1.0}], **ASKED)

    asyncio.run(main())
    assert left_threads() == set()


def test_a_server_does_not_start_on_what_is_no_bundle(tmp_path, folder):
    with pytest.raises(BundleError, match="nobody is changing"):
        serve(tmp_path / "nothing", None)
    (folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        serve(folder, None)
    (folder / "README.md").unlink()
    with pytest.raises(BundleError):
        serve(folder, None)


@pytest.mark.slow
def test_a_thousand_pictures_of_sixteen_callers_each_get_their_own_answer(versions, folder):
    cells = [{"image": tiny.picture(i), "x": i / 500} for i in range(1000)]
    wanted = np.array([p["price"]["value"] for p in versions.bundles[0].predict(cells)])
    gaps = np.diff(np.sort(wanted))
    assert (gaps > 1e-6).mean() > 0.9  # a neighbour's answer would be seen

    async def main(models):
        async def caller(k):
            got = {}
            for i in range(k, 1000, 16):
                (answer,) = await models.find().predict([cells[i]], **ASKED)
                got[i] = price(answer)
            return got

        return {i: p for got in await asyncio.gather(*(caller(k) for k in range(16))) for i, p in got.items()}

    counts = Counts()
    got = serve(folder, main, counts)
    assert np.allclose([got[i] for i in range(1000)], wanted, rtol=0, atol=2e-6)
    assert max(size for _, size, _ in counts.batches) > 1


def test_answers_explanations_and_what_is_broken_come_back_in_order(versions, folder):
    cells = [row(i) if i % 3 else {"text": row(i)["text"], "image": b"broken" if i == 6 else None} for i in range(11)]
    wanted = versions.bundles[0].predict(cells, explain="inputs")

    async def main(models):
        served = models.find()
        answers = await served.predict(cells, strict=False, explain=True, deadline=FOR_EVER)
        with pytest.raises(DataError, match=r"^inputs\[6\]\.image: image must be one of"):
            await served.predict(cells, **ASKED)
        with pytest.raises(DataError, match=r"^inputs\[1\]\.x: "):
            await served.predict([{"x": 1.0}, {"x": "many"}, {"x": "few"}], **ASKED)
        return answers

    answers = serve(folder, main)
    for i, answer in enumerate(answers):
        assert price(answer) == pytest.approx(wanted[i]["price"]["value"], abs=1e-5)
        told = wanted.explanations[i]["price"]["inputs"]
        assert answer.explanation["price"]["inputs"] == pytest.approx(told, abs=1e-4)
        assert bool(answer.broken) == (i == 6)
    assert [answer.absent for answer in answers] == wanted.absent


def test_media_and_long_texts_are_decoded_in_the_pool_and_the_rest_at_once(folder):
    async def main(models):
        served, where = models.find(), []
        read = served.engine.read
        served.engine.read = lambda *a, **k: (where.append(threading.current_thread().name), read(*a, **k))[1]
        for cells in ([{"text": "old", "x": 1}], [row(0)], [{"text": "old " * 600}], [{"x": 1}] * 100, [row(0)] * 9):
            await served.predict(cells, **ASKED)
        return where

    where = serve(folder, main)
    pool = [name.startswith("polymodal-decode") for name in where]
    assert pool == [False, True, True] + [True] * 100 + [True] * 9
    assert DECODE < 9


def test_no_answer_is_made_after_the_deadline(folder):
    async def main(models):
        served, loop = models.find(), asyncio.get_running_loop()
        with pytest.raises(Late):
            await served.predict([{"x": 1.0}], **ASKED | {"deadline": loop.time()})
        hold, read = threading.Event(), served.engine.read
        served.engine.read = lambda *a, **k: (hold.wait(10), read(*a, **k))[1]
        with pytest.raises(Late):
            await served.predict([row(0)], **ASKED | {"deadline": loop.time() + 0.02})  # while it is being decoded
        hold.set()
        _, go_on = blocked(served)
        with pytest.raises(Late):
            await served.predict([row(0)], **ASKED | {"deadline": loop.time() + 0.2})  # while it runs
        go_on.set()
        assert len(await served.predict([row(0)] * 4, **ASKED)) == 4  # all room is free again

    serve(folder, main, queue=4)


def test_rows_beyond_the_queue_are_refused_before_they_are_decoded(folder):
    async def main(models):
        served = models.find()
        begun, go_on = blocked(served)
        first = asyncio.create_task(served.predict([{"x": 0}], **ASKED))
        assert await asyncio.to_thread(begun.acquire, timeout=10)
        waiting = asyncio.create_task(served.predict([{"x": 1}, {"x": 2}], **ASKED))
        await spin()
        assert models.waiting == {"shop": 2}
        read = []
        served.engine.read = lambda *a, **k: read.append(a)
        with pytest.raises(Busy) as busy:
            await served.predict([row(3)], **ASKED)
        go_on.set()
        assert len(await first) + len(await waiting) == 3
        assert busy.value.retry_after > 0
        assert not read

    serve(folder, main, queue=2)


def test_a_caller_that_goes_away_takes_its_work_back(folder):
    async def main(models):
        served, read = models.find(), []
        hold, decoders = threading.Event(), models._decoders
        busy = [decoders.submit(hold.wait, 10) for _ in range(processors())]
        engine_read = served.engine.read
        served.engine.read = lambda *a, **k: (read.append(1), engine_read(*a, **k))[1]
        gone = asyncio.create_task(served.predict([row(0)] * 3, **ASKED))
        await spin()
        gone.cancel()
        await spin()
        hold.set()
        await asyncio.gather(*map(asyncio.wrap_future, busy))
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert len(await served.predict([row(1)] * 3, **ASKED)) == 3
        assert len(read) == 3

    serve(folder, main, queue=3)


def test_whoever_counts_is_told_of_batches_and_of_what_was_there(folder):
    async def main(models):
        await models.find().predict([{"x": 1.0, "text": "old"}, {"x": 2.0}], **ASKED)

    counts = Counts()
    serve(folder, main, counts)
    assert counts.batches == [("shop", 2, True)]
    there = {("text", True): 1, ("text", False): 1, ("image", False): 2, ("table", True): 2}
    assert counts.inputs == {("shop", *key): n for key, n in there.items()}


def test_the_settings_reach_the_batcher_and_the_engine(folder, monkeypatch):
    monkeypatch.setattr(settings_file, "processors", lambda: 4)

    async def main(models):
        served = models.find()
        batcher = served.batcher
        return batcher.batch, batcher.wait, batcher.queue, batcher.lanes, served.engine.max_seconds

    found = serve(folder, main, batch=3, wait_ms=7, queue=9, threads=2, max_seconds=1.5)
    assert found == (3, 0.007, 9, 2, 1.5)
    assert serve(folder, main, threads=None)[3] == 4  # one core each
    assert serve(folder, main, threads=4)[3] == 1
    assert serve(folder, main, threads=1, workers=2)[3] == 2  # the other worker has the other two

    async def large(models):
        await models.find().predict([row(0)], **ASKED)

    with pytest.raises(DataError, match="at most 400 pixels"):
        serve(folder, large, max_pixels=400)


def test_the_runtime_of_choice_embeds(folder):
    async def main(models):
        served = models.find()
        assert served.choice.names == {}  # nothing in it has a backbone
        assert served.choice.lines()
        return served.choice.threads

    assert serve(folder, main, runtime="torch", threads=3) == 3
    with pytest.raises(SpecError, match="runtime must be one of"):
        serve(folder, main, runtime="torhc")


def test_a_new_version_takes_over_under_load_and_no_answer_is_lost_or_of_another(versions, folder):
    cells = [row(i) for i in range(8)]
    wanted = {
        version_of(place): [p["price"]["value"] for p in bundle.predict(cells)]
        for place, bundle in zip(versions.folders, versions.bundles, strict=True)
    }
    old, new = wanted
    counts, lines = Counts(), []

    async def main(models):
        stop, seen = asyncio.Event(), Counter()

        async def caller(k):
            while not stop.is_set():
                served = models.find()
                await asyncio.sleep(0)  # the swap may come in between
                (answer,) = await served.predict([cells[k]], **ASKED)
                assert price(answer) == pytest.approx(wanted[served.version][k], abs=1e-5)
                seen[served.version] += 1
                del served

        callers = [asyncio.create_task(caller(k)) for k in range(8)]
        while seen[old] < 16:
            await asyncio.sleep(0.001)
        freed = [weakref.ref(x) for x in (models.find(), models.find().bundle.model, models.find().engine)]
        put(versions.folders[1], folder)
        models.look_now()
        while seen[new] < 16:
            await asyncio.sleep(0.001)
        stop.set()
        await asyncio.gather(*callers)
        del callers
        gc.collect()
        assert [ref() for ref in freed] == [None] * 3
        assert len({name for name in own_threads() if "lane" in name}) <= models.find().batcher.lanes
        assert models.find().version == new

    serve(folder, main, counts, lines.append)
    assert counts.swaps == [("shop", new, True)]
    assert lines == [f"model shop, version {new}: answers from now on"]


def test_a_damaged_version_changes_nothing_and_is_told_once(versions, folder):
    counts, lines = Counts(), []
    old, new = map(version_of, versions.folders)

    async def main(models):
        (place,) = models.settings.models
        put(versions.folders[1], folder)
        weights = (folder / "weights.safetensors").read_bytes()
        (folder / "weights.safetensors").write_bytes(weights[:100])
        for _ in range(3):
            await models._renew(place)
        assert (models.swaps, models.failed_swaps) == (0, 1)
        (folder / "weights.safetensors").write_bytes(weights[:200])  # it is still being copied
        await models._renew(place)
        assert (models.swaps, models.failed_swaps) == (0, 1)
        assert models.find().version == old
        assert len(await models.find().predict([row(0)], **ASKED)) == 1
        (folder / "weights.safetensors").write_bytes(weights)
        await models._renew(place)
        assert (models.swaps, models.failed_swaps) == (1, 1)
        assert models.find().version == new

    serve(folder, main, counts, lines.append)
    assert counts.swaps == [("shop", new, False), ("shop", new, True)]
    assert f"stays at {old}: " in lines[0]
    assert "weights.safetensors" in lines[0]


def test_look_now_tries_a_version_again_that_has_failed(versions, folder, monkeypatch):
    async def main(models):
        (place,) = models.settings.models
        put(versions.folders[1], folder)
        with monkeypatch.context() as patch:
            patch.setattr(Bundle, "load", lambda *a, **k: 1 / 0)
            await models._renew(place)
        await models._renew(place)
        assert (models.swaps, models.failed_swaps) == (0, 1)
        models.look_now()
        while not models.swaps:
            await asyncio.sleep(0.001)

    serve(folder, main)


def test_a_folder_that_is_gone_for_a_moment_or_goes_back_is_no_failure(versions, folder):
    async def main(models):
        (place,) = models.settings.models
        folder.rename(folder.with_name("away"))
        await models._renew(place)
        folder.with_name("away").rename(folder)
        await models._renew(place)
        assert (models.swaps, models.failed_swaps) == (0, 0)
        put(versions.folders[1], folder)
        (folder / "weights.safetensors").unlink()
        await models._renew(place)
        put(versions.folders[0], folder)
        await models._renew(place)
        assert (models.swaps, models.failed_swaps, models._failed) == (0, 1, {})

    serve(folder, main)


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(versions, folder, monkeypatch):
    load, loads = Bundle.load, []

    def slow(path, **options):
        loads.append(path)
        bundle = load(path, **options)
        if len(loads) == 1:
            put(versions.folders[1], folder)
        return bundle

    monkeypatch.setattr(Bundle, "load", slow)

    async def main(models):
        served = models.find()
        assert served.version == version_of(versions.folders[1])
        (answer,) = await served.predict([row(3)], **ASKED)
        assert price(answer) == pytest.approx(versions.bundles[1].predict([row(3)])[0]["price"]["value"], abs=1e-5)

    serve(folder, main)
    assert len(loads) == 2


def test_folders_are_looked_at_from_time_to_time_or_only_when_asked(folder, monkeypatch):
    look, looks = models_file.look, threading.Semaphore(0)

    def counted(place):
        looks.release()
        return look(place)

    monkeypatch.setattr(models_file, "look", counted)

    async def often(models):
        for _ in range(3):
            assert await asyncio.to_thread(looks.acquire, timeout=10)

    async def asked(models):
        models.look_now()
        assert await asyncio.to_thread(looks.acquire, timeout=10)
        await asyncio.sleep(0.05)
        assert not looks.acquire(blocking=False)

    serve(folder, often, watch=0.005)
    while looks.acquire(blocking=False):
        pass
    serve(folder, asked, watch=0)


def test_stopping_answers_what_was_taken_in_also_of_an_old_version(versions, folder):
    async def main(models):
        (place,) = models.settings.models
        begun, go_on = blocked(models.find())
        first = asyncio.create_task(models.find().predict([row(0)], **ASKED))
        assert await asyncio.to_thread(begun.acquire, timeout=10)
        put(versions.folders[1], folder)
        await models._renew(place)
        stopping = asyncio.create_task(models.stop())
        await spin()
        assert not models.ready
        assert not stopping.done()
        with pytest.raises(Stopping):
            await models.find().predict([row(1)], **ASKED)
        go_on.set()
        await stopping
        (answer,) = await first
        assert price(answer) == pytest.approx(versions.bundles[0].predict([row(0)])[0]["price"]["value"], abs=1e-5)

    serve(folder, main)


def test_what_is_not_answered_in_the_time_to_drain_is_told(folder):
    async def main(models):
        begun, go_on = blocked(models.find())
        call = asyncio.create_task(models.find().predict([row(0)], **ASKED))
        assert await asyncio.to_thread(begun.acquire, timeout=10)
        stopping = asyncio.create_task(models.stop())
        with pytest.raises(Stopping):
            await call
        go_on.set()
        await stopping
        for thread in threading.enumerate():
            if thread.name.startswith("polymodal-lane"):
                thread.join(10)

    serve(folder, main, drain=0.02)


def test_a_bundle_loaded_as_ever_says_the_same(versions, folder):
    async def main(models):
        return await models.find().predict([row(5)], **ASKED)

    (answer,) = serve(folder, main)
    assert price(answer) == pytest.approx(pm.load(folder).predict([row(5)])[0]["price"]["value"], abs=1e-5)
