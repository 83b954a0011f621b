"""
PackedDataset: rows of token ids from a stage-40 folder, memory-mapped.

Opening checks headers, sizes and the pairing of .bin and .idx without reading the body, so it costs the same
for 1 MB and 100 GB; an opened dataset pickles as its path. `rows` returns T + 1 ids a row and shifts nothing:
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
        self._offsets = self._index.documents.offsets.astype(np.int64)
        self._check_pair(fingerprint)
        if self._index.rows:
            self._row_offsets = self._index.rows.row_offsets.astype(np.int64)

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.split)

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

    def document(self, i: int) -> np.ndarray:
        """Return the ids of one document, BOS and EOS included."""
        return self._tokens.ids[self._offsets[i] : self._offsets[i + 1]]

    def rows(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return these rows. IndexError for a row that does not exist."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f"row {indices.min()} or {indices.max()} is outside 0 to {self.num_rows - 1}")
        return self._best_fit(indices) if self._index.rows else self._concat(indices)

    def _concat(self, indices: np.ndarray) -> Batch:
        starts = indices * self.sequence_length
        flat = starts[:, None] + np.arange(self.sequence_length + 1)
        document = np.searchsorted(self._offsets, flat, side="right") - 1
        position = flat - np.maximum(self._offsets[document], starts[:, None])
        return Batch(
            self._tokens.ids[flat].astype(np.int64), document.astype(np.int32), position.astype(np.int32)
        )

    def _best_fit(self, indices: np.ndarray) -> Batch:
        width = self.sequence_length + 1
        segments, row = _ranges(self._row_offsets[indices], self._row_offsets[indices + 1])
        starts = self._index.rows.segment_starts[segments].astype(np.int64)
        lengths = self._index.rows.segment_lengths[segments].astype(np.int64)
        source, segment = _ranges(starts, starts + lengths)
        filled = np.bincount(row, weights=lengths, minlength=len(indices)).astype(np.int64)
        target, _ = _ranges(np.arange(len(indices)) * width, np.arange(len(indices)) * width + filled)
        pad = max(self.special.pad, 0)
        shape = (len(indices), width)
        tokens, document, position = (
            np.full(shape[0] * width, fill, kind) for fill, kind in ((pad, "i8"), (-1, "i4"), (0, "i4"))
        )
        tokens[target] = self._tokens.ids[source]
        document[target] = (np.searchsorted(self._offsets, starts, side="right") - 1)[segment]
        position[target] = source - starts[segment]
        return Batch(tokens.reshape(shape), document.reshape(shape), position.reshape(shape))

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
    path = data.folder / f"{split}.bin"
    actual, expected = hash_files([path])[path].sha256, data._index.bin_sha256
    _check_ids(data)
    if actual != expected:
        raise DataError(
            f"{split}.idx was written for another {path.name} (sha256 {expected[:12]}, found {actual[:12]})"
        )
    return data


def _check_ids(data: PackedDataset) -> None:
    ids, offsets, name = data._tokens.ids, data._offsets, f"{data.split}.bin"
    too_high = np.flatnonzero(ids >= data.vocab_size)
    if len(too_high):
        at = int(too_high[0])
        raise DataError(f"{name}: id {int(ids[at])} at {at:,} but vocab_size is {data.vocab_size}")
    marks = (("BOS", data.special.bos, offsets[:-1]), ("EOS", data.special.eos, offsets[1:] - 1))
    for mark, value, positions in marks:
        wrong = np.flatnonzero(ids[positions] != value) if value >= 0 else []
        if len(wrong):
            at = int(positions[wrong[0]])
            raise DataError(
                f"{name}: id {int(ids[at])} at {at:,}, expected {mark} {value} of document {int(wrong[0])}"
            )
    num_eos = int((ids == data.special.eos).sum())
    if num_eos != data.num_documents:
        raise DataError(f"{name}: {num_eos:,} EOS in {data.num_documents:,} documents")
