"""Intervals against published values, and verdicts against simulations whose truth is known."""

import numpy as np
import pytest

from utils.evaluation.compare import paired_bootstrap, share, weighted_mean, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_share_counts_true_items() -> None:
    found = share(np.array([True] * 81 + [False] * 182))
    assert (found.n, found.value) == (263, pytest.approx(81 / 263))
    assert found.low == pytest.approx(0.2553, abs=5e-5)


def test_bootstrap_interval_of_a_mean_is_the_normal_one_for_many_items() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2_000)
    found = weighted_mean(values, np.ones(2_000), resamples=4_000, seed=1)
    half = 1.96 * values.std() / np.sqrt(2_000)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == (
        pytest.approx(values.mean() - half, abs=0.1 * half),
        pytest.approx(values.mean() + half, abs=0.1 * half),
    )


def test_weights_make_a_ratio() -> None:
    found = weighted_mean(np.array([10.0, 30.0]), np.array([10.0, 10.0]), resamples=200, seed=0)
    assert found.value == 2.0 and (found.low, found.high) == (1.0, 3.0)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).random((2, 50))
    once, again, other = (paired_bootstrap(*values, resamples=500, seed=s) for s in (3, 3, 4))
    assert once == again != other


@pytest.mark.parametrize(
    ("shift", "lower_is_better", "verdict"),
    [(0.5, False, "better"), (-0.5, False, "worse"), (0.5, True, "worse"), (-0.5, True, "better")],
)
def test_clear_differences_get_their_verdict(shift: float, lower_is_better: bool, verdict: str) -> None:
    hard = np.random.default_rng(0).normal(0, 5, 200)  # what is hard for both cancels
    noise = np.random.default_rng(1).normal(0, 0.5, 200)
    found = paired_bootstrap(hard + shift + noise, hard, 1_000, 7, lower_is_better=lower_is_better)
    assert found.verdict == verdict
    assert found.low < shift < found.high


def test_equal_models_show_no_difference() -> None:
    values = np.random.default_rng(0).random(100) < 0.5
    assert paired_bootstrap(values, values, 500, 7).verdict == "no difference seen"


def test_interval_covers_a_known_difference_in_95_percent_of_simulations() -> None:
    generator, covered = np.random.default_rng(5), 0
    for seed in range(1_000):
        hard = generator.normal(0, 3, 80)
        first, second = hard + generator.normal(0.3, 1, 80), hard + generator.normal(0, 1, 80)
        found = paired_bootstrap(first, second, resamples=400, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert covered / 1_000 == pytest.approx(0.95, abs=0.02)
