"""
Forward and backward passes before the first step, to see what fits and what is fast.

    rehearsal = Rehearsal(loss_model, rows, machine)
    with rehearsal.without_trace():
        seconds = rehearsal.seconds(4)               # of a micro-batch of 4 rows; None: out of memory
        rows, tried = best_rows(rehearsal, [1, 2, 4, 8], footprint)

It reads the rows to come and goes back to where it was: weights, random state, counts and place in the data
are the same afterwards. All processes take part and decide the same, since only sums over them are compared.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from utils.training.loss import Batch, LossModel
from utils.training.machine import Machine
from utils.training.memory import HEADROOM, Footprint, available_bytes, footprint_of, ran_out
from utils.training.rng import capture_rng, restore_rng
from utils.training.rows import Rows
from utils.training.state import trainable_parameters

TIMED_PASSES = 2
CLEARLY, HOPELESS = 1.2, 2.0
"""How much slower a number of threads may measure and still be taken, and from where one pass is enough."""
SEARCH_SECONDS = 10.0


class Rehearsal:
    """Runs micro-batches of the rows to come without a step of the optimizer."""

    def __init__(self, loss_model: LossModel, rows: Rows, machine: Machine) -> None:
        self.loss_model, self._rows, self.machine = loss_model, rows, machine
        self._warm = False

    @property
    def _parameters(self) -> list[nn.Parameter]:
        """Asked for anew, because sharding replaces them."""
        return list(trainable_parameters(self.loss_model.model).values())

    @contextmanager
    def without_trace(self) -> Iterator[None]:
        """The region of a rehearsal; the model trains inside."""
        rng, was_training = capture_rng(), self.loss_model.training
        counting = [module for module in self.loss_model.modules() if hasattr(module, "counts")]
        counts = [module.counts for module in counting]
        self.loss_model.train()
        try:
            yield
        finally:
            self.loss_model.train(was_training)
            for module, kept in zip(counting, counts, strict=True):
                module.counts = kept
            restore_rng(rng)

    def batch(self, size: int) -> Batch:
        """This process's next micro-batch of `size` rows, left unread."""
        cursor = self._rows.cursor()
        first, *_ = self._rows.next_step(self.machine.rank, self.machine.num_ranks, size)
        self._rows.restore(cursor)
        return first

    def footprint(self, most_rows: int) -> Footprint:
        """What a step of this model keeps, measured with micro-batches of 1 and, where they fit, 2 rows."""
        if most_rows > 1:
            try:
                return footprint_of(self.loss_model, self._parameters, [self.batch(1), self.batch(2)])
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
        return footprint_of(self.loss_model, self._parameters, [self.batch(1)])

    def once(self, batch: Batch) -> None:
        """Forward and backward, gradients forgotten."""
        try:
            sums = self.loss_model(batch)
            (sums.loss_sum if sums.auxiliary is None else sums.loss_sum + sums.auxiliary).backward()
            self._finish()
        finally:
            for parameter in self._parameters:
                parameter.grad = None

    def seconds(self, size: int, enough: float = math.inf) -> float | None:
        """
        The quickest of two passes of a micro-batch, summed over the processes; None when memory ran out in
        one of them. A pass that takes longer than `enough` is the last.
        """
        quickest, failed = 0.0, False
        try:
            quickest = self._quickest(self.batch(size), enough)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            failed = True
        if failed and self.machine.device.type == "cuda":
            torch.cuda.empty_cache()
        total, failures = self.machine.sum([quickest, float(failed)])
        return None if failures else total

    def cool(self) -> None:
        """Pass once unmeasured before the next measurement, as after a change that prepares things anew."""
        self._warm = False

    def _quickest(self, batch: Batch, enough: float) -> float:
        if not self._warm:
            self.once(batch)
            self._warm = True
        found = []
        for _ in range(TIMED_PASSES):
            started = time.perf_counter()
            self.once(batch)
            found.append(time.perf_counter() - started)
            if found[-1] > enough:
                break
        return min(found)

    def _finish(self) -> None:
        if self.machine.device.type == "cuda":
            torch.cuda.synchronize(self.machine.device)


def doubling(sizes: Sequence[int]) -> list[int]:
    """Of ascending sizes those that are at least twice the one before, and the largest."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size >= 2 * kept[-1] or size == sizes[-1]:
            kept.append(size)
    return kept


def best_rows(rehearsal: Rehearsal, sizes: Sequence[int], footprint: Footprint) -> tuple[int, list[int]]:
    """
    The fastest micro-batch that fits, and the sizes that were tried: on CUDA the largest, elsewhere the one
    with the least time per row. 0 when even the smallest does not fit.
    """
    machine, per_row = rehearsal.machine, {}
    room, spent = HEADROOM * available_bytes(machine.device, footprint, machine.num_ranks), 0.0
    for size in doubling(sizes):
        (crowded,) = machine.sum([float(footprint.peak(size) > room)])
        if per_row and (crowded or spent > SEARCH_SECONDS):
            break
        seconds = rehearsal.seconds(size)
        if seconds is None:
            break
        spent += (TIMED_PASSES * seconds) / machine.num_ranks
        per_row[size] = seconds / size
    if not per_row:
        return 0, []
    tried = list(per_row)
    return (tried[-1] if machine.device.type == "cuda" else min(tried, key=per_row.get)), tried


def best_threads(rehearsal: Rehearsal, candidates: Sequence[int], size: int) -> int:
    """
    The number of threads for micro-batches of `size` rows: the largest, unless a smaller one is clearly
    faster. Cores that other programs keep busy make two threads many times slower than one; a few passes
    cannot tell less than a fifth.
    """
    found: dict[int, float | None] = {}
    for threads in candidates:
        torch.set_num_threads(threads)
        rehearsal.cool()
        known = [each for each in found.values() if each is not None]
        enough = HOPELESS * min(known, default=math.inf) / rehearsal.machine.num_ranks
        found[threads] = rehearsal.seconds(size, enough)
    fitting = {threads: seconds for threads, seconds in found.items() if seconds is not None}
    quickest = min(fitting.values(), default=0.0)
    return max(
        (n for n, seconds in fitting.items() if seconds <= CLEARLY * quickest), default=min(candidates)
    )
