import math

import numpy as np
import pytest

from tests.training.toy_stage import ToyBatch
from utils.training.validation import bits_per_byte, spread_batches


class Numbered:
    """Rows that say their number."""

    num_rows, sequence_length = 100, 10

    def rows(self, indices):
        return np.array(indices)


@pytest.mark.parametrize(("tokens", "expected"), [(40, [0, 25, 50, 75]), (5, [0]), (10**9, list(range(100)))])
def test_rows_are_spread_evenly_up_to_the_tokens_asked_for(tokens, expected):
    assert np.concatenate(list(spread_batches(Numbered(), tokens))).tolist() == expected


def test_bits_per_byte_by_hand():
    """Targets 7 (3 bytes) and 8 (1 byte) at ln 2 nats each: 2 bits over 4 bytes."""
    batch = ToyBatch(np.array([[6, 7, 8]]), np.zeros((1, 3), int), np.arange(3)[None])
    table = np.arange(10) - 4
    table[8] = 1
    assert bits_per_byte(math.log(2), [batch], table) == pytest.approx(0.5)
