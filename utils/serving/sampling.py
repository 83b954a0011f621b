"""
How the next token is chosen from its logits, the same for every engine.

    choose(logits, Sampling(temperature=0.8, top_p=0.95), generator)     # temperature 0 is greedy
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """
    What a request may set; `top_k` 0 and `top_p` 1 keep every token, `temperature` 0 takes the likeliest.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ValueError(
                f"temperature and top_k are at least 0, top_p in (0, 1], max_tokens at least 1: {self}"
            )


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
    if sampling.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
        order, weights = order[:kept], weights[:kept] / weights[:kept].sum()
    return int(
        order[np.searchsorted(np.cumsum(weights), generator.random(), side="right").clip(max=len(order) - 1)]
    )
