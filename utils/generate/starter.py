"""
Starts the work of one dataset as there is room: lists when rows run low, rows otherwise.

Rows that wait, and those that lists under way will bring, stay below twice what may be in flight, and so do
the tasks. So a run of a hundred thousand rows holds some thousands of them, and every provider has enough to
do. Each dataset has room of its own: one whose provider is slow takes none from the others.

    starter = Starter(most_ahead=512, failed=run.end)
    chunk = starter.list(ask, weight=50)        # a future
    await starter.run()
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from utils.generate.errors import Draining

Job = Callable[[], Coroutine]


@dataclass(frozen=True, slots=True)
class _Queued:
    job: Job
    weight: int
    result: asyncio.Future


class Starter:
    """At most `most_ahead` tasks, and about as many rows that wait; `failed` hears what ends the run."""

    def __init__(self, most_ahead: int, failed: Callable[[BaseException], None]) -> None:
        self._slots = asyncio.Semaphore(most_ahead)
        self._most_ahead, self._failed = most_ahead, failed
        self._lists: deque[_Queued] = deque()
        self._rows: deque[_Queued] = deque()
        self._expected = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()

    def list(self, job: Job, weight: int) -> asyncio.Future:
        """Queue a call that brings about `weight` rows; the future gets what the job returns or raises."""
        return self._queue(self._lists, job, weight)

    def row(self, job: Job) -> asyncio.Future:
        """Queue the making of one row."""
        return self._queue(self._rows, job, 0)

    def has_room(self) -> bool:
        """Whether more rows should be queued."""
        return len(self._rows) + self._expected < self._most_ahead

    async def run(self) -> None:
        """Start what is queued, for ever."""
        while True:
            if not self._has_next():
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._slots.acquire()
            if self._has_next():
                self._start_next()
            else:
                self._slots.release()

    async def leave(self) -> None:
        """Give up what is still under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _queue(self, queue: deque[_Queued], job: Job, weight: int) -> asyncio.Future:
        result = asyncio.get_running_loop().create_future()
        queue.append(_Queued(job, weight, result))
        self._wake.set()
        return result

    def _wants_list(self) -> bool:
        """Whether rows run low, or a call would otherwise find nothing to do."""
        return bool(self._lists) and (self.has_room() or len(self._tasks) < self._most_ahead // 2)

    def _has_next(self) -> bool:
        return bool(self._rows) or self._wants_list()

    def _start_next(self) -> None:
        queue = self._lists if self._wants_list() else self._rows
        queued = queue.popleft()
        self._expected += queued.weight
        task = asyncio.create_task(queued.job())
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, queued))

    def _ended(self, task: asyncio.Task, queued: _Queued) -> None:
        self._tasks.discard(task)
        self._slots.release()
        self._expected -= queued.weight
        self._wake.set()
        error = None if task.cancelled() else task.exception()  # seen, even where nobody awaits the result
        if queued.result.done():
            return
        if task.cancelled():
            queued.result.cancel()
        elif error:
            queued.result.set_exception(error)
            queued.result.exception()  # seen: whoever awaits it first ends the run
            if not isinstance(error, Draining):
                self._failed(error)
        else:
            queued.result.set_result(task.result())
