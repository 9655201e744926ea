"""Batcher: single rows of many callers become batches for a function that answers several at once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

FIRST_GUESS = 1.0
"""Seconds after which to come again, as long as no batch has been timed."""

RECENT = 0.2
"""Weight of the latest batch in the time per row."""


class Busy(Exception):  # noqa: N818  (the name says what is the case)
    """Too many rows are waiting.

    Attributes:
        retry_after: seconds until those that wait now will have been answered.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"Too many rows are waiting. Come again in {retry_after:.1f} s.")
        self.retry_after = retry_after


class Late(Exception):  # noqa: N818
    """The deadline has passed before the answer was there."""


class Stopping(Exception):  # noqa: N818
    """Nothing is taken in any more, or not yet."""


class Call:
    """Rows of one caller.

    Attributes:
        future: becomes their results, or what went wrong.
        results: of the rows, as far as they are there.
        missing: rows without a result.
    """

    __slots__ = ("arrived", "deadline", "future", "missing", "results")

    def __init__(self, size: int, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[list[Any]] = loop.create_future()
        self.results: list[Any] = [None] * size
        self.missing, self.deadline, self.arrived = size, deadline, loop.time()

    def fail(self, error: BaseException) -> None:
        """Tell the caller, unless it knows or does not listen any more."""
        if isinstance(error, StopIteration):  # which no future takes
            error = RuntimeError(repr(error))
        if not self.future.done():
            self.future.set_exception(error)

    def put(self, place: int, result: Any) -> None:
        """Keep the result of a row, and tell the caller when it was the last one."""
        self.results[place] = result
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.results)


