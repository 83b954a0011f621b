"""
Candidates for duplicates, out of core: what is equal in some key, found with eight bytes of memory per
document.

Keys are read twice, block by block: the first pass sorts them all and notes those that occur more than once,
the second collects the few documents that have one of these. Pairs go to files by the number of the later
document, so that a pair proposed by several bands is seen once, and pairs come back in canonical order.

    >>> store = PairStore(folder, len(documents))
    >>> settings = DedupSettings(bands=20, rows=6, similarity=0.8)
    >>> large_buckets = propose(documents, wanted, settings, store, stage)
    >>> for pairs in store.parts():                      # u64, later document << 32 | earlier document
    ...     later, earlier = pairs >> 32, pairs & 0xFFFFFFFF
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.corpus.documents import Documents
from utils.corpus.executor import Stopping

LARGE_BUCKET, EARLIEST_IN_BUCKET = 200, 16
PARTS = 64
_MIX = np.uint64(0xBF58476D1CE4E5B9)
Keys = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class DedupSettings:
    """How candidates are found and from which Jaccard similarity on a document goes."""

    bands: int
    rows: int
    similarity: float


class PairStore:
    """Pairs of documents on disk, in 64 parts by the later one."""

    def __init__(self, folder: Path, num_documents: int) -> None:
        self._folder, self._step = folder, num_documents // PARTS + 1
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, later: np.ndarray, earlier: np.ndarray) -> None:
        pairs = later.astype(np.uint64) << np.uint64(32) | earlier.astype(np.uint64)
        parts = later // self._step
        for part in np.unique(parts).tolist():
            with open(self._path(part), "ab") as file:
                pairs[parts == part].tofile(file)

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the distinct pairs of each part, ascending."""
        for part in range(PARTS):
            if self._path(part).exists():
                yield np.unique(np.fromfile(self._path(part), np.uint64))

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:02d}.u64"


def propose(
    documents: Documents, wanted: np.ndarray, settings: DedupSettings, store: PairStore, stage: Stopping
) -> int:
    """
    Store every pair of wanted documents (bool per document) that is equal in a band; returns the number of
    large buckets, in which each document is only paired with the 16 earliest.
    """
    large_buckets = 0
    for band in range(settings.bands):
        stage.stop_point()
        keys, numbers = shared_keys(
            lambda band=band: _band_keys(documents, wanted, band, settings.rows), int(wanted.sum())
        )
        for later, earlier in _pairs(keys, numbers):
            store.add(later, earlier)
        large_buckets += int((_sizes(keys) > LARGE_BUCKET).sum())
    return large_buckets


def _band_keys(documents: Documents, wanted: np.ndarray, band: int, rows: int) -> Keys:
    for span, values in documents.band(band * rows, rows):
        here = np.flatnonzero(wanted[span.first : span.first + span.count])
        keys = np.zeros(len(here), np.uint64)
        for row in values[:, here].astype(np.uint64):
            keys = (keys ^ (keys >> np.uint64(29))) * _MIX + row
        yield keys, here + span.first


def shared_keys(read: Callable[[], Keys], count: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the keys that several documents have and the numbers of these documents, by key, then by number.

    `read()` yields (keys, numbers) with ascending numbers, `count` of them in all, and is called twice.
    """
    every, filled = np.empty(count, np.uint64), 0
    for keys, _ in read():
        every[filled : filled + len(keys)] = keys
        filled += len(keys)
    every.sort()
    repeated = np.unique(every[1:][every[1:] == every[:-1]])
    del every
    found = [_having(repeated, keys, numbers) for keys, numbers in read()] if len(repeated) else []
    keys = np.concatenate([keys for keys, _ in found] or [np.zeros(0, np.uint64)])
    numbers = np.concatenate([numbers for _, numbers in found] or [np.zeros(0, np.uint32)])
    order = np.argsort(keys, kind="stable")
    return keys[order], numbers[order]


def _having(repeated: np.ndarray, keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.searchsorted(repeated, keys)
    at[at == len(repeated)] = 0
    hit = repeated[at] == keys
    return keys[hit], numbers[hit].astype(np.uint32)


def bucket_starts(*sorted_keys: np.ndarray) -> np.ndarray:
    """Return where a new bucket begins in sorted keys, which may come as several columns."""
    new = np.zeros(len(sorted_keys[0]), bool)
    new[:1] = True
    for keys in sorted_keys:
        new[1:] |= keys[1:] != keys[:-1]
    return np.flatnonzero(new)


def _sizes(keys: np.ndarray) -> np.ndarray:
    return np.diff(bucket_starts(keys), append=len(keys))


def _pairs(keys: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs within the buckets as (later, earlier); in a large one each with the earliest only."""
    starts, sizes = bucket_starts(keys), _sizes(keys)
    start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    place = np.arange(len(keys)) - start
    first = np.flatnonzero(size <= LARGE_BUCKET)
    for distance in range(1, LARGE_BUCKET):
        first = first[place[first] + distance < size[first]]
        if not len(first):
            break
        yield numbers[first + distance], numbers[first]
    in_large = np.flatnonzero(size > LARGE_BUCKET)
    for earliest in range(EARLIEST_IN_BUCKET if len(in_large) else 0):
        later = in_large[place[in_large] > earliest]
        yield numbers[later], numbers[start[later] + earliest]
