r"""
JSON values out of what models write around, into and instead of JSON.

Every `[` and `{` is tried as the start of a value, those that open a code fence first: strictly, then with a
reader that takes comments, other quotation marks, missing commas and an end in the middle. Both read in
linear time, and all failed starts together under a bound, so that no reply can stall a run. `json_repair`
takes seconds for two kilobytes of brackets, so it is asked last, and only about a short reply that is nothing
but one simple value.

    >>> list(json_values("Sure [1]: ['a', 'b',] // done"))
    [[1], ['a', 'b']]
"""

import json
import re
from collections.abc import Iterator

import json_repair

from utils.generate.loose_reader import BrokenError, LooseReader

_START = re.compile(r"[\[{]")
_FENCED_START = re.compile(r"```[a-zA-Z0-9]*+\s*+[\[{]")
_ONLY_A_VALUE = re.compile(r"\s*+(?:```[a-zA-Z0-9]*+\s*+)?+([\[{].*[\]}])(?:\s*+```)?+\s*+", re.DOTALL)
_MOST_WORK_CHARACTERS = 500_000
"""What starts that lead nowhere may cost together, in characters read; after that the rest is left alone."""
_START_COST_CHARACTERS = 50
_MOST_REPAIRED_CHARACTERS = 1000
_MOST_REPAIRED_BRACKETS = 12
_STRICT = json.JSONDecoder(strict=False)


def json_values(text: str) -> Iterator[list | dict]:
    """Lists and dicts in the order in which to believe them; none that lies in a complete earlier one."""
    ends: dict[int, int] = {}
    work = 0
    for pattern in (_FENCED_START, _START):
        reached = 0
        for found in pattern.finditer(text):
            start = found.end() - 1
            if start >= reached and start not in ends and work <= _MOST_WORK_CHARACTERS:
                value, ends[start], cost = _read(text, start)
                work += cost
                if value:
                    yield value
            reached = max(reached, ends.get(start, 0))
    yield from _repaired(text, ends)


def _read(text: str, start: int) -> tuple[list | dict | None, int, int]:
    """A value, where it ends (its start when it is not complete), and what it cost."""
    try:
        return *_STRICT.raw_decode(text, start), 0
    except json.JSONDecodeError as error:
        strict, lines = error.pos - start, error.pos // 1000  # the error counts the lines before it
    except (ValueError, RecursionError):  # an absurdly long number, absurdly deep brackets
        strict, lines = _MOST_WORK_CHARACTERS // 100, 0
    reader = LooseReader(text, start)
    try:
        value = reader.value()
    except BrokenError:
        value, reader.is_cut = None, True
    if reader.is_cut:
        return value, start, strict + lines + reader.place - start + _START_COST_CHARACTERS
    return value, reader.place, lines


def _repaired(text: str, ends: dict[int, int]) -> Iterator[list | dict]:
    """What json_repair makes of a text that is one value, unless that was read already."""
    if len(text) > _MOST_REPAIRED_CHARACTERS or len(_START.findall(text)) > _MOST_REPAIRED_BRACKETS:
        return
    only = _ONLY_A_VALUE.fullmatch(text)
    if only is None or ends.get(only.start(1)) != only.start(1):
        return
    try:
        value = json_repair.loads(only[1])
    except (ValueError, RecursionError):
        return
    if value and isinstance(value, (list, dict)):
        yield value
