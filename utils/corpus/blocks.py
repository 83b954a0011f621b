"""
The work on one block: rows -> documents, cleaned, judged and sketched. A pure function that runs in a worker.

A row that is not kept becomes a removed document with exactly one reason: one of reading (rows.py), `empty`,
`pii:<kind>`, the quality rule that it broke first, `language:<code>`, or `contaminated:<set>`. A rule about
one language waits for the language of the text where others are kept beside it.

    >>> result = process_block(settings, block)
    >>> len(result.kept) + len(result.removed) == len(block.rows)
    True
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from utils.corpus.clean import clean
from utils.corpus.decontaminate import (
    IndexReference,
    cut_passages,
    find_hits,
    open_index,
    passage,
)
from utils.corpus.dedup import make_sketch, sign
from utils.corpus.fields import Mapping
from utils.corpus.language import LanguageSettings, decide, identify
from utils.corpus.pii import MaskSettings, mask
from utils.corpus.quality import Rule, judge
from utils.corpus.rows import Rejected, Row, read_row
from utils.corpus.sources import Cursor, Kind, RawBlock
from utils.corpus.textview import TextView
from utils.corpus.words import ngram_hashes_of
from utils.pipeline.hashing import unit_hash

SLICE_ROWS, SLICE_BYTES = 256, 1 << 20


class Tokenizer(Protocol):
    """What counts tokens; travels to a worker as its folder and is opened there once."""

    def encode_text(self, texts: list[str]) -> list[np.ndarray]: ...

    def special(self, name: str) -> int: ...


@dataclass(frozen=True)
class BlockSettings:
    """Everything that shapes the result of a block besides its bytes."""

    mapping: Mapping
    rules: list[Rule]
    seed: int
    split_by: str
    ngram_words: int
    permutations: np.ndarray | None
    masks: MaskSettings = MaskSettings()
    language: LanguageSettings = LanguageSettings()
    evaluation_sets: IndexReference | None = None
    cut_passages: bool = False
    tokenizer: Tokenizer | None = None
    """Counts the tokens of kept documents; None leaves them uncounted."""


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
    language: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class Removed:
    """A document that goes: its line for `removed/` without the text, and the text."""

    reason: str
    fields: dict
    text: str


@dataclass
class BlockResult:
    """
    Documents of one block in row order, where reading goes on, and what was changed in the kept ones:
    `mask:<kind>`, `passage:<set>` (paragraphs cut), `line_rules` (lines dropped).
    """

    rows_read: int
    next: Cursor
    kept: list[Kept] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class _Draft:
    """A document on its way: what it says now, and what was done to it."""

    row: Row
    view: TextView
    changes: Counter[str]
    language: str = ""
    tokens: int = 0


def process_block(settings: BlockSettings, block: RawBlock) -> BlockResult:
    """Turn every row of a block into a kept or a removed document."""
    result, counts = BlockResult(len(block.rows), block.next), Counter[str]()
    for rows in _slices(block.rows):
        for found in _process_rows(settings, block.kind, rows):
            if isinstance(found, _Draft):
                result.kept.append(_keep(settings, block.source, found))
                counts += found.changes
            else:
                result.removed.append(_remove(block.source, found))
    result.counts = dict(sorted(counts.items()))
    return result


def _slices(rows: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Rows that are worked on together: enough for numpy, few enough that their words fit beside them."""
    start = size = 0
    for number, row in enumerate(rows):
        size += len(row)
        if size >= SLICE_BYTES or number + 1 - start == SLICE_ROWS:
            yield rows[start : number + 1]
            start, size = number + 1, 0
    if start < len(rows):
        yield rows[start:]


def _process_rows(settings: BlockSettings, kind: Kind, rows: Sequence[bytes]) -> list["_Draft | Rejected"]:
    """The outcome of every row, up to its sketch."""
    tried: list[_Draft | Rejected] = [_tried(_draft, settings, kind, raw) for raw in rows]
    tried = list(_in_language(settings.language, tried))
    tried = [_tried(_as_its_language_wants, settings, found) for found in tried]
    if settings.evaluation_sets:
        tried = [_tried(_uncontaminated, settings, found) for found in tried]
    _count_tokens(settings.tokenizer, [found for found in tried if isinstance(found, _Draft)])
    return tried


