r"""
Lists and objects out of what models write: JSON in any state of repair, fenced or bare, or plain lines.

    >>> parse_list('Sure! ["a", "b",]')
    ['a', 'b']
    >>> parse_list("1. cats\n2. dogs")
    ['cats', 'dogs']
    >>> parse_object("Well: {'better': 'A'}")
    {'better': 'A'}
"""

import re

from utils.generate.loose_json import json_values
from utils.generate.reply import split_thinking

_NUMBERED = re.compile(r"^([ \t]*+)\(?\d{1,4}[.):][ \t]++(\S.*)$", re.MULTILINE)
_BULLETED = re.compile(r"^([ \t]*+)[-*+\u2022\u2013][ \t]++(\S.*)$", re.MULTILINE)
_WRAPPED = re.compile("""(\\*\\*|["'`]|\u201c)(.+)(?:\\1|\u201d)""")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_list(text: str, is_cut: bool = False) -> list[str]:
    """
    The entries of the first list in a reply, `[]` when there is none. Never raises.

    `is_cut`: the reply ended at its limit, so the last of several plain lines may be half an entry and is
    left out; for JSON that shows by itself.
    """
    text = split_thinking(text)[0]
    for value in json_values(text):
        if entries := _cleaned(_entries(value)):
            return entries
    lines = _lines(text)
    return _cleaned(lines[:-1] if is_cut else lines)


def parse_object(text: str) -> dict | None:
    """The first JSON object in a reply that is not empty, None when there is none. Never raises."""
    objects = (value for value in json_values(split_thinking(text)[0]) if isinstance(value, dict))
    return next(objects, None)


def _entries(value: object) -> list[str]:
    """Strings of a list of strings, of lists, or of objects with one string; or of the list in an object."""
    if isinstance(value, dict):
        inner = (_entries(part) for part in value.values() if isinstance(part, (list, dict)))
        return next((entries for entries in inner if entries), [])
    if not isinstance(value, list):
        return []
    found: list[str] = []
    for item in value:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            found += _entries(item)
        elif isinstance(item, dict):
            texts = [part for part in item.values() if isinstance(part, str)]
            found += texts if len(texts) == 1 else []
    return found


def _lines(text: str) -> list[str]:
    """Items of a numbered list, else of a bulleted one; of nested lists only the outermost."""
    items = _NUMBERED.findall(text) or _BULLETED.findall(text)
    outermost = min((len(indent) for indent, _ in items), default=0)
    return [_unwrapped(item.strip()) for indent, item in items if len(indent) == outermost]


def _unwrapped(item: str) -> str:
    """An item that is bold or in quotation marks as a whole, without them."""
    whole = _WRAPPED.fullmatch(item.rstrip(","))
    return whole[2] if whole and whole[1] not in whole[2] else item


def _cleaned(entries: list[str]) -> list[str]:
    stripped = (" ".join(_SURROGATE.sub("\ufffd", entry).split()) for entry in entries)
    return [entry for entry in stripped if entry]
