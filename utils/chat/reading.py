"""
From the sources of a config to blocks of converted rows; how they are read is handed in.

    shape = RowShape(FORMATS, chat_format, "duplicate")
    formats = read_sources(stage, config.sources, row_lines, shape, admit)

`row_lines(stage, source)` gives the files of a source with their rows as JSON lines; `admit(items, source)`
takes blocks of rows.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from utils.chat.conversation import Reason
from utils.chat.formats import Format
from utils.chat.prepare import Item, RawRow, Reading, adapt_rows, first_of_each
from utils.config.chat_data import ChatSource
from utils.pipeline.stage import Stage

RowLines = Callable[[Stage, ChatSource], Iterable[tuple[str, Iterable[bytes]]]]
Admit = Callable[[list[Item], int], None]
BLOCK_ROWS = 1_000


@dataclass(frozen=True)
class RowShape:
    """
    The formats that "auto" may find, a format by its name, and the reason for which a repeated row is
    left out.
    """

    table: Mapping[str, Format]
    named: Callable[[str], Format]
    repeated: Reason


def read_sources(
    stage: Stage, sources: Sequence[ChatSource], row_lines: RowLines, shape: RowShape, admit: Admit
) -> dict[str, list[str]]:
    """Hand the rows of all sources to `admit` in blocks; the formats of each source's files, in order."""
    formats: dict[str, list[str]] = {source.name: [] for source in sources}
    seen: set[str] = set()
    for number, source in enumerate(sources):
        for reading, rows in read_source(stage, source, row_lines):
            name, items = adapt_rows(rows, reading, shape.table, shape.named)
            stage.log("reading", f"{reading.where} as {name}")
            formats[source.name].append(name)
            items = first_of_each(items, seen, shape.repeated)
            while block := list(islice(items, BLOCK_ROWS)):
                admit(block, number)
                stage.stop_point()
    return formats


def read_source(
    stage: Stage, source: ChatSource, row_lines: RowLines
) -> Iterator[tuple[Reading, Iterator[RawRow]]]:
    """Each file of a source with its rows, until `limit_rows` of the source have been read."""
    left = source.limit_rows or None
    for name, lines in row_lines(stage, source):
        if left == 0:
            return
        rows = _CountedRows(islice(raw_rows(lines), left))
        where = f"{source.name} ({name.rsplit('/', 1)[-1]})"
        yield Reading(source.name, where, source.format, source.fields, tuple(source.ignore_fields)), rows
        left = None if left is None else left - rows.count


class _CountedRows:
    """An iterator that knows how many rows it gave."""

    def __init__(self, rows: Iterator[RawRow]) -> None:
        self._rows, self.count = rows, 0

    def __iter__(self) -> "_CountedRows":
        return self

    def __next__(self) -> RawRow:
        row = next(self._rows)
        self.count += 1
        return row


def raw_rows(lines: Iterable[bytes]) -> Iterator[RawRow]:
    """Decode JSON lines; what is broken becomes a row with a reason."""
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeError as problem:
            yield RawRow(number, None, "bad_utf8", f"{problem.reason} at {problem.start}")
        except (ValueError, RecursionError) as problem:
            yield RawRow(number, None, "bad_json", str(problem))
        else:
            yield RawRow(number, value)
