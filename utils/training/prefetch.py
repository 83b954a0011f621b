"""
Rows made ahead by a thread, so that a step does not wait for the disk or the tokenizer.

    rows = Prefetched(MixtureRows(mixture, read), pin=machine.device.type == "cuda")
    rows.next_step(rank=0, num_ranks=1, micro_rows=16)       # at once: two more steps are in the making

The order is that of the rows inside, and the cursor that of the steps that were handed out: what was made and
never taken is made again by a resumed run. Each step is one task of the thread, so there is nothing to stop:
it ends with the program, after at most two more tasks, whatever ended that.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from utils.training.loss import Batch
from utils.training.rows import Rows

STEPS_AHEAD = 2


class Share(NamedTuple):
    """Which rows of a step a process takes, and in what pieces."""

    rank: int
    num_ranks: int
    micro_rows: int


class Prefetched:
    """`Rows` with the next steps ready; `pin` puts them where a GPU copies from without a detour."""

    def __init__(self, rows: Rows, pin: bool) -> None:
        self._rows, self._pin, self._cursor = rows, pin, rows.cursor()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._share: Share | None = None
        self._ready: deque[Future[tuple[list[Batch], dict]]] = deque()

    @property
    def batch_rows(self) -> int:
        return self._rows.batch_rows

    def next_step(self, rank: int, num_ranks: int, micro_rows: int) -> list[Batch]:
        share = Share(rank, num_ranks, micro_rows)
        if share != self._share:
            self.restore(self._cursor)
            self._share = share
        while len(self._ready) <= STEPS_AHEAD:
            self._ready.append(self._thread.submit(self._make, share))
        batches, self._cursor = self._ready.popleft().result()
        return batches

    def _make(self, share: Share) -> tuple[list[Batch], dict]:
        batches = self._rows.next_step(*share)
        return [_pinned(batch) if self._pin else batch for batch in batches], self._rows.cursor()

    def cursor(self) -> dict:
        """The position behind the step that was handed out last."""
        return self._cursor

    def row_ids(self, cursor: dict) -> list[list[int]]:
        return self._rows.row_ids(cursor)

    def epochs(self, steps: int) -> float | None:
        return self._rows.epochs(steps)

    def restore(self, cursor: dict) -> None:
        """Go to a saved position; what was made ahead is forgotten."""
        while self._ready:
            self._ready.pop().cancel()
        self._thread.submit(self._rows.restore, cursor).result()
        self._cursor = cursor


def _pinned(batch: Batch) -> Batch:
    return type(batch)(*(torch.as_tensor(column).pin_memory() for column in batch))
