"""Row planning: nothing lost, nothing crossed, every transition once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.packing.plan import best_fit_rows, plan_best_fit
from utils.pipeline.errors import DataError

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def naive_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The rule said plainly: longest first, fullest row that fits, lowest row on ties."""
    rows: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        space = [capacity - sum(lengths[i] for i in row) for row in rows]
        fitting = [(free, r) for r, free in enumerate(space) if free >= lengths[item]]
        if fitting:
            rows[min(fitting)[1]].append(item)
        else:
            rows.append([item])
    return rows


@given(lengths_lists, st.integers(39, 60))
def test_equals_the_naive_rule(lengths: list[int], row_tokens: int):
    plan = plan_best_fit(np.array(lengths), row_tokens)
    assert [plan.row(r).tolist() for r in range(len(plan))] == naive_best_fit(lengths, row_tokens + 1)


def test_ties_follow_the_given_order():
    plan = plan_best_fit(np.array([4, 4, 4]), row_tokens=3, order=np.array([2, 0, 1]))
    assert plan.items.tolist() == [2, 0, 1]


def test_an_item_longer_than_a_row_is_refused():
    with pytest.raises(DataError, match="an item of 9 ids does not fit into a row of 8"):
        plan_best_fit(np.array([9]), row_tokens=7)


def test_no_items_no_rows():
    assert len(plan_best_fit(np.array([], int), 8)) == 0


@given(lengths_lists, st.integers(2, 50))
def test_every_transition_once_and_no_id_lost(lengths: list[int], row_tokens: int):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = best_fit_rows(offsets, row_tokens)
    seen, transitions = set(), []
    for r in range(len(rows)):
        segments = range(int(rows.row_offsets[r]), int(rows.row_offsets[r + 1]))
        spans = [(int(rows.segment_starts[s]), int(rows.segment_lengths[s])) for s in segments]
        assert 0 < sum(length for _, length in spans) <= row_tokens + 1
        for start, length in spans:
            seen.update(range(start, start + length))
            transitions += [(i, i + 1) for i in range(start, start + length - 1)]
    ends = set(offsets[1:].tolist())
    assert seen == set(range(int(offsets[-1])))
    assert sorted(transitions) == [(i, i + 1) for i in range(int(offsets[-1]) - 1) if i + 1 not in ends]


@given(lengths_lists, st.integers(2, 50))
def test_a_document_that_fits_is_never_cut(lengths: list[int], row_tokens: int):
    rows = best_fit_rows(np.concatenate([[0], np.cumsum(lengths)]), row_tokens)
    short = [length for length in lengths if length <= row_tokens + 1]
    assert len(rows.segment_starts) - len(short) == sum(
        -(-(n - 1) // row_tokens) for n in lengths if n > row_tokens + 1
    )
