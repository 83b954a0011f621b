"""
How surprised a model is by text: strided negative log-likelihood, per token, per word and per byte.

A window is the model's context and moves by half of it; each token is scored once, with at least half a
context before it (except at the start). Documents keep their BOS and EOS and are never joined, so the numbers
are those of stage 50.

    nll = document_nll(model, documents, window=256, stride=128)          # one array per document
    measure(nll, texts).bits_per_byte
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGITS = 1 << 25  # logits in memory at once: 128 MiB of fp32


@dataclass(frozen=True)
class Window:
    """ids[start:end] of one document; targets before `first_target` were scored by an earlier window."""

    document: int
    start: int
    end: int
    first_target: int


@dataclass(frozen=True)
class TextMeasure:
    """Totals over a set of documents; nll in nats, words are whitespace-split units, bytes are UTF-8."""

    documents: int
    tokens: int
    words: int
    bytes: int
    nll: float

    @property
    def nll_per_token(self) -> float:
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)

    @property
    def word_perplexity(self) -> float:
        return math.exp(self.nll / self.words)

    @property
    def bits_per_byte(self) -> float:
        return self.nll / (math.log(2) * self.bytes)


def plan_windows(lengths: Sequence[int], window: int, stride: int) -> Iterator[Window]:
    """Cut documents of these lengths so that every token but the first is a target exactly once."""
    if not 0 < stride < window:
        raise ValueError(f"stride {stride} must lie between 0 and the window {window}")
    for document, length in enumerate(lengths):
        start, scored = 0, 1
        while scored < length:
            end = min(start + window, length)
            yield Window(document, start, end, scored)
            scored, start = end, start + stride


def document_nll(
    model: PreTrainedModel, documents: Sequence[np.ndarray], window: int, stride: int
) -> list[np.ndarray]:
    """NLL in nats of each token but the first of every document, as float64 arrays of length len(ids) - 1."""
    found = [np.zeros(max(0, len(ids) - 1)) for ids in documents]
    windows = sorted(
        plan_windows([len(ids) for ids in documents], window, stride),
        key=lambda w: (w.end - w.start, w.document, w.start),
    )
    for batch in _batches(windows, model.config.vocab_size):
        scores = _score(model, [documents[w.document][w.start : w.end] for w in batch])
        for row, w in enumerate(batch):
            targets = slice(w.first_target - 1, w.end - 1)
            found[w.document][targets] = scores[row, w.first_target - 1 - w.start : w.end - 1 - w.start]
    return found


def measure(nll: Sequence[np.ndarray], texts: Sequence[str]) -> TextMeasure:
    """Totals of scored documents and the texts that they came from."""
    return TextMeasure(
        documents=len(texts),
        tokens=sum(map(len, nll)),
        words=sum(len(text.split()) for text in texts),
        bytes=sum(len(text.encode("utf-8")) for text in texts),
        nll=float(sum(scores.sum() for scores in nll)),
    )


def _batches(windows: list[Window], vocab_size: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) + 1) * (window.end - window.start) * vocab_size > MAX_LOGITS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _score(model: PreTrainedModel, rows: list[np.ndarray]) -> np.ndarray:
    """
    NLL [rows, longest - 1] of each next token; what lies beyond a row's end is padding and not to be
    read.
    """
    import torch

    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
    with torch.inference_mode():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten().to(logits.device), reduction="none"
        )
    return nll.view(len(rows), longest - 1).double().cpu().numpy()
