"""
Mixture: the deterministic, infinite order of rows in which training reads one or several datasets.

Which dataset gives draw k is exact quota arithmetic in integers, which row of it is a keyed permutation: no
table in memory, no library random stream that may change, and resuming costs nothing. A step takes the next
`batch_rows` draws; the ranks share them in equal slices, so the rows of a step do not depend on the number of
processes.

    >>> mixture = Mixture([MixtureSource(num_rows, packed.output_digest, weight=1.0)], seed=0, batch_rows=32)
    >>> draws = mixture.next_step(rank=0, num_ranks=1)           # draws.dataset, draws.row: int64 [32]
    >>> batch = read_draws([dataset], draws)                     # any objects with rows(indices) -> Batch
    >>> mixture.cursor()                                         # for the checkpoint; mixture.restore(cursor)
"""

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import NamedTuple, Protocol

import numpy as np

from utils.packing.dataset import Batch
from utils.pipeline.errors import ConfigError, StageError
from utils.pipeline.inputs import Input

_ONE = 1 << 32


@dataclass(frozen=True)
class MixtureSource:
    """One dataset of a mixture: its number of rows, the output digest of its artifact, its weight."""

    num_rows: int
    output_digest: str
    weight: float = 1.0
    split: str = "train"


class Draws(NamedTuple):
    """Rows to read: the number of the dataset and the row in it, int64 [rows]."""

    dataset: np.ndarray
    row: np.ndarray


class HasRows(Protocol):
    """What `read_draws` needs of a dataset."""

    def rows(self, indices: np.ndarray) -> Batch: ...


