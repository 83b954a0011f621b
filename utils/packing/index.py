"""
Indexes (`.idx`) of token streams: where documents lie, which source they came from, how rows are built.

A 136-byte header, then sections padded to 8 bytes each, so that the whole file is memory-mapped. Two kinds:

    kind 2  PackedIndex   documents and rows of stage 40
    kind 3  RowsIndex     documents with loss weights and trained counts, stages 60 and 80

    >>> documents = Documents.of(lengths=[12, 30], ids=["0f" * 16, "1a" * 16], sources=[0, 0])
    >>> special = SpecialIds(bos=1, eos=2, pad=3)
    >>> index = RowsIndex(special, fingerprint, bin_sha256, documents, weights, trained_counts)
    >>> write_rows_index(folder / "train.idx", index)
    >>> read_rows_index(folder / "train.idx").documents.offsets      # [0, 12, 42]
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.packing.format import MAGIC, PACKED, ROWS, VERSION, check_size, read_header
from utils.pipeline.errors import DataError

MODES = ("concat", "best_fit")
IDX_HEADER = struct.Struct("<8sIIIIQQQQIIII32s32s")
_NO_ID = 0xFFFFFFFF


@dataclass(frozen=True)
class Documents:
    """Where documents lie in a token stream: offsets u64 [N + 1], ids u8 [N, 16], sources u16 [N]."""

    offsets: np.ndarray
    ids: np.ndarray
    sources: np.ndarray

    @classmethod
    def of(cls, lengths: Sequence[int], ids: Sequence[str], sources: Sequence[int]) -> "Documents":
        """Build from token counts, ids of 32 hex digits, and indexes into the list of sources."""
        offsets = np.zeros(len(lengths) + 1, "<u8")
        np.cumsum(lengths, out=offsets[1:])
        id_bytes = np.frombuffer(bytes.fromhex("".join(ids)), "u1").reshape(-1, 16)
        return cls(offsets, id_bytes, np.asarray(sources, "<u2"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """Rows of a best_fit index: segments row_offsets[r] .. row_offsets[r + 1] make row r, in this order."""

    row_offsets: np.ndarray
    segment_starts: np.ndarray
    segment_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.row_offsets) - 1


@dataclass(frozen=True)
class SpecialIds:
    """The three ids that an index records; -1 where the tokenizer has none."""

    bos: int
    eos: int
    pad: int

    @property
    def padding(self) -> int:
        """The id that fills rows: padding, or EOS in a tokenizer without one; it is never a target."""
        return self.pad if self.pad >= 0 else self.eos


@dataclass(frozen=True)
class PackedIndex:
    """A kind-2 index; `rows` is None for concat, where row i is simply ids [iT, iT + T]."""

    mode: str
    sequence_length: int
    num_rows: int
    special: SpecialIds
    fingerprint: str
    bin_sha256: str
    documents: Documents
    rows: Rows | None


@dataclass(frozen=True)
class RowsIndex:
    """A kind-3 index: documents with a loss weight (f32) and the number of trained tokens (u32) each."""

    special: SpecialIds
    fingerprint: str
    bin_sha256: str
    documents: Documents
    weights: np.ndarray
    trained_counts: np.ndarray


def write_packed_index(path: Path, index: PackedIndex) -> None:
    """Write a kind-2 index."""
    num_segments = len(index.rows.segment_starts) if index.rows else 0
    header = [PACKED, VERSION, MODES.index(index.mode), index.sequence_length]
    header += [len(index.documents), int(index.documents.offsets[-1]), index.num_rows, num_segments]
    sections = _document_sections(index.documents)
    if index.rows:
        sections += [index.rows.row_offsets.astype("<u8"), index.rows.segment_starts.astype("<u8")]
        sections += [index.rows.segment_lengths.astype("<u4")]
    _write(path, header, index, sections)


def read_packed_index(path: Path) -> PackedIndex:
    """Read a kind-2 index as memory maps and check that its sections fit its header and each other."""
    header = read_header(path, PACKED, IDX_HEADER)
    mode, sequence_length, num_documents, token_count, num_rows, num_segments = header[3:9]
    if mode >= len(MODES):
        raise DataError(f"{path.name} has packing mode {mode}, this program knows {' and '.join(MODES)}")
    sections = _Sections(path)
    documents, rows = sections.documents(num_documents), None
    if MODES[mode] == "best_fit":
        rows = Rows(
            sections.take("<u8", num_rows + 1),
            sections.take("<u8", num_segments),
            sections.take("<u4", num_segments),
        )
    sections.finish()
    _check_offsets(path, "document_offsets", documents.offsets, token_count)
    _check_row_count(path, MODES[mode], sequence_length, token_count, num_rows)
    if rows:
        _check_offsets(path, "row_offsets", rows.row_offsets, num_segments)
        _check_segments(path, documents.offsets, rows)
        _check_capacity(path, sequence_length, rows)
    return PackedIndex(MODES[mode], sequence_length, num_rows, *_identity(header), documents, rows)


def write_rows_index(path: Path, index: RowsIndex) -> None:
    """Write a kind-3 index: one row per document; stages 70 and 90 pack them."""
    num_documents = len(index.documents)
    header = [ROWS, VERSION, 0, 0, num_documents, int(index.documents.offsets[-1]), num_documents, 0]
    sections = _document_sections(index.documents)
    sections += [np.asarray(index.weights, "<f4"), np.asarray(index.trained_counts, "<u4")]
    _write(path, header, index, sections)


def read_rows_index(path: Path) -> RowsIndex:
    """Read a kind-3 index as memory maps."""
    header = read_header(path, ROWS, IDX_HEADER)
    num_documents, token_count = header[5:7]
    sections = _Sections(path)
    documents = sections.documents(num_documents)
    weights, trained_counts = sections.take("<f4", num_documents), sections.take("<u4", num_documents)
    sections.finish()
    _check_offsets(path, "document_offsets", documents.offsets, token_count)
    return RowsIndex(*_identity(header), documents, weights, trained_counts)


def _write(path: Path, header: list[int], index: PackedIndex | RowsIndex, sections: list[np.ndarray]) -> None:
    special = [_NO_ID if i < 0 else i for i in (index.special.bos, index.special.eos, index.special.pad)]
    digests = bytes.fromhex(index.fingerprint), bytes.fromhex(index.bin_sha256)
    with open(path, "wb") as file:
        file.write(IDX_HEADER.pack(MAGIC, *header, *special, 0, *digests))
        for section in sections:
            data = section.tobytes()
            file.write(data + b"\0" * (-len(data) % 8))


def _identity(header: tuple) -> tuple[SpecialIds, str, str]:
    special = SpecialIds(*(-1 if value == _NO_ID else value for value in header[9:12]))
    return special, header[13].hex(), header[14].hex()


def _document_sections(documents: Documents) -> list[np.ndarray]:
    return [documents.offsets.astype("<u8"), documents.ids.astype("u1"), documents.sources.astype("<u2")]


class _Sections:
    """Walks through the sections of an index, each padded to 8 bytes."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, IDX_HEADER.size
        self._data = np.memmap(path, np.uint8, "r")

    def take(self, dtype: str, count: int) -> np.ndarray:
        num_bytes = count * np.dtype(dtype).itemsize
        section = self._data[self._offset : self._offset + num_bytes]
        self._offset += num_bytes + (-num_bytes % 8)
        if self._offset > len(self._data):
            check_size(self._path, self._offset)
        return section.view(dtype)

    def documents(self, count: int) -> Documents:
        return Documents(
            self.take("<u8", count + 1), self.take("u1", 16 * count).reshape(-1, 16), self.take("<u2", count)
        )

    def finish(self) -> None:
        check_size(self._path, self._offset)


