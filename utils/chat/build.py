"""
The files of a prepared chat dataset, split by split: ids, masks, canonical rows, and what was rejected.

    build = DatasetBuild(folder, {"val": 0.05, "test": 0.05}, seed=0, tally=tally, open_tokens=open_tokens)
    build.keep(conversation, [encoded], turns=2, source=0)
    build.reject(item, Rejection("too_long", "300 tokens, at most 256"))
    build.finish()

Rows are written in reading order; nothing but a row's prompt and the seed decides its split.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import zstandard

from utils.chat.card import SplitStats
from utils.chat.conversation import SPLITS, Conversation, Rejection, Split, split_of, split_share
from utils.chat.masks import Encoded
from utils.chat.pairs import Pair
from utils.chat.prepare import Item, Tally
from utils.pipeline.errors import DataError
from utils.pipeline.inputs import Source


class TokenSink(Protocol):
    """Where the token ids of a split go."""

    def append(self, id: str, ids: np.ndarray, trained: np.ndarray, source: int) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """A .jsonl.zst file that is written once."""

    def __init__(self, path: Path) -> None:
        compressor = zstandard.ZstdCompressor(level=3, threads=0, write_checksum=True)
        self._file = compressor.stream_writer(open(path, "wb"))  # noqa: SIM115  (close() closes both)

    def write(self, row: dict) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    def close(self) -> None:
        self._file.close()


class DatasetBuild:
    """Collects rows into splits. A split with fraction 0 has no files."""

    def __init__(
        self,
        folder: Path,
        fractions: Mapping[str, float],
        seed: int,
        tally: Tally,
        open_tokens: Callable[[str], TokenSink],
    ) -> None:
        self.fractions, self.seed, self.tally = fractions, seed, tally
        names = [split for split in SPLITS if split == "train" or fractions[split]]
        self.stats = {split: SplitStats() for split in names}
        self._tokens = {split: open_tokens(split) for split in names}
        self._rows = {split: JsonLines(folder / f"{split}.rows.jsonl.zst") for split in names}
        self._rejected = JsonLines(folder / "rejected.jsonl.zst")
        self.notes: Counter = Counter()
        self._shares: list[float] = []

    def keep(self, row: Conversation | Pair, documents: Sequence[Encoded], turns: int, source: int) -> Split:
        """Write a row and its documents (one, or both sides of a pair) into the split of its prompt."""
        share = split_share(row.first_user_turn, self.seed)
        split = split_of(share, self.fractions["val"], self.fractions["test"])
        self._shares.append(share)
        self._rows[split].write(row.row())
        for document in documents:
            self._tokens[split].append(row.id, document.ids, document.trained, source)
            self.stats[split].add(len(document), int(document.trained.sum()), turns)
        self.tally.kept[dict(row.meta)["source"]] += 1
        return split

    def count_into(self, source: Source) -> None:
        """Tell the manifest how many rows of an external source were read and kept."""
        name = source.external.name
        source.count(self.tally.read[name], self.tally.kept[name])

    def reject(self, item: Item, rejection: Rejection) -> None:
        self._rejected.write(item.rejected_row(rejection))
        self.tally.rejected[item.source, rejection.reason] += 1

    def finish(self) -> None:
        """Close all files; DataError if too much was rejected or a split that was asked for is empty."""
        for file in (*self._rows.values(), self._rejected):
            file.close()
        self.tally.check()
        self._check_splits()
        for tokens in self._tokens.values():
            tokens.close()

    def _check_splits(self) -> None:
        for split in ("val", "test"):
            if self.fractions[split] and not self.stats[split].tokens:
                fraction = f"{split}_fraction {self.fractions[split]:g}"
                raise DataError(
                    f'the split "{split}" is empty: {fraction} of {len(self._shares):,} rows',
                    fix=self._fraction_that_would_do(split),
                )
        if not self.stats["train"].tokens:
            raise DataError(
                "no row is left for training", fix="lower val_fraction and test_fraction, or add rows"
            )

    def _fraction_that_would_do(self, split: str) -> str:
        """The smallest thousandth that gives the split a row."""
        start = 0.0 if split == "val" else self.fractions["val"]
        above = min((share - start for share in self._shares if share >= start), default=1.0)
        fraction = (math.floor(above * 1000) + 1) / 1000
        return f'set "{split}_fraction" to at least {fraction:g}, or to 0 for no such split'
