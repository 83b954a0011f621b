"""What rows cost, against counting it the long way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.packing.waste import alternatives, concat_cuts, concat_unused, padding_fraction

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=40)


@given(lengths_lists, st.integers(1, 30))
def test_concat_cuts_are_documents_that_fit_and_are_whole_in_no_row(lengths: list[int], row_tokens: int):
    starts = np.cumsum([0, *lengths])
    num_rows = int(starts[-1]) // row_tokens + 1
    rows = [set(range(i * row_tokens, (i + 1) * row_tokens + 1)) for i in range(num_rows)]
    documents = [set(range(a, b)) for a, b in zip(starts, starts[1:], strict=False)]
    cut = [d for d in documents if len(d) <= row_tokens + 1 and not any(d <= row for row in rows)]
    assert concat_cuts(np.array(lengths), row_tokens) == len(cut)


@given(lengths_lists, st.integers(1, 30))
def test_concat_leaves_less_than_a_row_unused(lengths: list[int], row_tokens: int):
    used = sum(lengths) - concat_unused(np.array(lengths), row_tokens)
    assert used % row_tokens == 1 % row_tokens and 0 <= sum(lengths) - used < row_tokens


def test_padding_by_hand():
    # pieces of 9, 9 and 4 ids (two ids twice), then 5 + 4 and 3: four rows of 9, 34 ids in them
    assert padding_fraction(np.array([20, 5, 3]), 8) == pytest.approx(1 - 30 / 36)
    assert padding_fraction(np.array([9, 9]), 8) == 0


def test_alternatives_name_what_they_cost():
    text = alternatives(np.full(100, 147), 256)
    assert text.startswith("choose another sequence_length_tokens (128 would pad ")
    assert "512 would pad 15.7%, 1,024 would pad 15.6%)" in text
    assert text.endswith("or mode concat, which cuts 57.0% of the documents")
    assert "8 would" not in alternatives(np.full(10, 9), 16)
