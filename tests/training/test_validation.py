import math

import numpy as np
import pytest
import torch

from tests.training.toy_stage import VOCAB, ToyBatch, toy_model
from utils.evaluation.perplexity import document_nll, measure
from utils.training.loss import mean_loss
from utils.training.validation import bits_per_byte, count_targets, spread_batches


class Numbered:
    """Rows that say their number."""

    num_rows, sequence_length = 100, 10

    def rows(self, indices):
        return np.array(indices)


@pytest.mark.parametrize(("tokens", "expected"), [(40, [0, 25, 50, 75]), (5, [0]), (10**9, list(range(100)))])
def test_rows_are_spread_evenly_up_to_the_tokens_asked_for(tokens, expected):
    assert np.concatenate(list(spread_batches(Numbered(), tokens))).tolist() == expected


def test_bits_per_byte_by_hand():
    """Targets 7 (3 bytes) and 8 (1 byte) at ln 2 nats each: 2 bits over 4 bytes."""
    batch = ToyBatch(np.array([[6, 7, 8]]), np.zeros((1, 3), int), np.arange(3)[None])
    table = np.arange(10) - 4
    table[8] = 1
    assert bits_per_byte(math.log(2), [batch], table) == pytest.approx(0.5)


def laid_out(documents: list[np.ndarray], length: int) -> ToyBatch:
    """Whole documents in rows of `length`, as many as fit, the rest padding."""
    rows = [[]]
    for document in documents:
        if sum(map(len, rows[-1])) + len(document) > length:
            rows.append([])
        rows[-1].append(document)
    columns = np.zeros((3, len(rows), length), np.int64)
    columns[1] = -1
    for i, row in enumerate(rows):
        begin = 0
        for number, document in enumerate(row):
            end = begin + len(document)
            columns[:, i, begin:end] = document, np.full(len(document), number), np.arange(len(document))
            begin = end
    return ToyBatch(*columns)


def test_validation_in_training_is_what_stage_100_measures():
    """The same documents, packed into rows and scored in windows; and a model that knows nothing."""
    draw = np.random.default_rng(0)
    documents = [draw.integers(4, VOCAB, draw.integers(2, 20)) for _ in range(30)]
    batch, model = laid_out(documents, 33), toy_model().eval()
    for weight in (40.0, 0.0):
        with torch.no_grad():
            model.lm_head.weight.mul_(weight)
        expected = measure(document_nll(model, documents, 32, 16), ["x"] * 30)
        assert count_targets([batch]) == expected.tokens
        assert mean_loss(model, [batch]) == pytest.approx(expected.nll_per_token, abs=1e-6)
    assert expected.nll_per_token == pytest.approx(math.log(VOCAB), abs=1e-6)
