"""
Packing: blocks of corpus rows -> token ids in shard order, with a journal, then rows.

The script hands in rows and an encoder; workers tokenise blocks, the coordinator appends. Every appended
block is committed, so a killed run goes on at the last block and ends in the same bytes.

    >>> packer = SplitPacker(stage.partial, "train", layout, journal, max_tokens=0)
    >>> for block in read_blocks(corpus, split, packer.rows_done):
    ...     if not packer.append(encode_rows(tokenizer.encode_text, special, block)):
    ...         break                                    # max_tokens reached
    >>> packer.finish()                                  # writes train.idx, returns a SplitReport
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.packing.dataset import Split
from utils.packing.format import TokenWriter
from utils.packing.index import Documents, PackedIndex, Rows, SpecialIds, concat_rows, write_packed_index
from utils.packing.plan import best_fit_rows
from utils.packing.report import SplitReport
from utils.packing.waste import concat_cuts, concat_unused, padding_fraction
from utils.pipeline.errors import DataError
from utils.pipeline.hashing import hash_files

Encode = Callable[[list[str]], list[np.ndarray]]
_ENTRY = np.dtype([("length", "<u8"), ("id", "u1", 16), ("source", "<u2")])


class Block(Protocol):
    """Corpus rows as JSON lines with text, id and source."""

    lines: list[bytes]


class Journal(Protocol):
    """The part of the stage's journal that packing needs."""

    records: list[dict]

    def commit(self, record: dict) -> None: ...


@dataclass(frozen=True)
class Layout:
    """How a stream becomes rows, whose ids it holds, and the names that `document_sources` counts through."""

    mode: str
    sequence_length: int
    vocab_size: int
    fingerprint: str
    special: SpecialIds
    sources: list[str]


@dataclass(frozen=True)
class EncodedBlock:
    """
    The documents of one block: ids back to back, and per document its length, characters, UTF-8 bytes, id and
    source.
    """

    ids: np.ndarray
    lengths: list[int]
    characters: list[int]
    text_bytes: list[int]
    document_ids: list[str]
    sources: list[str]


def encode_rows(encode: Encode, special: SpecialIds, block: Block) -> EncodedBlock:
    """Turn corpus rows into BOS + ids + EOS each; runs in a worker."""
    rows = [json.loads(line) for line in block.lines]
    texts = [row["text"] for row in rows]
    bos = [] if special.bos < 0 else [special.bos]
    parts: list = []
    for ids in encode(texts):
        parts += [bos, ids, [special.eos]]
    lengths = [sum(map(len, parts[i : i + 3])) for i in range(0, len(parts), 3)]
    return EncodedBlock(
        np.concatenate(parts or [[]]).astype(np.uint32),
        lengths,
        [len(text) for text in texts],
        [len(text.encode()) for text in texts],
        [row["id"] for row in rows],
        [row["source"] for row in rows],
    )


