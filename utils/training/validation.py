"""
The fixed rows that a run is judged by, and what its loss means per byte of text.

    batches = list(spread_batches(packed_val, max_tokens=65_536))
    bits_per_byte(loss, batches, piece_bytes(pieces, control_ids))
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from utils.training.loss import IGNORED, Batch, next_token_targets

ROWS_PER_BATCH = 16
WORD_BOUNDARY = "\u2581"


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


def piece_bytes(pieces: Sequence[str], controls: Iterable[int]) -> np.ndarray:
    """UTF-8 bytes of text behind each id: one for a byte piece, none for a control symbol."""
    lengths = [1 if _is_byte(piece) else len(piece.replace(WORD_BOUNDARY, " ").encode()) for piece in pieces]
    table = np.array(lengths, np.int64)
    table[[index for index in controls if index >= 0]] = 0
    return table


def bits_per_byte(loss: float, batches: Iterable[Batch], bytes_of_id: np.ndarray) -> float:
    """Mean nats per target as bits per byte of the text that the targets stand for."""
    count = text_bytes = 0
    for batch in batches:
        targets = _scored(batch)
        count, text_bytes = count + len(targets), text_bytes + int(bytes_of_id[targets.numpy()].sum())
    return loss * count / (math.log(2) * max(text_bytes, 1))


def _scored(batch: Batch) -> Tensor:
    targets = next_token_targets(batch)[1]
    return targets[targets != IGNORED]


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
