"""
Corpus shards: `train/NNNNN.jsonl.zst` and `val/NNNNN.jsonl.zst` (or .gz), written and read.

A line is one document, `{"group", "id", "meta", "source", "text"}` with sorted keys. The same lines give the
same bytes in every run: zstd level 3 with a checksum, or gzip level 6 without name and time.

    >>> hashes = write_shards(stage.partial / "train", lines, target_bytes=64 << 20)
    >>> for block in read_blocks(stage.input("corpus"), "train"):       # at most 1,000 lines or 1 MiB each
    ...     rows = [json.loads(line) for line in block.lines]
"""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from utils.pipeline.errors import DataError
from utils.pipeline.zstd_stream import ZstdStream

BLOCK_ROWS, BLOCK_BYTES = 1_000, 1 << 20
SUFFIXES = {"zstd": ".zst", "gzip": ".gz"}


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


def write_shards(
    folder: Path, lines: Iterable[bytes], target_bytes: int, compression: str = "zstd"
) -> list[ShardInfo]:
    """
    Write lines (each ending in a newline) to numbered shards; a shard closes when it reaches `target_bytes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[ShardInfo] = []
    writer: CompressedLines | None = None
    for line in lines:
        writer = writer or CompressedLines(folder / f"{len(shards):05d}.jsonl{SUFFIXES[compression]}")
        writer.write(line)
        if writer.raw_bytes >= target_bytes:
            shards.append(writer.close())
            writer = None
    if writer:
        shards.append(writer.close())
    return shards


class CompressedLines:
    """A .jsonl.zst or .jsonl.gz file being written; the same lines always give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._path, self._sha, self._documents, self.raw_bytes = path, hashlib.sha256(), 0, 0
        self._file = open(path, "wb")  # noqa: SIM115
        self._stream = _COMPRESSORS[path.suffix](self._file)

    def write(self, line: bytes) -> None:
        self.write_many(line, 1)

    def write_many(self, lines: bytes, count: int) -> None:
        """Write several whole lines at once."""
        self._stream.write(lines)
        self._sha.update(lines)
        self._documents += count
        self.raw_bytes += len(lines)

    def close(self) -> ShardInfo:
        self._stream.close()
        self._file.close()
        return ShardInfo(self._path.name, self._documents, self.raw_bytes, self._sha.hexdigest())


def _zstd(file: BinaryIO) -> BinaryIO:
    # threads=0: streaming with threads >= 1 gives other bytes
    return zstandard.ZstdCompressor(level=3, threads=0, write_checksum=True).stream_writer(
        file, closefd=False
    )


def _gzip(file: BinaryIO) -> BinaryIO:
    # name and time would stand in the header
    return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0)


_COMPRESSORS = {".zst": _zstd, ".gz": _gzip}


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
        yield from io.BufferedReader(_opened(file, name), 1 << 20)
    except (zstandard.ZstdError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{name} is not readable: {error}", fix="rerun 20_prepare_corpus --force") from None


def _opened(file: BinaryIO, name: str) -> io.RawIOBase:
    return gzip.GzipFile(fileobj=file, mode="rb") if name.endswith(".gz") else ZstdStream(file)


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
