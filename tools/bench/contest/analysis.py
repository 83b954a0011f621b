"""
From final runs to a verdict, by a rule fixed before any of them.

    compare(losses_of_A, losses_of_F)        # paired relative improvement with two intervals
    verdict({"A": ..., "C": ..., "F": ..., "G": ...})

Improvement of F over X, seed by seed: (loss_X - loss_F) / loss_X. Its 95 % t-interval decides; the bootstrap
interval stands beside it.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RIVALS = ("A", "C", "G")
LEAST_IMPROVEMENT = 0.005
FEWEST_SEEDS = 5
DRAWS = 10_000
RULE = (
    "Velvet helps only if F beats each of A, C and G with the lower end of the 95 % t-interval of the paired "
    "relative improvement of the final held-out loss above 0.5 %; otherwise: no evidence. "
    f"Fewer than {FEWEST_SEEDS} seeds give no verdict."
)
HELPS, NO_EVIDENCE = "Velvet helps", "no evidence"
NO_VERDICT = f"none (fewer than {FEWEST_SEEDS} seeds)"
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
         2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip
"""Student's t at 0.975 for 1 to 20 degrees of freedom; the last serves beyond (slightly too wide)."""


@dataclass(frozen=True)
class Paired:
    """A paired comparison: mean relative improvement and its 95 % intervals."""

    mean: float
    t_interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]


def compare(rival: Sequence[float], ours: Sequence[float]) -> Paired:
    """Relative improvement of `ours` over `rival`; both in the order of the seeds, at least two of them."""
    gains = [(theirs - mine) / theirs for theirs, mine in zip(rival, ours, strict=True)]
    mean = statistics.fmean(gains)
    degrees = len(gains) - 1
    half = T_975[min(degrees, len(T_975)) - 1] * statistics.stdev(gains) / math.sqrt(len(gains))
    picks = np.random.default_rng(0).integers(0, len(gains), (DRAWS, len(gains)))
    low, high = np.quantile(np.asarray(gains)[picks].mean(1), (0.025, 0.975))
    return Paired(mean, (mean - half, mean + half), (float(low), float(high)))


def verdict(losses: Mapping[str, Sequence[float]]) -> tuple[str, dict[str, Paired]]:
    """Apply the rule to final losses by arm; every arm but F gets its comparison, from two seeds on."""
    ours = losses.get("F", [])
    rivals = {arm: values for arm, values in losses.items() if arm != "F" and len(ours) > 1}
    compared = {arm: compare(values, ours) for arm, values in rivals.items()}
    if min(map(len, losses.values())) < FEWEST_SEEDS:
        return NO_VERDICT, compared
    if not set(RIVALS) <= compared.keys():
        return NO_EVIDENCE, compared
    held = all(compared[arm].t_interval[0] > LEAST_IMPROVEMENT for arm in RIVALS)
    return HELPS if held else NO_EVIDENCE, compared


def summarise(runs: Sequence[dict], equal_seconds: float, target_losses: Sequence[float]) -> dict:
    """An arm's final runs, in the order of the seeds, as means; `target_losses` are A's of the same seeds."""
    pairs = list(zip(runs, target_losses, strict=True))
    reached = [tokens_to(run["curve"], target) for run, target in pairs]
    return {
        "val_loss": statistics.fmean(run["val_loss"] for run in runs),
        "bits_per_byte": _mean_or_none([run["bits_per_byte"] for run in runs]),
        "val_loss_at_equal_time": statistics.fmean(loss_at_time(run, equal_seconds) for run in runs),
        "tokens_to_loss_of_A": _mean_or_none(reached),
        "skips": sum(run["skips"] for run in runs),
        "spikes": sum(run["spikes"] for run in runs),
        "optimizer_ms": statistics.median(run["step_ms"] for run in runs),
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "eta_integral": statistics.fmean(run["eta_integral"] for run in runs),
    }


def loss_at_time(run: dict, seconds: float) -> float:
    """The held-out curve where the run had trained for so long, its steps taken as equally long."""
    tokens, losses = zip(*run["curve"], strict=True)
    return float(np.interp(tokens[-1] * min(1.0, seconds / run["seconds"]), tokens, losses))


def tokens_to(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """Tokens at which a held-out curve first goes down to `target`; None if it never does."""
    for (before, high), (after, low) in zip(curve, curve[1:], strict=False):
        if low <= target:
            share = 1.0 if high <= low else min(1.0, max(0.0, (high - target) / (high - low)))
            return before + share * (after - before)
    return None


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    return None if any(each is None for each in values) else statistics.fmean(values)
