"""Sampling: greedy at temperature 0, filters keep what they say, seeds repeat, shares are right."""

import numpy as np
import pytest

from utils.serving.sampling import Sampling, choose, log_probabilities, penalised

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


def test_min_p_keeps_what_has_that_share_of_the_likeliest() -> None:
    expected = [0, 0.5 / 0.75, 0, 0.25 / 0.75]
    np.testing.assert_allclose(draws(Sampling(temperature=1.0, min_p=0.4)), expected, atol=0.03)


def test_penalties_and_bias_by_hand() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5])
    repeated = penalised(logits, Sampling(repetition_penalty=2.0), prompt=[0], written=[1, 1])
    np.testing.assert_allclose(repeated, [1.0, -4.0, 1.0, 0.5])
    asked = Sampling(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((3, -1.0),))
    np.testing.assert_allclose(penalised(logits, asked, [0], [1, 1, 2]), [2.0, -3.0, 0.25, -0.5])
    assert asked.penalises and not Sampling(temperature=1.0, top_k=3).penalises


def test_repetition_penalty_is_that_of_transformers() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    ids = [3, 7, 7, 20]
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids]), torch.tensor(logits[None]))
    ours = penalised(logits, Sampling(repetition_penalty=1.3), ids[:2], ids[2:])
    np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=1e-6)


def test_log_probabilities_are_those_of_torch() -> None:
    import torch

    logits = np.random.default_rng(0).normal(size=(3, 50)) * 30
    np.testing.assert_allclose(log_probabilities(logits), torch.tensor(logits).log_softmax(-1), atol=1e-12)


@pytest.mark.parametrize("wrong", [{"min_p": 2.0}, {"repetition_penalty": 0.0}])
def test_impossible_penalties_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="repetition_penalty above 0"):
        Sampling(**wrong)


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_k": -1}, {"max_tokens": 0}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="top_p in"):
        Sampling(**wrong)
