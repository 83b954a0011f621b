"""
Near-duplicate removal: MinHash bands propose pairs, exact sketches decide.

A sketch is the sorted set of a document's word 5-gram hashes (the 4,096 smallest of a longer one, which
estimates Jaccard with a standard error of at most 0.008). Bands only propose: at 20 bands of 6 values a pair
at Jaccard 0.80 is proposed with probability 0.998, and whether it is removed never depends on luck with a
signature.

    >>> hashes = ngram_hashes("some text ...", ngram_words=5)
    >>> sketch, signature = make_sketch(hashes), sign(hashes, permutations(120, seed=1))
    >>> decision = decide(signatures, sketches.__getitem__, DedupSettings(bands=20, rows=6, similarity=0.8))
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

SKETCH_SIZE = 4_096
LARGE_BUCKET, EARLIEST_IN_BUCKET = 200, 16
_EDGES = re.compile(r"^\W+|\W+$")
_MAX = np.uint32(0xFFFFFFFF)
# 256 x 120 values of 4 bytes stay in the second-level cache
_SIGNED_AT_ONCE = 256


@dataclass(frozen=True)
class DedupSettings:
    """How candidates are found and from which Jaccard similarity on a document goes."""

    bands: int
    rows: int
    similarity: float


@dataclass(frozen=True)
class Duplicate:
    """A removed document, the earlier kept one it resembles, and how much."""

    document: int
    kept: int
    jaccard: float


@dataclass
class Decision:
    """Outcome of near-duplicate removal over documents in canonical order."""

    duplicates: list[Duplicate] = field(default_factory=list)
    candidate_pairs: int = 0
    large_buckets: int = 0


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    """
    Return the 64-bit hash of a word without case and outer punctuation, 0 for a word that is only
    punctuation.
    """
    bare = _EDGES.sub("", word.lower())
    return int.from_bytes(hashlib.blake2b(bare.encode(), digest_size=8).digest(), "little") if bare else 0


def ngram_hashes(text: str, ngram_words: int) -> np.ndarray:
    """Return the sorted distinct 64-bit hashes of all word n-grams; empty for a text of fewer words."""
    words = np.array([_word_hash(word) for word in text.split()], np.uint64)
    words = words[words != 0]
    count = len(words) - ngram_words + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for i in range(ngram_words):
        hashes = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + words[i : i + count]
    hashes ^= hashes >> np.uint64(32)
    return np.unique(hashes * np.uint64(0x94D049BB133111EB))


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


def candidates(signatures: np.ndarray, settings: DedupSettings) -> tuple[np.ndarray, int]:
    """
    Return pairs (earlier, later) that are equal in a band, sorted by the later one, and the number of large
    buckets.
    """
    pairs, large_buckets = [np.zeros((0, 2), np.int64)], 0
    for band in range(settings.bands):
        values = np.ascontiguousarray(signatures[:, band * settings.rows : (band + 1) * settings.rows])
        keys = values.view(f"V{values.itemsize * settings.rows}").reshape(-1)
        order = np.argsort(keys, kind="stable")
        starts = (
            np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
            if len(order)
            else []
        )
        for bucket in np.split(order, starts[1:]) if len(order) else []:
            if len(bucket) > 1:
                pairs.append(_pairs_of(bucket))
                large_buckets += len(bucket) > LARGE_BUCKET
    unique = np.unique(np.concatenate(pairs), axis=0)
    return unique[np.lexsort((unique[:, 0], unique[:, 1]))], large_buckets


def _pairs_of(bucket: np.ndarray) -> np.ndarray:
    """Pairs within a bucket, whose members are ascending; in a large one each with the earliest only."""
    earlier, later = np.triu_indices(len(bucket), 1)
    if len(bucket) > LARGE_BUCKET:
        keep = earlier < EARLIEST_IN_BUCKET
        earlier, later = earlier[keep], later[keep]
    return np.stack([bucket[earlier], bucket[later]], axis=1)


def decide(
    signatures: np.ndarray, sketch_of: Callable[[int], np.ndarray], settings: DedupSettings
) -> Decision:
    """
    Remove, in canonical order, each document that resembles a kept earlier one; one similar only to a removed
    one stays.

    `sketch_of(i)` returns the sketch of document i; an empty one takes no part.
    """
    pairs, large_buckets = candidates(signatures, settings)
    decision = Decision(candidate_pairs=len(pairs), large_buckets=large_buckets)
    removed: set[int] = set()
    for earlier, later in pairs.tolist():
        if later in removed or earlier in removed:
            continue
        similarity = jaccard(sketch_of(earlier), sketch_of(later))
        if similarity >= settings.similarity:
            removed.add(later)
            decision.duplicates.append(Duplicate(later, earlier, similarity))
    return decision
