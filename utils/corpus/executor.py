"""
Ordered parallel work: tasks run anywhere, results come back in the order of the items.

A task is a top-level function of bytes and frozen settings; it writes nothing. So only the coordinator owns
the output folder, and the number of workers cannot change a byte. Nothing else in the project knows what kind
of executor runs.

    >>> with open_executor(config.executor) as executor:
    ...     for result in ordered_map(executor, process_block, blocks, name="books"):
    ...         commit(result)
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar

from utils.config.shared import ExecutorConfig
from utils.pipeline.errors import StageError
from utils.pipeline.hashing import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


class InlineExecutor(Executor):
    """Runs a task in this process at the moment it is submitted."""

    def submit(self, function: Callable, /, *args: object, **kwargs: object) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def open_executor(config: ExecutorConfig) -> Iterator[Executor]:
    """
    Yield an executor: processes of this machine (spawned, so they inherit no state), or this process itself.
    """
    if config.kind == "inline":
        yield InlineExecutor()
        return
    workers = config.workers or usable_cores()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """
    Leave Ctrl-C to the coordinator, keep libraries single-threaded, and end with the coordinator (kill -9
    included).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


def ordered_map(
    executor: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    in_flight: int = 4,
    name: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """
    Yield function(item) in item order, at most `in_flight` items ahead.

    An exception of a task is raised here. A worker that dies (killed for memory, say) is a StageError that
    names the item; what was yielded before stays valid.
    """
    waiting: deque[tuple[Item, Future]] = deque()
    try:
        for item in items:
            waiting.append((item, executor.submit(function, item)))
            if len(waiting) >= in_flight:
                yield _result(*waiting.popleft(), name)
        while waiting:
            yield _result(*waiting.popleft(), name)
    except BrokenProcessPool:
        raise _worker_died(name(item)) from None
    finally:
        for _, future in waiting:
            future.cancel()


def _result(item: Item, future: "Future[Result]", name: Callable[[Item], str]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        raise _worker_died(name(item)) from None


def _worker_died(item: str) -> StageError:
    return StageError(
        f"a worker process died at or after {item}",
        fix="rerun to continue; fewer executor.workers need less memory",
    )
