"""
Field mapping: which fields of a row are its text, its group and what is kept beside it.

    >>> field_of({"answer": {"text": "four"}}, "answer.text")
    'four'
    >>> Mapping(text=("question", "answer.text"), group="book").names
    ['question', 'answer.text', 'book']
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from utils.config.corpus_sources import FieldMapping
from utils.corpus.sources import RawBlock
from utils.pipeline.errors import ConfigError

CHECKED_ROWS = 1_000


@dataclass(frozen=True)
class Mapping:
    """
    Fields of a row, names or dotted paths: text (several are joined by a blank line), group ("" = none), and
    pairs (name in `meta`, field) of what is kept.
    """

    text: tuple[str, ...] = ("text",)
    group: str = ""
    meta: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> list[str]:
        """Every field that is mapped."""
        return [name for name in (*self.text, self.group, *(field for _, field in self.meta)) if name]


def mapping_of(fields: FieldMapping) -> Mapping:
    """Return the mapping that a config describes."""
    text = (fields.text,) if isinstance(fields.text, str) else tuple(fields.text)
    named = [(name, getattr(fields, name)) for name in ("id", "language", "url")]
    meta = [(name, field) for name, field in named if field] + [(field, field) for field in fields.keep]
    return Mapping(text, fields.group, tuple(meta))


def required_fields(fields: FieldMapping) -> dict[str, list[str]]:
    """Return config key -> fields that must occur in the source."""
    mapping = mapping_of(fields)
    required = {"text": list(mapping.text), "keep": list(fields.keep)}
    for key in ("group", "id", "language", "url"):
        if getattr(fields, key) and key not in fields.optional:
            required[key] = [getattr(fields, key)]
    return required


def field_of(row: dict, path: str) -> object:
    """Return the value at a dotted path, or None."""
    return row[path] if path in row else _follow(row, path)[0]


def has_field(row: dict, path: str) -> bool:
    """Whether the path leads to a value, be it null."""
    return path in row or _follow(row, path)[1]


def _follow(row: dict, path: str) -> tuple[object, bool]:
    value: object = row
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return None, False
        value = value[part]
    return value, True


def checked(blocks: Iterable[RawBlock], required: dict[str, list[str]]) -> Iterator[RawBlock]:
    """Pass blocks on once the first rows of the source turned out to have the mapped fields."""
    blocks, held, rows = iter(blocks), [], []
    for block in blocks:
        held.append(block)
        if block.kind == "json":
            rows += block.rows[: CHECKED_ROWS - len(rows)]
        if len(rows) >= CHECKED_ROWS:
            break
    if held:
        check_fields(held[0].source, rows, required)
    yield from held
    yield from blocks


def check_fields(source: str, lines: Sequence[bytes], required: dict[str, list[str]]) -> None:
    """
    ConfigError when a mapped field occurs in none of these rows, naming the fields that do.

    `required` maps a config key (text, group, ...) to the fields that it names.
    """
    rows = [row for row in map(_parsed, lines) if isinstance(row, dict)]
    found = sorted({name for row in rows for name in row})
    for key, names in required.items():
        for name in names:
            if rows and not any(has_field(row, name) for row in rows):
                raise ConfigError(
                    f'source "{source}": fields.{key} names "{name}", which occurs in none of '
                    f"the first {len(rows):,} rows; they have {', '.join(found)}",
                    fix=f"set fields.{key} in the config",
                )


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
