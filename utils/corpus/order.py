"""
Output order: a shuffle of all documents by the hash of their ids, done on disk.

Lines are dealt into files by ranges of the hash, each of about 256 MiB, in one pass over the segments; then
one file after the other is read, sorted and passed on. Memory is that of one file, however large the corpus
is.

    >>> for line in in_output_order(documents, selection.train, scratch, stage):
    ...     write(line)
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.corpus.documents import Documents
from utils.corpus.executor import Stopping

BUCKET_BYTES = 256 << 20


def in_output_order(
    documents: Documents, chosen: np.ndarray, scratch: Path, stage: Stopping
) -> Iterator[bytes]:
    """Yield the lines of the chosen documents (bool per document) by order hash, ties in canonical order."""
    numbers = np.flatnonzero(chosen)
    hashes, sizes = documents.column("order")[numbers], documents.column("line_bytes")[numbers]
    num_buckets = int(sizes.sum(dtype=np.int64)) // BUCKET_BYTES + 1
    # the upper half of the hash, scaled to the number of buckets
    buckets = ((hashes >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.uint32)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for here, lines in documents.lines(chosen):
        stage.stop_point()
        _deal(lines, buckets[np.searchsorted(numbers, here)], scratch)
    for bucket in range(num_buckets):
        stage.stop_point()
        members = np.flatnonzero(buckets == bucket)
        if len(members):
            yield from _sorted(scratch / str(bucket), hashes[members], sizes[members])
    shutil.rmtree(scratch)


def _deal(lines: list[bytes], buckets: np.ndarray, scratch: Path) -> None:
    for bucket in np.unique(buckets).tolist():
        mine = np.flatnonzero(buckets == bucket).tolist()
        with open(scratch / str(bucket), "ab") as file:
            file.write(b"".join(lines[k] for k in mine))


def _sorted(path: Path, hashes: np.ndarray, sizes: np.ndarray) -> Iterator[bytes]:
    data = memoryview(path.read_bytes())
    path.unlink()
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - sizes
    for k in np.argsort(hashes, kind="stable").tolist():
        yield data[starts[k] : ends[k]]
