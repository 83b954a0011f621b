"""
Ordered parallel work: tasks run anywhere, results come back in the order of the items.

A task is a top-level function of bytes and frozen settings; it writes nothing. So only the coordinator owns
the output folder, and the number of workers cannot change a byte. Nothing else in the project knows what kind
of executor runs.

    >>> with open_executor(config.executor) as executor:
    ...     for result in ordered_map(executor, process_block, blocks, stop=lambda: stage.stopping):
    ...         commit(result)
    ...     stage.stop_point()
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from utils.config.shared import ExecutorConfig
from utils.pipeline.errors import StageError

Item = TypeVar("Item")
Result = TypeVar("Result")
LOOK_SECONDS = 0.1  # how often a waiting coordinator looks whether it shall stop


class Workers(Executor):
    """An executor that knows how far to look ahead, and what it looks like when one of its workers dies."""

    look_ahead = 1

    def died(self, error: BaseException | None) -> bool:
        """Whether this is how a task ends whose worker died."""
        return False

    def restart(self) -> None:
        """Make the executor usable again after a death."""

    def check(self) -> None:
        """Raise StageError when nobody is left who could finish a task."""


class InlineWorkers(Workers):
    """Runs a task in this process at the moment it is submitted."""

    def submit(self, function: Callable, /, *args: object, **kwargs: object) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def open_executor(config: ExecutorConfig) -> Iterator[Workers]:
    """Yield processes of this machine, the workers of a Dask cluster, or this process itself."""
    if config.kind == "inline":
        yield InlineWorkers()
        return
    if config.kind == "dask":
        from utils.corpus.cluster import DaskWorkers

        workers = DaskWorkers(config.address)
    else:
        from utils.corpus.processes import ProcessWorkers

        workers = ProcessWorkers(config.workers)
    try:
        yield workers
    finally:
        workers.shutdown(cancel_futures=True)


@dataclass
class _Task(Generic[Item]):
    item: Item
    future: Future
    died_alone: bool = False


def ordered_map(
    executor: Workers,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    in_flight: int = 0,
    name: Callable[[Item], str] = str,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """
    Yield function(item) in item order, at most `in_flight` items ahead (0 = two per worker).

    An exception of a task is raised here, one of `items` after the results of the items before it. A task
    whose worker died is tried once more, alone; a second death is a StageError that names the item. Once
    `stop()` is true nothing is submitted any more, what is done is still yielded, and the iteration ends.
    """
    waiting: deque[_Task[Item]] = deque()
    remaining, failure = iter(items), None
    try:
        while True:
            ahead = in_flight or executor.look_ahead
            failure = failure or _fill(waiting, executor, function, remaining, ahead, stop)
            if failure and not waiting:
                raise failure
            if not waiting or not _ready(executor, waiting[0].future, stop):
                return
            if executor.died(_error(waiting[0].future)) and not waiting[0].died_alone:
                _try_again(executor, function, waiting, stop)
                if stop():
                    return
            if waiting[0].died_alone:
                raise _died_twice(name(waiting[0].item))
            yield waiting.popleft().future.result()
    finally:
        for task in waiting:
            task.future.cancel()


def _fill(
    waiting: deque[_Task[Item]],
    executor: Workers,
    function: Callable[[Item], Result],
    remaining: Iterator[Item],
    in_flight: int,
    stop: Callable[[], bool],
) -> Exception | None:
    """Submit items until enough of them wait; returns the exception with which the items ended, if any."""
    while len(waiting) < in_flight and not stop():
        try:
            item = next(remaining)
        except StopIteration:
            return None
        except Exception as error:
            return error
        waiting.append(_Task(item, executor.submit(function, item)))
    return None


def _ready(executor: Workers, future: Future, stop: Callable[[], bool]) -> bool:
    """Wait for a future; False when it is time to stop and it is not done."""
    while not future.done():
        if stop():
            return False
        wait([future], LOOK_SECONDS)
        executor.check()
    return True


def _error(future: Future) -> BaseException | None:
    return CancelledError() if future.cancelled() else future.exception()


def _try_again(
    executor: Workers,
    function: Callable[[Item], Result],
    tasks: Iterable[_Task[Item]],
    stop: Callable[[], bool],
) -> None:
    """
    Let what still runs end, then give every task whose worker died one more try with nothing beside it, up
    to one that dies again.
    """
    for task in tasks:
        _ready(executor, task.future, stop)
    executor.restart()
    for task in tasks:
        if stop():
            return
        if not executor.died(_error(task.future)):
            continue
        task.future = executor.submit(function, task.item)
        if _ready(executor, task.future, stop) and executor.died(_error(task.future)):
            task.died_alone = True
            executor.restart()
            return


def _died_twice(item: str) -> StageError:
    return StageError(
        f"a worker process died at {item}, and again when that was tried alone",
        fix="rerun to continue; if it dies again, it needs more memory than there is, or take it out",
    )


class Stopping(Protocol):
    """The part of a stage that says whether somebody asked it to stop, and leaves if so."""

    @property
    def stopping(self) -> bool: ...

    def stop_point(self) -> None: ...


def stoppable_map(
    executor: Workers, stage: Stopping, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """
    `ordered_map` for a stage: when it is asked to stop, what is done still comes, then the stage leaves.
    """
    yield from ordered_map(executor, function, items, stop=lambda: stage.stopping)
    stage.stop_point()
