"""
What packing came to: the numbers of a split, the estimate of stage 20 against the truth, and the last checks.

    >>> check_padding(train_report, sequence_length=256, max_padding_fraction=0.25)
    >>> packing_metrics(train_report, val_report, estimate_of([train_report, val_report],
    4.0))["train_tokens"]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.packing.dataset import PackedDataset
from utils.packing.waste import alternatives
from utils.pipeline.errors import DataError


@dataclass(frozen=True)
class SplitReport:
    """What packing one split came to. A token is an id of the stream, BOS and EOS included."""

    mode: str
    documents: int
    tokens: int
    rows: int
    padding_fraction: float
    cut_documents: int
    unused_tokens: int
    chars_per_token: float
    text_bytes: int
    tokens_by_source: dict[str, int]
    lengths: np.ndarray = field(repr=False)

    def line(self) -> str:
        """One line for the terminal."""
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens of {self.chars_per_token:.2f} characters, "
            f"{self.rows:,} {self.mode} rows, {self.padding_fraction:.2%} padding, "
            f"{self.cut_documents:,} documents cut that would fit, {self.unused_tokens:,} tokens unused"
        )


@dataclass(frozen=True)
class Estimate:
    """How many tokens stage 20 took a text for, and how many it is."""

    estimated_tokens: int
    tokens: int

    @property
    def error(self) -> float:
        """(estimated - true) / true."""
        return round(self.estimated_tokens / max(1, self.tokens) - 1, 4)

    def line(self) -> str:
        """One line for the terminal."""
        return f"{self.tokens:,} tokens, estimated were {self.estimated_tokens:,} ({self.error:+.1%})"


def estimate_of(reports: Sequence[SplitReport], bytes_per_token: float) -> Estimate:
    """The estimate by bytes against the tokens of all splits, BOS and EOS included."""
    text_bytes, tokens = (
        sum(column) for column in zip(*((r.text_bytes, r.tokens) for r in reports), strict=True)
    )
    return Estimate(round(text_bytes / bytes_per_token), tokens)


def packing_metrics(train: SplitReport, val: SplitReport, estimate: Estimate | None) -> dict:
    """
    Return what the manifest records; `index` is the number of a source in `document_sources`. There is no
    estimate where stage 20 counted tokens.
    """
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
    if estimate:
        metrics |= {"estimated_tokens": estimate.estimated_tokens, "estimate_error": estimate.error}
    return metrics | {"chars_per_token": train.chars_per_token}


def check_padding(report: SplitReport, sequence_length: int, max_padding_fraction: float) -> None:
    """DataError when more of the training rows is padding than allowed."""
    if report.padding_fraction > max_padding_fraction:
        raise DataError(
            f"{report.padding_fraction:.1%} of the training rows would be padding "
            f"(max_padding_fraction {max_padding_fraction})",
            fix=alternatives(report.lengths, sequence_length),
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
