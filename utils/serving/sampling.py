"""
How the next token is chosen from its logits, the same for every engine.

    choose(logits, Sampling(temperature=0.8, top_p=0.95), generator)     # temperature 0 is greedy
    choose(penalised(logits, sampling, prompt, written), sampling, generator)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """
    What a request may set; `top_k` 0, `top_p` 1 and `min_p` 0 keep every token, `temperature` 0 takes the
    likeliest. Penalties of 1 (repetition) and 0 (presence, frequency) change nothing.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ValueError(
                f"temperature and top_k are at least 0, top_p in (0, 1], max_tokens at least 1: {self}"
            )
        if not 0 <= self.min_p <= 1 or self.repetition_penalty <= 0:
            raise ValueError(f"min_p is in [0, 1], repetition_penalty above 0: {self}")

    @property
    def penalises(self) -> bool:
        """Whether `penalised` would change anything."""
        plain = (1.0, 0.0, 0.0, ())
        return plain != (
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
            self.logit_bias,
        )


def penalised(
    logits: np.ndarray, sampling: Sampling, prompt: Sequence[int], written: Sequence[int]
) -> np.ndarray:
    """
    Logits [vocabulary] after bias and penalties.

    Repetition divides what is positive and multiplies what is negative, for every token of prompt and answer
    (Keskar 2019, arXiv 1909.05858, eq. 2). Presence and frequency are OpenAI's, over the answer alone:
    `logit - count * frequency - (count > 0) * presence`.
    """
    changed = logits.astype(np.float64)
    if sampling.repetition_penalty != 1:
        seen = np.unique(np.array([*prompt, *written], dtype=np.int64))
        scale = np.where(changed[seen] > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        changed[seen] *= scale
    tokens, counts = np.unique(np.array(written, dtype=np.int64), return_counts=True)
    changed[tokens] -= counts * sampling.frequency_penalty + sampling.presence_penalty
    for token, bias in sampling.logit_bias:
        changed[token] += bias
    return changed


def choose(logits: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> int:
    """One token id; equal logits, sampling and generator state give the same id."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    scaled = logits[order].astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled[0])
    weights /= weights.sum()
    if sampling.min_p:
        kept = int(np.count_nonzero(weights >= sampling.min_p * weights[0]))
        order, weights = order[:kept], weights[:kept] / weights[:kept].sum()
    if sampling.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
        order, weights = order[:kept], weights[:kept] / weights[:kept].sum()
    return int(
        order[np.searchsorted(np.cumsum(weights), generator.random(), side="right").clip(max=len(order) - 1)]
    )


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Natural log of the softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
