"""
What a way of building rows costs, from document lengths alone: padding, or documents cut in two.

    >>> padding_fraction(lengths, 1024), concat_cuts(lengths, 1024)
    (0.0004, 1711)
"""

import numpy as np

from utils.packing.index import Rows, concat_rows
from utils.packing.plan import best_fit_rows

LEAST_ROW_TOKENS = 16


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where documents of these lengths begin and end, int64 [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def padding_fraction(lengths: np.ndarray, row_tokens: int, rows: Rows | None = None) -> float:
    """Share of the ids of best_fit rows that is padding."""
    rows = rows or best_fit_rows(offsets_of(lengths), row_tokens)
    return 1 - int(rows.segment_lengths.sum(dtype=np.int64)) / max(1, len(rows) * (row_tokens + 1))


def concat_cuts(lengths: np.ndarray, row_tokens: int) -> int:
    """Documents that would fit into a row and lie in two when rows are cut anywhere."""
    offsets = offsets_of(lengths)
    starts, last_inputs = offsets[:-1], np.maximum(offsets[1:] - 2, offsets[:-1])
    return int(((lengths <= row_tokens + 1) & (starts // row_tokens != last_inputs // row_tokens)).sum())


def concat_unused(lengths: np.ndarray, row_tokens: int) -> int:
    """Ids at the end of the stream that make no whole row."""
    num_tokens = int(lengths.sum())
    return num_tokens - (concat_rows(num_tokens, row_tokens) * row_tokens + 1)


def alternatives(lengths: np.ndarray, row_tokens: int) -> str:
    """What other row lengths and the other mode would cost, for somebody whose rows are mostly padding."""
    others = [n for n in (row_tokens // 2, row_tokens * 2, row_tokens * 4) if n >= LEAST_ROW_TOKENS]
    padded = [f"{n:,} would pad {padding_fraction(lengths, n):.1%}" for n in others]
    cut = concat_cuts(lengths, row_tokens) / max(1, len(lengths))
    return (
        f"choose another sequence_length_tokens ({', '.join(padded)}), "
        f"or mode concat, which cuts {cut:.1%} of the documents"
    )
