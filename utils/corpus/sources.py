"""
Sources: any supported file as blocks of raw rows, in an order that never changes.

A block holds consecutive rows of one file (at most 2,000 or 8 MiB; its edges depend on the data alone) and
knows where the next one starts, so reading goes on in the middle of a file after a kill. Rows travel to the
workers as JSON lines; what a row means is decided there (blocks.py).

    >>> files = [SourceFile("data/raw/corpus/a.jsonl.gz", open_file)]
    >>> for block in read_blocks("books", files, ReadSettings(), start=Cursor(file=0, row=0)):
    ...     block.rows, block.next                           # list[bytes], Cursor
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO

import zstandard

from utils.pipeline.errors import ConfigError, DataError

FORMATS = ("jsonl", "json", "csv", "parquet", "txt", "md")
CODECS = ("gz", "zst")
SUPPORTED = "jsonl, json, csv, parquet, txt, md; plain, .gz or .zst"
BLOCK_ROWS, BLOCK_BYTES, MAX_JSON_BYTES = 2_000, 8 << 20, 512 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SourceFile:
    """A file to read: its name for messages, and how to open it for one sequential read."""

    name: str
    open: Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True)
class ReadSettings:
    """
    `columns`: top-level fields to read ([] = all). `split_on`: literal that cuts txt and md into documents.
    """

    columns: list[str] = field(default_factory=list)
    split_on: str = ""


@dataclass(frozen=True)
class Cursor:
    """The next row to read: number of the file in its source, number of the row in the file."""

    file: int = 0
    row: int = 0


@dataclass(frozen=True)
class RawBlock:
    """
    Consecutive rows of one file. kind: `json` rows are JSON lines, `text` the same from txt, `python` whole
    files.
    """

    source: str
    kind: str
    first: Cursor
    rows: list[bytes]

    @property
    def next(self) -> Cursor:
        return Cursor(self.first.file, self.first.row + len(self.rows))

    def __str__(self) -> str:
        return f"{self.source} file {self.first.file}, rows {self.first.row:,}-{self.next.row - 1:,}"


def read_blocks(
    source: str, files: list[SourceFile], settings: ReadSettings, start: Cursor
) -> Iterator[RawBlock]:
    """Yield the blocks of a source from `start` on."""
    for number in range(start.file, len(files)):
        skip = start.row if number == start.file else 0
        kind, rows = _rows(files[number], settings)
        yield from _blocks(source, kind, Cursor(number, 0), rows, skip)


def _blocks(source: str, kind: str, first: Cursor, rows: Iterator[bytes], skip: int) -> Iterator[RawBlock]:
    for _ in range(skip):
        next(rows, None)
    at, block, size = skip, [], 0
    for row in rows:
        if block and (len(block) == BLOCK_ROWS or size + len(row) > BLOCK_BYTES):
            yield RawBlock(source, kind, Cursor(first.file, at), block)
            at, block, size = at + len(block), [], 0
        block.append(row)
        size += len(row)
    if block:
        yield RawBlock(source, kind, Cursor(first.file, at), block)


def format_of(name: str) -> tuple[str, str]:
    """Return (format, codec) of a file name; ConfigError for a suffix that no reader knows."""
    parts = name.lower().rsplit("/", 1)[-1].split(".")[1:]
    codec = parts.pop() if parts and parts[-1] in CODECS else ""
    if parts and (parts[-1] in FORMATS or parts[-1] == "py"):
        return parts[-1], codec
    raise ConfigError(
        f"{name}: unknown kind of file", fix=f"supported are {SUPPORTED}; move other files away"
    )


def _rows(file: SourceFile, settings: ReadSettings) -> tuple[str, Iterator[bytes]]:
    form, codec = format_of(file.name)
    kinds = {"txt": "text", "md": "text", "py": "python"}
    return kinds.get(form, "json"), _guarded(file, _READERS[form], codec, settings)


def _guarded(file: SourceFile, reader: Callable, codec: str, settings: ReadSettings) -> Iterator[bytes]:
    """Open, decompress and read a file; damage becomes one DataError that names it."""
    try:
        with file.open() as raw, _decompressed(raw, codec) as stream:
            yield from reader(stream, settings)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{file.name} is damaged: {error}", fix="replace the file, then rerun to continue"
        ) from None
    except (csv.Error, ValueError) as error:
        raise DataError(
            f"{file.name}: {error}", fix="repair or remove the file, then rerun to continue"
        ) from None


def _decompressed(raw: BinaryIO, codec: str) -> BinaryIO:
    if codec == "gz":
        return gzip.GzipFile(fileobj=raw)
    if codec == "zst":
        stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
        return io.BufferedReader(stream, 1 << 20)
    return io.BufferedReader(raw, 1 << 20)


def _read_jsonl(stream: BinaryIO, settings: ReadSettings) -> Iterator[bytes]:
    """Non-blank lines; whether they are JSON is the worker's business."""
    for number, line in enumerate(stream):
        line = line.removeprefix(_BOM).strip() if number == 0 else line.strip()
        if line:
            yield line


