"""
All documents that passed cleaning and quality, in canonical order: source order, then reading order.

Reading may have gone back and forth between sources; a document's number here does not show that. Nothing is
held per document except the columns that a caller asks for, and nothing is mapped into memory, so ten million
documents cost what their columns cost.

    >>> documents = Documents.of(segments)
    >>> documents.column("order")                        # u64 per document
    >>> documents.line(17), documents.id(17)
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.corpus.packed import ENTRY
from utils.corpus.segments import Segments


@dataclass(frozen=True)
class Span:
    """The documents of one block: their source, the number of the first, and where their parts begin."""

    source: int
    first: int
    count: int
    slot: int
    signatures: int
    groups: int


class Documents:
    """Numbered access to what the segments hold."""

    def __init__(self, folder: Path, spans: list[Span]) -> None:
        self.folder, self.spans = folder, spans
        self._firsts = np.array([span.first for span in spans], np.int64)
        self._slots = np.array([span.slot for span in spans], np.int64)
        self._sources = np.array([span.source for span in spans], np.uint16)

    @classmethod
    def of(cls, segments: Segments) -> "Documents":
        """Number the documents of segments to which nothing is being written."""
        spans, first = [], 0
        for block in sorted(segments.blocks, key=lambda block: block["source"]):
            starts = block["starts"]
            slot = starts["entries.bin"] // ENTRY.itemsize
            span = (first, block["kept"], slot, starts["signatures.u32"], starts["groups.jsonl"])
            if block["kept"]:
                spans.append(Span(block["source"], *span))
            first += block["kept"]
        return cls(segments.folder, spans)

    def __len__(self) -> int:
        return self.spans[-1].first + self.spans[-1].count if self.spans else 0

    def entries(self, span: Span) -> np.ndarray:
        """Return the entries of a block."""
        return np.fromfile(self.folder / "entries.bin", ENTRY, span.count, offset=span.slot * ENTRY.itemsize)

    def column(self, name: str) -> np.ndarray:
        """Return one field of every entry."""
        column = np.zeros(len(self), ENTRY[name])
        for span in self.spans:
            column[span.first : span.first + span.count] = self.entries(span)[name]
        return column

    def tails(self, numbers: np.ndarray) -> np.ndarray:
        """Return the last 8 bytes of the ids of these documents as u64."""
        tails = np.zeros(len(numbers), np.uint64)
        ascending = np.argsort(numbers)
        for span in self.spans:
            here = np.searchsorted(numbers, (span.first, span.first + span.count), sorter=ascending)
            chosen = ascending[slice(*here)]
            if len(chosen):
                ids = self.entries(span)["id"][numbers[chosen].astype(np.int64) - span.first, 8:]
                tails[chosen] = np.ascontiguousarray(ids).view(np.uint64).reshape(-1)
        return tails

    def sources(self) -> np.ndarray:
        """Return the number of the source of every document."""
        return np.repeat(self._sources, [span.count for span in self.spans])

    def source(self, i: int) -> int:
        return int(self._sources[self._span(i)])

    def slots(self, numbers: np.ndarray) -> np.ndarray:
        """Return where the entries of these documents lie in entries.bin, in entries."""
        span = np.searchsorted(self._firsts, numbers, side="right") - 1
        return self._slots[span] + (numbers - self._firsts[span])

    def entry(self, i: int) -> np.void:
        """Return the entry of one document."""
        self._entries_file.seek(int(self.slots(np.array([i]))[0]) * ENTRY.itemsize)
        return np.frombuffer(self._entries_file.read(ENTRY.itemsize), ENTRY)[0]

    def line(self, i: int) -> bytes:
        """Return the shard line of a document."""
        entry = self.entry(i)
        self._lines_file.seek(int(entry["line_offset"]))
        return self._lines_file.read(int(entry["line_bytes"]))

    def id(self, i: int) -> str:
        return self.entry(i)["id"].tobytes().hex()

    def band(self, first: int, values: int) -> Iterator[tuple[Span, np.ndarray]]:
        """Yield, per block, values [first, first + values) of the signatures as u32 [values, documents]."""
        for span in self.spans:
            offset = span.signatures + 4 * first * span.count
            piece = np.fromfile(self.folder / "signatures.u32", "<u4", values * span.count, offset=offset)
            yield span, piece.reshape(values, span.count)

    def groups(self, span: Span) -> list[str]:
        """Return the group of every document of a block."""
        with open(self.folder / "groups.jsonl", "rb") as file:
            file.seek(span.groups)
            return [json.loads(file.readline()) for _ in range(span.count)]

    def lines(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, list[bytes]]]:
        """Yield numbers and lines of the documents that are wanted (bool per document), block by block."""
        for span in self.spans:
            here = np.flatnonzero(wanted[span.first : span.first + span.count])
            if len(here):
                entries = self.entries(span)
                start, sizes = int(entries["line_offset"][0]), entries["line_bytes"].astype(np.int64)
                data = os.pread(self._lines_file.fileno(), int(sizes.sum()), start)
                ends = np.cumsum(sizes)[here]
                pieces = zip((ends - sizes[here]).tolist(), ends.tolist(), strict=True)
                yield here + span.first, [data[begin:end] for begin, end in pieces]

    def _span(self, i: int) -> int:
        return int(np.searchsorted(self._firsts, i, side="right")) - 1

    @cached_property
    def _entries_file(self) -> BinaryIO:
        return open(self.folder / "entries.bin", "rb")

    @cached_property
    def _lines_file(self) -> BinaryIO:
        return open(self.folder / "kept.jsonl", "rb")
