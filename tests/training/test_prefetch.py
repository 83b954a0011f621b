import gc
import threading
import time

import pytest
import torch

from tests.training.toy_stage import CountingRows
from utils.pipeline.errors import DataError
from utils.training.prefetch import STEPS_AHEAD, Prefetched


class Watched(CountingRows):
    """Counting rows that say how many steps were made, in which thread, and fail at one of them."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.fail_at, self.made, self.threads = fail_at, 0, set()

    def next_step(self, *share):
        self.threads.add(threading.current_thread().name)
        self.made += 1
        if self.made == self.fail_at:
            raise DataError("broken")
        return super().next_step(*share)


def rows_of(batches) -> list:
    return [batch.tokens.tolist() for batch in batches]


def wait_for(what) -> None:
    deadline = time.monotonic() + 20
    while not what() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert what()


def test_steps_are_made_ahead_by_one_thread_in_the_same_order():
    inner, plain = Watched(), CountingRows()
    rows = Prefetched(inner, pin=False)
    assert rows.batch_rows == 4 and inner.made == 0
    for step in range(1, 6):
        assert rows_of(rows.next_step(0, 1, 2)) == rows_of(plain.next_step(0, 1, 2))
        wait_for(lambda step=step: inner.made == step + STEPS_AHEAD)
        assert rows.cursor() == plain.cursor()
    assert inner.threads == {"rows_0"}


def test_the_cursor_leads_back_whatever_was_made_ahead():
    rows, plain = Prefetched(Watched(), pin=False), CountingRows()
    saved = rows.cursor()
    first = [rows_of(rows.next_step(0, 1, 4)) for _ in range(3)]
    rows.restore(saved)
    assert [rows_of(rows.next_step(0, 1, 4)) for _ in range(3)] == first
    for _ in range(3):
        plain.next_step(0, 1, 4)
    assert rows.cursor() == plain.cursor()
    assert rows_of(rows.next_step(0, 1, 1)) == rows_of(plain.next_step(0, 1, 1))
    assert rows_of(rows.next_step(1, 2, 1)) == rows_of(plain.next_step(1, 2, 1))


def test_an_error_comes_with_the_step_that_it_belongs_to():
    rows = Prefetched(Watched(fail_at=3), pin=False)
    for _ in range(2):
        rows.next_step(0, 1, 4)
    with pytest.raises(DataError, match="broken"):
        rows.next_step(0, 1, 4)


def test_the_thread_waits_for_nothing_and_ends_with_its_rows():
    """Nobody has to stop it: two steps ahead it is idle, and gone once the rows are."""
    before = set(threading.enumerate())
    rows = Prefetched(Watched(), pin=False)
    rows.next_step(0, 1, 4)
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "rows_0"
    del rows
    gc.collect()
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs CUDA")
def test_rows_are_pinned_for_a_gpu():
    for batch in Prefetched(CountingRows(), pin=True).next_step(0, 1, 2):
        assert all(column.is_pinned() for column in batch)