def document_id(text: str) -> str:
    """Return the id of a document: the first 32 hex digits of SHA-256 of its cleaned text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _tried(step: Callable[..., _Draft], settings: BlockSettings, *arguments: object) -> "_Draft | Rejected":
    """The outcome of a step; what was rejected before stays rejected."""
    if isinstance(arguments[0], Rejected):
        return arguments[0]
    try:
        return step(settings, *arguments)
    except Rejected as rejected:
        return rejected


def _draft(settings: BlockSettings, kind: Kind, raw: bytes) -> _Draft:
    """Read, clean, mask and judge one row."""
    row = read_row(settings.mapping, kind, raw)
    text, found = mask(clean(row.text), settings.masks)
    if (
        found
        and settings.masks.pii == "drop_document"
        and (kinds := [kind for kind in found if kind != "url"])
    ):
        raise Rejected(f"pii:{kinds[0]}", clean(row.text), measured=found[kinds[0]], threshold=0)
    if not text.strip():
        raise Rejected("empty", text)
    view, dropped_lines = _judged(text, settings.rules, language="")
    if not view.text:
        raise Rejected("empty", text)
    changes = Counter({f"mask:{kind}": count for kind, count in found.items()})
    if dropped_lines:
        changes["line_rules"] = dropped_lines
    return _Draft(row, view, changes)


def _judged(text: str, rules: Sequence[Rule], language: str) -> tuple[TextView, int]:
    """What the rules for texts of a language ("" = any) leave of a text, and how many lines they dropped."""
    broken, view, dropped_lines = judge(text, [rule for rule in rules if rule.language == language])
    if broken:
        raise Rejected(broken.rule, view.text, measured=broken.measured, threshold=broken.threshold)
    return view, dropped_lines


def _in_language(
    settings: LanguageSettings, tried: Sequence["_Draft | Rejected"]
) -> Iterator["_Draft | Rejected"]:
    """Identify the drafts together, which is many times faster than one by one, and reject unwanted ones."""
    texts = [found.view.text for found in tried if isinstance(found, _Draft)] if settings.keep else []
    guesses = iter(identify(texts))
    for found in tried:
        if isinstance(found, Rejected) or not settings.keep:
            yield found
            continue
        language, confidence, keep = decide(next(guesses), settings)
        found.language = language
        numbers = {"measured": confidence, "threshold": settings.min_confidence}
        yield found if keep else Rejected(f"language:{language}", found.view.text, **numbers)


def _as_its_language_wants(settings: BlockSettings, draft: _Draft) -> _Draft:
    """Reject what breaks a rule for texts of its language."""
    if draft.language and any(rule.language == draft.language for rule in settings.rules):
        _judged(draft.view.text, settings.rules, draft.language)
    return draft


def _uncontaminated(settings: BlockSettings, draft: _Draft) -> _Draft:
    """Reject what an evaluation set holds a passage of, or cut its paragraphs until none is left."""
    index = open_index(settings.evaluation_sets)
    while hits := find_hits(draft.view, index):
        first = Rejected(f"contaminated:{hits[0].set}", draft.view.text, passage=passage(draft.view, hits[0]))
        if not settings.cut_passages:
            raise first
        text, cut = cut_passages(draft.view, hits)
        fewest = [rule for rule in settings.rules if rule.name == "too_few_words"]
        if not text.strip() or judge(text, fewest).broken:
            raise first
        draft.view = TextView(text)
        draft.changes.update({f"passage:{name}": count for name, count in cut.items()})
    return draft


def _count_tokens(tokenizer: Tokenizer | None, drafts: Sequence[_Draft]) -> None:
    """Count as stage 40 will: with BOS and EOS, where the tokenizer has them."""
    if not tokenizer:
        return
    around = sum(tokenizer.special(name) >= 0 for name in ("bos", "eos"))
    for draft, ids in zip(drafts, tokenizer.encode_text([d.view.text for d in drafts]), strict=True):
        draft.tokens = len(ids) + around


def _keep(settings: BlockSettings, source: str, draft: _Draft) -> Kept:
    text = draft.view.text
    id = document_id(text)
    group = draft.row.group if draft.row.group and settings.split_by == "group" else id
    row = {"group": group, "id": id, "meta": draft.row.meta, "source": source, "text": text}
    line = json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    split_hash, order_hash = unit_hash("split", settings.seed, group), unit_hash("order", settings.seed, id)
    sketch = _sketch(settings, draft.view)
    return Kept(line, id, len(text.encode()), split_hash, order_hash, *sketch, draft.language, draft.tokens)


def _remove(source: str, row: Rejected) -> Removed:
    fields = {"id": document_id(row.text), "source": source, "reason": row.reason, **row.fields}
    return Removed(row.reason, fields, row.text)


def _sketch(settings: BlockSettings, view: TextView) -> tuple[np.ndarray, np.ndarray]:
    if settings.permutations is None:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint32)
    hashes = np.unique(ngram_hashes_of(view.word_hashes, settings.ngram_words))
    return make_sketch(hashes), sign(hashes, settings.permutations)
