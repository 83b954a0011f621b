"""
Preference objectives as pure functions of log-probabilities; sums over answer tokens, end-of-turn included.

    D    = [lp(chosen) - ref(chosen)] - [lp(rejected) - ref(rejected)]
    dpo  = -(1 - e) log s(beta D) - e log s(-beta D)     arXiv 2305.18290; e: Mitchell 2023

    terms = dpo_loss(lp, reference, beta=0.1)       # lp, reference [P, 2]: chosen, rejected
    terms.loss.sum()

P pairs.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PreferenceTerms:
    """Per pair [P]: loss, implicit rewards beta (lp - ref) of both sides."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor

    @property
    def margin(self) -> Tensor:
        return self.chosen_reward - self.rejected_reward


def dpo_loss(
    lp_P2: Tensor, reference_P2: Tensor, beta: float, label_smoothing: float = 0.0
) -> PreferenceTerms:
    """Q7. The gradient flows through `lp_P2` only."""
    reward = beta * (lp_P2 - reference_P2.detach())
    z = reward[:, 0] - reward[:, 1]
    loss = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
    return PreferenceTerms(loss, reward[:, 0].detach(), reward[:, 1].detach())


def dpo_start() -> float:
    """Loss while policy and reference are the same: ln 2, whatever beta and the smoothing (Q18)."""
    return math.log(2.0)
