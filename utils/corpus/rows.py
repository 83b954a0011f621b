"""
Rows: raw bytes -> text, group and meta, or the one reason why a row does not become a document.

    >>> read_row(Mapping(text=("body",)), "json", b'{"body": "A text.", "id": 7}')
    Row(text='A text.', group='', meta={})
    >>> read_row(Mapping(), "json", b"{broken")
    Traceback (most recent call last):
    utils.corpus.rows.Rejected: bad_json
"""

import json
from dataclasses import dataclass, field

from utils.corpus.docstrings import docstrings_of
from utils.corpus.fields import Mapping, field_of
from utils.corpus.readers import SURPLUS
from utils.corpus.sources import Kind

MIN_DOCSTRING_CHARACTERS = 200
AS_TEXT = ("id", "language", "url")


class Rejected(Exception):
    """A row that does not become a document, why, and its text as far as there is one."""

    def __init__(self, reason: str, text: str, **fields: object) -> None:
        super().__init__(reason)
        self.reason, self.text, self.fields = reason, text, fields


@dataclass(frozen=True)
class Row:
    """What a row says before anything is done to it."""

    text: str
    group: str = ""
    meta: dict = field(default_factory=dict)


def read_row(mapping: Mapping, kind: Kind, raw: bytes) -> Row:
    """Return what a row says. Rejected with the reason when it has no text."""
    if kind == "python":
        return Row(_docstrings(raw))
    row = parse_row(raw)
    mapping = mapping if kind == "json" else Mapping()
    values = [value for value in (field_of(row, name) for name in mapping.text) if value is not None]
    if not values:
        raise Rejected("missing_text", _shown(raw))
    if not all(isinstance(value, str) for value in values):
        raise Rejected("text_not_string", _shown(raw))
    group = field_of(row, mapping.group) if mapping.group else None
    found = Row("\n\n".join(values), "" if group is None else str(group), _meta(mapping, row))
    if not is_unicode(found.text + found.group + json.dumps(found.meta, ensure_ascii=False)):
        raise Rejected("bad_utf8", found.text.encode("utf-8", "replace").decode())
    return found


def _meta(mapping: Mapping, row: dict) -> dict:
    """What is kept beside the text: id, language and url as strings, the fields of `keep` as they are."""
    kept = {}
    for name, path in mapping.meta:
        value = field_of(row, path)
        if value is not None:
            kept[name] = str(value) if name in AS_TEXT else value
    return kept


def parse_row(raw: bytes) -> dict:
    """Return a row as it stands. Rejected when it is no JSON object of whole characters."""
    if raw.startswith(SURPLUS):
        raise Rejected("bad_csv", _shown(raw))
    try:
        row = json.loads(raw.decode("utf-8"), parse_constant=lambda name: None)
    except UnicodeDecodeError:
        raise Rejected("bad_utf8", _shown(raw)) from None
    except (ValueError, RecursionError):
        raise Rejected("bad_json", _shown(raw)) from None
    if not isinstance(row, dict):
        raise Rejected("bad_json", _shown(raw))
    return row


def _docstrings(raw: bytes) -> str:
    try:
        text = docstrings_of(raw)
    except ValueError:
        raise Rejected("bad_python", _shown(raw)) from None
    if not is_unicode(text):
        raise Rejected("bad_utf8", text.encode("utf-8", "replace").decode())
    if len(text) < MIN_DOCSTRING_CHARACTERS:
        raise Rejected("too_short_docstrings", text)
    return text


def is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogates, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
