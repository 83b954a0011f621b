"""
What two documents are compared by: sketches, which decide, and MinHash signatures, which only propose.

A sketch is the sorted set of a document's word 5-gram hashes, or the 4,096 smallest of a longer one, which
estimate Jaccard with a standard error of at most 0.008. A signature is what datasketch gives for the same
hashes under `scheme="affine32"`.

    >>> hashes = ngram_hashes("some text ...", ngram_words=5)
    >>> sketch, signature = make_sketch(hashes), sign(hashes, permutations(120, seed=1))
"""

import numpy as np

from utils.corpus.words import ngram_hashes_of, word_hashes

SKETCH_SIZE = 4_096
_MAX = np.uint32(0xFFFFFFFF)
# 256 x 120 values of 4 bytes stay in the second-level cache
_SIGNED_AT_ONCE = 256


def ngram_hashes(text: str, ngram_words: int) -> np.ndarray:
    """Return the sorted distinct 64-bit hashes of all word n-grams; empty for a text of fewer words."""
    return np.unique(ngram_hashes_of(word_hashes(text.split()), ngram_words))


def make_sketch(hashes: np.ndarray) -> np.ndarray:
    """Return the part of sorted distinct hashes that `jaccard` compares."""
    return hashes[:SKETCH_SIZE]


def permutations(num_values: int, seed: int) -> np.ndarray:
    """
    Return the affine32 permutations of datasketch 2, odd factors and offsets, u32 [2, num_values].

    Written out because importing datasketch loads scipy, which costs more than signing a small corpus.
    """
    generator = np.random.RandomState(seed)
    factors = generator.randint(0, 1 << 31, num_values, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return np.array([factors, generator.randint(0, 1 << 32, num_values, dtype=np.uint32)])


def sign(hashes: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Return the MinHash signature u32 of 64-bit hashes: what datasketch gives for their upper 32 bits."""
    values = _fmix32((hashes >> np.uint64(32)).astype(np.uint32))
    factors, offsets = permutations
    signature = np.full(len(factors), _MAX)
    for start in range(0, len(values), _SIGNED_AT_ONCE):
        permuted = np.outer(values[start : start + _SIGNED_AT_ONCE], factors) + offsets
        np.minimum(signature, permuted.min(axis=0), out=signature)
    return signature


def _fmix32(values: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3, by which datasketch's affine schemes mix their input."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """
    Return the Jaccard similarity of two sketches, rounded to 4 decimals; exact below SKETCH_SIZE hashes.
    """
    both = np.concatenate([first, second])
    both.sort()
    if len(first) >= SKETCH_SIZE or len(second) >= SKETCH_SIZE:
        limit = np.unique(both)[:SKETCH_SIZE][-1]
        both = both[both <= limit]
    shared = int((both[1:] == both[:-1]).sum())
    union = len(both) - shared
    return round(shared / union, 4) if union else 0.0
