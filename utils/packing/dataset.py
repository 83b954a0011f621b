"""
PackedDataset: rows of token ids from a stage-40 folder, memory-mapped.

Opening checks headers, sizes, the pairing of .bin and .idx, and the offsets in .idx; it reads none of the
ids, and an opened dataset pickles as its path. `rows` returns T + 1 ids a row and shifts nothing:
the one place that makes inputs and targets of them is the training loss.

    >>> data = PackedDataset(Path("data/demo/packed"), "train")
    >>> batch = data.rows([0, 5])
    >>> batch.tokens.shape, batch.position[0, :3]            # ((2, 257), array([0, 1, 2], dtype=int32))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from utils.packing.format import read_tokens
from utils.packing.index import SpecialIds, read_packed_index
from utils.pipeline.errors import DataError, UpstreamError
from utils.pipeline.hashing import hash_files

Split = Literal["train", "val"]
CHECKED_IDS = 1 << 24


class Batch(NamedTuple):
    """Rows of ids as numpy arrays [B, T + 1].

    tokens int64; document int32, the number of the document in the split, -1 on padding; position int32,
    restarting at 0 with each piece of a document. A target counts only where its document is that of its
    input.
    """

    tokens: np.ndarray
    document: np.ndarray
    position: np.ndarray


class PackedDataset:
    """One split of a packed folder. `fingerprint`, when given, must be that of the tokenizer in use."""

    def __init__(self, folder: Path, split: Split, fingerprint: str = "") -> None:
        self.folder, self.split = Path(folder), split
        self._tokens = read_tokens(self.folder / f"{split}.bin")
        self._index = read_packed_index(self.folder / f"{split}.idx")
        # plain arrays over the memory maps: nothing is read, and numpy is spared its subclass
        self._ids = np.asarray(self._tokens.ids)
        self._offsets = np.asarray(self._index.documents.offsets).view("<i8")
        self._check_pair(fingerprint)
        if rows := self._index.rows:
            offsets, starts = (
                np.asarray(each).view("<i8") for each in (rows.row_offsets, rows.segment_starts)
            )
            self._row_index = offsets, starts, np.asarray(rows.segment_lengths)

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.split, self.fingerprint)

    @property
    def num_rows(self) -> int:
        return self._index.num_rows

    @property
    def num_documents(self) -> int:
        return len(self._index.documents)

    @property
    def num_tokens(self) -> int:
        """Ids in the split, BOS and EOS included, padding not."""
        return len(self._tokens.ids)

    @property
    def sequence_length(self) -> int:
        """T: input tokens per row; a row holds T + 1 ids."""
        return self._index.sequence_length

    @property
    def mode(self) -> str:
        return self._index.mode

    @property
    def vocab_size(self) -> int:
        return self._tokens.vocab_size

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer that made the ids."""
        return self._tokens.fingerprint

    @property
    def special(self) -> SpecialIds:
        return self._index.special

    @property
    def document_ids(self) -> np.ndarray:
        """Ids of the documents as u8 [N, 16]: the first 16 bytes of SHA-256 of their text."""
        return self._index.documents.ids

    @property
    def bin_sha256(self) -> str:
        """SHA-256 of the .bin that the index was written for."""
        return self._index.bin_sha256

    def documents(self, i: int) -> np.ndarray:
        """Return the ids of document i, BOS and EOS included."""
        return self._ids[self._offsets[i] : self._offsets[i + 1]]

    def rows(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return these rows. IndexError for a row that does not exist."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f"row {indices.min()} or {indices.max()} is outside 0 to {self.num_rows - 1}")
        pieces = self._best_fit(indices) if self._index.rows else self._concat(indices)
        return self._read(*pieces, len(indices))

    def _concat(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pieces of documents in each row: starts and lengths in the stream, number of the row."""
        begin, offsets = indices * self.sequence_length, self._offsets
        end = begin + self.sequence_length + 1
        first, last = (np.searchsorted(offsets, edge, side="right") for edge in (begin, end - 1))
        document, row = _ranges(first - 1, last)
        starts = np.maximum(offsets[document], begin[row])
        return starts, np.minimum(offsets[document + 1], end[row]) - starts, row

    def _best_fit(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same, as the index lists them."""
        row_offsets, segment_starts, segment_lengths = self._row_index
        segments, row = _ranges(row_offsets[indices], row_offsets[indices + 1])
        return segment_starts[segments], segment_lengths[segments].astype(np.int64), row

    def _read(self, starts: np.ndarray, lengths: np.ndarray, row: np.ndarray, num_rows: int) -> Batch:
        """Lay pieces of the stream side by side into their rows and fill these up."""
        shape = (num_rows, self.sequence_length + 1)
        before = np.cumsum(lengths) - lengths
        position = np.arange(lengths.sum(), dtype=np.int32) - np.repeat(before.astype(np.int32), lengths)
        tokens = self._ids[np.repeat(starts, lengths) + position].astype(np.int64)
        numbers = (np.searchsorted(self._offsets, starts, side="right") - 1).astype(np.int32)
        columns = tokens, np.repeat(numbers, lengths), position
        if len(tokens) == shape[0] * shape[1]:
            return Batch(*(column.reshape(shape) for column in columns))
        filled = np.arange(shape[1]) < np.bincount(row, weights=lengths, minlength=num_rows)[:, None]
        batch = Batch(*(np.full(shape, fill, c.dtype) for fill, c in zip(self._fills, columns, strict=True)))
        for into, column in zip(batch, columns, strict=True):
            into[filled] = column
        return batch

    @property
    def _fills(self) -> tuple[int, int, int]:
        return self.special.padding, -1, 0

    def _check_pair(self, fingerprint: str) -> None:
        name, found = f"{self.split}.idx", self._index.fingerprint
        if found != self.fingerprint:
            raise DataError(
                f"{name} was written with tokenizer {found[:12]}, "
                f"{self.split}.bin with {self.fingerprint[:12]}"
            )
        if int(self._offsets[-1]) != self.num_tokens:
            raise DataError(
                f"{name} describes {int(self._offsets[-1]):,} ids, {self.split}.bin holds {self.num_tokens:,}"
            )
        if fingerprint and fingerprint != self.fingerprint:
            raise UpstreamError(
                f"mismatched (tokenizer: data {self.fingerprint[:12]}, in use {fingerprint[:12]})"
            )


def _ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the concatenation of range(start, end) for all pairs, and for each element the number of its pair.
    """
    lengths = ends - starts
    pair = np.repeat(np.arange(len(starts)), lengths)
    return np.arange(len(pair)) + (starts - (np.cumsum(lengths) - lengths))[pair], pair


def verify_packed(folder: Path, split: Split) -> PackedDataset:
    """
    Read a split in full: .bin against the digest in .idx, every id below vocab_size, BOS and EOS of each
    document.
    """
    data = PackedDataset(folder, split)
    _check_ids(data)
    path = data.folder / f"{split}.bin"
    actual = hash_files([path])[path].sha256
    if actual != data.bin_sha256:
        raise DataError(
            f"{split}.idx was written for another {path.name} "
            f"(sha256 {data.bin_sha256[:12]}, found {actual[:12]})"
        )
    return data


def _check_ids(data: PackedDataset) -> None:
    ids, name, num_eos = data._ids, f"{data.split}.bin", 0
    for start in range(0, len(ids), CHECKED_IDS):
        part = ids[start : start + CHECKED_IDS]
        num_eos += int((part == data.special.eos).sum())
        if int(part.max()) >= data.vocab_size:
            at = int(np.argmax(part >= data.vocab_size))
            raise DataError(
                f"{name}: id {int(part[at])} at {start + at:,} but vocab_size is {data.vocab_size}"
            )
    _check_marks(data, "BOS", data.special.bos, data._offsets[:-1])
    _check_marks(data, "EOS", data.special.eos, data._offsets[1:] - 1)
    per_document = 2 if data.special.bos == data.special.eos else 1  # one token may be both marks
    if num_eos != data.num_documents * per_document:
        raise DataError(f"{name}: {num_eos:,} EOS in {data.num_documents:,} documents")


def _check_marks(data: PackedDataset, mark: str, expected: int, positions: np.ndarray) -> None:
    wrong = np.flatnonzero(data._ids[positions] != expected) if expected >= 0 else []
    if len(wrong):
        at = int(positions[wrong[0]])
        raise DataError(
            f"{data.split}.bin: id {int(data._ids[at])} at {at:,}, "
            f"expected {mark} {expected} of document {int(wrong[0])}"
        )
