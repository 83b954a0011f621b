"""
Several processes, one decision: rank 0 locks, hashes, decides and writes; the others hear what it decided
(P30).

    build = ranks.first_decides(lambda: begin_build(...))
    records = ranks.gather(record)              # of all ranks, in their order
    with ranks.watched(farewell): ...           # a rank that fails alone takes those along that wait for it
    ranks.leave(code)                           # together, and never through the interpreter's own exit
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from utils.pipeline.errors import LockstepError, exit_code_of

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch.distributed import Store

T = TypeVar("T")
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""
How torch's threads wait for each other, read when torch loads: asleep, in GNU's OpenMP after some ten
microseconds of spinning. By default they spin for long, and on cores that something else uses as well
(another rank, another run) that takes the time which the work needs; without any spinning a step of many
small operations waits for threads to wake up.
"""
MEETING_SECONDS = 20.0
"""How long a rank that is done waits for the others to be done as well; it may have failed alone."""
FAILED = "failed"
WATCH_SECONDS, PATIENCE_SECONDS = 0.5, 3.0
"""How often a rank looks whether another has failed, and how long it may then take to end by itself."""


class Elsewhere(LockstepError):
    """Another rank failed; this one leaves with the same code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


Farewell = Callable[[Elsewhere], None]


@dataclass
class Ranks:
    """This process among those of one launch; `unsaid` is an error that rank 0 says, if it has it as well."""

    rank: int = 0
    world_size: int = 1
    unsaid: str = ""

    @classmethod
    def from_environment(cls) -> "Ranks":
        """As `accelerate launch` and torchrun tell it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def first_decides(self, decide: Callable[[], T]) -> T:
        """Rank 0's result of `decide` on every rank; its refusal becomes the same exit code everywhere."""
        if self.world_size == 1:
            return decide()
        from accelerate.utils import broadcast_object_list

        join_processes()
        if not self.is_main:
            box: list = [None]
            broadcast_object_list(box)
            result, exit_code = box[0]
            if exit_code:
                raise Elsewhere("rank 0 refused", exit_code)  # and has printed why
            return result
        try:
            result = decide()
        except BaseException as error:
            broadcast_object_list([(None, exit_code_of(error))])
            raise
        broadcast_object_list([(result, 0)])
        return result

    def gather(self, value: T) -> list[T]:
        """The value of every rank, on every rank."""
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        join_processes()
        return gather_object([value])

    @contextmanager
    def watched(self, farewell: Farewell) -> Iterator[None]:
        """
        The region in which this rank may wait for another that has failed alone. Nothing ends such a wait
        before torch's timeout of minutes, so a thread ends this process with the code of that rank, once
        `farewell` has said why: the error is empty where that rank said it itself.
        """
        if self.world_size == 1:
            yield
            return
        store, over = _store().clone(), threading.Event()  # a connection of its own: each serves one thread
        watch = threading.Thread(target=self._watch, args=(store, over, farewell), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()

    def _watch(self, store: "Store", over: threading.Event, farewell: Farewell) -> None:
        try:
            while not store.check([FAILED]):
                if over.wait(WATCH_SECONDS):
                    return
            rank, code, reason = json.loads(store.get(FAILED))
        except RuntimeError:  # the store is gone, and so is the rank that held it
            return
        if not over.wait(PATIENCE_SECONDS):
            farewell(Elsewhere(f"rank {rank}: {reason}" if reason else "", code))
            self._end(code)

    def code_of(self, run: Callable[[], int]) -> int:
        """
        The exit code of `run`. With several ranks a bug is printed here and becomes a code, because it must
        not reach the interpreter's own exit.
        """
        try:
            return run()
        except Exception as error:
            if self.world_size == 1:
                raise
            traceback.print_exc()
            return exit_code_of(error)

    def leave(self, code: int) -> None:
        """
        End the process. With several ranks the interpreter's own exit can abort gloo after correct work, so
        they meet, flush and leave at once.
        """
        if self.world_size == 1:
            sys.exit(code)
        for number in (signal.SIGTERM, signal.SIGINT):  # what this rank does is decided
            signal.signal(number, signal.SIG_IGN)
        self._end(code)

    def _end(self, code: int) -> None:
        if not self._meet(code) and self.unsaid and not self.is_main:
            print(f"error: rank {self.rank}: {self.unsaid}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _meet(self, code: int) -> bool:
        """
        Wait until every rank is about to leave: a launcher ends the others as soon as the first fails, and
        rank 0 may still have to say why. Through the store, for which ranks need not be in step; False when
        the others do not come.
        """
        store = _store()
        try:
            if code:  # the first to fail is who the others follow
                store.compare_set(FAILED, "", json.dumps([self.rank, code, self.unsaid]))
            store.set(f"leaving/{self.rank}", "")
            store.wait(self._everybody("leaving"), timedelta(seconds=MEETING_SECONDS))
            store.set(f"gone/{self.rank}", "")
            if self.is_main:  # where the store may live
                store.wait(self._everybody("gone"), timedelta(seconds=MEETING_SECONDS))
        except RuntimeError:
            return False
        return True

    def _everybody(self, moment: str) -> list[str]:
        return [f"{moment}/{rank}" for rank in range(self.world_size)]


def _store() -> "Store":
    """What the processes of this launch can leave each other notes in, whatever each is doing."""
    from torch.distributed import distributed_c10d

    join_processes()
    return distributed_c10d._get_default_store()


def join_processes() -> "PartialState":
    """
    accelerate's view of this launch. It must be told when there is no GPU: two CPU processes would otherwise
    each believe to be alone.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
