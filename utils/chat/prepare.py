"""
From raw rows to kept and rejected ones: the counting that stages 60 and 80 share.

Every row read ends up in one place, kept in a split or rejected with a reason; the numbers are asserted.

    name, items = adapt_rows(rows, reading, FORMATS, chat_format)     # Item(line, Conversation or Rejection)
    tally = Tally(max_rejected_fraction=0.05)
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from utils.chat.conversation import Conversation, Rejection
from utils.chat.formats import (
    PROBE_ROWS,
    Format,
    check_paths,
    check_unused,
    detect_format,
    map_fields,
    unused_text,
)
from utils.chat.pairs import Pair
from utils.pipeline.errors import DataError

EXCERPT_CHARACTERS = 200
NOT_A_DEFECT = {"duplicate", "duplicate_pair"}


@dataclass(frozen=True)
class RawRow:
    """A row as the reader found it: an object, or the reason why there is none."""

    line: int
    value: Any
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Reading:
    """How the rows of one file are understood."""

    source: str
    where: str
    format: str
    fields: Mapping[str, str]
    ignore_fields: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One row after its adapter."""

    source: str
    line: int
    result: Conversation | Pair | Rejection
    raw: Any

    def rejected_row(self, rejection: Rejection) -> dict:
        text = (
            self.raw
            if isinstance(self.raw, str)
            else json.dumps(self.raw, ensure_ascii=False, sort_keys=True)
        )
        return {
            "source": self.source,
            "line": self.line,
            "reason": rejection.reason,
            "detail": rejection.detail,
            "excerpt": text[:EXCERPT_CHARACTERS],
        }


def adapt_rows(
    rows: Iterable[RawRow], reading: Reading, table: Mapping[str, Format], named: Callable[[str], Format]
) -> tuple[str, Iterator[Item]]:
    """
    The format of a file (found, if it is "auto") and its rows, converted one by one.

    ConfigError if no format fits, a mapped field is nowhere, or text would be lost.
    """
    rows = iter(rows)
    head = list(islice(rows, PROBE_ROWS))
    objects = [row.value for row in head if isinstance(row.value, Mapping)]
    check_paths(objects, reading.fields, reading.where)
    objects = [map_fields(value, reading.fields) for value in objects]
    name = detect_format(objects, table, reading.where) if reading.format == "auto" else reading.format
    fmt = named(name)
    check_unused(objects, fmt.uses, reading.ignore_fields, reading.where)
    return name, (_adapt(row, reading, fmt) for row in chain(head, rows))


def _adapt(row: RawRow, reading: Reading, fmt: Format) -> Item:
    result = Rejection(row.reason, row.detail) if row.reason else _convert(row.value, reading, fmt)  # type: ignore[arg-type]
    if not isinstance(result, Rejection):
        original = row.value.get("id", "")
        result = result.with_meta(
            source=reading.source, **({"original_id": str(original)} if original != "" else {})
        )
    return Item(reading.source, row.line, result, row.value if row.value is not None else row.detail)


def _convert(value: Any, reading: Reading, fmt: Format) -> Conversation | Pair | Rejection:
    if not isinstance(value, Mapping):
        return Rejection("schema", f"the row is {type(value).__name__}, not an object")
    value = map_fields(value, reading.fields)
    if unused := unused_text(value, fmt.uses, reading.ignore_fields):
        return Rejection("schema", f"text in {', '.join(unused)} would be lost")
    if not fmt.recognises(value):
        return Rejection("missing_field", f"fields: {', '.join(sorted(value))}")
    return fmt.convert(value)


@dataclass
class Tally:
    """What happened to the rows; `check` fails the stage when too many were defective."""

    max_rejected_fraction: float
    read: Counter = field(default_factory=Counter)
    kept: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)
    """(source, reason) -> rows"""

    @property
    def reasons(self) -> dict[str, int]:
        counts: Counter = Counter()
        for (_, reason), count in self.rejected.items():
            counts[reason] += count
        return dict(counts.most_common())

    def by_source(self) -> dict[str, dict]:
        return {
            source: {
                "read": count,
                "kept": self.kept[source],
                "rejected": {
                    reason: n for (name, reason), n in sorted(self.rejected.items()) if name == source
                },
            }
            for source, count in self.read.items()
        }

    def check(self) -> None:
        """DataError naming the three commonest reasons if the rejected share is above the limit."""
        read, defective = (
            sum(self.read.values()),
            {r: n for r, n in self.reasons.items() if r not in NOT_A_DEFECT},
        )
        assert read == sum(self.kept.values()) + sum(self.rejected.values())
        if not read:
            raise DataError("no rows were read", fix="check the sources of the config")
        if sum(defective.values()) > self.max_rejected_fraction * read:
            top = ", ".join(f"{reason} {count:,}" for reason, count in list(defective.items())[:3])
            share = sum(defective.values()) / read
            raise DataError(
                f"{share:.1%} of {read:,} rows were rejected, "
                f"at most {self.max_rejected_fraction:.1%} may be: {top}",
                fix="see rejected.jsonl.zst in the unfinished build, or raise max_rejected_fraction",
            )


def first_of_each(items: Iterable[Item], seen: set[str], reason: str) -> Iterator[Item]:
    """The items, with a repeated content turned into a rejection; `seen` holds the ids so far."""
    for item in items:
        if not isinstance(item.result, Rejection):
            if item.result.id in seen:
                item = Item(
                    item.source, item.line, Rejection(reason, "same content as an earlier row"), item.raw
                )  # type: ignore[arg-type]
            else:
                seen.add(item.result.id)
        yield item
