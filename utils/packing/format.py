"""
Token streams on disk: `.bin` (ids) and `.trained` (loss mask), both behind one 64-byte header.

Every file of this room starts with `LOCKSTEP`, a kind and a version, so that a wrong or cut file is named at
once instead of feeding noise to a model. All numbers are little-endian. Stages 60 and 80 write the same
formats with the functions below; the indexes (`.idx`) that belong to the streams are in index.py.

    kind 1  TOKENS     u16 or u32 ids        train.bin
    kind 4  TRAINED    u8 per token, 0 or 1  train.trained

    >>> write_tokens(folder / "train.bin", [ids_0, ids_1], vocab_size=4096, fingerprint=tokenizer.fingerprint)
    >>> write_tokens(folder / "train.trained", [mask_0, mask_1], 4096, tokenizer.fingerprint, kind=TRAINED)
    >>> read_tokens(folder / "train.bin").ids            # a memory map; also .vocab_size, .fingerprint
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.pipeline.errors import DataError

MAGIC = b"LOCKSTEP"
VERSION = 1
TOKENS, PACKED, ROWS, TRAINED = 1, 2, 3, 4
BIN_HEADER = struct.Struct("<8sIIIIQ32s")
_NOUNS = {
    TOKENS: "a packed dataset",
    PACKED: "an index of packed rows",
    ROWS: "an index of rows",
    TRAINED: "a loss mask",
}


@dataclass(frozen=True)
class TokenFile:
    """An opened token stream: `ids` is a read-only memory map of u16, u32 (TOKENS) or u8 (TRAINED)."""

    path: Path
    vocab_size: int
    fingerprint: str
    ids: np.ndarray


def token_dtype(vocab_size: int, kind: int = TOKENS) -> np.dtype:
    """Return the item type of a stream: u8 for masks, u16 up to 65,536 pieces, else u32."""
    if kind == TRAINED:
        return np.dtype("u1")
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<u4")


class TokenWriter:
    """Append ids to a token stream; the header gets its count in `close`.

    A killed writer leaves a header with count 0, so its file is refused. With `resume=True` it goes on at the
    end of the file: the caller's journal has cut it back to the last committed byte.
    """

    def __init__(
        self, path: Path, vocab_size: int, fingerprint: str, kind: int = TOKENS, resume: bool = False
    ) -> None:
        self.path, self.vocab_size, self.fingerprint, self.kind = path, vocab_size, fingerprint, kind
        self.dtype = token_dtype(vocab_size, kind)
        self._limit = 2 if kind == TRAINED else vocab_size
        resume = resume and path.exists() and path.stat().st_size >= BIN_HEADER.size
        self._file: BinaryIO = open(path, "r+b" if resume else "w+b")  # noqa: SIM115
        self._file.seek(0, 2)
        if not resume:
            self._write_header(0)

    @property
    def num_tokens(self) -> int:
        """Number of ids in the file so far, those of an earlier, killed run included."""
        return (self._file.tell() - BIN_HEADER.size) // self.dtype.itemsize

    def append(self, ids: np.ndarray) -> None:
        """Append ids; each must lie in [0, vocab_size), or [0, 2) in a mask."""
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= self._limit):
            raise DataError(
                f"{self.path.name}: values run from {ids.min()} to {ids.max()}, "
                f"allowed are 0 to {self._limit - 1}"
            )
        self._file.write(np.ascontiguousarray(ids, dtype=self.dtype).tobytes())

    def flush(self) -> int:
        """Hand everything to the operating system and return the end offset, for a journal record."""
        self._file.flush()
        return self._file.tell()

    def close(self) -> int:
        """Write the true count into the header and return it."""
        self._file.seek(0, 2)
        count = self.num_tokens
        self._write_header(count)
        self._file.close()
        return count

    def _write_header(self, count: int) -> None:
        item_bytes, fingerprint = self.dtype.itemsize, bytes.fromhex(self.fingerprint)
        self._file.seek(0)
        self._file.write(
            BIN_HEADER.pack(MAGIC, self.kind, VERSION, item_bytes, self.vocab_size, count, fingerprint)
        )
        self._file.seek(0, 2)


def write_tokens(
    path: Path, parts: Iterable[np.ndarray], vocab_size: int, fingerprint: str, kind: int = TOKENS
) -> int:
    """Write a whole token stream (with kind=TRAINED a 0/1 mask) and return its number of items."""
    writer = TokenWriter(path, vocab_size, fingerprint, kind)
    for ids in parts:
        writer.append(ids)
    return writer.close()


def read_tokens(path: Path, kind: int = TOKENS) -> TokenFile:
    """Open a token stream without reading its body; DataError names what is wrong with the file."""
    _, _, _, item_bytes, vocab_size, count, fingerprint = read_header(path, kind, BIN_HEADER)
    dtype = token_dtype(vocab_size, kind)
    if item_bytes != dtype.itemsize:
        raise DataError(
            f"{path.name} says {item_bytes} bytes per id, {vocab_size:,} pieces need {dtype.itemsize}"
        )
    check_size(path, BIN_HEADER.size + count * item_bytes)
    ids = np.memmap(path, dtype, "r", BIN_HEADER.size, (count,)) if count else np.zeros(0, dtype)
    return TokenFile(path, vocab_size, fingerprint.hex(), ids)


def read_header(path: Path, kind: int, header: struct.Struct) -> tuple:
    """Read and check magic, kind and version; return all fields of the header."""
    with open(path, "rb") as file:
        data = file.read(header.size)
    if data[:8] != MAGIC:
        raise DataError(f"{path.name} is not {_NOUNS[kind]} (starts with {data[:4].hex(' ')})")
    if len(data) < header.size:
        check_size(path, header.size)
    fields = header.unpack(data)
    if fields[1] != kind:
        found = _NOUNS.get(fields[1], f"a file of kind {fields[1]}")
        raise DataError(f"{path.name} is not {_NOUNS[kind]} but {found} (starts with {data[:4].hex(' ')})")
    if fields[2] != VERSION:
        raise DataError(f"{path.name} has version {fields[2]}, this program reads {VERSION}")
    return fields


def check_size(path: Path, needed: int) -> None:
    """Compare the size of a file with what its header asks for."""
    actual = path.stat().st_size
    if actual != needed:
        verdict = "truncated" if actual < needed else "too long"
        raise DataError(f"{path.name} has {actual:,} bytes, its header needs {needed:,}: {verdict}")
