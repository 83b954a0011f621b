"""
Has something like this been accepted before? Equal texts by hash, alike ones by MinHash over word 3-grams.

A signature is 128 bytes: of each of 128 minima one byte (b-bit minwise hashing, Li and Koenig 2010). So the
bands of the locality-sensitive hash are slices of the signature, and 100,000 texts with their index take 50
MB. Texts of fewer than three words are compared as a whole only.

    known = Known(threshold=0.8)
    sketch = sketch_of("What does a cow say?")
    if not known.holds(sketch):
        known.add(sketch)
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from utils.generate.validate import normalised, words

NUM_HASHES = 128
GRAM_WORDS = 3
_CHANCE = 1 / 256
"""How often the bytes of two different minima are equal."""
_RECALL = 0.9
_STRIDE = 8
_MOST_STRIDES = 16
"""Of one bucket the latest 128 entries are looked at, eight times sixteen."""
_BLOCK_GRAMS = 4096
_GENERATOR = np.random.Generator(np.random.PCG64(20_260_101))
_PLACES = _GENERATOR.integers(1, 2**63, GRAM_WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_FACTORS = _GENERATOR.integers(1, 2**31, NUM_HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_OFFSETS = _GENERATOR.integers(0, 2**32, NUM_HASHES, dtype=np.uint32)
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is kept of a text: a 64-bit hash of its normalised form, and its signature (b"" if too short)."""

    key: int
    signature: bytes


def sketch_of(text: str) -> Sketch:
    """The sketch of a text, the same on every machine."""
    plain = normalised(text)
    data = plain.encode("utf-8", "surrogatepass")
    key = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
    found = (
        data.split() if plain.isascii() else [word.encode("utf-8", "surrogatepass") for word in words(plain)]
    )
    return Sketch(key, _signature(found) if len(found) >= GRAM_WORDS else b"")


def _signature(found: list[bytes]) -> bytes:
    """One byte for each of 128 hash functions, taken from the smallest hash of all word 3-grams."""
    hashes = np.fromiter(map(crc32, found), np.uint64, len(found))
    grams = hashes[:-2] * _PLACES[0] + hashes[1:-1] * _PLACES[1] + hashes[2:] * _PLACES[2]
    grams = ((grams ^ (grams >> np.uint64(29))) * _MIX >> np.uint64(32)).astype(np.uint32)
    smallest = _smallest(grams[:_BLOCK_GRAMS])
    for start in range(_BLOCK_GRAMS, len(grams), _BLOCK_GRAMS):
        np.minimum(smallest, _smallest(grams[start : start + _BLOCK_GRAMS]), out=smallest)
    return (smallest >> np.uint32(8)).astype(np.uint8).tobytes()  # the highest bits of a minimum are all 0


def _smallest(grams: np.ndarray) -> np.ndarray:
    return (grams[:, None] * _FACTORS + _OFFSETS).min(axis=0)


def similarity(first: bytes, second: bytes) -> float:
    """Estimated Jaccard similarity of the word 3-grams of two texts, by their signatures."""
    equal = np.count_nonzero(np.frombuffer(first, np.uint8) == np.frombuffer(second, np.uint8))
    return _corrected(equal)


def _corrected(num_equal: int) -> float:
    return max(0.0, (num_equal / NUM_HASHES - _CHANCE) / (1 - _CHANCE))


class Known:
    """Everything accepted so far at one level; from `threshold` on, two texts count as one."""

    def __init__(self, threshold: float) -> None:
        self._keys: set[int] = set()
        self._index = SignatureIndex(threshold) if threshold < 1 else None

    def __len__(self) -> int:
        return len(self._keys)

    def holds(self, sketch: Sketch) -> bool:
        """Whether this text, or one like it, is known."""
        if sketch.key in self._keys:
            return True
        return self._index is not None and bool(sketch.signature) and self._index.holds(sketch.signature)

    def add(self, sketch: Sketch) -> None:
        self._keys.add(sketch.key)
        if self._index is not None and sketch.signature:
            self._index.add(sketch.signature)

    def load(self, keys: Iterable[int], signatures: bytes) -> None:
        """Add many at once, as a run that continues does; signatures are joined, missing ones left out."""
        self._keys.update(keys)
        if self._index is not None and signatures:
            self._index.load(signatures)


