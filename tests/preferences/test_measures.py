"""Numbers over pairs, the interval of a share, and the cache of reference log-probabilities."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from utils.preferences.losses import dpo_loss
from utils.preferences.measures import measure, wilson_interval
from utils.preferences.reference import cached

LOSS = partial(dpo_loss, beta=0.5)


def test_measures_by_hand() -> None:
    reference = np.array([[-4.0, -5.0], [-3.0, -3.0], [-2.0, -6.0]])
    lp = reference + [[1.0, -1.0], [-2.0, 0.0], [0.0, 0.0]]
    found = measure(lp, reference, LOSS)
    assert found["margin"] == pytest.approx((0.5 * 2 - 0.5 * 2 + 0) / 3)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["preference"] == pytest.approx(2 / 3)
    assert found["chosen_drop_nats"] == pytest.approx((-1 + 2 + 0) / 3)
    assert found["chosen_reward"] == pytest.approx(0.5 * (1 - 2) / 3)
    expected = np.mean(np.log1p(np.exp([-1.0, 1.0, 0.0])))
    assert found["val_loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (1.0, 10, 0.7225, 1.0), (0.0, 10, 0.0, 0.2775)],
)
def test_wilson_interval_equals_published_values(share: float, count: int, low: float, high: float) -> None:
    assert wilson_interval(share, count) == pytest.approx((low, high), abs=5e-5)


def test_reference_values_are_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.array([[1.5, -2.25]])

    first, second = cached(tmp_path, "train.0", compute), cached(tmp_path, "train.0", compute)
    assert len(calls) == 1 and np.array_equal(first, second)
    cached(tmp_path, "val.0", compute)
    assert len(calls) == 2
    assert all(path.parent.name == ".journal" for path in tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("*.tmp"))
