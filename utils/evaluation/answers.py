"""
Score written answers against references: exact match, token F1, and whether the model stopped by itself.

    scores = score_answers(["It is red."], ["It is red."])
    scores.exact.mean()          # 1.0
    majority_share(references)   # what a model that always gives the commonest answer would get
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AnswerScores:
    """One value per answer."""

    exact: np.ndarray
    token_f1: np.ndarray


def normalise(text: str) -> str:
    """Blanks collapsed and ends trimmed; letters, case and punctuation count."""
    return " ".join(text.split())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over lower-cased words (Rajpurkar 2016)."""
    words, wanted = answer.lower().split(), reference.lower().split()
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def score_answers(answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """Compare each answer with its reference."""
    pairs = list(zip(answers, references, strict=True))
    exact = np.array([normalise(answer) == normalise(reference) for answer, reference in pairs])
    return AnswerScores(exact, np.array([token_f1(answer, reference) for answer, reference in pairs]))


def majority_share(references: Sequence[str]) -> float:
    """Share of the commonest reference: the exact match of a model that always gives it."""
    return Counter(map(normalise, references)).most_common(1)[0][1] / len(references)
