import gc
import threading
import time

import numpy as np
import pytest
import torch

from tests.training.toy_stage import CountingRows, toy_model
from utils.pipeline.errors import DataError
from utils.training.conversations import ConversationBatch, TrainedTokenLoss
from utils.training.pairs import PairBatch, PreferenceObjective, answer_logps, cached_reference
from utils.training.prefetch import STEPS_AHEAD, Prefetched, _pinned


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


def test_conversations_and_pairs_score_the_same_as_pinned_tensors(monkeypatch):
    """Pinning needs a GPU; that the objectives take tensors for arrays does not."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda column: column)
    model, document = toy_model(), np.repeat([[0, 1, -1]], [5, 5, 3], axis=1).astype(np.int32)
    tokens, trained = np.arange(13, dtype=np.int64)[None], (document >= 0).astype(np.uint8)
    columns = (tokens, document, tokens % 5, trained)
    chat, loss = ConversationBatch(*columns), TrainedTokenLoss()
    assert loss.weigh(_pinned(chat)) == loss.weigh(chat) == 8
    assert torch.equal(loss(model, _pinned(chat)).loss_sum, loss(model, chat).loss_sum)
    pair = PairBatch(*columns, np.array([7]), np.array([[-1.0, -2.0]]))
    assert PreferenceObjective(None, cached_reference).weigh(_pinned(pair)) == 1
    assert torch.equal(answer_logps(model, _pinned(pair)), answer_logps(model, pair))
    assert torch.equal(cached_reference(model, _pinned(pair)), cached_reference(model, pair))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs CUDA")
def test_rows_are_pinned_for_a_gpu():
    for batch in Prefetched(CountingRows(), pin=True).next_step(0, 1, 2):
        assert all(column.is_pinned() for column in batch)
