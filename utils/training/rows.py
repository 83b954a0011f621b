"""
Where the Trainer gets its rows: one fixed, infinite order that any number of processes shares.

    rows = MixtureRows(mixture, partial(read_draws, datasets))
    for batch in rows.next_step(rank=0, num_ranks=1, micro_rows=16): ...
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from utils.pipeline.errors import ConfigError
from utils.training.loss import Batch

MOST_UNTRIED_ROWS = 16
MOST_NAMED = 8  # divisors in a message


class Rows(Protocol):
    """The Trainer moves through the order and never looks into a batch; only the objective does."""

    batch_rows: int

    def next_step(self, rank: int, num_ranks: int, micro_rows: int) -> list[Batch]:
        """Advance by one optimizer step; the rows of this rank, in micro-batches of at most `micro_rows`."""

    def cursor(self) -> dict:
        """The position, as JSON."""

    def restore(self, cursor: dict) -> None:
        """Go to a saved position. StageError when it belongs to other data."""

    def row_ids(self, cursor: dict) -> list[list[int]]:
        """[dataset, row] of every row in the step that starts at a cursor; [] where rows have no numbers."""

    def epochs(self, steps: int) -> float | None:
        """How often a run of so many steps reads what it reads most; None where rows have no numbers."""


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

    def row_ids(self, cursor: dict) -> list[list[int]]:
        if not hasattr(self._mixture, "at"):
            return []
        return [list(map(int, row)) for row in zip(*self._mixture.at(cursor), strict=True)]

    def epochs(self, steps: int) -> float | None:
        return max(self._mixture.epochs(steps)) if hasattr(self._mixture, "epochs") else None


def join_cursors(cursors: Sequence[dict]) -> dict:
    """
    One cursor of those that the ranks have: all know the same, but for the `parts` of raw text, of which each
    knows what it reads.
    """
    joined = dict(cursors[0])
    if "parts" in joined:
        joined["parts"] = {name: state for cursor in cursors for name, state in cursor["parts"].items()}
    return joined


def micro_batch_rows(asked: int | Literal["auto"], batch_rows: int, num_ranks: int) -> int:
    """
    Rows of one forward pass: those asked for, all rows of a process when that is more, or, before anything
    was tried, the largest divisor of them up to 16. ConfigError when the rows cannot be shared evenly.
    """
    rows, rest = divmod(batch_rows, num_ranks)
    if rest:
        raise ConfigError(f"a global batch of {batch_rows} rows cannot be shared by {num_ranks} processes")
    if asked == "auto":
        return max(size for size in divisors(rows) if size <= MOST_UNTRIED_ROWS)
    asked = min(asked, rows)
    if rows % asked:
        raise ConfigError(
            f'"micro_batch_rows": {asked} does not divide the {rows} rows of a process',
            fix=f'"micro_batch_rows": {" or ".join(map(str, divisors(rows)[-MOST_NAMED:]))}, or "auto"',
        )
    return asked


def divisors(rows: int) -> list[int]:
    """The sizes that share `rows` evenly, ascending."""
    return [size for size in range(1, rows + 1) if rows % size == 0]
