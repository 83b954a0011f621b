"""
Selection: which documents stay, on which side of the split, in which order.

Every decision is a function of a document, or of canonical order (source order in the config, then reading
order), so neither workers nor neighbours can change it.

    >>> selection = remove_duplicates(documents, DedupSettings(20, 6, 0.8))
    >>> val = in_validation(documents.entries["split"], val_fraction=0.02)
    >>> order = output_order(documents, np.flatnonzero(selection.kept & val))
"""

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from utils.corpus.dedup import DedupSettings, decide
from utils.corpus.segments import Documents
from utils.pipeline.errors import DataError


@dataclass(frozen=True)
class Loser:
    """A duplicate, the document that stays in its place, and their similarity (1 for an exact duplicate)."""

    document: int
    kept: int
    reason: str
    jaccard: float


@dataclass
class Selection:
    """Which documents stay (bool per document), which do not, and how the search went."""

    kept: np.ndarray
    losers: list[Loser] = field(default_factory=list)
    candidate_pairs: int = 0
    large_buckets: int = 0

    def cluster_sizes(self) -> dict[str, int]:
        """Return how many clusters of duplicates there are of each size, the kept document included."""
        per_kept = Counter(loser.kept for loser in self.losers)
        sizes = Counter(count + 1 for count in per_kept.values())
        return {str(size): sizes[size] for size in sorted(sizes)}


def remove_duplicates(documents: Documents, near: DedupSettings | None) -> Selection:
    """Remove exact duplicates, then near ones if asked; of equals the first in canonical order stays."""
    ids = np.ascontiguousarray(documents.entries["id"]).view("V16").reshape(-1)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    kept_instead = first[inverse.reshape(-1)]
    selection = Selection(kept_instead == np.arange(len(documents)))
    for i in np.flatnonzero(~selection.kept).tolist():
        selection.losers.append(Loser(i, int(kept_instead[i]), "exact_duplicate", 1.0))
    if near:
        _remove_near(documents, near, selection)
    return selection


def _remove_near(documents: Documents, settings: DedupSettings, selection: Selection) -> None:
    ends = documents.entries["sketch_end"].astype(np.int64)
    has_sketch = np.diff(ends, prepend=0) > 0
    chosen = np.flatnonzero(selection.kept & has_sketch)
    decision = decide(documents.signatures[chosen], lambda i: documents.sketch(int(chosen[i])), settings)
    selection.candidate_pairs, selection.large_buckets = decision.candidate_pairs, decision.large_buckets
    for duplicate in decision.duplicates:
        loser = int(chosen[duplicate.document])
        selection.kept[loser] = False
        selection.losers.append(
            Loser(loser, int(chosen[duplicate.kept]), "near_duplicate", duplicate.jaccard)
        )


def in_validation(split_hashes: np.ndarray, val_fraction: float) -> np.ndarray:
    """Return, per document, whether hash / 2^64 < val_fraction."""
    bound = -int(-Fraction(val_fraction) * 2**64 // 1)
    return split_hashes < np.uint64(bound) if bound < 2**64 else np.ones(len(split_hashes), bool)


def check_validation(split_hashes: np.ndarray, num_val: int, min_val_documents: int) -> None:
    """DataError when validation is too small, with the fraction that would do."""
    if num_val >= min_val_documents:
        return
    if len(split_hashes) <= min_val_documents:
        raise DataError(
            f"{len(split_hashes):,} documents are left, validation alone asks for {min_val_documents}",
            fix="add text or lower split.min_val_documents",
        )
    needed = int(np.sort(split_hashes)[min_val_documents - 1]) / 2**64
    raise DataError(
        f"validation has {num_val} documents, split.min_val_documents asks for {min_val_documents}",
        fix=f"set split.val_fraction to {needed + 0.0001:.4f} or lower split.min_val_documents",
    )


def output_order(documents: Documents, chosen: np.ndarray) -> np.ndarray:
    """Return the chosen documents in output order: by the hash of their id, which mixes all sources."""
    hashes = documents.entries["order"][chosen]
    ids = np.ascontiguousarray(documents.entries["id"][chosen]).view("S16").reshape(-1)
    return chosen[np.lexsort((ids, hashes))]
