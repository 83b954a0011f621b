import math

import numpy as np
import pytest

from tests.training.toy_stage import ToyBatch
from utils.training.baselines import PRIOR_STRENGTHS, count_baselines


def row(ids):
    array = np.array([ids])
    return ToyBatch(array, np.zeros_like(array), np.arange(len(ids))[None])


def test_losses_by_hand():
    """Training pairs 1->2, 2->1, 1->2 and validation pairs 1->2, 2->3 over four ids."""
    found = count_baselines([row([1, 2, 1, 2])], [row([1, 2, 3])], vocab_size=4)
    unigram = {2: 3 / 7, 3: 1 / 7}
    assert found.unigram_loss == pytest.approx(-(math.log(unigram[2]) + math.log(unigram[3])) / 2)

    def bigram(mu):
        seen = (2 + mu * unigram[2]) / (2 + mu)
        unseen = (0 + mu * unigram[3]) / (1 + mu)
        return -(math.log(seen) + math.log(unseen)) / 2

    assert found.bigram_loss == pytest.approx(min(map(bigram, PRIOR_STRENGTHS)))
    assert bigram(found.prior_strength) == pytest.approx(found.bigram_loss)


def test_a_repeating_text_is_easy_for_bigrams_and_hard_for_unigrams():
    cycle = [row([(start + i) % 50 for i in range(200)]) for start in range(50)]
    found = count_baselines(cycle, cycle[:2], vocab_size=50)
    assert found.unigram_loss == pytest.approx(math.log(50), abs=0.01) and found.bigram_loss < 0.02


def test_pairs_across_documents_and_padding_do_not_count():
    tokens = np.array([[1, 2, 5, 6, 0]])
    mixed = ToyBatch(tokens, np.array([[0, 0, 1, 1, -1]]), np.array([[0, 1, 0, 1, 0]]))
    apart = [row([1, 2]), row([5, 6])]
    val = [row([1, 2, 5, 6, 0])]
    assert count_baselines([mixed], val, 8) == count_baselines(apart, val, 8)
