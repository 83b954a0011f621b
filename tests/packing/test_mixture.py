"""The row order: published vectors, quotas, epochs, ranks, resume."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.packing.dataset import Batch
from utils.packing.mixture import (
    Draws,
    Mixture,
    MixtureSource,
    drawn_shares,
    integer_weights,
    permute,
    read_draws,
)
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


@given(st.integers(1, 300), st.text(max_size=5))
def test_permute_is_a_permutation(num_rows: int, key: str):
    assert sorted(permute(range(num_rows), num_rows, key).tolist()) == list(range(num_rows))


def test_integer_weights_sum_to_2_to_the_32():
    assert sum(integer_weights([0.1, 0.7, 3.3])) == 2**32
    assert integer_weights([1, 1]) == [2**31, 2**31]


def test_10_000_draws_stay_within_a_row_of_the_weights():
    """The second mix was made to provoke it: always taking the largest debt, it is 1.111 rows away."""
    assert farthest([0.5, 0.3, 0.2]) <= 0.75
    assert 0.8 < farthest([1.0, 1.0, 10.0, 10.0, 0.0625]) <= 0.875


@settings(max_examples=60)
@given(st.lists(st.one_of(st.floats(0.01, 1), st.sampled_from([1.0, 10.0, 0.0625])), min_size=1, max_size=8))
def test_no_prefix_of_the_draws_is_a_row_away_from_any_weights(weights: list[float]):
    """Tijdeman's bound for m datasets, 1 - 1 / (2m - 2)."""
    assert farthest(weights, 300) <= 1 - 1 / max(2, 2 * len(weights) - 2) + 1e-5


def farthest(weights: list[float], num_draws: int = 10_000) -> float:
    """The most rows by which a dataset is ever ahead of or behind its share."""
    dataset = mixture(weights, num_draws).next_step().dataset
    drawn = np.cumsum(dataset[:, None] == np.arange(len(weights)), axis=0)
    shares = np.arange(1, len(dataset) + 1)[:, None] * np.array(weights) / sum(weights)
    return float(np.abs(drawn - shares).max())


