"""
Which documents are duplicates: exact ones by their id, near ones by verified candidates, across all sources.

One pass in canonical order: a document goes when a kept earlier one is at least as similar as the config
says. A document that resembles only a removed one stays, so there are no chains.

    >>> found = find_duplicates(documents, DedupSettings(bands=20, rows=6, similarity=0.8), executor, stage)
    >>> found.kept(len(documents)).sum(), len(found.exact), len(found.near)
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from utils.corpus.candidates import DedupSettings, PairStore, bucket_starts, propose, shared_keys
from utils.corpus.dedup import jaccard
from utils.corpus.documents import Documents
from utils.corpus.executor import Stopping, Workers, stoppable_map
from utils.corpus.packed import ENTRY

# a removed document, the kept one it resembles, their similarity in ten-thousandths
LOSER = np.dtype([("document", "<u4"), ("kept", "<u4"), ("jaccard", "<u2")])
WHOLE = 10_000
PAIRS_AT_ONCE = 512


@dataclass
class Duplicates:
    """The duplicates of a run, ascending by document, and how the search for them went."""

    exact: np.ndarray = field(default_factory=lambda: np.zeros(0, LOSER))
    near: np.ndarray = field(default_factory=lambda: np.zeros(0, LOSER))
    candidate_pairs: int = 0
    large_buckets: int = 0

    def kept(self, num_documents: int) -> np.ndarray:
        """Return, per document, whether it stays."""
        kept = np.ones(num_documents, bool)
        kept[self.exact["document"]] = kept[self.near["document"]] = False
        return kept

    def cluster_sizes(self) -> dict[str, int]:
        """Return how many clusters of duplicates there are of each size, the kept document included."""
        together = np.concatenate([self.exact["kept"], self.near["kept"]])
        sizes = Counter((np.unique(together, return_counts=True)[1] + 1).tolist())
        return {str(size): sizes[size] for size in sorted(sizes)}


def find_duplicates(
    documents: Documents, settings: DedupSettings | None, executor: Workers, stage: Stopping
) -> Duplicates:
    """Find exact duplicates, then near ones if there are settings for them."""
    found = Duplicates(_exact_duplicates(documents))
    if settings is None:
        return found
    wanted = found.kept(len(documents)) & (documents.column("sketch_size") > 0)
    store = PairStore(documents.folder / "pairs", len(documents))
    found.large_buckets = propose(documents, wanted, settings, store, stage)
    removed = np.zeros(len(documents), bool)
    pairs = CountedPairs(store)
    verified = stoppable_map(executor, stage, verify, _tasks(documents, pairs, removed))
    losers = [_decide(one, settings.similarity, removed) for one in verified]
    store.remove()
    found.near, found.candidate_pairs = np.concatenate([found.near, *losers]), pairs.count
    return found


def _exact_duplicates(documents: Documents) -> np.ndarray:
    """Of equal ids the first stays."""

    def heads() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for span in documents.spans:
            head = np.ascontiguousarray(documents.entries(span)["id"][:, :8]).view(np.uint64).reshape(-1)
            yield head, np.arange(span.first, span.first + span.count, dtype=np.uint32)

    head, numbers = shared_keys(heads, len(documents))
    tail = documents.tails(numbers)
    order = np.lexsort((numbers, tail, head))
    head, tail, numbers = head[order], tail[order], numbers[order]
    starts = bucket_starts(head, tail)
    first = np.repeat(numbers[starts], np.diff(starts, append=len(numbers)))
    losers = np.zeros(len(numbers), LOSER)
    losers["document"], losers["kept"], losers["jaccard"] = numbers, first, WHOLE
    return np.sort(losers[numbers != first], order="document")


@dataclass
class CountedPairs:
    """The distinct pairs of a store, counted while they are read."""

    store: PairStore
    count: int = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for pairs in self.store.parts():
            self.count += len(pairs)
            yield from np.split(pairs, range(PAIRS_AT_ONCE, len(pairs), PAIRS_AT_ONCE))


@dataclass(frozen=True)
class VerifyTask:
    """Pairs to compare: the documents' numbers, and where their entries lie in the files of the folder."""

    folder: str
    later: np.ndarray
    earlier: np.ndarray
    later_slots: np.ndarray
    earlier_slots: np.ndarray

    def __str__(self) -> str:
        return f"the comparison of documents {self.later.min():,}-{self.later.max():,}"


def _tasks(documents: Documents, pairs: CountedPairs, removed: np.ndarray) -> Iterator[VerifyTask]:
    """
    Leave out pairs that cannot matter any more; which these are depends on timing, the outcome does not.
    """
    for some in pairs:
        later, earlier = (
            (some >> np.uint64(32)).astype(np.int64),
            (some & np.uint64(0xFFFFFFFF)).astype(np.int64),
        )
        open_pairs = ~(removed[later] | removed[earlier])
        later, earlier = later[open_pairs], earlier[open_pairs]
        if len(later):
            slots = documents.slots(later), documents.slots(earlier)
            yield VerifyTask(str(documents.folder.absolute()), later, earlier, *slots)


def verify(task: VerifyTask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (later, earlier, similarity in ten-thousandths) of every pair; runs in a worker."""
    folder = Path(task.folder)
    similarities = np.zeros(len(task.later), np.uint16)
    with open(folder / "entries.bin", "rb") as entries, open(folder / "sketches.u64", "rb") as sketches:

        @cache
        def sketch(slot: int) -> np.ndarray:
            entry = np.frombuffer(os.pread(entries.fileno(), ENTRY.itemsize, slot * ENTRY.itemsize), ENTRY)[0]
            size, offset = 8 * int(entry["sketch_size"]), 8 * int(entry["sketch_offset"])
            return np.frombuffer(os.pread(sketches.fileno(), size, offset), "<u8")

        pairs = zip(task.later_slots.tolist(), task.earlier_slots.tolist(), strict=True)
        for k, (later, earlier) in enumerate(pairs):
            similarities[k] = round(jaccard(sketch(earlier), sketch(later)) * WHOLE)
    return task.later, task.earlier, similarities


def _decide(
    verified: tuple[np.ndarray, np.ndarray, np.ndarray], similarity: float, removed: np.ndarray
) -> np.ndarray:
    """Remove what resembles a kept earlier document; the pairs come by later, then by earlier document."""
    later, earlier, jaccards = verified
    losers = []
    for k in np.flatnonzero(jaccards / WHOLE >= similarity).tolist():
        if not removed[later[k]] and not removed[earlier[k]]:
            removed[later[k]] = True
            losers.append((later[k], earlier[k], jaccards[k]))
    return np.array(losers, LOSER)
