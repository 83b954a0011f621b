"""
Budgets: how many tokens each source owes, how much more of it to read, and which of its documents are taken.

All amounts are integers, UTF-8 bytes where tokens are estimated and tokens where they are counted, and shares
are exact fractions, so nothing depends on rounding or on the order in which blocks came back.

    >>> budget = Budget.of(config)
    >>> budget.shares([None, 3_000])                     # source 1 has only 3,000; None: nobody knows yet
    [Fraction(9000, 1), Fraction(3000, 1)]
    >>> budget.blocks_needed(share=1_000_000, supply=80_000, blocks=1)
    12
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from utils.config.corpus import CorpusConfig
from utils.pipeline.errors import DataError

# a source is read until it has this much more than its share, because documents do not end where shares do
MARGIN = Fraction(102, 100)


@dataclass(frozen=True)
class Budget:
    """What a config asks for, in bytes or tokens; `total` is 0 when it asks for everything."""

    names: tuple[str, ...]
    weights: tuple[Fraction, ...]
    total: Fraction
    per_token: Fraction
    exact: bool
    redistribute: bool

    @classmethod
    def of(cls, config: CorpusConfig) -> "Budget":
        exact = config.budget.count == "tokenizer"
        per_token = Fraction(1) if exact else Fraction(str(config.budget.bytes_per_token))
        return cls(
            names=tuple(source.name for source in config.sources),
            weights=tuple(Fraction(str(source.weight)) for source in config.sources),
            total=config.budget.tokens * per_token,
            per_token=per_token,
            exact=exact,
            redistribute=config.budget.on_shortfall == "redistribute",
        )

    @property
    def amount_column(self) -> str:
        """The field of an entry that is counted."""
        return "tokens" if self.exact else "text_bytes"

    def tokens(self, amount: int | Fraction) -> int:
        """Return an amount in whole tokens."""
        return int(amount / self.per_token)

    def shares(self, supply: Sequence[int | None]) -> list[Fraction]:
        """
        Return what each source owes. `supply` is what it has, or None while there is more to read. With
        `redistribute`, what a source lacks goes to the others as they are weighted.
        """
        owed = self._by_weight(range(len(self.weights)), self.total)
        if not self.redistribute:
            return owed
        short: dict[int, int] = {}
        while new := {
            i: have for i, have in enumerate(supply) if i not in short and have is not None and have < owed[i]
        }:
            short |= new
            others = [i for i in range(len(owed)) if i not in short]
            owed = self._by_weight(others, self.total - sum(short.values()))
            owed = [Fraction(short.get(i, owed[i])) for i in range(len(owed))]
        return owed

    def _by_weight(self, sources: Sequence[int], total: Fraction) -> list[Fraction]:
        whole = sum(self.weights[i] for i in sources)
        return [total * w / whole if i in sources else Fraction(0) for i, w in enumerate(self.weights)]

    def blocks_needed(self, share: Fraction, supply: int, blocks: int) -> int:
        """
        Return how many more blocks of a source to read, judging by what those read so far were worth: 0 when
        it has its share and the margin, as many again when they were worth nothing.
        """
        missing = share * MARGIN - supply
        if missing <= 0:
            return 0
        if not blocks:
            return 1
        return max(1, math.ceil(missing * blocks / supply)) if supply else blocks

    def check(self, supply: Sequence[int], ended: Sequence[bool], after: str) -> None:
        """DataError when a source that has no more to read cannot give its share, with the numbers."""
        have = [amount if end else None for amount, end in zip(supply, ended, strict=True)]
        if self.redistribute:
            if all(ended) and sum(supply) < self.total:
                raise self._too_little(sum(supply), self.total, "all sources together have", after)
            return
        for i, share in enumerate(self.shares(have)):
            if have[i] is not None and have[i] < share:
                weight = f"weight {float(self.weights[i]):g} of {float(sum(self.weights)):g}"
                what = f'source "{self.names[i]}" ({weight}) has'
                raise self._too_little(have[i], share, what, after, self.total * have[i] / share)

    def _too_little(
        self, have: int, wanted: Fraction, what: str, after: str, possible: Fraction | None = None
    ) -> DataError:
        kind = "" if self.exact else " (estimated)"
        largest = self.tokens(have if possible is None else possible)
        return DataError(
            f"{what} {self.tokens(have):,} tokens{kind} {after}, the budget asks for {self.tokens(wanted):,}",
            fix=f"set budget.tokens to {largest:,} or less, or add text"
            + ("" if possible is None else ', or set budget.on_shortfall to "redistribute"'),
        )


def take(orders: np.ndarray, amounts: np.ndarray, share: Fraction) -> np.ndarray:
    """
    Return which documents of one source are taken (bool): by ascending order hash until the share is reached.
    """
    by_hash = np.argsort(orders, kind="stable")
    before = np.cumsum(amounts[by_hash], dtype=np.uint64) - amounts[by_hash]
    taken = np.zeros(len(orders), bool)
    taken[by_hash[before < np.uint64(math.ceil(share))]] = True
    return taken
