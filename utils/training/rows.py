"""
Where the Trainer gets its rows: one fixed, infinite order that any number of processes shares.

    rows = MixtureRows(mixture, partial(read_draws, datasets))
    for batch in rows.next_step(rank=0, num_ranks=1, micro_rows=16): ...
"""

from collections.abc import Callable
from typing import Literal, Protocol

from utils.pipeline.errors import ConfigError
from utils.training.loss import Batch

MOST_AUTO_ROWS = 16


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

    def __init__(self, mixture, read: Callable[[tuple], Batch]) -> None:
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


def micro_batch_rows(asked: int | Literal["auto"], batch_rows: int, num_ranks: int) -> int:
    """
    Rows of one forward pass: those asked for, or the largest divisor of a rank's rows up to 16.

    On a CPU 4 to 32 rows of 256 tokens train equally fast, so "auto" only has to bound memory. ConfigError
    when the rows cannot be shared evenly.
    """
    rows, rest = divmod(batch_rows, num_ranks)
    if rest:
        raise ConfigError(f"a global batch of {batch_rows} rows cannot be shared by {num_ranks} processes")
    if asked == "auto":
        return max(size for size in range(1, min(rows, MOST_AUTO_ROWS) + 1) if rows % size == 0)
    if rows % asked:
        raise ConfigError(f'"micro_batch_rows": {asked} does not divide the {rows} rows of a process')
    return asked