def _read_json(stream: BinaryIO, settings: ReadSettings) -> Iterator[bytes]:
    data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError("more than 512 MiB in one JSON value: convert it to jsonl")
    document = json.loads(data.decode("utf-8-sig"))
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise ValueError('a .json file must hold a list of rows, or {"data": [...]}')
    for row in rows:
        yield json.dumps(row).encode()


def _read_csv(stream: BinaryIO, settings: ReadSettings) -> Iterator[bytes]:
    # surrogates stand for bytes that are not UTF-8, so that the worker counts such a row as bad_utf8
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    limit = csv.field_size_limit(1 << 30)
    try:
        for row in csv.DictReader(text, strict=True):
            yield json.dumps({name: value for name, value in row.items() if name is not None}).encode()
    finally:
        csv.field_size_limit(limit)


def _read_parquet(stream: BinaryIO, settings: ReadSettings) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(stream.read()))
        columns = [
            name for name in parquet.schema_arrow.names if not settings.columns or name in settings.columns
        ]
        for group in range(parquet.num_row_groups):
            for row in parquet.read_row_group(group, columns=columns).to_pylist():
                yield json.dumps(row, default=str).encode()
    except pyarrow.ArrowException as error:
        raise ValueError(f"not a readable parquet file: {error}") from None


def _read_text(stream: BinaryIO, settings: ReadSettings) -> Iterator[bytes]:
    text = stream.read().removeprefix(_BOM).decode("utf-8", "surrogateescape")
    for document in text.split(settings.split_on) if settings.split_on else [text]:
        yield json.dumps({"text": document}).encode()


def _read_python(stream: BinaryIO, settings: ReadSettings) -> Iterator[bytes]:
    yield stream.read()


_READERS = {
    "jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet,
    "txt": _read_text, "md": _read_text, "py": _read_python,
}  # fmt: skip


def check_fields(block: RawBlock, mapped: dict[str, list[str]]) -> None:
    """
    ConfigError when a mapped field occurs in none of the first rows of a source, naming the fields that do.

    `mapped` maps a config key (text, group, id) to the fields that it names.
    """
    rows = []
    for line in block.rows[:1_000]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    rows = [row for row in rows if isinstance(row, dict)]
    found = sorted({name for row in rows for name in row})
    for key, names in mapped.items():
        for name in names:
            if rows and not any(_has(row, name) for row in rows):
                raise ConfigError(
                    f'source "{block.source}": fields.{key} names "{name}", which occurs in none of '
                    f"the first {len(rows):,} rows; they have {', '.join(found)}",
                    fix=f"set fields.{key} in the config",
                )


def _has(row: dict, path: str) -> bool:
    return field_of(row, path) is not None


def field_of(row: dict, path: str) -> object:
    """Return the value at a dotted path, or None."""
    if path in row:
        return row[path]
    value: object = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
