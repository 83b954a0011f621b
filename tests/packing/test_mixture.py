"""The row order: published vectors, quotas, epochs, ranks, resume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.packing.dataset import Batch
from utils.packing.mixture import Draws, Mixture, MixtureSource, integer_weights, permute, read_draws
from utils.pipeline.errors import ConfigError, StageError


def mixture(weights: list[float], batch_rows: int = 20, rows: int = 100) -> Mixture:
    return Mixture([MixtureSource(rows + i, f"digest {i}", w) for i, w in enumerate(weights)], 0, batch_rows)


def drawn(mix: Mixture, steps: int, rank: int = 0, num_ranks: int = 1) -> list[tuple[int, int]]:
    draws = [mix.next_step(rank, num_ranks) for _ in range(steps)]
    return [pair for d in draws for pair in zip(d.dataset.tolist(), d.row.tolist(), strict=True)]


def test_permute_vector():
    assert permute(range(10), 10, "lockstep").tolist() == [3, 6, 2, 8, 0, 5, 9, 4, 7, 1]


@pytest.mark.parametrize(
    ("weights", "order"),
    [([0.7, 0.3], "0 1 0 0 0 1 0 0 1 0 0 1 0 0 0 1 0 0 1 0"), ([0.5, 0.3, 0.2], "0 1 2 0 0 1 0 2 1 0")],
)
def test_dataset_order_vectors(weights: list[float], order: str):
    expected = [int(d) for d in order.split()]
    assert mixture(weights, batch_rows=len(expected)).next_step().dataset.tolist() == expected


@settings(deadline=None)
@given(st.integers(1, 300), st.text(max_size=5))
def test_permute_is_a_permutation(num_rows: int, key: str):
    assert sorted(permute(range(num_rows), num_rows, key).tolist()) == list(range(num_rows))


def test_integer_weights_sum_to_2_to_the_32():
    assert sum(integer_weights([0.1, 0.7, 3.3])) == 2**32
    assert integer_weights([1, 1]) == [2**31, 2**31]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=8))
def test_counts_stay_within_a_row_of_the_weights(weights: list[int]):
    dataset = np.array([d for d, _ in drawn(mixture(weights, batch_rows=100), 20)])
    for d, weight in enumerate(weights):
        share = np.arange(1, len(dataset) + 1) * weight / sum(weights)
        assert np.abs(np.cumsum(dataset == d) - share).max() <= 1.1


def test_every_epoch_reads_each_row_once_in_a_new_order():
    rows = [row for _, row in drawn(mixture([1.0], batch_rows=7, rows=21), 9)]
    epochs = [rows[i : i + 21] for i in range(0, 63, 21)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_larger_than_a_dataset_spans_epochs():
    rows = [row for _, row in drawn(mixture([1.0], batch_rows=8, rows=3), 3)]
    assert [sorted(rows[i : i + 3]) for i in range(0, 24, 3)] == [[0, 1, 2]] * 8


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_share_the_same_rows(num_ranks: int):
    parts = [mixture([0.6, 0.4]).next_step(rank, num_ranks).row.tolist() for rank in range(num_ranks)]
    assert sum(parts, []) == mixture([0.6, 0.4]).next_step().row.tolist()


@pytest.mark.parametrize("k", [0, 1, 7, 40])
def test_resume_equals_the_uninterrupted_stream(k: int):
    whole, first, second = (mixture([0.5, 0.3, 0.2]) for _ in range(3))
    drawn(first, k)
    second.restore(first.cursor())
    assert drawn(second, 5) == drawn(whole, k + 5)[k * 20 :]
    assert second.rows_drawn == (k + 5) * 20


def test_restore_refuses_another_seed():
    other = Mixture([MixtureSource(100, "digest 0")], seed=1, batch_rows=20)
    with pytest.raises(StageError, match="made with seed 0, this run has 1"):
        other.restore(mixture([1.0]).cursor())


def test_refusals():
    with pytest.raises(ConfigError, match="batch of 20 rows cannot be shared by 3 processes"):
        mixture([1.0]).next_step(0, 3)
    with pytest.raises(ConfigError, match=r"data\.1 has 101 rows and weight 0"):
        mixture([1.0, 0.0])


class Counting:
    def __init__(self, base: int) -> None:
        self.base = base

    def rows(self, indices: np.ndarray) -> Batch:
        tokens = (indices + self.base)[:, None]
        return Batch(tokens, tokens, tokens)


def test_read_draws_keeps_the_order():
    draws = Draws(np.array([1, 0, 1, 0]), np.array([5, 6, 7, 8]))
    assert read_draws([Counting(0), Counting(100)], draws).tokens[:, 0].tolist() == [105, 6, 107, 8]
