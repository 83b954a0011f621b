"""
Sources: any supported file as blocks of raw rows, in an order that never changes.

A block holds consecutive rows of one source (until 2,000 rows or 8 MiB are reached; its edges depend on the
data alone) and knows where the next one starts, so reading goes on in the middle of a file after a kill. Rows
travel to the workers as JSON lines; what a row means is decided there (rows.py).

    >>> files = [SourceFile("data/raw/corpus/a.jsonl.gz", open_file)]
    >>> for block in read_blocks("books", files, ReadSettings(), start=Cursor()):
    ...     block.rows, block.next                           # list[bytes], Cursor
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from utils.corpus.readers import FORMATS, Place, SourceFile, format_of, rows_of

BLOCK_ROWS, BLOCK_BYTES = 2_000, 8 << 20
Kind = Literal["json", "text", "python"]
KINDS: dict[str, Kind] = {"txt": "text", "md": "text", "py": "python"} | {
    name: "json" for name in FORMATS if name not in ("txt", "md")
}


@dataclass(frozen=True)
class ReadSettings:
    """
    `columns`: top-level fields to read ([] = all). `split_on`: literal that cuts txt and md into documents.
    """

    columns: list[str] = field(default_factory=list)
    split_on: str = ""


@dataclass(frozen=True)
class Cursor:
    """
    The next row to read: number of the file in its source, of the row in the file, how to get there without
    reading what comes before (bytes, row groups, the state of a stream; None: row by row), and how many rows
    of the source come before it.
    """

    file: int = 0
    row: int = 0
    place: Place = None
    total: int = 0

    def to_json(self) -> dict:
        """The cursor as plain JSON, for the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> "Cursor":
        return cls(**value)


@dataclass(frozen=True)
class RawBlock:
    """
    Consecutive rows of one source. kind: `json` rows are JSON lines, `text` the same from txt, `python` whole
    files.
    """

    source: str
    kind: Kind
    first: Cursor
    next: Cursor
    rows: list[bytes]

    def __str__(self) -> str:
        return f"{self.source} rows {self.first.total:,}-{self.next.total - 1:,}"


class BlockCutter:
    """Collects rows and says when a block is full: after the row that reaches either limit."""

    def __init__(self, source: str, start: Cursor) -> None:
        self.source, self.first, self.next = source, start, start
        self.kind: Kind = "json"
        self.rows: list[bytes] = []
        self.bytes = 0

    def add(self, row: bytes, after: Cursor) -> bool:
        """Take a row, behind which reading goes on at `after`; whether the block is full with it."""
        self.rows.append(row)
        self.bytes += len(row)
        self.next = after
        return len(self.rows) >= BLOCK_ROWS or self.bytes >= BLOCK_BYTES

    def cut(self) -> RawBlock:
        """Return what was collected and start anew behind it."""
        block = RawBlock(self.source, self.kind, self.first, self.next, self.rows)
        self.first, self.rows, self.bytes = self.next, [], 0
        return block


def read_blocks(
    source: str, files: list[SourceFile], settings: ReadSettings, start: Cursor
) -> Iterator[RawBlock]:
    """Yield the blocks of a source from `start` on."""
    cutter = BlockCutter(source, start)
    at = start
    for number in range(start.file, len(files)):
        kind = KINDS[format_of(files[number].name)[0]]
        if cutter.rows and kind != cutter.kind:
            yield cutter.cut()
        cutter.kind = kind
        if number != at.file:
            at = Cursor(number, total=at.total)
        for row, place in rows_of(files[number], settings.columns, settings.split_on, at.row, at.place):
            at = Cursor(number, at.row + 1, place, at.total + 1)
            if cutter.add(row, at):
                yield cutter.cut()
    if cutter.rows:
        yield cutter.cut()
