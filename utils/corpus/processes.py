"""
Worker processes of this machine: spawned, single-threaded, deaf to Ctrl-C, gone when the coordinator is gone.

They hold the reading end of a pipe in which nothing is ever written: it ends when the coordinator closes it,
or dies. A task writes nothing, so a worker may go at any moment.

    >>> workers = ProcessWorkers(2)
    >>> workers.submit(abs, -3).result()
    3
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

from utils.corpus.executor import Workers
from utils.pipeline.hashing import usable_cores

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class ProcessWorkers(Workers):
    """A process pool that can be started again after one of its processes died."""

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers or usable_cores()
        self.look_ahead = 2 * self._workers
        self._start()

    def submit(self, function: Callable, /, *args: object, **kwargs: object) -> Future:
        try:
            with _deaf():  # the pool starts its processes when the first tasks come
                return self._pool.submit(function, *args, **kwargs)
        except BrokenProcessPool as error:
            broken: Future = Future()
            broken.set_exception(error)
            return broken

    def died(self, error: BaseException | None) -> bool:
        return isinstance(error, BrokenProcessPool)

    def restart(self) -> None:
        self.shutdown()
        self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes at once, whatever they are doing."""
        self._lifeline.close()
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
        self._held_by_workers.close()

    def _start(self) -> None:
        context = get_context("spawn")
        self._held_by_workers, self._lifeline = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            self._workers, mp_context=context, initializer=_start_worker, initargs=(self._held_by_workers,)
        )


@contextmanager
def _deaf() -> Iterator[None]:
    """
    Start processes that are deaf to Ctrl-C from their first instruction on: they inherit what is blocked
    here. Another thread of this process hears the signal meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(lifeline: Connection) -> None:
    """Runs before any library of numbers is loaded, so that these see how many threads they may use."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"), TOKENIZERS_PARALLELISM="false")
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    try:
        lifeline.poll(None)
    finally:
        os._exit(1)
