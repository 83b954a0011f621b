"""
Segments: what reading has produced so far, append-only on disk, committed block by block.

The later phases (duplicates, split, shards) start from here, in any process: documents are entries in
canonical order, their lines, sketches and signatures lie in memory-mapped files beside them.

    >>> segments = Segments(stage.partial, stage.journal("blocks"), keep_text=True)
    >>> cursor = segments.cursor(source=0)               # where reading goes on after a kill
    >>> segments.commit(0, result)
    >>> documents = segments.documents()                 # .entries, .line(i), .sketch(i), .signatures
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.corpus.blocks import BlockResult
from utils.corpus.sources import Cursor

ENTRY = np.dtype(
    [
        ("id", "u1", 16), ("offset", "<u8"), ("length", "<u4"), ("text_bytes", "<u4"), ("split", "<u8"),
        ("order", "<u8"), ("sketch_end", "<u8"), ("source", "<u2"),
    ]
)  # fmt: skip
_FILES = ("kept.jsonl", "removed.jsonl", "entries.bin", "sketches.u64", "signatures.u32")


class Journal(Protocol):
    """The part of the stage's journal that segments need."""

    records: list[dict]

    def commit(self, record: dict) -> None: ...


@dataclass(frozen=True)
class Documents:
    """All documents that passed cleaning and quality, in canonical order."""

    entries: np.ndarray
    lines: np.ndarray
    sketches: np.ndarray
    signatures: np.ndarray

    def __len__(self) -> int:
        return len(self.entries)

    def line(self, i: int) -> bytes:
        start = int(self.entries["offset"][i])
        return self.lines[start : start + int(self.entries["length"][i])].tobytes()

    def sketch(self, i: int) -> np.ndarray:
        start = int(self.entries["sketch_end"][i - 1]) if i else 0
        return self.sketches[start : int(self.entries["sketch_end"][i])]

    def id(self, i: int) -> str:
        return self.entries["id"][i].tobytes().hex()


class Segments:
    """Appends block results and remembers, per source, counts and the cursor."""

    def __init__(self, folder: Path, journal: Journal, keep_text: bool) -> None:
        self._folder, self._journal, self._keep_text = folder / ".journal", journal, keep_text
        self._folder.mkdir(exist_ok=True)
        self.records = list(journal.records)
        mode = "ab" if self.records else "wb"
        self._files = {name: open(self._folder / name, mode) for name in _FILES}  # noqa: SIM115
        self._sketch_end = self._files["sketches.u64"].seek(0, 2) // 8

    def cursor(self, source: int) -> Cursor:
        """Return the first row of a source that is not committed yet."""
        done = [record for record in self.records if record["source"] == source]
        return Cursor(done[-1]["file"], done[-1]["row"]) if done else Cursor()

    def rows_read(self, source: int) -> int:
        return sum(record["read"] for record in self.records if record["source"] == source)

    def removed(self, source: int) -> Counter[str]:
        """Return the number of rows of a source removed so far, by reason."""
        total: Counter[str] = Counter()
        for record in self.records:
            if record["source"] == source:
                total.update(record["removed"])
        return total

    def commit(self, source: int, result: BlockResult) -> None:
        """Append the result of the next block of a source and commit it."""
        self._append_kept(source, result)
        for removed in result.removed:
            row = removed.fields | ({"text": removed.text} if self._keep_text else {})
            self._files["removed.jsonl"].write(json.dumps(row, sort_keys=True).encode() + b"\n")
        for file in self._files.values():
            file.flush()
        record = {
            "source": source,
            "file": result.next.file,
            "row": result.next.row,
            "read": result.rows_read,
        }
        record["removed"] = dict(sorted(Counter(removed.reason for removed in result.removed).items()))
        record["ends"] = {f".journal/{name}": file.tell() for name, file in self._files.items()}
        self.records.append(record)
        self._journal.commit(record)

    def _append_kept(self, source: int, result: BlockResult) -> None:
        entries = np.zeros(len(result.kept), ENTRY)
        offset = self._files["kept.jsonl"].seek(0, 2)
        for i, kept in enumerate(result.kept):
            self._sketch_end += len(kept.sketch)
            id_bytes = np.frombuffer(bytes.fromhex(kept.id), "u1")
            entries[i] = (
                id_bytes, offset, len(kept.line), kept.text_bytes, kept.split_hash, kept.order_hash,
                self._sketch_end, source,
            )  # fmt: skip
            offset += len(kept.line)
            self._files["kept.jsonl"].write(kept.line)
            self._files["sketches.u64"].write(kept.sketch.astype("<u8").tobytes())
            self._files["signatures.u32"].write(kept.signature.astype("<u4").tobytes())
        self._files["entries.bin"].write(entries.tobytes())

    def documents(self) -> Documents:
        """Close the segments and open what they hold."""
        for file in self._files.values():
            file.close()
        entries = np.fromfile(self._folder / "entries.bin", ENTRY)
        signatures = self._map("signatures.u32", "<u4")
        signatures = (
            signatures.reshape(len(entries), -1) if len(signatures) else np.zeros((len(entries), 0), "<u4")
        )
        return Documents(entries, self._map("kept.jsonl", "u1"), self._map("sketches.u64", "<u8"), signatures)

    def removed_rows(self) -> Path:
        """Return the file of removed rows as JSON lines, in the order in which they were read."""
        return self._folder / "removed.jsonl"

    def _map(self, name: str, dtype: str) -> np.ndarray:
        path = self._folder / name
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
