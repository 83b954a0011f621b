"""
Rows to measure training on when no data has been prepared: bytes of the offline teacher's stories.

    rows = story_rows(num_stories=300, seed=0, row_tokens=256)       # int64 [n, 257], ids below 256
    batch = one_document_each(rows[:8])
"""

import random
from typing import NamedTuple

import numpy as np

from utils.generate.teacher.stories import idea, tell, themes


class Rows(NamedTuple):
    """Rows of T + 1 ids; one document each."""

    tokens: np.ndarray
    document: np.ndarray
    position: np.ndarray


def story_text(num_stories: int, seed: int) -> str:
    """That many stories, a blank line between two."""
    random_ = random.Random(seed)
    return "\n\n".join(tell(idea(random_.choice(themes()), random_), random_) for _ in range(num_stories))


def story_rows(num_stories: int, seed: int, row_tokens: int) -> np.ndarray:
    """Bytes of that many stories in rows of `row_tokens` + 1 ids; a row begins with the last id before it."""
    ids = np.frombuffer(story_text(num_stories, seed).encode("utf-8"), np.uint8)
    count = (len(ids) - 1) // row_tokens
    windows = np.lib.stride_tricks.sliding_window_view(ids, row_tokens + 1)
    return windows[::row_tokens][:count].astype(np.int64)


def one_document_each(tokens: np.ndarray) -> Rows:
    """Rows that are a document each."""
    document = np.zeros(tokens.shape, np.int32)
    return Rows(tokens, document, np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape).copy())
