"""
Raw text files as records: where one begins, what it says, from any record on.

A record is never cut: a line of .jsonl, the text between two separators of .txt, a row of .parquet. Files are
read piece by piece, so they may be larger than memory; places are bytes, in .parquet numbers of rows.

    >>> file = raw_file(Path("stories.txt"), "text", split_on="\\n\\n", chunk_bytes=1 << 20)
    >>> file.boundary(file.size // 2)              # where the first record of the second half begins
    >>> for record in file.records(0, file.size): record.start, record.end, record.text
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from utils.pipeline.errors import ConfigError, DataError, UpstreamError

FORMATS = (".txt", ".jsonl", ".parquet")
ROWS_AT_ONCE = 256
MOST_FIELDS = 12  # named in a message
REPAIR = "repair or replace the file, or prepare and pack it (stages 20 and 40)"
_BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """A text and its place: where it begins, where the next one does."""

    start: int
    end: int
    text: str


class RawFile(Protocol):
    """A file of records; `size` is where the last one ends."""

    path: Path
    size: int

    def boundary(self, at: int) -> int:
        """Where the first record begins that does not begin before `at`; `size` when there is none."""

    def records(self, start: int, end: int) -> Iterator[Record]:
        """The records between two places that both begin one, those without text left out."""


def raw_file(path: Path, text_field: str, split_on: str, chunk_bytes: int) -> RawFile:
    """
    Open a file by its suffix. ConfigError for a kind that cannot be read from the middle, and for a field
    that its first record does not have.
    """
    if path.suffix == ".txt":
        return SeparatedFile(path, split_on.encode(), _plain, chunk_bytes)
    if path.suffix == ".jsonl":
        _check_field(path, text_field)
        return SeparatedFile(path, b"\n", lambda line: _text_of(json.loads(line), text_field), chunk_bytes)
    if path.suffix == ".parquet":
        return ParquetRows(path, text_field)
    raise ConfigError(
        f"{path.name}: raw input is {', '.join(FORMATS)}, not compressed",
        fix="unpack the file, or prepare and pack it (stages 20 and 40)",
    )


def _check_field(path: Path, text_field: str) -> None:
    with open(path, "rb") as file:
        first = next((line for line in file if line.strip(_BOM).strip()), b"{}")
    try:
        row = json.loads(first.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return  # what is no JSON is told with its place, once it is read
    if isinstance(row, dict) and row and text_field not in row:
        raise _no_field(path, text_field, list(row))


def _no_field(path: Path, text_field: str, found: list[str]) -> ConfigError:
    named = ", ".join(found[:MOST_FIELDS]) + (", ..." if len(found) > MOST_FIELDS else "")
    return ConfigError(
        f'{path} has no field "{text_field}"; it has {named}', fix='name the one with its text in "field"'
    )


class Watch:
    """What a file was when the run began."""

    def __init__(self, path: Path) -> None:
        self.path, self._seen = path, _status(path)

    @property
    def size(self) -> int:
        return self._seen[0]

    def check(self) -> None:
        """UpstreamError when the file is another one now."""
        if _status(self.path) != self._seen:
            raise UpstreamError(
                f"{self.path.name} changed while it was being read",
                fix="put the file back and rerun, or start again with --resume never",
            )


def _status(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


class SeparatedFile:
    """Records between separators; `read` turns the bytes of one into its text."""

    def __init__(self, path: Path, separator: bytes, read: Callable[[bytes], str], chunk_bytes: int) -> None:
        self.path, self._separator, self._read, self._chunk = path, separator, read, chunk_bytes
        self._watch = Watch(path)
        self.size = self._watch.size

    def boundary(self, at: int) -> int:
        """
        Only a separator that no other one overlaps counts (of three newlines in a row the first two), so that
        the place does not depend on where the search began.
        """
        if at <= 0:
            return 0
        length, data = len(self._separator), b""
        begin = max(0, at - 2 * length + 1)
        with open(self.path, "rb") as file:
            file.seek(begin)
            while piece := file.read(max(self._chunk, len(data))):
                data += piece
                found = _clear(data, self._separator, max(0, at - length - begin))
                if found >= 0:
                    return begin + found + length
        return self.size

    def records(self, start: int, end: int) -> Iterator[Record]:
        with open(self.path, "rb") as file:
            file.seek(start)
            rest = b""
            while start + len(rest) < end:
                self._watch.check()
                # a long record doubles the piece, so that finding its end takes time in proportion to it
                rest += file.read(min(max(self._chunk, len(rest)), end - start - len(rest)))
                is_last, taken = start + len(rest) >= end, 0
                while (cut := rest.find(self._separator, taken)) >= 0:
                    following = cut + len(self._separator)
                    yield from self._record(start + taken, start + following, rest[taken:cut])
                    taken = following
                if is_last:
                    yield from self._record(start + taken, end, rest[taken:])
                start, rest = start + taken, rest[taken:]

    def _record(self, start: int, end: int, data: bytes) -> Iterator[Record]:
        data = data.removeprefix(_BOM) if start == 0 else data
        if not data.strip():
            return
        try:
            text = self._read(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path.name}: the record at byte {start:,}: {error}", fix=REPAIR) from None
        if text.strip():
            yield Record(start, end, text)


def _clear(data: bytes, separator: bytes, begin: int) -> int:
    """Where the first separator from `begin` on lies that no earlier one overlaps, or -1."""
    found = data.find(separator, begin)
    while found >= 0:
        before = max(0, found - len(separator) + 1)
        if data.find(separator, before, found - 1 + len(separator)) < 0:
            return found
        found = data.find(separator, found + 1)
    return -1


class ParquetRows:
    """The rows of a parquet file; a place is the number of a row."""

    def __init__(self, path: Path, text_field: str) -> None:
        import pyarrow.parquet

        self.path, self._field, self._watch = path, text_field, Watch(path)
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path.name}: not a readable parquet file: {error}", fix=REPAIR) from None
        if text_field not in self._file.schema_arrow.names:
            raise _no_field(path, text_field, self._file.schema_arrow.names)
        self.size = self._file.metadata.num_rows

    def boundary(self, at: int) -> int:
        return min(max(at, 0), self.size)

    def records(self, start: int, end: int) -> Iterator[Record]:
        first = 0
        for group in range(self._file.num_row_groups):
            after = first + self._file.metadata.row_group(group).num_rows
            if start < after and first < end:
                for number, text in self._texts(group, first):
                    if start <= number < end and self._said(number, text).strip():
                        yield Record(number, number + 1, text)
            first = after

    def _said(self, number: int, text: object) -> str:
        if not isinstance(text, str):
            raise DataError(f'{self.path.name}: row {number:,} has no text in "{self._field}"', fix=REPAIR)
        return text

    def _texts(self, group: int, row: int) -> Iterator[tuple[int, object]]:
        import pyarrow

        options = {"row_groups": [group], "columns": [self._field], "use_threads": False}
        try:
            for batch in self._file.iter_batches(ROWS_AT_ONCE, **options):
                self._watch.check()
                yield from enumerate(batch.column(0).to_pylist(), row)
                row += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path.name}: row group {group}: {error}", fix=REPAIR) from None


def _plain(data: bytes) -> str:
    return data.decode("utf-8")


def _text_of(row: object, text_field: str) -> str:
    """The text of a row. ValueError when it has none."""
    if not isinstance(row, dict) or not isinstance(text := row.get(text_field), str):
        raise ValueError(f'has no text in "{text_field}"')
    return text