class SignatureIndex:
    """
    Signatures in arrays, found by bands of a few bytes: one hash table per band, whose buckets are chains of
    links. A link is the flat number `entry * num_bands + band`, so it leads alike to the next link, to the
    one eight further on and to the bytes of its band; -1 ends a chain. Candidates are checked on the whole
    signature.
    """

    def __init__(self, threshold: float) -> None:
        self._least_equal = (threshold * (1 - _CHANCE) + _CHANCE) * NUM_HASHES
        rows = band_rows(threshold)
        self._band_type = np.dtype(f"u{rows}")
        self._num_bands = NUM_HASHES // rows
        self._bands = np.arange(self._num_bands)
        self._asked: tuple[bytes, np.ndarray] = (b"", self._bands)
        self._count = 0
        self._reserve(1024)

    def __len__(self) -> int:
        return self._count

    def holds(self, signature: bytes) -> bool:
        """Whether a known signature is at least as similar as the threshold."""
        heads = self._heads[self._places(signature)]
        if heads.max() < 0:
            return False
        entries = self._sharing_a_band(heads, np.frombuffer(signature, self._band_type))
        if not len(entries):
            return False
        return bool(_num_equal(self._signatures[entries], signature).max() >= self._least_equal)

    def add(self, signature: bytes) -> None:
        if self._count == len(self._signatures):
            self._reserve(2 * self._count)
        entry, self._count = self._count, self._count + 1
        self._signatures[entry] = np.frombuffer(signature, np.uint8)
        places = self._places(signature)
        links = entry * self._num_bands + self._bands
        self._next[links] = further = self._heads[places]
        self._heads[places] = links
        if further.max() >= 0:
            for _ in range(_STRIDE - 1):
                further = self._next.take(further)
            self._far[links] = further

    def load(self, signatures: bytes) -> None:
        """Add many at once."""
        block = np.frombuffer(signatures, np.uint8).reshape(-1, NUM_HASHES)
        start, self._count = self._count, self._count + len(block)
        self._reserve(max(1024, 1 << self._count.bit_length()), start)
        self._signatures[start : self._count] = block
        self._link()

    def _sharing_a_band(self, links: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Entries that have a band as wanted, some more than once, from the heads of their buckets on."""
        starts = []
        for stride in range(_MOST_STRIDES):
            if stride % 4 == 1 and links.max() < 0:  # asking costs more than a step
                break
            starts.append(links)
            links = self._far.take(links)  # the last place of the tables holds -1, so -1 leads to -1
        chains = [np.array(starts)]
        for _ in range(_STRIDE - 1):
            chains.append(self._next.take(chains[-1]))
        reached = np.concatenate(chains)
        same = (self._banded.take(reached) == wanted) & (reached >= 0)
        return reached[same] // self._num_bands

    def _places(self, signature: bytes) -> np.ndarray:
        """Where the buckets of a signature are, band by band; asking and adding follow each other."""
        if self._asked[0] is not signature:
            bands = np.frombuffer(signature, self._band_type)
            self._asked = (signature, self._buckets(bands) + self._firsts)
        return self._asked[1]

    def _reserve(self, entries: int, filled: int = -1) -> None:
        """Room for `entries` (a power of two), with twice as many buckets in each band."""
        kept = self._count if filled < 0 else filled
        signatures = np.empty((entries, NUM_HASHES), np.uint8)
        if kept:
            signatures[:kept] = self._signatures[:kept]
        self._signatures = signatures
        self._banded = signatures.view(self._band_type).reshape(-1)
        self._shift = np.uint64(64 - entries.bit_length())
        self._heads = np.full(self._num_bands * 2 * entries, -1, np.int32)
        self._firsts = self._bands * 2 * entries
        self._next, self._far = (np.full(entries * self._num_bands + 1, -1, np.int32) for _ in range(2))
        self._asked = (b"", self._bands)
        if filled < 0 and kept:
            self._link()

    def _buckets(self, bands: np.ndarray) -> np.ndarray:
        return (bands.astype(np.uint64, copy=False) * _MIX >> self._shift).astype(np.intp)

    def _link(self) -> None:
        """Build all chains anew."""
        for band in range(self._num_bands):
            buckets = self._buckets(self._banded[band : self._count * self._num_bands : self._num_bands])
            order = np.argsort(buckets, kind="stable")
            sorted_buckets = buckets[order]
            links = order * self._num_bands + band
            for distance, table in ((1, self._next), (_STRIDE, self._far)):
                same = sorted_buckets[distance:] == sorted_buckets[:-distance]
                table[links[distance:][same]] = links[:-distance][same]
            last = np.flatnonzero(np.append(sorted_buckets[1:] != sorted_buckets[:-1], True))
            self._heads[self._firsts[band] + sorted_buckets[last]] = links[last]


def _num_equal(signatures: np.ndarray, signature: bytes) -> np.ndarray:
    """How many bytes of each of (n, 128) signatures are those of the one; eight are summed at a time."""
    equal = signatures == np.frombuffer(signature, np.uint8)
    return equal.view(np.uint64).sum(axis=1).view(np.uint8).reshape(-1, 8).sum(axis=1)


def band_rows(threshold: float) -> int:
    """Bytes of a band: as many as still find nine in ten of the pairs that lie just on the threshold."""
    for rows in (8, 4, 2):
        if 1 - (1 - threshold**rows) ** (NUM_HASHES // rows) >= _RECALL:
            return rows
    return 1
