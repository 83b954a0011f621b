"""
Where the Trainer gets its rows: one fixed, infinite order that any number of processes shares.

    rows = MixtureRows(mixture, partial(read_draws, datasets))
    for batch in rows.next_step(rank=0, num_ranks=1, micro_rows=16): ...
"""

from collections.abc import Callable
from typing import Protocol

from utils.training.loss import Batch


class Rows(Protocol):
    """The Trainer moves through the order and never looks into a batch; only the objective does."""

    batch_rows: int

    def next_step(self, rank: int, num_ranks: int, micro_rows: int) -> list[Batch]:
        """Advance by one optimizer step; the rows of this rank, in micro-batches of at most `micro_rows`."""

    def cursor(self) -> dict:
        """The position, as JSON."""

    def restore(self, cursor: dict) -> None:
        """Go to a saved position. StageError when it belongs to other data."""


class MixtureRows:
    """A mixture of datasets as `Rows`; `read` turns drawn rows (a tuple of arrays) into a batch."""

    def __init__(self, mixture, read: Callable[[tuple], Batch]) -> None:  # noqa: ANN001  (rooms do not import each other)
        self._mixture, self._read = mixture, read

    @property
    def batch_rows(self) -> int:
        return self._mixture.batch_rows

    def next_step(self, rank: int, num_ranks: int, micro_rows: int) -> list[Batch]:
        draws = self._mixture.next_step(rank, num_ranks)
        starts = range(0, self.batch_rows // num_ranks, micro_rows)
        pieces = (type(draws)(*(column[start : start + micro_rows] for column in draws)) for start in starts)
        return [self._read(piece) for piece in pieces]

    def cursor(self) -> dict:
        return self._mixture.cursor()

    def restore(self, cursor: dict) -> None:
        self._mixture.restore(cursor)
