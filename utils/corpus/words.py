"""
Words as numbers: the same word, whatever its case and the punctuation around it, is one 64-bit hash.

Near duplicates and contamination are both found on n-grams of these hashes; a word is hashed once per
process, however often it occurs.

    >>> words = word_hashes('The cat -- "the CAT" sat.'.split())      # 5 hashes, the dashes have none
    >>> ngram_hashes_of(words, 2)[0] == ngram_hashes_of(words, 2)[2]  # "the cat" twice
    True
"""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

_EDGES = re.compile(r"^\W+|\W+$")
_MIX, _FINISH = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@lru_cache(maxsize=1 << 18)
def word_hash(word: str) -> int:
    """
    Return the 64-bit hash of a word without case and outer punctuation, 0 for a word that is only
    punctuation.
    """
    bare = _EDGES.sub("", word.lower())
    return int.from_bytes(hashlib.blake2b(bare.encode(), digest_size=8).digest(), "little") if bare else 0


def word_hashes(words: Iterable[str]) -> np.ndarray:
    """Return the u64 hashes of the words that hold more than punctuation, in order."""
    hashes = np.array([word_hash(word) for word in words], np.uint64)
    return hashes[hashes != 0]


def ngram_hashes_of(hashes: np.ndarray, ngram_words: int) -> np.ndarray:
    """Return one u64 hash per n-gram, in text order; none for a text of fewer words."""
    count = len(hashes) - ngram_words + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    ngrams = np.zeros(count, np.uint64)
    for i in range(ngram_words):
        ngrams = (ngrams ^ (ngrams >> np.uint64(29))) * _MIX + hashes[i : i + count]
    ngrams ^= ngrams >> np.uint64(32)
    return ngrams * _FINISH
