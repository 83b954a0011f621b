"""
Readers: a file of any supported format and compression as JSON rows, from any row on.

Every reader yields (row, place), where `place` says how to go on behind that row without reading what comes
before it: a byte offset in a plain jsonl file, row group and row in a parquet file, None where rows must be
counted again. Damage of any kind is one DataError that names the file.

    >>> for row, place in rows_of(SourceFile("a.jsonl", partial(open, "a.jsonl", "rb"))):
    ...     json.loads(row), place
"""

import csv
import gzip
import io
import json
import math
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import zstandard

from utils.config.corpus_sources import SUPPORTED
from utils.pipeline.errors import ConfigError, DataError
from utils.pipeline.zstd_stream import ZstdStream

FORMATS = ("jsonl", "json", "csv", "parquet", "txt", "md")
CODECS = ("gz", "zst")
MAX_JSON_BYTES = 512 << 20
SURPLUS = b"more fields than the header: "  # how a csv row that has them reaches the worker
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20

Place = int | list | dict | None
Rows = Iterator[tuple[bytes, Place]]


@dataclass(frozen=True)
class SourceFile:
    """
    A file to read: its name for messages, how to open it for one sequential read, and where it lies, for the
    one format that is not read from front to back.
    """

    name: str
    open: Callable[[], AbstractContextManager[BinaryIO]]
    path: Path | None = None


@dataclass
class _Request:
    """What a reader is asked for: rows of `stream` from `place` on, or from the start."""

    stream: BinaryIO
    plain: bool
    columns: Sequence[str] = ()
    split_on: str = ""
    place: Place = None
    path: Path | None = None


def format_of(name: str) -> tuple[str, str]:
    """Return (format, codec) of a file name; ConfigError for a suffix that no reader knows."""
    parts = name.lower().rsplit("/", 1)[-1].split(".")[1:]
    codec = parts.pop() if parts and parts[-1] in CODECS else ""
    if parts and (parts[-1] in FORMATS or parts[-1] == "py"):
        return parts[-1], codec
    raise ConfigError(
        f"{name}: unknown kind of file", fix=f"supported are {SUPPORTED}; move other files away"
    )


def rows_of(
    file: SourceFile, columns: Sequence[str] = (), split_on: str = "", row: int = 0, place: Place = None
) -> Rows:
    """
    Yield the rows of a file from number `row` on, which lies at `place` (None: rows are counted). DataError
    for damage.
    """
    form, codec = format_of(file.name)
    try:
        if codec and file.path and not file.path.stat().st_size:
            raise EOFError("it has no bytes, not even those of an empty archive")
        with file.open() as raw, _decompressed(raw, codec) as stream:
            path = None if codec else file.path
            rows = _READERS[form](_Request(stream, not codec, columns, split_on, place, path))
            yield from islice(rows, row if place is None else 0, None)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{file.name} is damaged: {error}", fix="replace the file, then rerun to continue"
        ) from None
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(
            f"{file.name}: {error}", fix="repair or remove the file, then rerun to continue"
        ) from None


def _decompressed(raw: BinaryIO, codec: str) -> BinaryIO:
    if codec == "gz":
        return gzip.GzipFile(fileobj=raw)
    return io.BufferedReader(ZstdStream(raw) if codec == "zst" else raw, _CHUNK)


def _read_jsonl(request: _Request) -> Rows:
    """Non-blank lines; whether they are JSON is the worker's business."""
    start = request.place if isinstance(request.place, int) else 0
    _skip_bytes(request.stream, start)
    end = start
    for line in request.stream:
        end += len(line)
        line = (line.removeprefix(_BOM) if end == len(line) else line).strip()
        if line:
            yield line, end if request.plain else None


def _skip_bytes(stream: BinaryIO, count: int) -> None:
    """Read on to a byte; bytes that are skipped are hashed like all others by a verified reader."""
    while count and (data := stream.read(min(count, _CHUNK))):
        count -= len(data)


def _read_json(request: _Request) -> Rows:
    data = request.stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES >> 20} MiB in one JSON value: convert it to jsonl")
    if not data.removeprefix(_BOM).strip():
        return
    document = json.loads(data.decode("utf-8-sig"))
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise ValueError('a .json file must hold a list of rows, or {"data": [...]}')
    for row in rows:
        yield as_json(row), None


def _read_csv(request: _Request) -> Rows:
    # surrogates stand for bytes that are not UTF-8, so that the worker counts such a row as bad_utf8
    text = io.TextIOWrapper(request.stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(sys.maxsize)  # the library's default of 128 KiB is shorter than a chapter
    for row in csv.DictReader(text, strict=True):
        surplus = row.pop(None, None)
        yield SURPLUS + as_json([*row.values(), *surplus]) if surplus else as_json(row), None


def _read_parquet(request: _Request) -> Rows:
    import pyarrow
    import pyarrow.parquet

    group_from, row_from = request.place if isinstance(request.place, list) else (0, 0)
    with ExitStack() as stack:
        place = request.path or stack.enter_context(_seekable(request.stream))
        try:
            file = pyarrow.parquet.ParquetFile(place)
            names = [n for n in file.schema_arrow.names if not request.columns or n in request.columns]
            for group in range(group_from, file.num_row_groups):
                rows = _rows_of_group(file, group, names)
                skipped = row_from if group == group_from else 0
                for number, row in enumerate(islice(rows, skipped, None), skipped + 1):
                    yield as_json(row), [group, number]
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"not a readable parquet file: {' '.join(str(error).split())}") from None


def _rows_of_group(file: object, group: int, names: list[str]) -> Iterator[dict]:
    """One row group at a time, a part of it in Python at once; without columns the rows are empty."""
    if not names:
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    for batch in file.iter_batches(1_024, row_groups=[group], columns=names, use_threads=False):
        yield from batch.to_pylist()


def _seekable(stream: BinaryIO) -> BinaryIO:
    """
    A compressed parquet file has its contents list at the end: unpacked to disk, it can be read in parts.
    """
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115
    while data := stream.read(_CHUNK):
        unpacked.write(data)
    unpacked.seek(0)
    return unpacked


def _read_text(request: _Request) -> Rows:
    text = request.stream.read().removeprefix(_BOM).decode("utf-8", "surrogateescape")
    for document in text.split(request.split_on) if request.split_on else [text]:
        yield as_json({"text": document}), None


def _read_python(request: _Request) -> Rows:
    yield request.stream.read(), None


def as_json(row: object) -> bytes:
    """Return a row as one JSON line; numbers that JSON does not have become null, other types their text."""
    try:
        return json.dumps(row, default=str, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(row), default=str).encode()


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_READERS: dict[str, Callable[[_Request], Rows]] = {
    "jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet,
    "txt": _read_text, "md": _read_text, "py": _read_python,
}  # fmt: skip
