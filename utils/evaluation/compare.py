"""
Intervals for one number and verdicts between two models, so that no difference is reported that is only
chance.

    wilson(81, 263)                       # (0.2553..., 0.3662...)
    paired_bootstrap(sft, base, seed=7)   # Comparison(difference=0.41, low=0.33, high=0.49, verdict="better")

Wilson 1927 for shares; percentile bootstrap over prompts (Efron 1979) for everything else. Both give 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Z_95 = 1.959963984540054
CHUNK_CELLS = 4_000_000  # drawn items in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean over n items with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """First model minus second on the same items, with its 95 % interval."""

    difference: float
    low: float
    high: float
    n: int
    verdict: Literal["better", "worse", "no difference seen"]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share."""
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def share(hits: np.ndarray) -> Estimate:
    """The share of true items with its Wilson interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return Estimate(float(hits.mean()), low, high, len(hits))


def weighted_mean(totals: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> Estimate:
    """
    sum(totals) / sum(weights) with its bootstrap interval over items, such as NLL per token over
    documents.
    """
    low, high = _interval(totals, weights, resamples, seed)
    return Estimate(float(totals.sum() / weights.sum()), low, high, len(totals))


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    resamples: int,
    seed: int,
    weights: np.ndarray | None = None,
    lower_is_better: bool = False,
) -> Comparison:
    """Compare two models item by item: both are resampled together, so what is hard for both cancels.

    With `weights` the values are totals per item and the difference is per unit of weight.
    """
    weights = np.ones(len(first)) if weights is None else weights
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    low, high = _interval(difference, weights, resamples, seed)
    up, down = ("worse", "better") if lower_is_better else ("better", "worse")
    verdict = up if low > 0 else down if high < 0 else "no difference seen"
    return Comparison(float(difference.sum() / weights.sum()), low, high, len(difference), verdict)


def _interval(totals: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    means = np.concatenate(list(_resampled_means(totals, weights, resamples, seed)))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _resampled_means(
    totals: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Means of resampled items, as many resamples at a time as fit into memory."""
    generator, n = np.random.default_rng(seed), len(totals)
    chunk = max(1, CHUNK_CELLS // n)
    for done in range(0, resamples, chunk):
        drawn = generator.integers(0, n, size=(min(chunk, resamples - done), n), dtype=np.int32)
        yield totals[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