class SplitPacker:
    """Appends encoded blocks to `<split>.bin` and builds `<split>.idx` at the end."""

    def __init__(self, folder: Path, split: Split, layout: Layout, journal: Journal, max_tokens: int) -> None:
        self._folder, self._split, self._layout = folder, split, layout
        self._journal, self._max_tokens = journal, max_tokens
        done = [record for record in journal.records if record["split"] == split]
        self.rows_done: int = done[-1]["rows"] if done else 0
        self.full = bool(done) and done[-1]["full"]
        self._characters, self._text_bytes = done[-1]["measured"] if done else (0, 0)
        self._bin, self._entries_path = folder / f"{split}.bin", folder / ".journal" / f"{split}.documents"
        self._writer = TokenWriter(self._bin, layout.vocab_size, layout.fingerprint, resume=bool(done))
        self._entries_path.parent.mkdir(exist_ok=True)
        self._entries = open(self._entries_path, "ab" if done else "wb")  # noqa: SIM115

    def append(self, block: EncodedBlock) -> bool:
        """Append a block and commit it; False when the split holds as many tokens as it may."""
        count = self._fitting(block.lengths)
        self.full = count < len(block.lengths)
        self._writer.append(block.ids[: sum(block.lengths[:count])])
        self._entries.write(self._describe(block, count).tobytes())
        self._entries.flush()
        self._characters += sum(block.characters[:count])
        self._text_bytes += sum(block.text_bytes[:count])
        self.rows_done += count
        self._commit()
        return not self.full

    def _fitting(self, lengths: list[int]) -> int:
        """Return how many documents of the block fit below max_tokens."""
        if not self._max_tokens:
            return len(lengths)
        return int(
            np.searchsorted(np.cumsum(lengths), self._max_tokens - self._writer.num_tokens, side="right")
        )

    def _describe(self, block: EncodedBlock, count: int) -> np.ndarray:
        entries = np.zeros(count, _ENTRY)
        entries["length"] = block.lengths[:count]
        entries["id"] = np.frombuffer(bytes.fromhex("".join(block.document_ids[:count])), "u1").reshape(
            -1, 16
        )
        entries["source"] = [self._source_number(name) for name in block.sources[:count]]
        return entries

    def _source_number(self, name: str) -> int:
        if name not in self._layout.sources:
            raise DataError(
                f'{self._split} holds a document of source "{name}", which the corpus does not count',
                fix="rerun 20_prepare_corpus --force",
            )
        return self._layout.sources.index(name)

    def _commit(self) -> None:
        ends = {
            self._bin.name: self._writer.flush(),
            f".journal/{self._entries_path.name}": self._entries.tell(),
        }
        record = {"split": self._split, "rows": self.rows_done, "full": self.full}
        record |= {"measured": [self._characters, self._text_bytes]}
        self._journal.commit(record | {"ends": ends})

    def finish(self) -> SplitReport:
        """Seal the stream, build rows, write the index, and report."""
        self._entries.close()
        num_tokens = self._writer.close()
        entries = np.fromfile(self._entries_path, _ENTRY)
        offsets = np.concatenate([[0], np.cumsum(entries["length"], dtype=np.uint64)]).astype("<u8")
        documents = Documents(offsets, entries["id"], entries["source"])
        rows, num_rows = self._rows(offsets, num_tokens)
        if not num_rows:
            raise DataError(
                f"{self._split} has {num_tokens:,} tokens, "
                f"not enough for one row of {self._layout.sequence_length:,}",
                fix=f"add text, shorten sequence_length_tokens, or raise max_{self._split}_tokens",
            )
        self._write_index(documents, rows, num_rows)
        return self._report(documents, rows, num_rows)

    def _rows(self, offsets: np.ndarray, num_tokens: int) -> tuple[Rows | None, int]:
        if self._layout.mode == "concat":
            return None, concat_rows(num_tokens, self._layout.sequence_length)
        rows = best_fit_rows(offsets, self._layout.sequence_length)
        return rows, len(rows)

    def _write_index(self, documents: Documents, rows: Rows | None, num_rows: int) -> None:
        layout, bin_sha256 = self._layout, hash_files([self._bin])[self._bin].sha256
        index = PackedIndex(
            layout.mode,
            layout.sequence_length,
            num_rows,
            layout.special,
            layout.fingerprint,
            bin_sha256,
            documents,
            rows,
        )
        write_packed_index(self._folder / f"{self._split}.idx", index)

    def _report(self, documents: Documents, rows: Rows | None, num_rows: int) -> SplitReport:
        length, lengths = self._layout.sequence_length, documents.lengths
        num_tokens, special = int(lengths.sum()), self._layout.special
        marks = len(documents) * (2 if special.bos >= 0 else 1)
        by_source = np.bincount(documents.sources, weights=lengths, minlength=len(self._layout.sources))
        return SplitReport(
            mode=self._layout.mode,
            documents=len(documents),
            tokens=num_tokens,
            rows=num_rows,
            padding_fraction=round(padding_fraction(lengths, length, rows), 4) if rows else 0.0,
            cut_documents=0 if rows else concat_cuts(lengths, length),
            unused_tokens=0 if rows else concat_unused(lengths, length),
            chars_per_token=round(self._characters / max(1, num_tokens - marks), 4),
            text_bytes=self._text_bytes,
            tokens_by_source={n: int(t) for n, t in zip(self._layout.sources, by_source, strict=True)},
            lengths=lengths,
        )
