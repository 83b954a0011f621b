"""
The fixed rows that a run is judged by, and what its loss means per byte of text.

    batches = list(spread_batches(packed_val, max_tokens=65_536))
    bits_per_byte(loss, batches, bytes_of_id)           # bytes_of_id[i]: UTF-8 bytes that id i stands for
"""

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from torch import Tensor

from utils.training.loss import IGNORED, Batch, next_token_targets

ROWS_PER_BATCH = 16


class RowReader(Protocol):
    """A packed split: numbered rows of sequence_length + 1 ids."""

    num_rows: int
    sequence_length: int

    def rows(self, indices: np.ndarray) -> Batch:
        """The rows of these numbers."""


def spread_batches(
    dataset: RowReader, max_tokens: int, rows_per_batch: int = ROWS_PER_BATCH
) -> Iterator[Batch]:
    """Batches of rows spread evenly over the split, about `max_tokens` in all; the same ones every time."""
    wanted = min(dataset.num_rows, max(1, max_tokens // dataset.sequence_length))
    indices = np.arange(wanted) * dataset.num_rows // wanted
    for start in range(0, wanted, rows_per_batch):
        yield dataset.rows(indices[start : start + rows_per_batch])


def bits_per_byte(loss: float, batches: Iterable[Batch], bytes_of_id: np.ndarray) -> float:
    """Mean nats per target as bits per byte of the text that the targets stand for."""
    count = text_bytes = 0
    for batch in batches:
        targets = _scored(batch)
        count, text_bytes = count + len(targets), text_bytes + int(bytes_of_id[targets.numpy()].sum())
    return loss * count / (math.log(2) * max(text_bytes, 1))


def count_targets(batches: Iterable[Batch]) -> int:
    """How many targets the loss is a mean over."""
    return sum(len(_scored(batch)) for batch in batches)


def _scored(batch: Batch) -> Tensor:
    targets = next_token_targets(batch)[1]
    return targets[targets != IGNORED]