class Batcher(Generic[In, Out]):
    """Gathers rows into batches and runs them in threads of its own ("lanes").

    A free lane takes what is waiting at once; of several lanes, each takes its share. Only if further rows are known
    to come (`coming`: they are being decoded) it waits for them, until the batch is full or the oldest row has waited
    ``wait_ms``. So a lone caller never waits for others, and under load, when rows pile up behind busy lanes, batches
    form by themselves. Who has more rows than a lane takes goes on behind those who came meanwhile.

    Everything but ``run`` happens in one event loop, the first caller's. There is no polling: a lane is given work
    when rows arrive, when a batch is done, or by one timer.

    Args:
        run: from items to as many results, in order. Called from ``lanes`` threads at most. If it fails for several
            items it is called for each alone, so that only those that are at fault fail.
        batch: items of one run at most.
        wait_ms: milliseconds that a row waits at most for others which are coming while a lane is free.
        queue: rows that may wait or be coming. A call of more rows than that is taken if nothing else waits.
        lanes: runs beside one another.
        on_batch: told of every run in the event loop: how many items, how many seconds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[In]], list[Out]],
        *,
        batch: int,
        wait_ms: float,
        queue: int,
        lanes: int = 1,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.run, self.batch, self.wait, self.queue, self.lanes = run, batch, wait_ms / 1000, queue, lanes
        self.on_batch = on_batch
        self._threads = ThreadPoolExecutor(lanes, "polymodal-lane")
        self._queued: OrderedDict[tuple[Call, int], In] = OrderedDict()
        self._running: set[asyncio.Future[Any]] = set()
        self._calls: set[Call] = set()
        self._coming = 0
        self._timer: asyncio.TimerHandle | None = None
        self._per_row: float | None = None
        self._closing = self._closed = False
        self._idle: asyncio.Event | None = None

    @property
    def waiting(self) -> int:
        """Rows that are decoded and wait for a lane."""
        return len(self._queued)

    @property
    def retry_after(self) -> float:
        """Seconds in which those that wait or are coming now will have been answered."""
        if self._per_row is None:
            return FIRST_GUESS
        return (len(self._queued) + self._coming + self.batch * len(self._running)) * self._per_row / self.lanes

    @contextmanager
    def coming(self, rows: int) -> Iterator[None]:
        """Keep room for rows that are being decoded; they must be submitted right behind this block.

        Raises:
            Busy: there is no room.
            Stopping: nothing is taken in any more.
        """
        self._admit(rows)
        self._coming += rows
        try:
            yield
        finally:
            self._coming -= rows
            asyncio.get_running_loop().call_soon(self._look)  # after the rows are in the queue

    async def submit(self, items: Sequence[In], deadline: float, *, admitted: bool = False) -> list[Out]:
        """Have items answered.

        Args:
            items: may go through ``run`` in several batches, together with those of other callers.
            deadline: time of the event loop's clock.
            admitted: the items were announced by `coming`.

        Returns:
            Their results, in order.

        Raises:
            Busy: too many rows are waiting.
            Late: the deadline has passed. What was not running was not run.
            Stopping: nothing is taken in any more, or the time for it is over.
            Exception: what ``run`` raised for one of the items.
        """
        if not admitted or self._closed:
            self._admit(len(items))
        if not items:
            return []
        loop = asyncio.get_running_loop()
        if deadline <= loop.time():
            raise Late("The deadline had passed before the rows were decoded.")
        call = Call(len(items), deadline, loop)
        timer = loop.call_at(deadline, call.fail, Late("The deadline has passed before the answer was there."))
        self._calls.add(call)
        self._queued.update({(call, place): item for place, item in enumerate(items)})
        self._look()
        try:
            return await call.future
        finally:
            timer.cancel()
            self._calls.discard(call)
            if call.missing:  # failed, late or cancelled: nobody wants the rest
                for place in range(len(items)):
                    self._queued.pop((call, place), None)
            self._look()

    async def close(self, seconds: float) -> None:
        """Take nothing new in, answer what was taken in, and end the threads.

        Args:
            seconds: after which whoever still waits gets `Stopping`.
        """
        self._closing = True
        self._idle = self._idle or asyncio.Event()
        self._look()
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            for call in self._calls:
                call.fail(Stopping("The server has stopped before the answer was there."))
            self._queued.clear()
        self._closed = True
        self._threads.shutdown(wait=not self._running, cancel_futures=True)

    def _admit(self, rows: int) -> None:
        if self._closing:
            raise Stopping("Nothing is taken in any more.")
        held = len(self._queued) + self._coming
        if held and held + rows > self.queue:
            raise Busy(self.retry_after)

    def _look(self, due: bool = False) -> None:
        """Give free lanes work, or set the timer; tell whoever closes that all is done.

        Args:
            due: the oldest row has waited long enough, whatever a coarse clock says.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queued and len(self._running) < self.lanes:
            loop = asyncio.get_running_loop()
            oldest = next(iter(self._queued))[0].arrived
            if self._coming and not due and len(self._queued) < self.batch and loop.time() < oldest + self.wait:
                self._timer = loop.call_at(oldest + self.wait, self._look, True)
                return
            due = False
            self._start(loop)
        if self._idle is not None and not (self._coming or self._calls or self._running):
            self._idle.set()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the first rows whose deadline has not passed: this lane's share of them, at most a batch."""
        now, taken = loop.time(), list[tuple[tuple[Call, int], In]]()
        size = min(self.batch, -(-len(self._queued) // self.lanes))
        while self._queued and len(taken) < size:
            (call, place), item = self._queued.popitem(last=False)
            if call.deadline <= now:
                call.fail(Late("The deadline has passed before the rows were run."))
            elif not call.future.done():
                taken.append(((call, place), item))
        if taken:
            self._yield(taken[-1][0][0])
            future = loop.run_in_executor(self._threads, self._work, taken)
            self._running.add(future)
            future.add_done_callback(lambda done: self._finish(done, [key for key, _ in taken]))

    def _yield(self, call: Call) -> None:
        """Put what is left of a call that has had its turn behind all others: many rows hold nobody up for long."""
        if self._queued and next(iter(self._queued))[0] is call:
            for key in [(call, place) for place in range(len(call.results)) if (call, place) in self._queued]:
                self._queued.move_to_end(key)

    def _work(self, taken: Sequence[tuple[tuple[Call, int], In]]) -> tuple[list[Out | _Failed], float]:
        """Run items in a lane: for each its result or what was raised; and the seconds that all of it took."""
        start, items = time.perf_counter(), [item for _, item in taken]
        found: list[Out | _Failed] = list(self._attempt(items))
        if len(items) > 1 and isinstance(found[0], _Failed):
            wanted = [not call.future.done() for (call, _), _ in taken]
            found = [self._attempt([x])[0] if w else found[0] for x, w in zip(items, wanted, strict=True)]
        return found, time.perf_counter() - start

    def _attempt(self, items: list[In]) -> list[Any]:
        """Results, or in place of each of them what was raised."""
        try:
            results = self.run(items)
            if len(results) != len(items):
                raise RuntimeError(f"run must return {len(items)} results, got {len(results)}.")
        except Exception as error:  # noqa: BLE001  (whatever it is belongs to the caller)
            return [_Failed(error)] * len(items)
        return results

    def _finish(self, done: asyncio.Future[Any], keys: Sequence[tuple[Call, int]]) -> None:
        """Hand out the results of a run."""
        self._running.discard(done)
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:  # the thread itself was ended
            for call, _ in keys:
                call.fail(Stopping("The run was ended before the answer was there."))
        else:
            found, seconds = done.result()
            for (call, place), result in zip(keys, found, strict=True):
                if isinstance(result, _Failed):
                    call.fail(result.error)
                else:
                    call.put(place, result)
            self._time(len(keys), seconds)
        self._look()

    def _time(self, size: int, seconds: float) -> None:
        latest = seconds / size
        self._per_row = latest if self._per_row is None else (1 - RECENT) * self._per_row + RECENT * latest
        if self.on_batch is not None:
            self.on_batch(size, seconds)


class _Failed:
    """What ``run`` raised, in place of a result."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error
