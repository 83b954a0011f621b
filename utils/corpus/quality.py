"""
Quality rules: a document leaves with the first rule it breaks, so that the counts of reasons add up.

A rule measures one number of a `TextView` and compares it with an interval; presets give the intervals, a
config replaces them one by one. The n-gram rules are those of Gopher (Rae et al. 2021, arXiv 2112.11446,
table A1), computed on integer word ids.

    >>> rules = resolve_rules("short", {"too_few_words": 8})
    >>> first_broken_rule("too short", rules)
    Broken(rule='too_few_words', measured=2, threshold=8)
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from utils.config.corpus import RULE_NAMES

Limits = tuple[float, float]
Threshold = float | tuple[float, float] | str
OFF, UNBOUNDED = "off", float("inf")
NGRAM_RULES_FROM_WORDS = {"web": 0, "prose": 0, "short": 100}


class Broken(NamedTuple):
    """Which rule a document broke, what was measured, and the bound it crossed."""

    rule: str
    measured: float
    threshold: float


@dataclass(frozen=True)
class Rule:
    """
    A rule with the closed interval in which its measure must lie, and the shortest text it is applied to.
    """

    name: str
    limits: Limits
    from_words: int


class TextView:
    """What rules look at, each part computed once. Words are separated by whitespace."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._ngrams: dict[int, np.ndarray] = {}
        self._none_recurs_from = sys.maxsize

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def real_words(self) -> list[str]:
        """Words with a letter or a digit."""
        return [word for word in self.words if word.isalnum() or any(c.isalnum() for c in word)]

    @cached_property
    def lines(self) -> list[str]:
        return [line for line in self.text.split("\n") if line.strip()]

    @cached_property
    def repeated_lines(self) -> list[str]:
        """Lines that occurred before."""
        seen: set[str] = set()
        return [line for line in self.lines if line in seen or seen.add(line)]

    @cached_property
    def word_ids(self) -> np.ndarray:
        """One 64-bit number per word, equal for equal words."""
        numbers: dict[str, int] = {}
        ids = [numbers.setdefault(word, len(numbers) + 1) for word in self.words]
        return np.array(ids, np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    @cached_property
    def ends(self) -> np.ndarray:
        """Characters of all words before word i, so that ends[i + n] - ends[i] are those of n words."""
        return np.concatenate([[0], np.cumsum([len(word) for word in self.words])])

    def ngrams(self, n: int) -> np.ndarray:
        """One 64-bit number per n-gram, equal for equal n-grams; each size is made from the one before."""
        if n == 1:
            return self.word_ids
        if n not in self._ngrams:
            shorter = self.ngrams(n - 1)[:-1]
            mixed = (shorter ^ (shorter >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            self._ngrams[n] = mixed + self.word_ids[n - 1 :]
        return self._ngrams[n]

    def recurring_ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n-grams that occur more than once, and how often; none of them means none that is longer."""
        if n < self._none_recurs_from:
            ordered = np.sort(self.ngrams(n))
            if (ordered[1:] == ordered[:-1]).any():
                values, counts = np.unique(ordered, return_counts=True)
                return values[counts > 1], counts[counts > 1]
            self._none_recurs_from = n
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)


def top_ngram_share(view: TextView, n: int) -> float:
    """
    Return the characters in the commonest n-gram, joined by spaces, over those of the text; 0 if none recurs.
    """
    values, counts = view.recurring_ngrams(n)
    if not len(values):
        return 0.0
    hashes = view.ngrams(n)
    most = int(counts.max())
    start = int(np.flatnonzero(np.isin(hashes, values[counts == most]))[0])
    characters = int(view.ends[start + n] - view.ends[start]) + n - 1
    return round(characters * most / len(view.text), 4)


def repeated_ngram_share(view: TextView, n: int) -> float:
    """Return the characters in n-grams seen before, not counting overlaps twice, over those of the text."""
    values, _ = view.recurring_ngrams(n)
    if not len(values):
        return 0.0
    hashes = view.ngrams(n)
    positions = np.flatnonzero(np.isin(hashes, values))
    seen: set[int] = set()
    characters = free_from = 0
    for at, value in zip(positions.tolist(), hashes[positions].tolist(), strict=True):
        if at < free_from:
            continue
        if value in seen:
            characters += int(view.ends[at + n] - view.ends[at])
            free_from = at + n
        seen.add(value)
    return round(characters / len(view.text), 4)


def mean_word_length(view: TextView) -> float:
    return round(sum(map(len, view.real_words)) / max(1, len(view.real_words)), 4)


def alphabetic_share(view: TextView) -> float:
    alphabetic = sum(word.isalpha() or any(c.isalpha() for c in word) for word in view.words)
    return round(alphabetic / max(1, len(view.words)), 4)


def repeated_line_share(view: TextView) -> float:
    return round(len(view.repeated_lines) / max(1, len(view.lines)), 4)


def repeated_line_characters(view: TextView) -> float:
    return round(sum(map(len, view.repeated_lines)) / max(1, len(view.text)), 4)


MEASURES: dict[str, Callable[[TextView], float]] = {
    "too_few_words": lambda view: len(view.real_words),
    "too_many_words": lambda view: len(view.real_words),
    "word_length": mean_word_length,
    "alphabetic_words": alphabetic_share,
    "repeated_lines": repeated_line_share,
    "repeated_line_characters": repeated_line_characters,
    **{f"top_{n}gram": lambda view, n=n: top_ngram_share(view, n) for n in (2, 3, 4)},
    **{f"repeated_{n}gram": lambda view, n=n: repeated_ngram_share(view, n) for n in range(5, 11)},
}
_LOWER_BOUNDS = ("too_few_words", "alphabetic_words")
_REPETITION: dict[str, Threshold] = {
    "repeated_lines": 0.30, "repeated_line_characters": 0.20,
    "top_2gram": 0.20, "top_3gram": 0.18, "top_4gram": 0.16,
    "repeated_5gram": 0.15, "repeated_6gram": 0.14, "repeated_7gram": 0.13, "repeated_8gram": 0.12,
    "repeated_9gram": 0.11, "repeated_10gram": 0.10,
}  # fmt: skip
PRESETS: dict[str, dict[str, Threshold]] = {
    "web": {"too_few_words": 50, "too_many_words": 100_000, "word_length": (3, 10), "alphabetic_words": 0.8},
    "prose": {"too_few_words": 20, "too_many_words": OFF, "word_length": (3, 10), "alphabetic_words": 0.7},
    "short": {"too_few_words": 5, "too_many_words": OFF, "word_length": (2, 12), "alphabetic_words": 0.5},
}


def resolve_rules(preset: str, overrides: Mapping[str, Threshold]) -> list[Rule]:
    """Return the active rules in the order in which they are tried."""
    thresholds = _REPETITION | PRESETS[preset] | dict(overrides)
    rules = []
    for name in RULE_NAMES:
        if thresholds[name] != OFF:
            from_words = NGRAM_RULES_FROM_WORDS[preset] if name.endswith("gram") else 0
            rules.append(Rule(name, _limits(name, thresholds[name]), from_words))
    return rules


def _limits(name: str, threshold: Threshold) -> Limits:
    if isinstance(threshold, (tuple, list)):
        return float(threshold[0]), float(threshold[1])
    return (threshold, UNBOUNDED) if name in _LOWER_BOUNDS else (-UNBOUNDED, threshold)


def first_broken_rule(text: str, rules: list[Rule]) -> Broken | None:
    """Return the first rule that the text breaks, or None."""
    view = TextView(text)
    for rule in rules:
        if len(view.words) < rule.from_words:
            continue
        measured = MEASURES[rule.name](view)
        if not rule.limits[0] <= measured <= rule.limits[1]:
            bound = rule.limits[0] if measured < rule.limits[0] else rule.limits[1]
            return Broken(rule.name, measured, bound)
    return None
