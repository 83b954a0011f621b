r"""
Lists out of what models write: JSON in any state of repair, fenced or bare, or plain lines.

    >>> parse_list('Sure! ["a", "b",]')
    ['a', 'b']
    >>> parse_list("1. cats\n2. dogs")
    ['cats', 'dogs']
"""

import json
import re

import json_repair

_THINK = re.compile(r"<(think|thinking)>.*?</\1>", re.DOTALL)
_UNOPENED_THINK = re.compile(r"^.*?</(?:think|thinking)>", re.DOTALL)
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)(?:```|\Z)", re.DOTALL)
_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*+])\s+(.+?)\s*$", re.MULTILINE)
_SMART_QUOTES = str.maketrans({"\u201c": '"', "\u201d": '"'})
_MOST_STARTS = 20


def strip_reasoning(text: str) -> str:
    """The answer without think blocks, also when the opening tag is missing."""
    return _UNOPENED_THINK.sub("", _THINK.sub("", text)).strip()


def parse_list(text: str) -> list[str]:
    """The entries of the first list in a reply, `[]` when there is none. Never raises."""
    text = strip_reasoning(text)
    for candidate in [*_FENCE.findall(text), text]:
        if entries := _first_json_list(candidate):
            return entries
    return _clean(_ITEM.findall(text))


def _first_json_list(text: str) -> list[str]:
    """Try every `[` or `{` as a start, so `[sic]` does no harm; strict JSON wins over repair."""
    starts = [found.start() for found in re.finditer(r"[\[{]", text)][:_MOST_STARTS]
    for start in starts:
        try:
            entries = _entries(json.JSONDecoder().raw_decode(text, start)[0])
        except (ValueError, RecursionError):
            continue
        if entries:
            return entries
    for start in starts:
        tail = text[start:]
        if re.match(r"\[\s*[\"'\u201c{\n]|\{", tail):
            entries = _entries(_repaired(tail))
            if entries:
                return entries
    return []


def _repaired(text: str) -> object:
    try:
        return json_repair.loads(text.translate(_SMART_QUOTES))
    except (ValueError, RecursionError):
        return None


def _entries(value: object) -> list[str]:
    """Strings from a list of strings, objects with one text or lists, or from an object around it."""
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        return _entries(lists[0]) if lists else []
    if not isinstance(value, list):
        return []
    found: list[str] = []
    for item in value:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            found += _entries(item)
        elif isinstance(item, dict):
            texts = [inner for inner in item.values() if isinstance(inner, str)]
            found += texts if len(texts) == 1 else []
    return _clean(found)


def _clean(entries: list[str]) -> list[str]:
    stripped = (" ".join(entry.split()) for entry in entries)
    return [entry for entry in stripped if entry]
