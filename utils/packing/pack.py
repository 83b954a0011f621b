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

from utils.packing.dataset import PackedDataset, Split
from utils.packing.format import TokenWriter
from utils.packing.index import Documents, PackedIndex, Rows, SpecialIds, write_packed_index
from utils.packing.plan import best_fit_rows
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
    The documents of one block: ids back to back, and per document its length, characters, id and source.
    """

    ids: np.ndarray
    lengths: list[int]
    characters: list[int]
    document_ids: list[str]
    sources: list[str]


@dataclass(frozen=True)
class SplitReport:
    """What packing one split came to. A token is an id of the stream, BOS and EOS included."""

    documents: int
    tokens: int
    rows: int
    padding_fraction: float
    cut_documents: int
    unused_tokens: int
    chars_per_token: float
    tokens_by_source: dict[str, int]

    def line(self) -> str:
        """One line for the terminal."""
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens of {self.chars_per_token:.2f} characters, "
            f"{self.rows:,} rows, {self.padding_fraction:.2%} padding, "
            f"{self.cut_documents:,} documents cut that would fit, {self.unused_tokens:,} tokens unused"
        )


def encode_rows(encode: Encode, special: SpecialIds, block: Block) -> EncodedBlock:
    """Turn corpus rows into BOS + ids + EOS each; runs in a worker."""
    rows = [json.loads(line) for line in block.lines]
    texts = [row["text"] for row in rows]
    bos = [] if special.bos < 0 else [special.bos]
    documents = [np.concatenate([bos, ids, [special.eos]]).astype(np.uint32) for ids in encode(texts)]
    ids = np.concatenate(documents) if documents else np.zeros(0, np.uint32)
    return EncodedBlock(
        ids,
        [len(d) for d in documents],
        [len(t) for t in texts],
        [r["id"] for r in rows],
        [r["source"] for r in rows],
    )


class SplitPacker:
    """Appends encoded blocks to `<split>.bin` and builds `<split>.idx` at the end."""

    def __init__(self, folder: Path, split: Split, layout: Layout, journal: Journal, max_tokens: int) -> None:
        self._folder, self._split, self._layout = folder, split, layout
        self._journal, self._max_tokens = journal, max_tokens
        done = [record for record in journal.records if record["split"] == split]
        self.rows_done: int = done[-1]["rows"] if done else 0
        self.full = bool(done) and done[-1]["full"]
        self._characters: int = done[-1]["characters"] if done else 0
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
        entries["source"] = [self._layout.sources.index(name) for name in block.sources[:count]]
        return entries

    def _commit(self) -> None:
        ends = {
            self._bin.name: self._writer.flush(),
            f".journal/{self._entries_path.name}": self._entries.tell(),
        }
        record = {"split": self._split, "rows": self.rows_done, "characters": self._characters}
        record |= {"full": self.full}
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
                f"not enough for one row of {self._layout.sequence_length:,}"
            )
        self._write_index(documents, rows, num_rows)
        return self._report(documents, num_rows)

    def _rows(self, offsets: np.ndarray, num_tokens: int) -> tuple[Rows | None, int]:
        if self._layout.mode == "concat":
            return None, max(0, (num_tokens - 1) // self._layout.sequence_length)
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

    def _report(self, documents: Documents, num_rows: int) -> SplitReport:
        length, offsets = self._layout.sequence_length, documents.offsets.astype(np.int64)
        lengths, num_tokens = documents.lengths, int(offsets[-1])
        padding, cut, unused = 0.0, 0, 0
        if self._layout.mode == "concat":
            unused = num_tokens - (num_rows * length + 1)
            cut = int(
                ((lengths <= length + 1) & (offsets[:-1] // length != (offsets[1:] - 2) // length)).sum()
            )
        else:
            repeated = int(np.maximum(0, -(-(lengths - 1) // length) - 1).sum())
            padding = 1 - (num_tokens + repeated) / (num_rows * (length + 1))
        marks = len(documents) * (2 if self._layout.special.bos >= 0 else 1)
        by_source = np.bincount(documents.sources, weights=lengths, minlength=len(self._layout.sources))
        tokens_by_source = {name: int(n) for name, n in zip(self._layout.sources, by_source, strict=True)}
        chars_per_token = self._characters / max(1, num_tokens - marks)
        return SplitReport(
            len(documents),
            num_tokens,
            num_rows,
            round(padding, 4),
            cut,
            unused,
            round(chars_per_token, 4),
            tokens_by_source,
        )


def packing_metrics(train: SplitReport, val: SplitReport) -> dict:
    """Return what the manifest records; `index` is the number of a source in `document_sources`."""
    sources = {
        name: {"index": i, "train_tokens": tokens, "val_tokens": val.tokens_by_source[name]}
        for i, (name, tokens) in enumerate(train.tokens_by_source.items())
    }
    metrics: dict = {"documents": train.documents + val.documents, "sources": sources}
    for split, report in (("train", train), ("val", val)):
        metrics[f"{split}_documents"], metrics[f"{split}_tokens"] = report.documents, report.tokens
        metrics[f"{split}_rows"] = report.rows
    metrics |= {"padding_fraction": train.padding_fraction, "val_padding_fraction": val.padding_fraction}
    metrics |= {"cut_documents": train.cut_documents, "unused_tokens": train.unused_tokens}
    return metrics | {"chars_per_token": train.chars_per_token}


def check_padding(report: SplitReport, max_padding_fraction: float) -> None:
    """DataError when more of the training rows is padding than allowed."""
    if report.padding_fraction > max_padding_fraction:
        raise DataError(
            f"{report.padding_fraction:.1%} of the training rows would be padding "
            f"(max_padding_fraction {max_padding_fraction})",
            fix="choose another sequence_length_tokens, or mode concat",
        )


def check_disjoint(train: PackedDataset, val: PackedDataset) -> None:
    """Prove on ids that no document is in both splits."""
    both = np.intersect1d(_as_scalars(train.document_ids), _as_scalars(val.document_ids))
    if len(both):
        raise DataError(
            f"{len(both):,} documents are in train and in val, the first is {both[0].tobytes().hex()}"
        )


def _as_scalars(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids).view("V16").reshape(-1)
