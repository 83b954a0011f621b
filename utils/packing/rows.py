"""
Whole conversations on disk: ids, loss mask and index of one split, as stages 60 and 80 write them.

Nothing is cut into rows here: stages 70 and 90 plan their rows from the lengths, so another row length does
not mean preparing the data again.

    >>> writer = RowsWriter(folder, "train", 4096, tokenizer.fingerprint, SpecialIds(bos=1, eos=2, pad=3))
    >>> writer.append("0f" * 16, ids, trained, source=0)
    >>> writer.close()                                   # train.bin, train.trained, train.idx
    >>> RowsDataset(folder, "train").document(0)         # (ids, trained)
"""

from pathlib import Path

import numpy as np

from utils.packing.format import TRAINED, TokenWriter, read_tokens
from utils.packing.index import Documents, RowsIndex, SpecialIds, read_rows_index, write_rows_index
from utils.pipeline.errors import DataError, UpstreamError
from utils.pipeline.hashing import hash_files


class RowsWriter:
    """Writes one split; documents are numbered in the order in which they come."""

    def __init__(
        self, folder: Path, split: str, vocab_size: int, fingerprint: str, special: SpecialIds
    ) -> None:
        self.folder, self.split, self.fingerprint, self.special = folder, split, fingerprint, special
        self._tokens = TokenWriter(folder / f"{split}.bin", vocab_size, fingerprint)
        self._mask = TokenWriter(folder / f"{split}.trained", vocab_size, fingerprint, kind=TRAINED)
        self._columns: tuple[list, ...] = ([], [], [], [], [])

    def append(self, id: str, ids: np.ndarray, trained: np.ndarray, source: int, weight: float = 1.0) -> None:
        """Add a document: its id as 32 hex digits, one mask value per token, the number of its source."""
        if len(ids) != len(trained):
            raise DataError(f"{self.split}: {len(ids)} ids with {len(trained)} mask values")
        self._tokens.append(ids)
        self._mask.append(trained)
        for column, value in zip(
            self._columns, (len(ids), id, source, weight, int(trained.sum())), strict=True
        ):
            column.append(value)

    def close(self) -> None:
        """Finish the streams and write the index over them."""
        self._tokens.close()
        self._mask.close()
        lengths, ids, sources, weights, counts = self._columns
        path = self.folder / f"{self.split}.bin"
        sha256 = hash_files([path])[path].sha256
        documents = Documents.of(lengths, ids, sources)
        index = RowsIndex(
            self.special, self.fingerprint, sha256, documents, np.asarray(weights), np.asarray(counts)
        )
        write_rows_index(self.folder / f"{self.split}.idx", index)


class RowsDataset:
    """One split, memory-mapped. `fingerprint`, when given, must be that of the tokenizer in use."""

    def __init__(self, folder: Path, split: str, fingerprint: str = "") -> None:
        self.folder, self.split = Path(folder), split
        self._tokens = read_tokens(self.folder / f"{split}.bin")
        self._mask = read_tokens(self.folder / f"{split}.trained", kind=TRAINED)
        self.index = read_rows_index(self.folder / f"{split}.idx")
        self._offsets = self.index.documents.offsets.astype(np.int64)
        self._check(fingerprint)

    @property
    def num_documents(self) -> int:
        return len(self.index.documents)

    @property
    def lengths(self) -> np.ndarray:
        """Ids per document, int64."""
        return self.index.documents.lengths

    @property
    def trained_counts(self) -> np.ndarray:
        return self.index.trained_counts

    @property
    def fingerprint(self) -> str:
        return self._tokens.fingerprint

    @property
    def special(self) -> SpecialIds:
        return self.index.special

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids (int64) and mask (u8) of one document."""
        part = slice(self._offsets[i], self._offsets[i + 1])
        return self._tokens.ids[part].astype(np.int64), np.asarray(self._mask.ids[part])

    def _check(self, fingerprint: str) -> None:
        name, found = f"{self.split}.bin", len(self._tokens.ids)
        if len(self._mask.ids) != found:
            raise DataError(
                f"{self.split}.trained has {len(self._mask.ids):,} values, {name} holds {found:,} ids"
            )
        if int(self._offsets[-1]) != found:
            raise DataError(
                f"{self.split}.idx describes {int(self._offsets[-1]):,} ids, {name} holds {found:,}"
            )
        prints = {self._tokens.fingerprint, self._mask.fingerprint, self.index.fingerprint}
        if len(prints) > 1:
            raise DataError(f"{self.split}: ids, mask and index were written with different tokenizers")
        if fingerprint and fingerprint != self.fingerprint:
            raise UpstreamError(
                f"mismatched (tokenizer: data {self.fingerprint[:12]}, in use {fingerprint[:12]})"
            )
