"""
Corpus shards: `train/NNNNN.jsonl.zst` and `val/NNNNN.jsonl.zst`, written and read.

A line is one document, `{"group", "id", "meta", "source", "text"}` with sorted keys. The same lines give the
same bytes on every machine: zstd level 3, checksum on, `threads=0` (streaming with threads >= 1 gives other
bytes).

    >>> hashes = write_shards(stage.partial / "train", lines, target_bytes=64 << 20)
    >>> for block in read_blocks(stage.input("corpus"), "train"):       # at most 1,000 lines or 1 MiB each
    ...     rows = [json.loads(line) for line in block.lines]
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from utils.pipeline.errors import DataError

BLOCK_ROWS, BLOCK_BYTES = 1_000, 1 << 20


class ShardFolder(Protocol):
    """
    What reading needs of a verified input: its listed files, and readers that prove what they handed out.
    """

    path: Path

    def files(self, prefix: str) -> list[Path]: ...

    def open(self, relative: str) -> AbstractContextManager[BinaryIO]: ...


@dataclass(frozen=True)
class ShardInfo:
    """
    One written shard; `raw_sha256` is over the uncompressed lines, so a new compressor is told from new
    content.
    """

    name: str
    documents: int
    raw_bytes: int
    raw_sha256: str


def write_shards(folder: Path, lines: Iterable[bytes], target_bytes: int) -> list[ShardInfo]:
    """
    Write lines (each ending in a newline) to numbered shards; a shard closes when it reaches `target_bytes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[ShardInfo] = []
    writer: ZstdLines | None = None
    for line in lines:
        writer = writer or ZstdLines(folder / f"{len(shards):05d}.jsonl.zst")
        writer.write(line)
        if writer.raw_bytes >= target_bytes:
            shards.append(writer.close())
            writer = None
    if writer:
        shards.append(writer.close())
    return shards


class ZstdLines:
    """A .jsonl.zst file being written."""

    def __init__(self, path: Path) -> None:
        self._path, self._sha, self._documents, self.raw_bytes = path, hashlib.sha256(), 0, 0
        self._file = open(path, "wb")  # noqa: SIM115
        compressor = zstandard.ZstdCompressor(level=3, threads=0, write_checksum=True)
        self._stream = compressor.stream_writer(self._file, closefd=False)

    def write(self, line: bytes) -> None:
        self._stream.write(line)
        self._sha.update(line)
        self._documents += 1
        self.raw_bytes += len(line)

    def close(self) -> ShardInfo:
        self._stream.close()
        self._file.close()
        return ShardInfo(self._path.name, self._documents, self.raw_bytes, self._sha.hexdigest())


def read_lines(folder: ShardFolder, split: str) -> Iterator[bytes]:
    """
    Yield every line of a split, in shard order. DataError for a split without shards or a damaged shard.
    """
    shards = [path.relative_to(folder.path).as_posix() for path in folder.files(f"{split}/")]
    if not shards:
        raise DataError(f"{folder.path.name} has no {split} shards", fix="rerun 20_prepare_corpus")
    for name in shards:
        with folder.open(name) as file:
            yield from _decompress(file, name)


def _decompress(file: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as stream:
            yield from io.BufferedReader(stream, 1 << 20)
    except zstandard.ZstdError as error:
        raise DataError(
            f"{name} is not a readable zstd file: {error}", fix="rerun 20_prepare_corpus --force"
        ) from None


@dataclass(frozen=True)
class ShardBlock:
    """Consecutive lines of a split; `str` names them in messages."""

    split: str
    first_row: int
    lines: list[bytes]

    def __str__(self) -> str:
        return f"{self.split} rows {self.first_row:,}-{self.first_row + len(self.lines) - 1:,}"


def read_blocks(folder: ShardFolder, split: str, first_row: int = 0) -> Iterator[ShardBlock]:
    """Yield the lines of a split from `first_row` on, in blocks of at most 1,000 lines or 1 MiB."""
    lines: list[bytes] = []
    size = 0
    for line in islice(read_lines(folder, split), first_row, None):
        if lines and (len(lines) == BLOCK_ROWS or size + len(line) > BLOCK_BYTES):
            yield ShardBlock(split, first_row, lines)
            lines, size, first_row = [], 0, first_row + len(lines)
        lines.append(line)
        size += len(line)
    if lines:
        yield ShardBlock(split, first_row, lines)
