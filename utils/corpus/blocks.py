"""
The work on one block: rows -> documents, cleaned, judged and sketched. A pure function that runs in a worker.

A row that is not kept becomes a removed document with exactly one reason: bad_json, bad_utf8, bad_python,
missing_text, text_not_string, empty, too_short_docstrings, or the quality rule that it broke first.

    >>> result = process_block(settings, block)
    >>> len(result.kept) + len(result.removed) == len(block.rows)
    True
"""

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np

from utils.corpus.clean import clean
from utils.corpus.dedup import make_sketch, ngram_hashes, sign
from utils.corpus.docstrings import docstrings_of
from utils.corpus.quality import Rule, first_broken_rule
from utils.corpus.sources import Cursor, RawBlock, field_of
from utils.pipeline.hashing import unit_hash

MIN_DOCSTRING_CHARACTERS = 200


@dataclass(frozen=True)
class Mapping:
    """Fields of a row: text (several are joined by a blank line), group and id ("" = none)."""

    text: tuple[str, ...] = ("text",)
    group: str = ""
    id: str = ""


@dataclass(frozen=True)
class BlockSettings:
    """Everything that shapes the result of a block besides its bytes."""

    mapping: Mapping
    rules: list[Rule]
    seed: int
    split_by: str
    ngram_words: int
    permutations: np.ndarray | None


@dataclass(frozen=True)
class Kept:
    """A document that stays for now: its final shard line and what the later phases need to know of it."""

    line: bytes
    id: str
    text_bytes: int
    split_hash: int
    order_hash: int
    sketch: np.ndarray
    signature: np.ndarray


@dataclass(frozen=True)
class Removed:
    """A document that goes: its line for `removed/` without the text, and the text."""

    reason: str
    fields: dict
    text: str


@dataclass
class BlockResult:
    """Documents of one block in row order, and where reading goes on."""

    rows_read: int
    next: Cursor
    kept: list[Kept] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)


class Rejected(Exception):
    """A row that does not become a document, why, and its text as far as there is one."""

    def __init__(self, reason: str, text: str, **fields: object) -> None:
        super().__init__(reason)
        self.reason, self.text, self.fields = reason, text, fields


def process_block(settings: BlockSettings, block: RawBlock) -> BlockResult:
    """Turn every row of a block into a kept or a removed document."""
    result = BlockResult(len(block.rows), block.next)
    for raw in block.rows:
        try:
            result.kept.append(_keep(settings, block, raw))
        except Rejected as row:
            fields = {"id": document_id(row.text), "source": block.source, "reason": row.reason, **row.fields}
            result.removed.append(Removed(row.reason, fields, row.text))
    return result


def document_id(text: str) -> str:
    """Return the id of a document: the first 32 hex digits of SHA-256 of its cleaned text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _keep(settings: BlockSettings, block: RawBlock, raw: bytes) -> Kept:
    text, group, row_id = _read(settings.mapping, block.kind, raw)
    text = clean(text)
    if not text.strip():
        raise Rejected("empty", text)
    broken = first_broken_rule(text, settings.rules)
    if broken:
        raise Rejected(broken.rule, text, measured=broken.measured, threshold=broken.threshold)
    id = document_id(text)
    group = group if group and settings.split_by == "group" else id
    row = {
        "group": group,
        "id": id,
        "meta": {"id": row_id} if row_id else {},
        "source": block.source,
        "text": text,
    }
    line = json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    split_hash, order_hash = unit_hash("split", settings.seed, group), unit_hash("order", settings.seed, id)
    return Kept(line, id, len(text.encode()), split_hash, order_hash, *_sketch(settings, text))


def _sketch(settings: BlockSettings, text: str) -> tuple[np.ndarray, np.ndarray]:
    if settings.permutations is None:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint32)
    hashes = ngram_hashes(text, settings.ngram_words)
    return make_sketch(hashes), sign(hashes, settings.permutations)


def _read(mapping: Mapping, kind: str, raw: bytes) -> tuple[str, str, str]:
    """Return text, group and id of a row. Rejected with the reason when it has no text."""
    if kind == "python":
        return _read_python(raw), "", ""
    row = _parse(raw)
    mapping = mapping if kind == "json" else Mapping()
    values = [field_of(row, name) for name in mapping.text]
    shown = raw.decode("utf-8", "replace")
    if all(value is None for value in values):
        raise Rejected("missing_text", shown)
    if not all(isinstance(value, str) for value in values if value is not None):
        raise Rejected("text_not_string", shown)
    text = "\n\n".join(value for value in values if value is not None)
    group, row_id = (field_of(row, name) if name else None for name in (mapping.group, mapping.id))
    if any(_has_surrogates(str(value)) for value in (text, group, row_id)):
        raise Rejected("bad_utf8", text.encode("utf-8", "replace").decode())
    return text, "" if group is None else str(group), "" if row_id is None else str(row_id)


def _parse(raw: bytes) -> dict:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise Rejected("bad_utf8", raw.decode("utf-8", "replace")) from None
    except (ValueError, RecursionError):
        raise Rejected("bad_json", raw.decode("utf-8", "replace")) from None
    if not isinstance(row, dict):
        raise Rejected("bad_json", raw.decode("utf-8", "replace"))
    return row


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_python(raw: bytes) -> str:
    try:
        text = docstrings_of(raw)
    except ValueError:
        raise Rejected("bad_python", raw.decode("utf-8", "replace")) from None
    if _has_surrogates(text):
        raise Rejected("bad_utf8", text.encode("utf-8", "replace").decode())
    if len(text) < MIN_DOCSTRING_CHARACTERS:
        raise Rejected("too_short_docstrings", text)
    return text