class Quota:
    """
    Which dataset comes next, so that in every prefix of the draws each of m datasets is less than one row
    from its share: at most 1 - 1 / (2m - 2) (Tijdeman, The chairman assignment problem, Discrete Mathematics
    32, 1980). Of the datasets that are owed at least 1 / (2m - 2) row, the one comes that would first be owed
    too much; ties to the larger debt, then to the lowest index.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.shares = integer_weights(weights)
        self.counts = [0] * len(self.shares)

    @property
    def drawn(self) -> int:
        return sum(self.counts)

    def take(self) -> int:
        """Advance by one draw and return its dataset. All amounts are in units of 2^-32 / (2m - 2) row."""
        parts, following = max(1, 2 * len(self.shares) - 2), self.drawn + 1
        row, best = parts * _ONE, (inf, 0, 0)
        for dataset, (share, count) in enumerate(zip(self.shares, self.counts, strict=True)):
            debt = parts * following * share - row * count
            if debt >= _ONE:  # the more it is owed and the larger its share, the fewer draws it can wait
                best = min(best, (-((debt + _ONE - row) // (parts * share)), -debt, dataset))
        self.counts[best[2]] += 1
        return best[2]


class Mixture:
    """
    The row order of a run. ConfigError for an empty dataset, a weight of 0, or a batch no rank can share.
    """

    def __init__(self, sources: Sequence[MixtureSource], seed: int, batch_rows: int) -> None:
        for i, source in enumerate(sources):
            if source.num_rows < 1 or not 0 < source.weight < inf:
                raise ConfigError(
                    f"data.{i} has {source.num_rows} rows and weight {source.weight}; both must be above 0"
                )
        self.sources, self.seed, self.batch_rows = list(sources), seed, batch_rows
        self._quota = Quota([source.weight for source in sources])
        if 0 in self._quota.shares:
            i = self._quota.shares.index(0)
            raise ConfigError(
                f"data.{i} has weight {sources[i].weight}, too little beside the others to be read"
            )

    @property
    def rows_drawn(self) -> int:
        return self._quota.drawn

    def epochs(self, num_steps: int) -> list[float]:
        """Return, for each dataset, how often a run of so many steps reads it, to within one row."""
        drawn = num_steps * self.batch_rows
        pairs = zip(self._quota.shares, self.sources, strict=True)
        return [drawn * share / _ONE / source.num_rows for share, source in pairs]

    def epochs_line(self, names: Sequence[str], num_steps: int) -> str:
        """One line to print before training: how often each dataset will be read, and in what share."""
        shares = share_phrases([source.weight for source in self.sources])
        return ", ".join(
            f"{name} {epochs:.2f} epochs of {source.num_rows:,} rows{share}"
            for name, epochs, source, share in zip(
                names, self.epochs(num_steps), self.sources, shares, strict=True
            )
        )

    def next_step(self, rank: int = 0, num_ranks: int = 1) -> Draws:
        """Advance by one step and return the part of its rows that belongs to `rank`."""
        if self.batch_rows % num_ranks:
            raise ConfigError(
                f"a global batch of {self.batch_rows} rows cannot be shared by {num_ranks} processes"
            )
        draws = self._draw(self.batch_rows)
        size = self.batch_rows // num_ranks
        mine = slice(rank * size, (rank + 1) * size)
        return Draws(draws.dataset[mine], draws.row[mine])

    def at(self, cursor: dict) -> Draws:
        """All rows of the step that starts at a saved position, which this mixture itself does not go to."""
        other = copy(self)
        other.restore(cursor)
        return other.next_step()

    def cursor(self) -> dict:
        """Return the position for a checkpoint (D49)."""
        return {"rows_drawn": self.rows_drawn, "counts": list(self._quota.counts)} | self._identity()

    def restore(self, cursor: dict) -> None:
        """Go to a saved position. StageError names the field that is not the one of this run."""
        for name, ours in self._identity().items():
            if cursor.get(name) != ours:
                raise StageError(
                    f"the checkpoint was made with {name} {cursor.get(name)}, this run has {ours}",
                    fix="resume with the data, weights, seed and batch of the checkpoint, or start again",
                )
        if sum(cursor["counts"]) != cursor["rows_drawn"] or len(cursor["counts"]) != len(self.sources):
            raise StageError(
                f"the checkpoint's counts {cursor['counts']} do not add up to {cursor['rows_drawn']} rows"
            )
        self._quota.counts = list(cursor["counts"])

    def _identity(self) -> dict:
        digests = [source.output_digest for source in self.sources]
        weights = [source.weight for source in self.sources]
        return {"datasets": digests, "weights": weights, "seed": self.seed, "batch_rows": self.batch_rows}

    def _draw(self, num_draws: int) -> Draws:
        first = list(self._quota.counts)
        dataset = np.array([self._quota.take() for _ in range(num_draws)], np.int64)
        row = np.empty(num_draws, np.int64)
        for d, source in enumerate(self.sources):
            row[dataset == d] = _rows_of(source, self.seed, first[d], self._quota.counts[d])
        return Draws(dataset, row)


def read_draws(datasets: Sequence[HasRows], draws: Draws) -> Batch:
    """Read the drawn rows in their order; all datasets must have rows of one length."""
    columns: list[np.ndarray] = []
    for d, dataset in enumerate(datasets):
        chosen = np.flatnonzero(draws.dataset == d)
        if len(chosen):
            part = dataset.rows(draws.row[chosen])
            columns = columns or [np.empty((len(draws.row), *c.shape[1:]), c.dtype) for c in part]
            for into, column in zip(columns, part, strict=True):
                into[chosen] = column
    return Batch(*columns)


def integer_weights(weights: Sequence[float]) -> list[int]:
    """
    Return integers in proportion to the weights that sum to 2^32; what rounding leaves goes to the first.
    """
    total = sum(Fraction(weight) for weight in weights)
    shares = [int(Fraction(weight) * _ONE / total) for weight in weights]
    shares[0] += _ONE - sum(shares)
    return shares


def share_phrases(weights: Sequence[float]) -> list[str]:
    """The weight that each dataset was given and the share of the rows that it gets; "" for a single one."""
    if len(weights) == 1:
        return [""]
    shares = integer_weights(weights)
    return [
        f" (weight {weight:g}, {100 * share / _ONE:.2f} % of the rows)"
        for weight, share in zip(weights, shares, strict=True)
    ]


def drawn_shares(names: Sequence[str], weights: Sequence[float], counts: Sequence[int]) -> dict[str, dict]:
    """What the manifest says of each dataset: the weight asked for, the rows drawn, their share of all."""
    total = max(1, sum(counts))
    return {
        name: {"weight": weight, "rows_drawn": count, "share": round(count / total, 6)}
        for name, weight, count in zip(names, weights, counts, strict=True)
    }


def _rows_of(source: MixtureSource, seed: int, first: int, last: int) -> np.ndarray:
    """
    Return the rows of draws `first` up to `last` of one dataset: each epoch is a permutation of all its rows.
    """
    n = np.arange(first, last)
    rows = np.empty(len(n), np.int64)
    for epoch in range(first // source.num_rows, (max(last, first + 1) - 1) // source.num_rows + 1):
        chosen = n // source.num_rows == epoch
        key = f"lockstep:rows\n{seed}\n{source.output_digest}\n{source.split}\n{epoch}"
        rows[chosen] = permute(n[chosen] % source.num_rows, source.num_rows, key)
    return rows


def permute(indices: np.ndarray | Sequence[int], num_rows: int, key: str) -> np.ndarray:
    """
    Permute indices of [0, num_rows) by a four-round Feistel network keyed with SHA-256(key).

    The network permutes the next even power of two; values outside [0, num_rows) walk on until they are
    inside, which takes less than four rounds of the loop on average.
    """
    half = np.uint64(max(1, ((num_rows - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.frombuffer(hashlib.sha256(key.encode()).digest(), "<u8")
    values = np.asarray(indices, np.uint64).copy()
    todo = np.arange(len(values))
    while len(todo):
        values[todo] = _feistel(values[todo], half, mask, keys)
        todo = todo[values[todo] >= num_rows]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, mask: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = values >> half, values & mask
    for k in keys:
        f = (right ^ k) * np.uint64(0x9E3779B97F4A7C15)
        f ^= f >> np.uint64(32)
        f *= np.uint64(0xD6E8FEB86659FD93)
        f ^= f >> np.uint64(32)
        left, right = right, left ^ (f & mask)
    return left << half | right


class Counted(Protocol):
    """An opened split, however its rows are made."""

    num_rows: int


class Weighted(Protocol):
    """A config's entry for one dataset."""

    weight: float


def mix_inputs(
    opened: Sequence[Counted],
    inputs: Sequence[Input],
    entries: Sequence[Weighted],
    seed: int,
    batch_rows: int,
) -> Mixture:
    """
    The mixture of a training stage: opened splits, the artifacts that they lie in and the config's entries,
    all in one order. ValueError when their numbers differ.
    """
    sources = [
        MixtureSource(each.num_rows, found.manifest.output_digest, entry.weight)
        for each, found, entry in zip(opened, inputs, entries, strict=True)
    ]
    return Mixture(sources, seed, batch_rows)
