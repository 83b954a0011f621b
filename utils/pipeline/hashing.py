"""
Digests: one canonical form of JSON, one way to hash files, one reader that proves what it handed out.

Two programs that agree on this file agree on every number in every manifest, so it holds no policy at all.

    digest("output", [["a.txt", 3, "ba78..."]])
    hash_files([Path("train.bin")])[Path("train.bin")].sha256
"""

import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import local
from typing import BinaryIO, TypeVar

from utils.pipeline.errors import UpstreamError
from utils.pipeline.guards import GUARDS

T = TypeVar("T")
REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
BUFFER_BYTES = 1 << 20
QUIET_SECONDS = 2.0  # a write inside the clock's granularity must not hide behind an unchanged mtime


def canonical_json(value: object) -> bytes:
    """
    ASCII bytes of the one JSON form that digests are taken over (P1). TypeError for what JSON cannot say.
    """
    plain = _plain(value)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, str)) and not isinstance(value, Enum):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return value + 0.0  # -0.0 + 0.0 is 0.0
    if isinstance(value, Path):
        return _plain_path(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            raise TypeError("an object key that is not a string has no canonical form")
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no canonical form")


def _plain_path(path: Path) -> str:
    if path.is_absolute() and path.is_relative_to(REPOSITORY_ROOT):
        path = path.relative_to(REPOSITORY_ROOT)
    return path.as_posix()


def digest(tag: str, value: object) -> str:
    """Hex SHA-256 of `value` in the domain `tag`, so that equal bytes in two roles never collide (P2)."""
    return hashlib.sha256(b"lockstep:" + tag.encode("ascii") + b"\n" + canonical_json(value)).hexdigest()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unit_hash(tag: str, seed: int, text: str) -> int:
    """
    A 64-bit number that depends on nothing but its arguments (D22): splits and orders are drawn with it.
    """
    data = f"lockstep:{tag}\n{seed}\n{text}".encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and hex SHA-256 of one file."""

    bytes: int
    sha256: str


_buffers = local()


def _hash_file(path: Path) -> FileDigest:
    if not hasattr(_buffers, "view"):
        _buffers.view = memoryview(bytearray(BUFFER_BYTES))
    sha, size, view = hashlib.sha256(), 0, _buffers.view
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(view):
            sha.update(view[:count])
            size += count
    return FileDigest(size, sha.hexdigest())


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hash_files(paths: Iterable[Path], cache: "DigestCache | None" = None) -> dict[Path, FileDigest]:
    """
    Hash many files, largest first, one per thread and one thread per core (P38).

    With `cache`, a file whose stat has not changed since it was hashed is not read again. OSError passes
    through.
    """
    sizes = {path: path.stat().st_size for path in paths}
    known = cache.known(sizes) if cache else {}
    todo = sorted((path for path in sizes if path not in known), key=lambda path: -sizes[path])
    with ThreadPoolExecutor(max_workers=max(1, min(usable_cores(), len(todo)))) as pool:
        fresh = dict(zip(todo, pool.map(_hash_file, todo), strict=True))
    if cache:
        cache.remember(fresh)
    return known | fresh


class DigestCache:
    """
    What files hashed to when their stat was last seen (P39), in one SQLite file.

    Never the last word: deleting or damaging it costs time only, so every database error rebuilds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self, paths: Iterable[Path]) -> dict[Path, FileDigest]:
        """The digests that still hold for `paths`."""
        return self._rebuilding(lambda: self._known(paths))

    def _known(self, paths: Iterable[Path]) -> dict[Path, FileDigest]:
        found = {}
        with self._connect() as rows:
            for path in paths:
                row = rows.execute(
                    "SELECT stat, bytes, sha256 FROM digests WHERE path = ?", [str(path.resolve())]
                )
                match row.fetchone():
                    case (stat, size, sha256) if stat == _stat_text(path):
                        found[path] = FileDigest(size, sha256)
        return found

    def remember(self, digests: Mapping[Path, FileDigest]) -> None:
        """Keep `digests` of files that had been quiet for two seconds when they were hashed."""
        self._rebuilding(lambda: self._remember(digests))

    def _remember(self, digests: Mapping[Path, FileDigest]) -> None:
        now = time.time()
        with self._connect() as rows:
            for path, found in digests.items():
                stat = path.stat()
                if now - max(stat.st_mtime, stat.st_ctime) < QUIET_SECONDS:
                    continue
                row = [str(path.resolve()), _stat_text(path), found.bytes, found.sha256]
                rows.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", row)

    def _rebuilding(self, attempt: Callable[[], T]) -> T:
        """`attempt`, a second time over an empty cache when the file turns out to be damaged."""
        try:
            return attempt()
        except sqlite3.DatabaseError:
            print(f"the digest cache {self.path.name} was damaged and is rebuilt")
            for leftover in self.path.parent.glob(self.path.name + "*"):
                leftover.unlink()
            return attempt()

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = self._open()
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            columns = "path TEXT PRIMARY KEY, stat TEXT, bytes INTEGER, sha256 TEXT"
            connection.execute(f"CREATE TABLE IF NOT EXISTS digests ({columns})")
            connection.execute("SELECT path, stat, bytes, sha256 FROM digests LIMIT 1").fetchone()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection


def _stat_text(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} {stat.st_dev}"


class _VerifiedFile:
    """A binary file that hashes every byte it hands out, in order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha.update(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        count = self._file.readinto(buffer)
        self.sha.update(memoryview(buffer)[:count])
        return count

    def readline(self, size: int = -1) -> bytes:
        line = self._file.readline(size)
        self.sha.update(line)
        return line

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def drain(self) -> None:
        while self.read(BUFFER_BYTES):
            pass

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Nothing: a wrapper that is done must not keep `open_verified` from reading the rest."""

    def flush(self) -> None:
        pass


@contextmanager
def open_verified(path: Path, sha256: str) -> Iterator[BinaryIO]:
    """
    Open `path` for one sequential read; on leaving, what was read must hash to `sha256` (P22).

    Catches an edit that was made and undone while the file was read. UpstreamError if the digests differ.
    """
    with open(path, "rb") as raw:
        file = _VerifiedFile(raw)
        yield file
        file.drain()
        actual = file.sha.hexdigest()
    if not GUARDS["G23"](sha256, actual):
        raise UpstreamError(
            f"tampered ({path.name}: bytes read do not match, expected {sha256[:12]}, actual {actual[:12]})",
            fix="restore the file or rebuild the artifact that holds it, then rerun",
            verdict="tampered",
            component=path.name,
        )
