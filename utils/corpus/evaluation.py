"""
Evaluation sets: files -> the texts that no document may contain, without a row left out unseen.

    >>> for text in texts_of_set("exam", ["question", "choices"], files):
    ...     print(text)
"""

import json
from collections.abc import Iterator, Sequence

from utils.corpus.fields import field_of, has_field
from utils.corpus.readers import SourceFile
from utils.corpus.rows import Rejected, is_unicode, parse_row
from utils.corpus.sources import Cursor, Kind, ReadSettings, read_blocks
from utils.pipeline.errors import ConfigError, DataError


def texts_of_set(name: str, fields: Sequence[str], files: Sequence[SourceFile]) -> Iterator[str]:
    """
    Yield the texts of an evaluation set, file by file: those of txt and md files whole, of other rows the
    fields. DataError for a row that cannot be read, ConfigError for a field that no row has: either would
    leave texts out of what documents are compared with.
    """
    seen: set[str] = set()
    num_rows = 0
    for kind, row in _rows(files):
        if kind == "text":
            yield row["text"]
            continue
        num_rows += 1
        seen |= row.keys() | {field for field in fields if has_field(row, field)}
        yield from texts_of(row, fields)
    if num_rows and (missing := [field for field in fields if field not in seen]):
        raise ConfigError(
            f'evaluation set "{name}": fields names "{missing[0]}", which occurs in none of its {num_rows:,} '
            f"rows; they have {', '.join(sorted(seen))}",
            fix=f'set "fields" of decontaminate.against "{name}"',
        )


def texts_of(row: dict, fields: Sequence[str]) -> Iterator[str]:
    """Yield the texts in these fields of a row, lists of texts item by item; what is no text has none."""
    for field in fields:
        value = field_of(row, field)
        yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))


def _rows(files: Sequence[SourceFile]) -> Iterator[tuple[Kind, dict]]:
    for file in files:
        for block in read_blocks(file.name, [file], ReadSettings(), Cursor()):
            for number, line in enumerate(block.rows, block.first.row + 1):
                try:
                    yield block.kind, _readable(line)
                except Rejected as rejected:
                    raise DataError(
                        f"{file.name}: row {number:,} is {rejected.reason}, so its text cannot be looked for",
                        fix="repair or remove that row, then rerun to continue",
                    ) from None


def _readable(line: bytes) -> dict:
    row = parse_row(line)
    if not is_unicode(json.dumps(row, ensure_ascii=False)):
        raise Rejected("bad_utf8", "")
    return row
