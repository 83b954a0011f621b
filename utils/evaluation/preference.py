"""
Does a model prefer the chosen answer: log-probabilities of held-out pairs, by one protocol for every model.

A pair counts as right when the chosen answer has the larger sum of token log-probabilities given the prompt,
end of turn included; no reference is needed, so base, SFT and DPO are on one scale. Where there is a
reference model, the implicit reward of DPO (Rafailov 2023), log pi - log ref, is reported beside it.

    scores = pair_log_probabilities(nll, trained)        # [pairs, 2]: chosen, rejected
    prefers_chosen(scores).mean()
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pair_log_probabilities(nll: Sequence[np.ndarray], trained: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of answer log-probabilities [pairs, 2] from documents that alternate chosen and rejected.

    `nll[d][i]` belongs to token i + 1 of document d; `trained[d]` marks the answer's tokens.
    """
    sums = [-(scores * mask[1:]).sum() for scores, mask in zip(nll, trained, strict=True)]
    return np.array(sums).reshape(-1, 2)


def answer_tokens(trained: Sequence[np.ndarray]) -> np.ndarray:
    """Answer lengths in tokens [pairs, 2]."""
    return np.array([int(mask[1:].sum()) for mask in trained]).reshape(-1, 2)


def prefers_chosen(scores: np.ndarray) -> np.ndarray:
    """Whether each pair [pairs, 2] is ordered right; a tie is not."""
    return scores[:, 0] > scores[:, 1]


def implicit_reward(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """log pi - log ref [pairs, 2], the reward of DPO up to beta."""
    return scores - reference
