"""
A block as it travels back from a worker: flat bytes that the coordinator only has to append.

Pickling one object per document would cost the coordinator more than everything else it does; a packed block
is a handful of byte strings, however many documents it holds.

    >>> packed = pack_block(BlockTask(settings, block, keep_text=True))
    >>> np.frombuffer(packed.parts["entries.bin"], ENTRY)["text_bytes"].sum() == packed.kept_bytes
    True
"""

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from utils.corpus.blocks import BlockResult, BlockSettings, Kept, Removed, process_block
from utils.corpus.sources import RawBlock

ENTRY = np.dtype(
    [
        ("id", "u1", 16), ("line_offset", "<u8"), ("line_bytes", "<u4"), ("text_bytes", "<u4"),
        ("tokens", "<u4"), ("split", "<u8"), ("order", "<u8"), ("sketch_offset", "<u8"),
        ("sketch_size", "<u2"), ("language", "S8"),
    ]
)  # fmt: skip
SAMPLES_PER_REASON, SAMPLE_CHARACTERS = 3, 200


@dataclass(frozen=True)
class BlockTask:
    """A block of rows and everything that shapes what becomes of it."""

    settings: BlockSettings
    block: RawBlock
    keep_text: bool

    def __str__(self) -> str:
        return str(self.block)


@dataclass(frozen=True)
class PackedBlock:
    """
    What became of a block. `parts` are bytes to append to the files of these names; offsets in the entries
    count from the start of the block.
    """

    next: dict
    read: int
    kept: int
    kept_bytes: int
    kept_tokens: int
    removed: dict[str, int]
    counts: dict[str, int]
    parts: dict[str, bytes]
    samples: list[dict] = field(default_factory=list)


def pack_block(task: BlockTask) -> PackedBlock:
    """Process a block and pack the result; runs in a worker."""
    result = process_block(task.settings, task.block)
    entries = _entries(result.kept)
    return PackedBlock(
        next=result.next.to_json(),
        read=result.rows_read,
        kept=len(result.kept),
        kept_bytes=int(entries["text_bytes"].sum()),
        kept_tokens=int(entries["tokens"].sum()),
        removed=dict(sorted(Counter(removed.reason for removed in result.removed).items())),
        counts=result.counts,
        parts=_parts(result, entries, task.keep_text),
        samples=_samples(result.removed, task.keep_text),
    )


def _entries(kept: list[Kept]) -> np.ndarray:
    entries = np.zeros(len(kept), ENTRY)
    if not kept:
        return entries
    entries["id"] = np.frombuffer(bytes.fromhex("".join(document.id for document in kept)), "u1").reshape(
        -1, 16
    )
    for name in ("text_bytes", "tokens", "language"):
        entries[name] = [getattr(document, name) for document in kept]
    for name in ("split", "order"):
        entries[name] = [getattr(document, f"{name}_hash") for document in kept]
    entries["line_bytes"] = [len(document.line) for document in kept]
    entries["sketch_size"] = [len(document.sketch) for document in kept]
    for offset, size in (("line_offset", "line_bytes"), ("sketch_offset", "sketch_size")):
        entries[offset][1:] = np.cumsum(entries[size][:-1], dtype=np.uint64)
    return entries


def _parts(result: BlockResult, entries: np.ndarray, keep_text: bool) -> dict[str, bytes]:
    kept = result.kept
    signatures = np.array([document.signature for document in kept], "<u4").T
    groups = "".join(json.dumps(_group(document.line)) + "\n" for document in kept)
    parts = {
        "entries.bin": entries.tobytes(),
        "kept.jsonl": b"".join(document.line for document in kept),
        "groups.jsonl": groups.encode(),
        # values outside, documents inside: a band of a block is one piece of the file
        "signatures.u32": np.ascontiguousarray(signatures).tobytes(),
        "sketches.u64": b"".join(document.sketch.astype("<u8").tobytes() for document in kept),
    }
    removed: dict[str, list[bytes]] = {}
    for row in result.removed:
        lines = removed.setdefault(f"removed/{row.reason.split(':')[0]}.jsonl", [])
        lines.append(removed_line(row.fields, row.text, keep_text))
    return parts | {name: b"".join(lines) for name, lines in removed.items()}


def _group(line: bytes) -> str:
    """The group of a shard line, whose keys are sorted, without reading on to the text."""
    return json.JSONDecoder().raw_decode(line.decode(), len('{"group": '))[0]


def removed_line(fields: dict, text: str, keep_text: bool) -> bytes:
    """Return the line of a removed document."""
    row = fields | ({"text": text} if keep_text else {})
    return json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _samples(removed: list[Removed], keep_text: bool) -> list[dict]:
    """The first few removed documents of each reason, with the start of their text."""
    seen: Counter[str] = Counter()
    samples = []
    for document in removed:
        seen[document.reason] += 1
        if seen[document.reason] <= SAMPLES_PER_REASON:
            samples.append(sample(document.fields, document.text, keep_text))
    return samples


def sample(fields: dict, text: str, keep_text: bool) -> dict:
    """Return a removed document as the card shows it."""
    return fields | {"text": text[:SAMPLE_CHARACTERS] if keep_text else ""}
