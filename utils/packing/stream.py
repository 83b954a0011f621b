"""
Rows read directly from raw files, for text that is larger than the disk left for packing it.

    >>> stream = TextStream([text], weights=[1.0], seed=0, batch_rows=32, row_tokens=256)
    >>> batch = stream.next_step(rank=0, num_ranks=1)         # tokens, document, position [32, 257]
    >>> stream.cursor()                                       # for the checkpoint; stream.restore(cursor)

The text is read at S = gcd(rows of a step, 64) places at once. Row j of step s comes from part (j + s) mod S
of the dataset whose turn it is, through that part's share of a shuffle buffer of 1,024 rows; rank r of R
reads S / R of the parts. So the rows of a step do not depend on R. A cursor names, for each part, where its
buffer began and how much of it is used: going back re-reads at most the buffer.
"""

from collections.abc import Sequence
from math import gcd

import numpy as np

from utils.packing.dataset import Batch
from utils.packing.mixture import Quota, permute
from utils.packing.shards import Piece, Place, RawText, Shard
from utils.pipeline.errors import ConfigError, StageError

MOST_SHARDS = 64
BUFFER_ROWS = 1024


class Lane:
    """One part of a text through its buffer."""

    def __init__(self, shard: Shard, key: str, buffer_rows: int, row_tokens: int) -> None:
        self._shard, self._key, self._rows, self._row_tokens = shard, key, buffer_rows, row_tokens
        self._begin, self._buffers, self._used = shard.begin(0), 0, 0
        self._piece: Piece | None = None
        self._order = np.empty(0, np.int64)

    def next_row(self) -> Batch:
        """One row [1, T + 1]."""
        if self._piece is None:
            self._fill()
        if self._used == self._piece.num_rows:
            self._begin, self._buffers, self._used = self._piece.after, self._buffers + 1, 0
            self._fill()
        self._used += 1
        return self._piece.block.rows(self._order[self._used - 1 : self._used])

    def _fill(self) -> None:
        self._piece = self._shard.next_piece(self._rows, self._row_tokens)
        num_rows = self._piece.num_rows
        self._order = permute(np.arange(num_rows), num_rows, f"{self._key}\n{self._buffers}")

    def state(self) -> list[int]:
        """Where the buffer began, its number, and how many of its rows are used."""
        return [*self._begin, self._buffers, self._used]

    def restore(self, state: Sequence[int]) -> None:
        """Go back; the buffer is read again when its next row is asked for."""
        *place, self._buffers, self._used = state
        self._begin, self._piece = Place(*place), None
        self._shard.go_to(self._begin)


class TextStream:
    """One or several raw texts, mixed by weight, as the rows of a run."""

    def __init__(
        self, texts: Sequence[RawText], weights: Sequence[float], seed: int, batch_rows: int, row_tokens: int
    ) -> None:
        self.batch_rows, self.num_shards = batch_rows, gcd(batch_rows, MOST_SHARDS)
        self._texts, self._weights, self._seed = list(texts), list(weights), seed
        self._row_tokens, self._step, self._quota = row_tokens, 0, Quota(weights)
        self._lanes = [self._lanes_of(text) for text in texts]
        self._mine = range(self.num_shards)

    def _lanes_of(self, text: RawText) -> list[Lane]:
        key, rows = f"lockstep:stream\n{self._seed}\n{text.digest}", BUFFER_ROWS // self.num_shards
        shards = text.shards(self.num_shards)
        return [Lane(shard, f"{key}\n{shard.number}", rows, self._row_tokens) for shard in shards]

    def next_step(self, rank: int, num_ranks: int) -> Batch:
        """
        Advance by one step; the rows of it that belong to `rank`. ConfigError when the ranks cannot share the
        parts.
        """
        if self.num_shards % num_ranks:
            raise ConfigError(
                f"raw text is read at gcd({self.batch_rows} rows, {MOST_SHARDS}) = {self.num_shards} places, "
                f"which {num_ranks} processes cannot share",
                fix='choose "global_batch_tokens" so that the rows of a step are a multiple of the processes',
            )
        share = self.num_shards // num_ranks
        self._mine = range(rank * share, (rank + 1) * share)
        rows = [self._lanes[text][lane].next_row() for text, lane in self._draw() if lane in self._mine]
        return Batch(*(np.concatenate(column) for column in zip(*rows, strict=True)))

    def _draw(self) -> list[tuple[int, int]]:
        """Text and part of each row of the next step; shifted by the step, so every text uses every part."""
        self._step += 1
        return [(self._quota.take(), (j + self._step - 1) % self.num_shards) for j in range(self.batch_rows)]

    def cursor(self) -> dict:
        """The position; of the parts only those that this rank reads."""
        parts = {
            f"{text}.{lane}": self._lanes[text][lane].state()
            for text in range(len(self._texts))
            for lane in self._mine
        }
        return {"step": self._step, "counts": list(self._quota.counts), "parts": parts} | self._identity()

    def restore(self, cursor: dict) -> None:
        """Go to a saved position. StageError names the field that is not the one of this run."""
        for name, ours in self._identity().items():
            if cursor.get(name) != ours:
                raise StageError(
                    f"the checkpoint was made with {name} {cursor.get(name)}, this run has {ours}",
                    fix="resume with the data, weights, seed and batch of the checkpoint, or start again",
                )
        self._step, self._quota.counts = cursor["step"], list(cursor["counts"])
        for name, state in cursor["parts"].items():
            text, lane = map(int, name.split("."))
            self._lanes[text][lane].restore(state)

    def _identity(self) -> dict:
        digests = [text.digest for text in self._texts]
        run = {"weights": self._weights, "seed": self._seed, "batch_rows": self.batch_rows}
        return {"datasets": digests} | run | {"row_tokens": self._row_tokens}
