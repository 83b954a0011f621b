"""
What rules, sketches and contamination look at in a text, each part computed once.

Words are separated by whitespace. Every distinct word is looked at once and then counted by number, which is
what makes thirty rules cost less than splitting the text twice.

    >>> view = TextView("the cat saw the cat")
    >>> view.word_ids.tolist(), view.distinct_words
    ([0, 1, 2, 0, 1], ['the', 'cat', 'saw'])
"""

import re
from collections import defaultdict
from functools import cached_property, lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np

from utils.corpus.words import word_hash

_PARAGRAPH_BREAK = re.compile("\n{2,}")
_REAL, _ALPHABETIC = 1, 2


class Recurring(NamedTuple):
    """
    The n-grams that occur more than once: where (ascending positions), which one it is there (a number below
    `len(counts)`), and how often each occurs.
    """

    positions: np.ndarray
    numbers: np.ndarray
    counts: np.ndarray


@lru_cache(maxsize=1 << 18)
def _kind(word: str) -> int:
    """Bit 1: it has a letter or a digit. Bit 2: it has a letter."""
    if word.isalpha():
        return _REAL | _ALPHABETIC
    alphabetic = any(map(str.isalpha, word))
    return _ALPHABETIC * alphabetic | _REAL * (alphabetic or any(map(str.isalnum, word)))


class TextView:
    """A text and what has been found out about it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._recurring: dict[int, Recurring] = {}

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def _numbered(self) -> tuple[list[str], np.ndarray]:
        numbers: defaultdict[str, int] = defaultdict(count().__next__)
        ids = np.fromiter(map(numbers.__getitem__, self.words), np.int64, len(self.words))
        return list(numbers), ids

    @property
    def distinct_words(self) -> list[str]:
        """Every word once, in order of first occurrence."""
        return self._numbered[0]

    @property
    def word_ids(self) -> np.ndarray:
        """i64 number of each word in `distinct_words`."""
        return self._numbered[1]

    @cached_property
    def lengths(self) -> np.ndarray:
        """i64 characters of each word."""
        distinct = self.distinct_words
        return np.fromiter(map(len, distinct), np.int64, len(distinct))[self.word_ids]

    @cached_property
    def _kinds(self) -> np.ndarray:
        distinct = self.distinct_words
        return np.fromiter(map(_kind, distinct), np.uint8, len(distinct))[self.word_ids]

    @cached_property
    def real(self) -> np.ndarray:
        """Per word, whether it has a letter or a digit."""
        return (self._kinds & _REAL).astype(bool)

    @cached_property
    def num_alphabetic(self) -> int:
        """Words with a letter."""
        return int((self._kinds & _ALPHABETIC).astype(bool).sum())

    @cached_property
    def _hashes(self) -> np.ndarray:
        distinct = self.distinct_words
        return np.fromiter(map(word_hash, distinct), np.uint64, len(distinct))[self.word_ids]

    @cached_property
    def word_hashes(self) -> np.ndarray:
        """u64 hashes of the words that hold more than punctuation (utils/corpus/words.py)."""
        return self._hashes[self._hashes != 0]

    @property
    def hashed_words(self) -> np.ndarray:
        """Which words these are: i64 numbers in `words`."""
        return np.flatnonzero(self._hashes)

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]

    @property
    def num_all_lines(self) -> int:
        """Lines, blank ones included."""
        return self.text.count("\n") + 1

    @cached_property
    def paragraphs(self) -> list[str]:
        return _PARAGRAPH_BREAK.split(self.text.strip())

    @cached_property
    def repeated_lines(self) -> list[str]:
        """Lines that occurred before."""
        return _seen_before(self.lines)

    @cached_property
    def repeated_paragraphs(self) -> list[str]:
        """Paragraphs that occurred before."""
        return _seen_before(self.paragraphs)

    @cached_property
    def lowered(self) -> str:
        return self.text.lower()

    @cached_property
    def ends(self) -> np.ndarray:
        """Characters of all words before word i, so that ends[i + n] - ends[i] are those of n words."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def recurring(self, n: int) -> Recurring:
        """
        The n-grams that occur more than once. Both n-1-grams of one occur more than once too, so each size is
        looked for only where the one before was found: exact, and nearly free from 5 words on.
        """
        if n not in self._recurring:
            self._recurring[n] = self._find_recurring(n)
        return self._recurring[n]

    def _find_recurring(self, n: int) -> Recurring:
        if n == 1:
            counts = np.bincount(self.word_ids)
            return _renumbered(np.arange(len(self.words)), self.word_ids, counts)
        positions, numbers, counts = shorter = self.recurring(n - 1)
        if not len(counts):
            return shorter
        # where the n-gram starts: an n-1-gram that recurs, and another one right behind it
        starts = (positions[1:] == positions[:-1] + 1).nonzero()[0]
        keys = numbers[starts] * len(counts) + numbers[starts + 1]
        ordered = np.sort(keys)
        again = ordered[1:] == ordered[:-1]
        if not again.any():
            return Recurring(positions[:0], numbers[:0], counts[:0])
        firsts = again.copy()
        firsts[1:] &= ~again[:-1]
        values = ordered[:-1][firsts]  # of every run of equal keys the first
        which = np.minimum(values.searchsorted(keys), len(values) - 1)
        hit = values[which] == keys
        which = which[hit]
        return Recurring(positions[starts[hit]], which, np.bincount(which))


def _renumbered(positions: np.ndarray, numbers: np.ndarray, counts: np.ndarray) -> Recurring:
    often = counts > 1
    kept = often[numbers]
    return Recurring(positions[kept], (np.cumsum(often) - 1)[numbers[kept]], counts[often])


def _seen_before(parts: list[str]) -> list[str]:
    seen: set[str] = set()
    return [part for part in parts if part in seen or seen.add(part)]
