"""
Secrets in files that are about to leave the house: found by shape, or because they are a key that is in use.

Compressed rows are read as what they hold. What was found is told by file, line and kind, never by its text.

    find_secrets(Path("data/demo/generated/chat/dataset.jsonl"), keys=["..."])
    # [Finding("an OpenAI-style key", line=12)]
"""

import gzip
import io
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

CHUNK_BYTES = 8 << 20
OVERLAP_BYTES = 4096
SHORTEST_KEY = 8
"""A shorter value of a key's variable would be found in any text, so it is not looked for."""

_VALUE = rb"""\\?["'](?!your|YOUR|x{3}|X{3}|[<$*.{])[^"'\\\s]{8,}\\?["']"""
SHAPES: dict[str, re.Pattern[bytes]] = {
    "a Hugging Face token": re.compile(rb"hf_[A-Za-z0-9]{30,}"),
    "an OpenAI-style key": re.compile(rb"sk-(?<![A-Za-z0-9]sk-)(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"),
    "an AWS access key": re.compile(rb"AKIA(?<![A-Za-z0-9]AKIA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
    "a Google key": re.compile(rb"AIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])"),
    "a GitHub token": re.compile(rb"gh[pousr]_[A-Za-z0-9]{36}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"),
    **{
        f'a value of "{name}"': re.compile(name.encode() + rb"""\\?["']\s{0,9}:\s{0,9}""" + _VALUE)
        for name in ("api_key", "api-key", "apiKey", "API_KEY")
    },
    "a bearer token": re.compile(rb"Bearer (?=[A-Za-z._-]*[0-9])[A-Za-z0-9._-]{20,}"),
}
"""By what they are called in messages; each begins with a literal, so that a gigabyte takes seconds."""


@dataclass(frozen=True)
class Finding:
    """The first secret of one kind in one file; `line` counts from 1, in the file as it is read."""

    kind: str
    line: int


def find_secrets(path: Path, keys: Collection[str] = ()) -> list[Finding]:
    """The kinds of secrets that the file holds; `keys` are texts that may not occur anywhere."""
    shapes = SHAPES | _literal_shapes(keys)
    found: dict[str, Finding] = {}
    line = 1
    for chunk, fresh in _chunks(path):
        for kind, shape in shapes.items():
            match = None if kind in found else shape.search(chunk)
            if match:
                found[kind] = Finding(kind, line + chunk.count(b"\n", 0, match.start()))
        line += chunk.count(b"\n", 0, fresh)
    return list(found.values())


def _literal_shapes(keys: Collection[str]) -> dict[str, re.Pattern[bytes]]:
    """A key that is in use, as it is and as JSON writes it."""
    spellings: set[str] = set()
    for key in keys:
        if len(key) >= SHORTEST_KEY:
            spellings |= {key, json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1]}
    pattern = b"|".join(re.escape(spelling.encode()) for spelling in sorted(spellings))
    return {"a key that is in use": re.compile(pattern)} if spellings else {}


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Overlapping parts of what the file holds, and how many bytes of each are not in the next one."""
    with opened_as_plain(path) as stream:
        chunk = stream.read(CHUNK_BYTES)
        while chunk:
            more = stream.read(CHUNK_BYTES)
            fresh = max(0, len(chunk) - OVERLAP_BYTES) if more else len(chunk)
            yield chunk, fresh
            chunk = chunk[fresh:] + more if more else b""


@contextmanager
def opened_as_plain(path: Path) -> Iterator[BinaryIO]:
    """A file as what it holds: .gz and .zst decompressed, .parquet as JSON lines."""
    with path.open("rb") as file:
        if path.suffix == ".gz":
            yield gzip.GzipFile(fileobj=file)
        elif path.suffix == ".zst":
            decompressor = zstandard.ZstdDecompressor()
            yield io.BufferedReader(decompressor.stream_reader(file, read_across_frames=True), CHUNK_BYTES)
        elif path.suffix == ".parquet":
            yield io.BufferedReader(_ParquetText(path), CHUNK_BYTES)
        else:
            yield file


class _ParquetText(io.RawIOBase):
    """The rows of a parquet file as JSON lines."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self._batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._rest:
            batch = next(self._batches, None)
            if batch is None:
                return 0
            self._rest = b"".join(json.dumps(row, default=str).encode() + b"\n" for row in batch.to_pylist())
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
