"""Batches from many callers: formed without waiting, bounded, in time, fair to the innocent, never mixed up."""

import asyncio
import threading

import pytest

from polymodal.server.batching import Batcher, Busy, Late, Stopping

FOR_EVER = float("inf")


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("polymodal-lane")}


class Gate:
    """A run that says when it has begun and goes on when it is told to, and doubles."""

    def __init__(self, open_=False):
        self.begun, self.open, self.batches = threading.Semaphore(0), threading.Event(), []
        if open_:
            self.open.set()

    def __call__(self, items):
        self.batches.append(list(items))
        self.begun.release()
        assert self.open.wait(10)
        return [2 * item for item in items]

    async def running(self, runs=1):
        for _ in range(runs):
            assert await asyncio.to_thread(self.begun.acquire, timeout=10)


def go(main, run, **options):
    """Run ``main(batcher)`` with a batcher of its own, and see that no thread of it is left."""
    before = threads()

    async def whole():
        batcher = Batcher(run, **{"batch": 4, "wait_ms": 0, "queue": 100} | options)
        try:
            return await asyncio.wait_for(main(batcher), 20)
        finally:
            await batcher.close(5)

    try:
        return asyncio.run(whole())
    finally:
        assert threads() == before


async def spin(times=20):
    """Let everything in the event loop that can go on go on."""
    for _ in range(times):
        await asyncio.sleep(0)


def test_a_lone_caller_never_waits_for_others():
    gate = Gate(open_=True)

    async def main(batcher):  # were there any waiting, this test would take an hour
        assert await batcher.submit([21], FOR_EVER) == [42]

    go(main, gate, wait_ms=3_600_000)
    assert gate.batches == [[21]]