@settings(max_examples=30)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=4))
def test_every_epoch_of_every_dataset_is_a_permutation(batch_rows: int, datasets: list[tuple[int, int]]):
    mix = Mixture([MixtureSource(n, f"digest {n}", w) for n, w in datasets], 0, batch_rows)
    pairs = drawn(mix, 200 // batch_rows + 1)
    for d, (num_rows, _) in enumerate(datasets):
        rows = [row for dataset, row in pairs if dataset == d]
        epochs = [rows[i : i + num_rows] for i in range(0, len(rows) // num_rows * num_rows, num_rows)]
        assert all(sorted(epoch) == list(range(num_rows)) for epoch in epochs)


def test_epochs_differ_in_their_order():
    rows = [row for _, row in drawn(mixture([1.0], batch_rows=7, rows=21), 9)]
    assert rows[:21] != rows[21:42] != rows[42:63]


def test_the_order_of_a_dataset_depends_on_seed_digest_and_split():
    sources = [MixtureSource(50, "a"), MixtureSource(50, "b"), MixtureSource(50, "a", split="val")]
    orders = [drawn(Mixture([source], seed, 50), 1) for source in sources for seed in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_share_the_same_rows_of_every_step(num_ranks: int):
    whole = mixture([0.6, 0.4])
    ranks = [mixture([0.6, 0.4]) for _ in range(num_ranks)]
    for _ in range(5):
        parts = [mix.next_step(rank, num_ranks) for rank, mix in enumerate(ranks)]
        expected = whole.next_step()
        assert np.concatenate([part.row for part in parts]).tolist() == expected.row.tolist()
        assert np.concatenate([part.dataset for part in parts]).tolist() == expected.dataset.tolist()
        assert {len(part.row) for part in parts} == {20 // num_ranks}


@settings(max_examples=25)
@given(st.integers(0, 60), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))
def test_resume_at_any_step_and_any_rank_count_equals_the_uninterrupted_stream(
    k: int, before: int, after: int
):
    whole, first, second = (mixture([0.5, 0.3, 0.2]) for _ in range(3))
    drawn(first, k, rank=before - 1, num_ranks=before)
    second.restore(json.loads(json.dumps(first.cursor())))
    resumed = [mix.next_step(r, after) for r, mix in enumerate(copies(second, after))]
    expected = drawn(whole, k + 1)[k * 20 :]
    pairs = [pair for d in resumed for pair in zip(d.dataset.tolist(), d.row.tolist(), strict=True)]
    assert pairs == expected


def copies(mix: Mixture, number: int) -> list[Mixture]:
    made = [mixture([0.5, 0.3, 0.2]) for _ in range(number)]
    for copy in made:
        copy.restore(mix.cursor())
    return made


def test_resume_costs_the_same_however_far_the_run_had_come():
    """A cursor of 10**12 rows: replaying them would take days."""
    mix = mixture([0.5, 0.5])
    cursor = mix.cursor() | {"rows_drawn": 10**12, "counts": [10**12 // 2] * 2}
    mix.restore(cursor)
    assert sorted(set(mix.next_step().dataset.tolist())) == [0, 1]
    assert mix.cursor()["rows_drawn"] == 10**12 + 20


def test_the_cursor_says_everything_of_the_order():
    mix = mixture([0.5, 0.3])
    mix.next_step()
    assert mix.cursor() == {
        "rows_drawn": 20,
        "counts": [13, 7],
        "datasets": ["digest 0", "digest 1"],
        "weights": [0.5, 0.3],
        "seed": 0,
        "batch_rows": 20,
    }


@pytest.mark.parametrize(
    ("sources", "seed", "batch_rows", "message"),
    [
        ([("a", 1.0), ("b", 1.0)], 1, 20, "made with seed 0, this run has 1"),
        ([("a", 1.0), ("b", 1.0)], 0, 40, "made with batch_rows 20, this run has 40"),
        ([("a", 1.0), ("b", 2.0)], 0, 20, r"made with weights \[1.0, 1.0\], this run has \[1.0, 2.0\]"),
        ([("b", 1.0), ("a", 1.0)], 0, 20, r"made with datasets \['a', 'b'\], this run has \['b', 'a'\]"),
        ([("a", 1.0)], 0, 20, r"made with datasets \['a', 'b'\], this run has \['a'\]"),
    ],
)
def test_restore_refuses_any_other_run(sources: list, seed: int, batch_rows: int, message: str):
    cursor = Mixture([MixtureSource(9, "a"), MixtureSource(9, "b")], 0, 20).cursor()
    other = Mixture([MixtureSource(9, digest, weight) for digest, weight in sources], seed, batch_rows)
    with pytest.raises(StageError, match=message) as error:
        other.restore(cursor)
    assert error.value.fix.startswith("resume with the data")


def test_restore_refuses_counts_that_do_not_add_up():
    mix = mixture([1.0, 1.0])
    with pytest.raises(StageError, match=r"counts \[3, 4\] do not add up to 8 rows"):
        mix.restore(mix.cursor() | {"counts": [3, 4], "rows_drawn": 8})


def test_refusals():
    with pytest.raises(ConfigError, match="batch of 20 rows cannot be shared by 3 processes") as error:
        mixture([1.0]).next_step(0, 3)
    assert error.value.exit_code == 2
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=rf"data\.1 has 101 rows and weight {weight}"):
            mixture([1.0, weight])
    with pytest.raises(
        ConfigError, match=r"data\.1 has weight 1e-12, too little beside the others to be read"
    ):
        mixture([1.0, 1e-12])
    with pytest.raises(ConfigError, match=r"data\.0 has 0 rows"):
        mixture([1.0], rows=0)


def test_epochs_are_told_before_training():
    mix = mixture([0.5, 0.3, 0.2], batch_rows=20, rows=100)
    line = mix.epochs_line(["books", "web", "code"], num_steps=50)
    assert line == (
        "books 5.00 epochs of 100 rows (weight 0.5, 50.00 % of the rows), "
        "web 2.97 epochs of 101 rows (weight 0.3, 30.00 % of the rows), "
        "code 1.96 epochs of 102 rows (weight 0.2, 20.00 % of the rows)"
    )
    drawn(mix, 50)
    counts = mix.cursor()["counts"]
    assert [round(count / n, 2) for count, n in zip(counts, (100, 101, 102), strict=True)] == [
        5.0,
        2.97,
        1.96,
    ]


def test_what_was_drawn_is_told_afterwards():
    mix = mixture([0.5, 0.3, 0.2], batch_rows=20, rows=100)
    drawn(mix, 5)
    found = drawn_shares(["books", "web", "code"], [0.5, 0.3, 0.2], mix.cursor()["counts"])
    assert found["web"] == {"weight": 0.3, "rows_drawn": 30, "share": 0.3}
    assert sum(each["rows_drawn"] for each in found.values()) == 100
    assert mixture([2.0]).epochs_line(["books"], num_steps=50).endswith("rows")  # alone it has no share


class Counting:
    def __init__(self, base: int) -> None:
        self.base = base

    def rows(self, indices: np.ndarray) -> Batch:
        tokens = (indices + self.base)[:, None]
        return Batch(tokens, tokens, tokens)


def test_read_draws_keeps_the_order():
    draws = Draws(np.array([1, 0, 1, 0]), np.array([5, 6, 7, 8]))
    assert read_draws([Counting(0), Counting(100)], draws).tokens[:, 0].tolist() == [105, 6, 107, 8]
