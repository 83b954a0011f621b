"""A tiny packed folder, built through the real writer with made-up ids."""

from pathlib import Path

import numpy as np
import pytest

from utils.packing.index import SpecialIds
from utils.packing.pack import EncodedBlock, Layout, SplitPacker
from utils.packing.report import SplitReport

FINGERPRINT = "ab" * 32


class MemoryJournal:
    """Keeps records in memory; `fail_after` commits it raises, as a kill would end the process."""

    def __init__(self, records: list[dict] | None = None, fail_after: int = -1) -> None:
        self.records, self.committed, self.fail_after = list(records or []), list(records or []), fail_after

    def commit(self, record: dict) -> None:
        self.committed.append(record)
        self.fail_after -= 1
        if not self.fail_after:
            raise InterruptedError


def make_layout(length: int = 8, mode: str = "best_fit", vocab_size: int = 300, pad: int = 3) -> Layout:
    return Layout(mode, length, vocab_size, FINGERPRINT, SpecialIds(1, 2, pad), ["books", "stories"])


def make_blocks(
    lengths: list[int], vocab_size: int = 300, per_block: int = 3, salt: int = 0
) -> list[EncodedBlock]:
    """Documents BOS + arithmetic ids + EOS of these total lengths."""
    documents = [
        np.array([1, *(4 + (np.arange(n - 2) + i) % (vocab_size - 4)), 2], np.uint32)
        for i, n in enumerate(lengths)
    ]
    ids = [f"{salt + i:032x}" for i in range(len(lengths))]
    blocks = []
    for start in range(0, len(lengths), per_block):
        part = documents[start : start + per_block]
        part_ids = ids[start : start + per_block]
        sizes = [len(d) for d in part]
        columns = (sizes, sizes, [2 * n for n in sizes], part_ids, ["books"] * len(part))
        blocks.append(EncodedBlock(np.concatenate(part), *columns))
    return blocks


def pack(
    folder: Path, split: str, blocks: list[EncodedBlock], layout: Layout, max_tokens: int = 0
) -> SplitReport:
    folder.mkdir(exist_ok=True)
    packer = SplitPacker(folder, split, layout, MemoryJournal(), max_tokens)
    for block in blocks:
        if not packer.append(block):
            break
    return packer.finish()


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Train of 4 documents and val of 2, T = 8."""
    pack(tmp_path, "train", make_blocks([5, 20, 9, 4]), make_layout())
    pack(tmp_path, "val", make_blocks([6, 7], salt=1000), make_layout())
    return tmp_path
