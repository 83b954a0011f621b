"""
Row planning: which pieces of which documents share a row, decided from lengths alone.

A row of T tokens holds T + 1 ids, because inputs are ids [0, T) and targets ids [1, T]. `best_fit` cuts a
document into pieces of T + 1 ids that overlap by one id, so that every transition inside a document is a
target exactly once an epoch and no transition between documents is. It never cuts a document that fits and
never throws an id away.

    >>> plan = plan_best_fit([300, 40, 210], row_tokens=511)   # stages 70 and 90 plan conversations with it
    >>> plan.row(0)                                            # array([0, 2]): items of row 0, longest first
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from utils.packing.index import Rows
from utils.pipeline.errors import DataError


@dataclass(frozen=True)
class RowPlan:
    """
    Items of row r are items[row_offsets[r] : row_offsets[r + 1]], in the order in which they were placed.
    """

    row_offsets: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def row(self, r: int) -> np.ndarray:
        return self.items[self.row_offsets[r] : self.row_offsets[r + 1]]


def plan_best_fit(lengths: np.ndarray, row_tokens: int, order: np.ndarray | None = None) -> RowPlan:
    """
    Place items, longest first, into the fullest row that still fits; among equally full rows the lowest takes
    it.

    `lengths` are ids per item, a row takes `row_tokens` + 1 of them. Items of equal length go in the order of
    `order` (a permutation; default: as given). DataError when an item is longer than a row. O(n log
    row_tokens).
    """
    lengths = np.asarray(lengths, np.int64)
    capacity = row_tokens + 1
    if len(lengths) and int(lengths.max()) > capacity:
        raise DataError(f"an item of {int(lengths.max()):,} ids does not fit into a row of {capacity:,}")
    order = np.arange(len(lengths)) if order is None else np.asarray(order)
    longest_first = order[np.argsort(-lengths[order], kind="stable")]
    row_of = _place(lengths[longest_first].tolist(), capacity)
    by_row = np.argsort(row_of, kind="stable")
    num_rows = int(row_of.max()) + 1 if len(row_of) else 0
    return RowPlan(np.searchsorted(row_of[by_row], np.arange(num_rows + 1)), longest_first[by_row])


def _place(lengths: list[int], capacity: int) -> np.ndarray:
    """
    Return the row of each item; `free` lists the distinct free spaces, `rows_with` the rows that have them.
    """
    rows_with: dict[int, list[int]] = {}
    free: list[int] = []
    row_of = np.empty(len(lengths), np.int64)
    num_rows = 0
    for i, length in enumerate(lengths):
        at = bisect_left(free, length)
        if at < len(free):
            space = free[at]
            row = heappop(rows_with[space])
            if not rows_with[space]:
                free.pop(at)
        else:
            space, row = capacity, num_rows
            num_rows += 1
        row_of[i] = row
        rest = space - length
        if rest:
            waiting = rows_with.setdefault(rest, [])
            if not waiting:
                insort(free, rest)
            heappush(waiting, row)
    return row_of


def best_fit_rows(offsets: np.ndarray, row_tokens: int) -> Rows:
    """
    Build the rows of a stream of documents: full pieces first, in stream order, then the rows of remainders.
    """
    starts, lengths = _pieces(np.asarray(offsets, np.int64), row_tokens)
    full = lengths == row_tokens + 1
    rest_starts, rest_lengths = starts[~full], lengths[~full]
    plan = plan_best_fit(rest_lengths, row_tokens)
    num_full = int(full.sum())
    row_offsets = np.concatenate([np.arange(num_full), num_full + plan.row_offsets])
    segment_starts = np.concatenate([starts[full], rest_starts[plan.items]])
    segment_lengths = np.concatenate([lengths[full], rest_lengths[plan.items]])
    return Rows(row_offsets.astype("<u8"), segment_starts.astype("<u8"), segment_lengths.astype("<u4"))


def _pieces(offsets: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Cut documents into pieces of row_tokens + 1 ids that overlap by one; a document of one id stays one piece.
    """
    lengths = np.diff(offsets)
    num_pieces = np.maximum(1, -(-(lengths - 1) // row_tokens))
    document = np.repeat(np.arange(len(lengths)), num_pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    starts = offsets[:-1][document] + number * row_tokens
    return starts, np.minimum(row_tokens + 1, offsets[1:][document] - starts)
