"""
What preference training did, in numbers over held-out pairs, and the check that it starts where it must.

    measured = measure(lp, reference, partial(dpo_loss, beta=0.1))     # arrays [P, 2]: chosen, rejected
    measured["accuracy"], measured["accuracy_low"], measured["accuracy_high"]
    check_start(measured["val_loss"], dpo_start(), "fp32")
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from utils.pipeline.errors import StageError

START_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
Z_95 = 1.959963984540054


def measure(lp_P2: np.ndarray, reference_P2: np.ndarray, loss: Callable) -> dict[str, float]:
    """
    Means over pairs: loss, implicit rewards, their margin, share of pairs won (ties count half) with a 95 %
    interval.

    `preference` is the share of pairs whose chosen answer the model itself finds likelier, whatever the
    reference; `chosen_drop_nats` is how much log-probability chosen answers lost against the reference.
    """
    terms = loss(torch.from_numpy(lp_P2), torch.from_numpy(reference_P2))
    margin = (terms.chosen_reward - terms.rejected_reward).numpy()
    accuracy = _share_won(margin)
    low, high = wilson_interval(accuracy, len(margin))
    return {
        "val_loss": float(terms.loss.mean()),
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "preference": _share_won(lp_P2[:, 0] - lp_P2[:, 1]),
        "margin": float(margin.mean()),
        "chosen_reward": float(terms.chosen_reward.mean()),
        "rejected_reward": float(terms.rejected_reward.mean()),
        "chosen_drop_nats": float((reference_P2 - lp_P2)[:, 0].mean()),
    }


def _share_won(margin: np.ndarray) -> float:
    return float(np.mean((margin > 0) + 0.5 * (margin == 0)))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `count` trials (Wilson 1927)."""
    z2 = Z_95**2 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return centre - half, centre + half


def check_start(loss: float, expected: float, precision: str) -> None:
    """StageError unless the loss before the first update is what policy = reference gives (Q18)."""
    if not abs(loss - expected) <= START_TOLERANCE[precision]:
        raise StageError(
            f"self-test: the loss before the first update is {loss:.6f}, "
            f"with policy = reference it is {expected:.6f}",
            fix="the reference is not the model that training starts from; rerun with --resume never",
        )