def _check_offsets(path: Path, name: str, offsets: np.ndarray, end: int) -> None:
    drops = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(drops):
        i = int(drops[0]) + 1
        raise DataError(f"{path.name}: {name}[{i}] = {offsets[i]:,} is below {offsets[i - 1]:,}")
    if int(offsets[0]) != 0 or int(offsets[-1]) != end:
        raise DataError(
            f"{path.name}: {name} run from {offsets[0]:,} to {offsets[-1]:,}, expected 0 to {end:,}"
        )


def _check_segments(path: Path, document_offsets: np.ndarray, rows: Rows) -> None:
    starts, ends = rows.segment_starts, rows.segment_starts + rows.segment_lengths
    document = np.searchsorted(document_offsets, starts, side="right") - 1
    next_document = np.minimum(document + 1, len(document_offsets) - 1)
    bad = np.flatnonzero(ends > document_offsets[next_document])
    if len(bad):
        i = int(bad[0])
        raise DataError(
            f"{path.name}: segment {i} (ids {starts[i]:,} to {ends[i]:,}) is outside its document"
        )


def _check_row_count(path: Path, mode: str, sequence_length: int, token_count: int, num_rows: int) -> None:
    if sequence_length < 1:
        raise DataError(f"{path.name} has rows of {sequence_length} tokens")
    expected = concat_rows(token_count, sequence_length)
    if mode == "concat" and num_rows != expected:
        raise DataError(
            f"{path.name} has {num_rows:,} rows, {token_count:,} ids make {expected:,} of {sequence_length:,}"
        )


def _check_capacity(path: Path, sequence_length: int, rows: Rows) -> None:
    ends = np.concatenate([[0], np.cumsum(rows.segment_lengths, dtype=np.int64)])[rows.row_offsets]
    too_long = np.flatnonzero(np.diff(ends) > sequence_length + 1)
    if len(too_long):
        r, room = int(too_long[0]), sequence_length + 1
        raise DataError(f"{path.name}: row {r} holds {ends[r + 1] - ends[r]:,} ids, it has room for {room:,}")


def concat_rows(num_tokens: int, sequence_length: int) -> int:
    """Rows of a stream that is cut anywhere: row i needs the ids [iT, iT + T]."""
    return max(0, (num_tokens - 1) // sequence_length)
