"""
What counting alone achieves: unigram and bigram models of the training split, scored on the validation
targets.

A trained model that does not beat the bigram has learned nothing that a table could not hold.

    baselines = count_baselines(train_batches, val_batches, vocab_size=4096)
    baselines.unigram_loss, baselines.bigram_loss            # nats per target

Unigram: add-one. Bigram: p(y | x) = (c(x, y) + mu p(y)) / (c(x) + mu), a Dirichlet prior of strength mu on
the unigram (MacKay and Peto 1995); mu is the best of a few *on the validation targets*, which can only
flatter the baseline. Only the pairs that occur in validation are counted, so memory does not grow with the
square of the vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from utils.training.loss import IGNORED, Batch, next_token_targets

PRIOR_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class Baselines:
    """Nats per validation target; `prior_strength` is the mu that was best."""

    unigram_loss: float
    bigram_loss: float
    prior_strength: float


def count_baselines(train: Iterable[Batch], val: Iterable[Batch], vocab_size: int) -> Baselines:
    """Count the training pairs, score the validation pairs."""
    before, after = (np.concatenate(column) for column in zip(*map(_pairs, val), strict=True))
    wanted, places = np.unique(before * vocab_size + after, return_inverse=True)
    targets, contexts, pairs = np.zeros(vocab_size), np.zeros(vocab_size), np.zeros(len(wanted))
    for inputs, following in map(_pairs, train):
        targets += np.bincount(following, minlength=vocab_size)
        contexts += np.bincount(inputs, minlength=vocab_size)
        keys = inputs * vocab_size + following
        found = np.searchsorted(wanted, keys).clip(max=len(wanted) - 1)
        pairs += np.bincount(found[wanted[found] == keys], minlength=len(wanted))
    unigram = ((targets + 1) / (targets.sum() + vocab_size))[after]
    seen = pairs[places]
    bigram = {
        strength: -np.log((seen + strength * unigram) / (contexts[before] + strength)).mean()
        for strength in PRIOR_STRENGTHS
    }
    best = min(bigram, key=bigram.get)
    return Baselines(float(-np.log(unigram).mean()), float(bigram[best]), best)


def _pairs(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and their targets inside documents."""
    inputs, targets, _ = next_token_targets(batch)
    scored = targets != IGNORED
    return inputs[scored].numpy(), targets[scored].numpy()
