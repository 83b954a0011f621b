"""
Selection: which documents are written, and on which side of the split.

Every decision is a function of a document, or of canonical order (source order in the config, then reading
order), so neither workers nor neighbours can change it.

    >>> selection = select(documents, found, budget, val_fraction=0.02)
    >>> selection.train.sum(), selection.val.sum(), selection.over_budget.sum()
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from utils.corpus.budget import Budget, take
from utils.corpus.documents import Documents
from utils.corpus.duplicates import Duplicates
from utils.pipeline.errors import DataError


@dataclass(frozen=True)
class Selection:
    """One bool per document in canonical order: no duplicate, beyond the budget, in train, in validation."""

    kept: np.ndarray
    over_budget: np.ndarray
    train: np.ndarray
    val: np.ndarray

    @property
    def written(self) -> np.ndarray:
        return self.train | self.val


def select(documents: Documents, duplicates: Duplicates, budget: Budget, val_fraction: float) -> Selection:
    """Take each source's share of what is no duplicate, and split that."""
    kept = duplicates.kept(len(documents))
    taken = _within_budget(documents, kept, budget) if budget.total else kept
    val = in_validation(documents.column("split"), val_fraction)
    return Selection(kept, kept & ~taken, taken & ~val, taken & val)


def supply_of(documents: Documents, kept: np.ndarray, budget: Budget) -> list[int]:
    """Return how much of each source is no duplicate, in the budget's own unit."""
    amounts, sources = documents.column(budget.amount_column), documents.sources()
    return [
        int(amounts[kept & (sources == number)].sum(dtype=np.uint64)) for number in range(len(budget.names))
    ]


def _within_budget(documents: Documents, kept: np.ndarray, budget: Budget) -> np.ndarray:
    taken = np.zeros(len(documents), bool)
    amounts, orders = documents.column(budget.amount_column), documents.column("order")
    sources = documents.sources()
    for number, share in enumerate(budget.shares(supply_of(documents, kept, budget))):
        mine = np.flatnonzero(kept & (sources == number))
        taken[mine[take(orders[mine], amounts[mine], share)]] = True
    return taken


def in_validation(split_hashes: np.ndarray, val_fraction: float) -> np.ndarray:
    """Return, per document, whether hash / 2^64 < val_fraction."""
    bound = -int(-Fraction(val_fraction) * 2**64 // 1)
    return split_hashes < np.uint64(bound) if bound < 2**64 else np.ones(len(split_hashes), bool)


def check_validation(split_hashes: np.ndarray, num_val: int, min_val_documents: int) -> None:
    """DataError when validation is too small, with the fraction that would do."""
    if num_val >= min_val_documents:
        return
    lower = " or lower split.min_val_documents" if min_val_documents > 1 else ""
    if len(split_hashes) <= min_val_documents:
        raise DataError(
            f"{len(split_hashes):,} documents are left, validation alone asks for {min_val_documents}",
            fix="add text" + lower,
        )
    needed = int(np.sort(split_hashes)[min_val_documents - 1]) / 2**64
    raise DataError(
        f"validation has {num_val} documents, split.min_val_documents asks for {min_val_documents}",
        fix=f"set split.val_fraction to {needed + 0.0001:.4f}{lower}; what was read is kept",
    )
