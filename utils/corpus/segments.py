"""
Segments: what reading has produced so far, append-only on disk, committed block by block.

Everything that later phases need lies in these files and in one journal line per block, so a killed run goes
on behind its last block, and the phases after reading start from here in any process (documents.py).

    >>> segments = Segments(stage.partial, Journal(stage.partial, "blocks"), num_sources=2)
    >>> cursor = segments.cursor(source=0)               # where reading goes on after a kill
    >>> segments.commit(0, packed_block)
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from utils.corpus.packed import ENTRY, SAMPLES_PER_REASON, PackedBlock
from utils.corpus.sources import Cursor

FOLDER = ".journal/segments"
ALWAYS = ("entries.bin", "kept.jsonl", "groups.jsonl", "signatures.u32", "sketches.u64")


class Journal(Protocol):
    """The part of the stage's journal that segments need."""

    records: list[dict]

    def commit(self, record: dict) -> None: ...


@dataclass
class SourceState:
    """What is committed of one source."""

    cursor: Cursor = field(default_factory=Cursor)
    blocks: int = 0
    read: int = 0
    kept: int = 0
    kept_bytes: int = 0
    kept_tokens: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[dict]] = field(default_factory=dict)

    def add(self, record: dict) -> None:
        """Take in the journal record of a block."""
        self.cursor = Cursor.from_json(record["next"])
        self.blocks += 1
        for name in ("read", "kept", "kept_bytes", "kept_tokens"):
            setattr(self, name, getattr(self, name) + record[name])
        self.removed.update(record["removed"])
        self.counts.update(record["counts"])
        for shown in record["samples"]:
            self.samples.setdefault(shown["reason"], []).append(shown)

    def new_samples(self, offered: list[dict]) -> list[dict]:
        """The samples that are still wanted of those offered."""
        wanted = Counter({reason: SAMPLES_PER_REASON - len(rows) for reason, rows in self.samples.items()})
        taken = []
        for shown in offered:
            left = wanted.setdefault(shown["reason"], SAMPLES_PER_REASON)
            if left > 0:
                taken.append(shown)
                wanted[shown["reason"]] = left - 1
        return taken


class Segments:
    """Appends packed blocks and remembers, per source, counts and the cursor."""

    def __init__(self, partial: Path, journal: Journal, num_sources: int) -> None:
        self.folder, self._journal = partial / FOLDER, journal
        self.sources = [SourceState() for _ in range(num_sources)]
        self.blocks: list[dict] = []
        self.waves: list[list[int]] = []
        self._ends: dict[str, int] = {}
        for record in journal.records:
            self._take_in(record)
        (self.folder / "removed").mkdir(parents=True, exist_ok=True)
        self._drop_uncommitted()
        self._files = {name: self._open(name) for name in ALWAYS}

    def cursor(self, source: int) -> Cursor:
        """Return the first row of a source that is not committed yet."""
        return self.sources[source].cursor

    def commit_wave(self, until: list[int]) -> None:
        """Make durable up to which number of blocks each source is read next."""
        record = {"wave": until}
        self._journal.commit(record)
        self._take_in(record)

    def commit(self, source: int, block: PackedBlock) -> None:
        """Append the result of the next block of a source and commit it."""
        changed = []
        for name, data in block.parts.items():
            if data or name in ALWAYS:
                data = self._with_absolute_offsets(data) if name == "entries.bin" else data
                self._file(name).write(data)
                changed.append(name)
        record = {"source": source, "next": block.next, "removed": block.removed, "counts": block.counts}
        record |= {name: getattr(block, name) for name in ("read", "kept", "kept_bytes", "kept_tokens")}
        record["samples"] = self.sources[source].new_samples(block.samples)
        for name in changed:
            self._file(name).flush()
        record["ends"] = {f"{FOLDER}/{name}": self._file(name).tell() for name in changed}
        self._journal.commit(record)
        self._take_in(record)

    def ended(self, source: int) -> bool:
        """Whether a wave, all of them being complete, wanted more of a source than it had."""
        return any(wave[source] > self.sources[source].blocks for wave in self.waves)

    def amounts(self, exact: bool) -> list[int]:
        """Return how much of each source is kept so far, in tokens if these are counted, else in bytes."""
        return [state.kept_tokens if exact else state.kept_bytes for state in self.sources]

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def removed_files(self) -> dict[str, Path]:
        """Return the file of removed rows for each reason."""
        prefix = f"{FOLDER}/removed/"
        names = sorted(name.removeprefix(prefix) for name in self._ends if name.startswith(prefix))
        return {name.removesuffix(".jsonl"): self.folder / "removed" / name for name in names}

    def _take_in(self, record: dict) -> None:
        if "wave" in record:
            self.waves.append(record["wave"])
            return
        starts = {name: self._ends.get(f"{FOLDER}/{name}", 0) for name in ALWAYS}
        self.blocks.append({"source": record["source"], "kept": record["kept"], "starts": starts})
        self._ends |= record["ends"]
        self.sources[record["source"]].add(record)

    def _with_absolute_offsets(self, entries: bytes) -> bytes:
        shifted = np.frombuffer(entries, ENTRY).copy()
        shifted["line_offset"] += np.uint64(self._files["kept.jsonl"].tell())
        shifted["sketch_offset"] += np.uint64(self._files["sketches.u64"].tell() // 8)
        return shifted.tobytes()

    def _drop_uncommitted(self) -> None:
        """Remove files that no record names: a killed run may have begun them."""
        for path in self.folder.rglob("*"):
            if path.is_file() and f"{FOLDER}/{path.relative_to(self.folder).as_posix()}" not in self._ends:
                path.unlink()

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = self._open(name)
        return self._files[name]

    def _open(self, name: str) -> BinaryIO:
        return open(self.folder / name, "ab")
