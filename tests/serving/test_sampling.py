"""Sampling: greedy at temperature 0, filters keep what they say, seeds repeat, shares are right."""

import numpy as np
import pytest

from utils.serving.sampling import Sampling, choose

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25]))


def draws(sampling: Sampling, count: int = 4_000) -> np.ndarray:
    generator = np.random.default_rng(sampling.seed)
    found = [choose(LOGITS, sampling, generator) for _ in range(count)]
    return np.bincount(found, minlength=4) / count


def test_temperature_zero_is_greedy() -> None:
    assert draws(Sampling(temperature=0.0), 50).tolist() == [0, 1, 0, 0]


def test_temperature_one_draws_by_probability() -> None:
    np.testing.assert_allclose(draws(Sampling(temperature=1.0)), [0.1, 0.5, 0.15, 0.25], atol=0.03)


def test_low_temperature_sharpens() -> None:
    powered = np.array([0.1, 0.5, 0.15, 0.25]) ** 2
    np.testing.assert_allclose(draws(Sampling(temperature=0.5)), powered / powered.sum(), atol=0.03)


def test_top_k_keeps_the_k_likeliest() -> None:
    np.testing.assert_allclose(draws(Sampling(temperature=1.0, top_k=2)), [0, 2 / 3, 0, 1 / 3], atol=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_the_share() -> None:
    np.testing.assert_allclose(draws(Sampling(temperature=1.0, top_p=0.7)), [0, 2 / 3, 0, 1 / 3], atol=0.03)
    assert draws(Sampling(temperature=1.0, top_p=0.4), 50).tolist() == [0, 1, 0, 0]


def test_same_seed_same_tokens() -> None:
    first, again, other = (draws(Sampling(temperature=1.0, seed=seed), 40).tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_k": -1}, {"max_tokens": 0}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="top_p in"):
        Sampling(**wrong)