def test_rows_pile_up_behind_a_busy_lane_and_go_together_up_to_a_batch():
    gate = Gate()

    async def main(batcher):
        first = asyncio.create_task(batcher.submit([100], FOR_EVER))
        await gate.running()
        calls = [asyncio.create_task(batcher.submit([i], FOR_EVER)) for i in range(6)]
        await spin()
        assert batcher.waiting == 6
        gate.open.set()
        assert await asyncio.gather(first, *calls) == [[200], *([2 * i] for i in range(6))]

    go(main, gate)
    assert gate.batches == [[100], [0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(("batch", "groups"), [(1, [1, 1, 1]), (2, [2, 1]), (8, [3])])
def test_batch_bounds_what_runs_together_also_of_one_caller(batch, groups):
    gate = Gate(open_=True)

    async def main(batcher):
        assert await batcher.submit([1, 2, 3], FOR_EVER) == [2, 4, 6]

    go(main, gate, batch=batch)
    assert [len(items) for items in gate.batches] == groups


def test_many_rows_of_one_caller_hold_the_others_up_for_a_batch_at_most():
    gate = Gate()

    async def main(batcher):
        first = asyncio.create_task(batcher.submit([100], FOR_EVER))
        await gate.running()
        many = asyncio.create_task(batcher.submit(range(12), FOR_EVER))
        await spin()
        others = [asyncio.create_task(batcher.submit([item], FOR_EVER)) for item in (50, 60)]
        await spin()
        gate.open.set()
        assert await many == [2 * item for item in range(12)]
        assert await asyncio.gather(first, *others) == [[200], [100], [120]]

    go(main, gate)
    assert gate.batches == [[100], [0, 1, 2, 3], [50, 60, 4, 5], [6, 7, 8, 9], [10, 11]]


def test_rows_that_are_being_decoded_are_waited_for():
    gate = Gate(open_=True)

    async def both(batcher):
        with batcher.coming(1):
            early = asyncio.create_task(batcher.submit([1], FOR_EVER))
            await spin()
            assert gate.batches == []
        assert await batcher.submit([2], FOR_EVER, admitted=True) == [4]
        assert await early == [2]

    async def full(batcher):
        with batcher.coming(1):
            assert await batcher.submit([1, 2, 3, 4], FOR_EVER) == [2, 4, 6, 8]  # a full batch waits for nobody

    async def failed(batcher):
        with batcher.coming(1):
            early = asyncio.create_task(batcher.submit([1], FOR_EVER))
            await spin()
        assert await early == [2]  # what was coming was broken, or its caller has gone

    for case, groups in ((both, [[1, 2]]), (full, [[1, 2, 3, 4]]), (failed, [[1]])):
        gate.batches.clear()
        go(case, gate, wait_ms=3_600_000)
        assert gate.batches == groups


def test_but_not_longer_than_wait_ms():
    gate = Gate(open_=True)

    async def main(batcher):
        with batcher.coming(1):  # and never comes
            assert await batcher.submit([1], FOR_EVER) == [2]

    go(main, gate, wait_ms=5)
    go(main, gate, wait_ms=0)


def test_lanes_run_beside_one_another_and_share_what_waits():
    gate = Gate()

    async def main(batcher):
        first = [asyncio.create_task(batcher.submit([100 + i], FOR_EVER)) for i in range(2)]
        await gate.running(2)
        assert sorted(gate.batches) == [[100], [101]]
        calls = asyncio.create_task(batcher.submit(list(range(6)), FOR_EVER))
        await spin()
        gate.open.set()
        await asyncio.gather(*first)
        assert await calls == [2 * i for i in range(6)]

    go(main, gate, lanes=2, batch=8)
    assert max(len(items) for items in gate.batches) == 3


def test_a_full_queue_says_when_to_come_again():
    gate = Gate()

    async def main(batcher):
        await_first = asyncio.create_task(batcher.submit([0], FOR_EVER))
        await gate.running()
        waiting = asyncio.create_task(batcher.submit([1, 2, 3], FOR_EVER))
        await spin()
        with pytest.raises(Busy) as first:
            await batcher.submit([4], FOR_EVER)
        with pytest.raises(Busy), batcher.coming(1):
            pass
        gate.open.set()
        await asyncio.gather(await_first, waiting)
        assert first.value.retry_after == 1.0  # nothing had been timed
        assert batcher.retry_after == 0.0  # nothing waits now
        with batcher.coming(3):  # also what is being decoded takes up room
            assert batcher.retry_after > 0
            with pytest.raises(Busy):
                await batcher.submit([5], FOR_EVER)
        assert await batcher.submit([6], FOR_EVER) == [12]

    go(main, gate, queue=3)


def test_a_call_larger_than_the_queue_is_taken_when_nothing_else_waits():
    async def main(batcher):
        assert await batcher.submit(list(range(50)), FOR_EVER) == [2 * i for i in range(50)]

    go(main, Gate(open_=True), queue=3)


def test_rows_whose_deadline_passes_are_not_run():
    gate = Gate()

    async def main(batcher):
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(batcher.submit([0], FOR_EVER))
        await gate.running()
        late = asyncio.create_task(batcher.submit([1, 2], loop.time() + 0.02))
        kept = asyncio.create_task(batcher.submit([3], FOR_EVER))
        with pytest.raises(Late):
            await late
        assert batcher.waiting == 1
        with pytest.raises(Late):
            await batcher.submit([4], loop.time())
        gate.open.set()
        assert await asyncio.gather(first, kept) == [[0], [6]]

    go(main, gate)
    assert gate.batches == [[0], [3]]


def test_a_running_row_that_is_late_is_answered_to_nobody():
    gate = Gate()

    async def main(batcher):
        call = asyncio.create_task(batcher.submit([1], asyncio.get_running_loop().time() + 0.02))
        await gate.running()
        with pytest.raises(Late):
            await call
        gate.open.set()
        assert await batcher.submit([2], FOR_EVER) == [4]

    go(main, gate)


def test_cancelled_rows_are_not_run_and_free_their_room():
    gate = Gate()

    async def main(batcher):
        first = asyncio.create_task(batcher.submit([0], FOR_EVER))
        await gate.running()
        gone = asyncio.create_task(batcher.submit([1, 2, 3], FOR_EVER))
        await spin()
        gone.cancel()
        await spin()
        assert batcher.waiting == 0
        kept = asyncio.create_task(batcher.submit([4, 5, 6], FOR_EVER))
        await spin()
        gate.open.set()
        assert await asyncio.gather(first, kept) == [[0], [8, 10, 12]]
        with pytest.raises(asyncio.CancelledError):
            await gone

    go(main, gate, queue=3)
    assert gate.batches == [[0], [4, 5, 6]]


def test_only_the_guilty_fail():
    runs, begin = [], threading.Event()

    def run(items):
        assert begin.wait(10)
        runs.append(list(items))
        if 13 in items:
            raise KeyError("13")
        if 17 in items:
            raise StopIteration
        return [2 * item for item in items]

    async def main(batcher):
        first = asyncio.create_task(batcher.submit([0], FOR_EVER))
        await spin()
        calls = [asyncio.create_task(batcher.submit(items, FOR_EVER)) for items in ([1, 2], [13], [17], [3])]
        await spin()
        begin.set()
        found = await asyncio.gather(first, *calls, return_exceptions=True)
        assert (found[0], found[1], found[4]) == ([0], [2, 4], [6])
        assert isinstance(found[2], KeyError)
        assert isinstance(found[3], RuntimeError)
        assert await batcher.submit([5], FOR_EVER) == [10]

    go(main, run, batch=8)
    assert runs == [[0], [1, 2, 13, 17, 3], [1], [2], [13], [17], [3], [5]]


def test_a_run_that_loses_a_row_is_a_fault_and_no_shift():
    async def main(batcher):
        with pytest.raises(RuntimeError, match="1 results, got 0"):
            await batcher.submit([1, 2], FOR_EVER)

    go(main, lambda items: [item for item in items if item != 2][: len(items)])


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_thousand_rows_of_sixteen_callers_each_get_their_own(lanes):
    async def main(batcher):
        async def caller(k):
            for i in range(21):
                rows = [(k, i, j) for j in range(1 + (i + k) % 5)]
                assert await batcher.submit(rows, FOR_EVER) == [(*row, "answer") for row in rows]
            return sum(1 + (i + k) % 5 for i in range(21))

        assert sum(await asyncio.gather(*(caller(k) for k in range(16)))) >= 1000

    go(main, lambda items: [(*item, "answer") for item in items], lanes=lanes)


def test_closing_answers_what_it_has_and_takes_nothing_new():
    gate = Gate()

    async def main(batcher):
        calls = [asyncio.create_task(batcher.submit([i], FOR_EVER)) for i in range(9)]
        await gate.running()
        with batcher.coming(1):
            closing = asyncio.create_task(batcher.close(10))
            await spin()
            with pytest.raises(Stopping):
                await batcher.submit([1], FOR_EVER)
            with pytest.raises(Stopping), batcher.coming(1):
                pass
        decoded = asyncio.create_task(batcher.submit([50], FOR_EVER, admitted=True))
        await spin()
        assert not closing.done()
        gate.open.set()
        assert await asyncio.gather(*calls, decoded) == [*([2 * i] for i in range(9)), [100]]
        await closing
        assert not threads()

    go(main, gate)


def test_what_is_left_after_the_time_to_close_is_told():
    gate = Gate()

    async def main(batcher):
        calls = [asyncio.create_task(batcher.submit([i], FOR_EVER)) for i in range(3)]
        await gate.running()
        with batcher.coming(1):
            await batcher.close(0.02)
        with pytest.raises(Stopping):
            await batcher.submit([9], FOR_EVER, admitted=True)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in found] == [Stopping] * 3
        (lane,) = threads()
        gate.open.set()
        await asyncio.to_thread(lane.join, 10)

    go(main, gate)
    assert gate.batches == [[0]]


def test_runs_are_told_to_whoever_counts():
    told = []

    async def main(batcher):
        await batcher.submit([1, 2, 3], FOR_EVER)

    go(main, Gate(open_=True), batch=2, on_batch=lambda size, seconds: told.append((size, seconds >= 0)))
    assert told == [(2, True), (1, True)]


def test_nothing_is_nothing():
    async def main(batcher):
        assert await batcher.submit([], FOR_EVER) == []

    go(main, Gate())
